"""Tensors of a request as arrays: shapes, datatypes and values checked, nothing of the model known
but its features."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from msgspec import UNSET

from core.errors import InputError
from core.spec import Feature
from serving.columns import KINDS, Column, column, column_of_array, largest
from serving.request import Numbers, Tensor

MAX_ROWS = 100_000  # of a request


def rows_of(tensor: Tensor) -> int:
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise InputError(f"{tensor.name}.shape", shape, "[n] or [n, 1] for n rows")
    return count(tensor.name, shape)


def count(name: str, shape: list[int]) -> int:
    if shape[0] < 0:
        raise InputError(f"{name}.shape", shape, "[n] or [n, 1] for n rows")
    if not shape[0]:
        raise InputError(f"{name}.shape", shape, "at least one row")
    if shape[0] > MAX_ROWS:
        raise InputError(f"{name}.shape", shape, f"at most {MAX_ROWS} rows")
    return shape[0]


def column_of(feature: Feature, tensor: Tensor, rows: int) -> Column:
    name = tensor.name
    if tensor.datatype not in KINDS or feature.kind not in KINDS[tensor.datatype]:
        raise InputError(f"{name}.datatype", tensor.datatype, described(feature))
    if rows_of(tensor) != rows:
        raise InputError(f"{name}.shape", tensor.shape, f"{rows} rows, as in the first column")
    if tensor.data is UNSET:
        raise InputError(f"{name}.data", None, "a list of values, or bytes after the JSON")
    if isinstance(tensor.data, np.ndarray):
        _length(name, len(tensor.data), rows, tensor.shape)
        return column_of_array(feature, tensor.data)
    data = _flat(name, tensor.data)
    _length(name, len(data), rows, tensor.shape)
    return column(feature, tensor.datatype, data)


def _length(name: str, found: int, expected: int, shape: list[int]) -> None:
    if found != expected:
        text = f"{expected} values, as the shape {shape} says"
        raise InputError(f"{name}.data", f"{found} values", text)


def matrix_of(tensor: Tensor, rows: int, width: int) -> np.ndarray:
    """All columns in one float64 array; a null is NaN here, and judged column by column."""
    name = tensor.name
    data: Any = tensor.data
    if data is UNSET:
        raise InputError(f"{name}.data", None, "a list of values, or bytes after the JSON")
    if isinstance(tensor, Numbers):
        data = np.frombuffer(array("d", data))  # a third of what np.array takes
        if tensor.datatype != "FP64":
            _held(name, tensor.datatype, data)
    elif not isinstance(data, np.ndarray):
        if data and type(data[0]) is list:
            data = _joined(name, data, width)
        if not set(map(type, data)) <= {int, float, type(None)}:
            bad = next(value for value in data if type(value) not in (int, float, type(None)))
            raise InputError(f"{name}.data", bad, "numbers, or rows of numbers")
        _length(name, len(data), rows * width, tensor.shape)
        try:
            data = np.array(data, dtype=np.float64)
        except OverflowError:
            raise InputError(f"{name}.data", max(data, key=abs), "numbers within 64 bits") from None
        if tensor.datatype != "FP64":
            _held(name, tensor.datatype, data)
    _length(name, len(data), rows * width, tensor.shape)
    matrix: np.ndarray = data.astype(np.float64, copy=False).reshape(rows, width)
    return matrix


def _held(name: str, datatype: str, values: np.ndarray) -> None:
    """Refuse numbers that the tensor's own datatype could not hold."""
    low, high = largest(datatype)
    wrong = (values < low) | (values > high)
    if not datatype.startswith("FP"):
        wrong |= (values != np.trunc(values)) & ~np.isnan(values)
    if wrong.any():
        raise InputError(f"{name}.data", values[wrong][0].item(), f"a number that {datatype} holds")


def together(tensors: Sequence[Tensor], rows: int) -> np.ndarray | None:
    """Columns of numbers as one array [columns, rows], checked at once; None where one of them is
    not simply that, and each is to be looked at."""
    for tensor in tensors:
        simple = tensor.datatype == "FP64" and tensor.shape in ([rows], [rows, 1])
        if not simple or type(tensor.data) is not list or len(tensor.data) != rows:
            return None
    joined = list(chain.from_iterable(tensor.data for tensor in tensors))  # type: ignore[misc]
    seen = tensors and all(isinstance(tensor, Numbers) for tensor in tensors)
    if not joined or not (seen or set(map(type, joined)) <= {float, int}):
        return None
    try:
        block = np.frombuffer(array("d", joined))  # a third of what np.array takes
    except OverflowError:
        return None
    return block.reshape(len(tensors), rows) if np.isfinite(block).all() else None


def _joined(name: str, data: list[Any], width: int) -> list[Any]:
    for row in data:
        if type(row) is not list or len(row) != width:
            raise InputError(f"{name}.data", row, f"rows of {width} values each")
    return [value for row in data for value in row]


def _flat(name: str, data: list[Any]) -> list[Any]:
    if list not in set(map(type, data)):
        return data
    flat = []
    for item in data:
        if type(item) is not list or len(item) != 1:
            raise InputError(f"{name}.data", item, "values, or rows of one value each")
        if type(item[0]) is list:
            raise InputError(f"{name}.data", item, "lists at most 2 deep")
        flat.append(item[0])
    return flat


def described(feature: Feature) -> str:
    accepted = ", ".join(name for name, kinds in KINDS.items() if feature.kind in kinds)
    return f"{feature.kind} values as {accepted}" if accepted else feature.kind
