"""Requests of the Open Inference Protocol v2 to checked columns, and answers back.

One tensor per column, shape [n] or [n, 1], `data` flat or nested; where every feature is a number,
one tensor [n, columns] in the spec's order will do. Every value is checked against the model's
spec: column by column with numpy, and only a column that fails is looked at value by value, to name
the first bad one. Arrays go to the model as they are; pandas is not needed here.

Source: Open Inference Protocol 2.0 REST, https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import difflib
import math
import os
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import compress
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from core.errors import InputError, NotFound, ShelflifeError, shown
from core.spec import ModelSpec, Scalar
from core.times import parse_time
from serving import binary, tensors
from serving.backend import Outputs
from serving.columns import (
    DATATYPE,
    KINDS,
    Column,
    Table,
    column_of_array,
    plain,
)
from serving.request import InferenceRequest, Numbers, Tensor, parse

MAX_ID = 200  # characters; the log's key holds 256, and `:<row>` is appended


class Asked(Struct, frozen=True, kw_only=True):
    """A request that may be answered."""

    id: str
    rows: int
    columns: Table  # for the model, in the spec's order
    checked: dict[str, Column] | None  # with what the log keeps; None: the finite numbers as such
    outputs: tuple[str, ...]  # wanted, in the caller's order
    binary: frozenset[str] = frozenset()  # of those, the ones wanted as bytes
    time: datetime | None = None  # event time, where the caller knows better than our clock
    within: float | None = None  # seconds after which no answer is wanted any more

    @property
    def ids(self) -> list[str]:
        """The prediction id of each row."""
        return [self.id] if self.rows == 1 else [f"{self.id}:{i}" for i in range(self.rows)]

    @property
    def values(self) -> dict[str, list[Scalar]]:
        """The columns as plain values."""
        if self.checked is None:
            return {name: array.tolist() for name, array in self.columns.items()}
        return {name: plain(each) for name, each in self.checked.items()}

    def kept(self, wanted: Sequence[bool] | None = None) -> tuple[bytes, list[list[Scalar]] | None]:
        """What the log keeps of the columns: a matrix of float64, row by row, as bytes, or else one
        list per column; only the `wanted` rows where that is given."""
        matrix = self.columns.matrix
        if self.checked is None and matrix is not None:
            return (matrix if wanted is None else matrix[np.array(wanted)]).tobytes(), None
        columns = list(self.values.values())
        if wanted is not None:
            columns = [list(compress(each, wanted)) for each in columns]
        return b"", columns


#: How many rows, the columns for the model, and what the log keeps of them (see `Asked`).
_Read = tuple[int, Table, dict[str, Column] | None]

encode = msgspec.json.Encoder().encode


class Codec:
    """Decodes requests for one model's spec."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._features = {feature.name: feature for feature in spec.features}
        self._outputs = tuple(spec.outputs)
        kinds = {feature.kind for feature in spec.features}
        self._matrix = kinds <= {"numeric", "integer"} and len(spec.features) > 1
        self._numeric = [f.name for f in spec.features if f.kind == "numeric"]
        self._names = spec.columns
        self._only_numeric = self._matrix and len(self._numeric) == len(self._names)

    def decode(self, body: bytes, *, header: int | None = None) -> Asked:
        """A request's body as checked columns.

        Args:
            header: bytes of JSON at the beginning of a body with binary tensors.

        Raises:
            InputError: anything wrong with it, naming field, value and what was expected.
        """
        if header is None:
            return self.asked(parse(body, numbers=self._only_numeric))
        return self.asked(binary.parse(body, header))

    def asked(self, request: InferenceRequest) -> Asked:
        """A request that was read, as checked columns.

        Raises:
            InputError: see `decode`.
        """
        whole = self._whole(request.inputs)
        rows, columns, checked = whole if whole is not None else self._each(request.inputs)
        outputs, as_bytes = self._wanted(request)
        return Asked(
            id=_identity(request.id),
            rows=rows,
            columns=columns,
            checked=checked,
            outputs=outputs,
            binary=as_bytes,
            time=_event_time(request.parameters),
            within=_within(request.parameters),
        )

    def _each(self, inputs: Sequence[Tensor]) -> _Read:
        """One tensor per column."""
        given = self._by_column(inputs)
        rows = tensors.rows_of(given[self._names[0]])
        block = tensors.together([given[name] for name in self._numeric], rows)
        if block is not None and len(block) == len(self._names):
            return rows, Table.of_matrix(self._names, np.ascontiguousarray(block.T)), None
        known = dict[str, Column]()
        if block is not None:
            known = {name: Column(each) for name, each in zip(self._numeric, block, strict=True)}
        checked = {
            feature.name: known[feature.name]
            if feature.name in known
            else tensors.column_of(feature, given[feature.name], rows)
            for feature in self.spec.features
        }
        return rows, Table({name: each.array for name, each in checked.items()}), checked

    def _whole(self, inputs: Sequence[Tensor]) -> _Read | None:
        """All columns in one tensor; None where the request is not that."""
        width = len(self._names)
        if not self._matrix or len(inputs) != 1:
            return None
        tensor = inputs[0]
        if len(tensor.shape) != 2 or tensor.shape[1] != width or tensor.datatype not in KINDS:
            return None
        if "numeric" not in KINDS[tensor.datatype]:
            return None
        rows = tensors.count(tensor.name, tensor.shape)
        matrix = tensors.matrix_of(tensor, rows, width)
        # The parser gives no number that is not finite.
        if self._only_numeric and (type(tensor) is Numbers or np.isfinite(matrix).all()):
            return rows, Table.of_matrix(self._names, matrix), None
        checked = {
            feature.name: column_of_array(feature, array)
            for feature, array in zip(self.spec.features, matrix.T, strict=True)
        }
        table = Table({name: each.array for name, each in checked.items()}, matrix=matrix)
        return rows, table, checked

    def _by_column(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        found = {tensor.name: tensor for tensor in inputs}
        if found.keys() == self._features.keys() and len(found) == len(inputs):
            return found
        seen = set()
        for tensor in inputs:
            if tensor.name not in self._features:
                near = difflib.get_close_matches(tensor.name, self._features, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = shown(list(self._features))
                raise InputError(tensor.name, tensor.name, f"a column of the model {known}{hint}")
            if tensor.name in seen:
                raise InputError(tensor.name, "the column twice", "each column once")
            seen.add(tensor.name)
        missing = next(f for f in self.spec.features if f.name not in found)
        expected = f"an input tensor of this name ({tensors.described(missing)}); it is missing"
        raise InputError(missing.name, None, expected)

    def _wanted(self, request: InferenceRequest) -> tuple[tuple[str, ...], frozenset[str]]:
        """The outputs asked for, and those of them that are to come as bytes."""
        given = request.parameters or {}
        every = _truth(given, "parameters.binary_data_output")
        if not request.outputs:
            return self._outputs, frozenset(self._outputs if every else ())
        names, as_bytes = list[str](), set[str]()
        for position, wanted in enumerate(request.outputs):
            field = f"outputs[{position}]"
            if wanted.name not in self._outputs:
                expected = f"one of {list(self._outputs)}"
                raise InputError(f"{field}.name", wanted.name, expected)
            if wanted.name in names:
                raise InputError(f"{field}.name", wanted.name, "each output once")
            names.append(wanted.name)
            parameters = wanted.parameters or {}
            if _truth(parameters, f"{field}.parameters.binary_data", default=every):
                as_bytes.add(wanted.name)
        return tuple(names), frozenset(as_bytes)

    def metadata(self, version: str, platform: str) -> dict[str, Any]:
        """The protocol's model metadata: what to send, what comes back."""
        inputs = [
            {
                "name": feature.name,
                "datatype": DATATYPE[feature.kind],
                "shape": [-1],
                "parameters": {"nullable": feature.nullable},
            }
            for feature in self.spec.features
        ]
        return {
            "name": self.spec.name,
            "versions": [version],
            "platform": platform,
            "inputs": inputs,
            "outputs": [{"name": n, "datatype": "FP64", "shape": [-1]} for n in self._outputs],
        }


def answer(
    asked: Asked, outputs: Outputs, *, model: str, version: str, logged: str
) -> tuple[bytes, int | None]:
    """The protocol's answer to a request, and how much of it is JSON where bytes follow."""
    described, tail = list[dict[str, object]](), list[bytes]()
    for name in asked.outputs:
        one: dict[str, object] = {"name": name, "datatype": "FP64", "shape": [asked.rows]}
        if name in asked.binary:
            tail.append(binary.numbers(outputs[name]))
            one["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            one["data"] = outputs[name].tolist()
        described.append(one)
    head = encode(
        {
            "model_name": model,
            "model_version": version,
            "id": asked.id,
            "parameters": {"shelflife_logged": logged},
            "outputs": described,
        }
    )
    return (b"".join([head, *tail]), len(head)) if asked.binary else (head, None)


def refusal(error: ShelflifeError) -> bytes:
    """The protocol's error body; a bad input's field, value and what was expected beside it."""
    body: dict[str, object] = {"error": str(error)}
    if isinstance(error, InputError):
        body |= {
            "field": error.field,
            "value": _plain(error.value),
            "expected": error.expected,
        }
    elif isinstance(error, NotFound):
        hint = str(error).partition(f"no {error.kind} {shown(error.name)}; ")[2]
        body |= {"field": error.kind, "value": _plain(error.name), "expected": hint}
    return encode(body)


class _Noise:
    """Random bytes of the system, fetched for hundreds of ids at once; a fork fetches its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes, self._at, self._process = b"", 0, 0

    def take(self) -> int:
        """80 random bits."""
        with self._lock:
            if self._at == len(self._bytes) or self._process != os.getpid():
                self._bytes, self._at, self._process = os.urandom(10 * 400), 0, os.getpid()
            self._at += 10
            return int.from_bytes(self._bytes[self._at - 10 : self._at])


_noise = _Noise()


def _fresh_id() -> str:
    """A UUID of version 7 (RFC 9562), as hex: its time comes first, so that the log's index grows
    at its end. With random ids an append touches a page per row (3 times the cost at 50 rows)."""
    milliseconds = time.time_ns() // 1_000_000
    noise = _noise.take()
    rest = (7 << 76) | ((noise >> 68 & 0xFFF) << 64) | (2 << 62) | (noise & (1 << 62) - 1)
    return f"{(milliseconds & (1 << 48) - 1) << 80 | rest:032x}"


def _identity(given: str | None) -> str:
    if not given:
        return _fresh_id()
    if len(given) > MAX_ID:
        raise InputError("id", given, f"at most {MAX_ID} characters")
    if not given.isprintable():
        raise InputError("id", given, "printable characters")
    return given


def _event_time(parameters: dict[str, Any] | None) -> datetime | None:
    given = parameters.get("event_time") if parameters else None
    if given is None:
        return None
    field, expected = "parameters.event_time", "an ISO 8601 time such as 2026-01-31T08:00:00Z"
    if not isinstance(given, str):
        raise InputError(field, given, expected)
    try:
        return parse_time(given, field=field)
    except OverflowError:  # year 1 or 9999, and an offset that leaves the calendar
        raise InputError(field, given, expected) from None


def _within(parameters: dict[str, Any] | None) -> float | None:
    """The protocol's `timeout`, in microseconds as Triton has it, as seconds."""
    given = parameters.get("timeout") if parameters else None
    if given is None:
        return None
    if type(given) is not int or not 0 <= given < 2**53:
        raise InputError("parameters.timeout", given, "whole microseconds, 0 for no limit")
    return given / 1e6 if given else None


def _truth(parameters: dict[str, Any], field: str, *, default: bool = False) -> bool:
    given = parameters.get(field.rpartition(".")[2], default)
    if type(given) is not bool:
        raise InputError(field, given, "true or false")
    return given


def _plain(value: object) -> object:
    """The value itself where JSON can hold it and it is short; otherwise as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 2**63 else shown(value)
    return value if isinstance(value, str) and len(value) <= MAX_ID else shown(value)
