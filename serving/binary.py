"""Tensors as bytes: after the JSON of a REST request, or in `raw_input_contents` of gRPC.

Numbers are little-endian and as wide as their datatype says, truths one byte each, texts
(`BYTES`) their length in four bytes, little-endian, before their UTF-8. A missing number is NaN.

Source: Triton's binary tensor data extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from core.errors import InputError
from serving.columns import KINDS
from serving.request import InferenceRequest, Tensor
from serving.request import parse as parse_json

_DTYPES = {
    "BOOL": np.dtype("u1"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}


def parse(body: bytes, header: int) -> InferenceRequest:
    """A body of JSON and then bytes as one request.

    Args:
        header: how many bytes the JSON has (`Inference-Header-Content-Length`).

    Raises:
        InputError: there are fewer bytes, or more, or they are not what the tensors promise.
    """
    if header > len(body):
        expected = f"at most the {len(body)} bytes of the body"
        raise InputError("Inference-Header-Content-Length", header, expected)
    request = parse_json(body[:header])
    rest, start = memoryview(body)[header:], 0
    for tensor in request.inputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        field = f"{tensor.name}.parameters.binary_data_size"
        if type(size) is not int or not 0 <= size <= len(rest) - start:
            raise InputError(field, size, f"at most the {len(rest) - start} bytes that are left")
        if tensor.data is not UNSET:
            raise InputError(f"{tensor.name}.data", "a list", "no data beside binary_data_size")
        fill(tensor, rest[start : start + size])
        start += size
    if start != len(rest):
        raise InputError(
            "body", f"{len(rest)} bytes after the JSON", f"{start}, as its tensors say"
        )
    return request


def fill(tensor: Tensor, raw: memoryview | bytes) -> None:
    """Put the values that the bytes mean into a tensor.

    Raises:
        InputError: an unknown datatype, or bytes that are not whole values of it.
    """
    found: Any
    if tensor.datatype == "BYTES":
        found = texts(raw, tensor.name)
    elif tensor.datatype in _DTYPES and tensor.datatype in KINDS:
        dtype = _DTYPES[tensor.datatype]
        if len(raw) % dtype.itemsize:
            expected = f"a multiple of {dtype.itemsize} ({tensor.datatype})"
            raise InputError(f"{tensor.name}.data", f"{len(raw)} bytes", expected)
        found = np.frombuffer(raw, dtype=dtype)
        if tensor.datatype == "BOOL":
            if (found > 1).any():
                raise InputError(tensor.name, int(found.max()), "0 or 1 (BOOL)")
            found = found.astype(np.bool_)
    else:
        expected = f"one of {sorted(KINDS)}"
        raise InputError(f"{tensor.name}.datatype", tensor.datatype, expected)
    tensor.data = found


def texts(raw: memoryview | bytes, name: str) -> list[str]:
    """Texts, each with its length before it.

    Raises:
        InputError: they end too early, or are not UTF-8.
    """
    found, start, data = list[str](), 0, bytes(raw)
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "little")
        start += 4
        if start + size > len(data):
            raise InputError(f"{name}.data", f"{len(data)} bytes", f"{start + size} or more")
        found.append(text(data[start : start + size], name))
        start += size
    return found


def text(raw: bytes, name: str) -> str:
    """One text.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(name, raw[error.start : error.end], "texts in UTF-8") from None


def numbers(values: np.ndarray | Sequence[float]) -> bytes:
    """An output as FP64 bytes."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()
