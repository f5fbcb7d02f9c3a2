"""Open Inference Protocol v2 JSON to checked columns, and answers back to JSON.

One tensor per column, shape [n] or [n, 1], `data` flat or nested. Every value is checked against
the model's spec: column by column with numpy, and only a column that fails is looked at value by
value, to name the first bad one. pandas is not needed here.

Source: Open Inference Protocol 2.0 REST, https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from core.errors import InputError, NotFound, ShelflifeError, shown
from core.spec import Feature, ModelSpec, Scalar
from core.times import parse_time
from serving.backend import Outputs
from serving.columns import DATATYPE, KINDS, Column, column

MAX_ROWS = 100_000  # of a request
MAX_ID = 200  # characters; the log's key holds 256, and `:<row>` is appended
_MAX_DEPTH = 2  # [[1], [2]]: rows of one value each


class Tensor(Struct):
    """One input column as it came."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


class WantedOutput(Struct):
    """An output that the caller asks for by name."""

    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(Struct):
    """The body of `POST …/infer`; keys the protocol does not know are ignored."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[WantedOutput] | None = None


class Asked(Struct, frozen=True, kw_only=True):
    """A request that may be answered."""

    id: str
    rows: int
    columns: dict[str, np.ndarray]  # for the model, in the spec's order
    values: dict[str, list[Scalar]]  # the same, for the log
    outputs: tuple[str, ...]  # wanted, in the caller's order
    time: datetime | None = None  # event time, where the caller knows better than our clock

    @property
    def ids(self) -> list[str]:
        """The prediction id of each row."""
        return [self.id] if self.rows == 1 else [f"{self.id}:{i}" for i in range(self.rows)]

    def records(self) -> list[dict[str, Scalar]]:
        """Row by row, as the log keeps them."""
        names = list(self.values)
        return [
            dict(zip(names, row, strict=True)) for row in zip(*self.values.values(), strict=True)
        ]


_request = msgspec.json.Decoder(InferenceRequest)
encode = msgspec.json.Encoder().encode


class Codec:
    """Decodes requests for one model's spec."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._features = {feature.name: feature for feature in spec.features}
        self._outputs = tuple(spec.outputs)

    def decode(self, body: bytes) -> Asked:
        """A request's body as checked columns.

        Raises:
            InputError: anything wrong with it, naming field, value and what was expected.
        """
        request = parse(body)
        tensors = self._by_column(request.inputs)
        rows = _rows(tensors[self.spec.features[0].name])
        columns, values = {}, {}
        for feature in self.spec.features:
            checked = _column(feature, tensors[feature.name], rows)
            columns[feature.name], values[feature.name] = checked.array, checked.values
        return Asked(
            id=_identity(request.id),
            rows=rows,
            columns=columns,
            values=values,
            outputs=self._wanted(request.outputs),
            time=_event_time(request.parameters),
        )

    def _by_column(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        found = {tensor.name: tensor for tensor in tensors}
        if found.keys() == self._features.keys() and len(found) == len(tensors):
            return found
        seen = set()
        for tensor in tensors:
            if tensor.name not in self._features:
                near = difflib.get_close_matches(tensor.name, self._features, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = shown(list(self._features))
                raise InputError(tensor.name, tensor.name, f"a column of the model {known}{hint}")
            if tensor.name in seen:
                raise InputError(tensor.name, "the column twice", "each column once")
            seen.add(tensor.name)
        missing = next(f for f in self.spec.features if f.name not in found)
        expected = f"an input tensor of this name ({_describe(missing)}); it is missing"
        raise InputError(missing.name, None, expected)

    def _wanted(self, outputs: Sequence[WantedOutput] | None) -> tuple[str, ...]:
        if not outputs:
            return self._outputs
        for position, wanted in enumerate(outputs):
            if wanted.name not in self._outputs:
                expected = f"one of {list(self._outputs)}"
                raise InputError(f"outputs[{position}].name", wanted.name, expected)
        return tuple(wanted.name for wanted in outputs)

    def metadata(self, version: str, platform: str) -> dict[str, object]:
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


def answer(asked: Asked, outputs: Outputs, *, model: str, version: str, logged: str) -> bytes:
    """The protocol's answer to a request."""
    return encode(
        {
            "model_name": model,
            "model_version": version,
            "id": asked.id,
            "parameters": {"shelflife_logged": logged},
            "outputs": [
                {
                    "name": name,
                    "datatype": "FP64",
                    "shape": [asked.rows],
                    "data": outputs[name].tolist(),
                }
                for name in asked.outputs
            ],
        }
    )


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


def parse(body: bytes) -> InferenceRequest:
    """A body as the protocol's structure, its values not yet looked at.

    Raises:
        InputError: not JSON, not UTF-8, nested too deep, or not that structure.
    """
    try:
        request = _request.decode(body)
        if b"\\u003" in body or body.count(b":") != _colons(request):
            _once(body)
        return request
    except msgspec.ValidationError as error:
        raise _misfit(body, str(error)) from None
    except RecursionError:
        expected = f"lists at most {_MAX_DEPTH} deep"
        raise InputError("body", "deeply nested JSON", expected) from None
    except UnicodeDecodeError as error:
        raise InputError("body", error.object[error.start : error.end], "JSON in UTF-8") from None
    except ValueError as error:  # msgspec.DecodeError, and integers of thousands of digits
        raise _not_finite(body) or InputError("body", str(error), "valid JSON") from None


def _once(body: bytes) -> None:
    """Refuse a body in which an object has a name twice.

    JSON allows it and parsers disagree on what it means. Asked only when there are more colons than
    the decoded members and strings account for: unknown members, or members twice.
    """

    def pairs(found: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in found]
        if len(set(names)) < len(names):
            name = next(n for i, n in enumerate(names) if n in names[:i])
            raise InputError(name, "the name twice", "each name once in an object")

    json.loads(body, object_pairs_hook=pairs)


def _colons(request: InferenceRequest) -> int:
    """The colons of a plain request: one per member, and those in its id and parameters.

    Tensors are taken to have their four members and no colon in them: counting would cost more
    than looking twice where there are some.
    """
    total = 1 + 4 * len(request.inputs)
    if request.id is not None:
        total += 1 + request.id.count(":")
    if request.parameters is not None:
        total += 1 + len(request.parameters)
        texts = [each for each in request.parameters.values() if isinstance(each, str)]
        total += sum(each.count(":") for each in texts)
    if request.outputs is not None:
        total += 1 + len(request.outputs)
    return total


def _misfit(body: bytes, message: str) -> InputError:
    text, _, where = message.partition(" - at `$.")
    field = where.rstrip("`") or "body"
    if text.startswith("Number out of range"):
        return _not_finite(body) or InputError(field, text, "a finite number")
    if text.startswith("Object missing required field"):
        name = text.split("`")[1]
        field = name if field == "body" else f"{field}.{name}"
        return InputError(field, None, f"`{name}` (required)")
    expected, _, got = text.removeprefix("Expected ").partition(", got ")
    return InputError(field, got.strip("`") or text, expected.replace("`", ""))


def _not_finite(body: bytes) -> InputError | None:
    """The first NaN or Infinity of a body that is JSON but for those; None if there is none."""
    try:
        loose = json.loads(body)
    except (ValueError, RecursionError):
        return None
    tensors = loose.get("inputs") if isinstance(loose, dict) else None
    for tensor in tensors if isinstance(tensors, list) else ():
        data = tensor.get("data") if isinstance(tensor, dict) else None
        for value in _leaves(data):
            if isinstance(value, float) and not math.isfinite(value):
                expected = "a finite number (JSON has no NaN or Infinity; a missing value is null)"
                return InputError(str(tensor.get("name", "inputs")), value, expected)
    return None


def _leaves(data: object, depth: int = _MAX_DEPTH) -> list[object]:
    if not isinstance(data, list):
        return [data]
    if not depth:
        return []
    return [leaf for item in data for leaf in _leaves(item, depth - 1)]


def _rows(tensor: Tensor) -> int:
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 0:
        raise InputError(f"{tensor.name}.shape", shape, "[n] or [n, 1] for n rows")
    if not shape[0]:
        raise InputError(f"{tensor.name}.shape", shape, "at least one row")
    if shape[0] > MAX_ROWS:
        raise InputError(f"{tensor.name}.shape", shape, f"at most {MAX_ROWS} rows")
    return shape[0]


def _column(feature: Feature, tensor: Tensor, rows: int) -> Column:
    name = tensor.name
    if tensor.datatype not in KINDS or feature.kind not in KINDS[tensor.datatype]:
        raise InputError(f"{name}.datatype", tensor.datatype, _describe(feature))
    if _rows(tensor) != rows:
        raise InputError(f"{name}.shape", tensor.shape, f"{rows} rows, as in the first column")
    if tensor.data is UNSET:
        raise InputError(f"{name}.data", None, "a list of values (binary tensors are not accepted)")
    data = _flat(name, tensor.data)
    if len(data) != rows:
        expected = f"{rows} values, as the shape {tensor.shape} says"
        raise InputError(f"{name}.data", f"{len(data)} values", expected)
    return column(feature, tensor.datatype, data)


def _flat(name: str, data: list[Any]) -> list[Any]:
    if list not in set(map(type, data)):
        return data
    flat = []
    for item in data:
        if type(item) is not list or len(item) != 1:
            raise InputError(f"{name}.data", item, "values, or rows of one value each")
        if type(item[0]) is list:
            raise InputError(f"{name}.data", item, f"lists at most {_MAX_DEPTH} deep")
        flat.append(item[0])
    return flat


def _fresh_id() -> str:
    """A UUID of version 7 (RFC 9562), as hex: its time comes first, so that the log's index grows
    at its end. With random ids an append touches a page per row (3 times the cost at 50 rows)."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10))
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


def _describe(feature: Feature) -> str:
    accepted = ", ".join(name for name, kinds in KINDS.items() if feature.kind in kinds)
    return f"{feature.kind} values as {accepted}" if accepted else feature.kind


def _plain(value: object) -> object:
    """The value itself where JSON can hold it and it is short; otherwise as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 2**63 else shown(value)
    return value if isinstance(value, str) and len(value) <= MAX_ID else shown(value)
