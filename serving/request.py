"""The protocol's request as a structure, read strictly: JSON that parsers disagree on is refused.

Source: Open Inference Protocol 2.0 REST, https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from core.errors import InputError

_MAX_DEPTH = 2  # [[1], [2]]: rows of one value each


class Tensor(Struct):
    """One input as it came; `serving.binary` puts an array for `data` where it came as bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


class Numbers(Tensor):
    """A `Tensor` whose data are numbers and nothing else, which the parser itself has seen."""

    data: list[float] | UnsetType = UNSET


class WantedOutput(Struct):
    """An output that the caller asks for by name."""

    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(Struct):
    """The body of `POST …/infer`; keys the protocol does not know are ignored."""

    inputs: Sequence[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[WantedOutput] | None = None


class _Any(InferenceRequest):
    inputs: list[Tensor]


class _Numeric(InferenceRequest):
    inputs: Sequence[Numbers]


_request = msgspec.json.Decoder(_Any)
_numeric = msgspec.json.Decoder(_Numeric)


def parse(body: bytes, *, numbers: bool = False) -> InferenceRequest:
    """A body as the protocol's structure, its values not yet looked at.

    Args:
        numbers: expect plain lists of numbers, which are then known to be that; whatever else it
            holds is read as without it.

    Raises:
        InputError: not JSON, not UTF-8, nested too deep, or not that structure.
    """
    if numbers:
        with suppress(ValueError, RecursionError):
            return _checked(_numeric.decode(body), body)
    try:
        return _checked(_request.decode(body), body)
    except msgspec.ValidationError as error:
        raise _misfit(body, str(error)) from None
    except RecursionError:
        expected = f"lists at most {_MAX_DEPTH} deep"
        raise InputError("body", "deeply nested JSON", expected) from None
    except UnicodeDecodeError as error:
        raise InputError("body", error.object[error.start : error.end], "JSON in UTF-8") from None
    except ValueError as error:  # msgspec.DecodeError, and integers of thousands of digits
        raise _not_finite(body) or InputError("body", str(error), "valid JSON") from None


def _checked(request: InferenceRequest, body: bytes) -> InferenceRequest:
    if b"\\u003" in body or body.count(b":") != _colons(request):
        _once(body)
    return request


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
