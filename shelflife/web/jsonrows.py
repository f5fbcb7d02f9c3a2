"""Rows out of JSON and NDJSON.

The fast way decodes a whole body into typed rows at once (msgspec). Whatever it cannot take (one
bad row is enough) is read again, row by row, to refuse only what is wrong and to name it. Two
members of one name in an object are refused: JSON allows them, and every parser then believes
something else. The fast way finds them by arithmetic: an object has as many colons as members,
besides those within strings.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct

from core.errors import InputError
from shelflife.web.limits import Refused, problem
from shelflife.web.wire import LabelIn, LabelsIn, PredictionIn, PredictionsIn, Problem

Row = TypeVar("Row", PredictionIn, LabelIn)
Found = tuple[list[tuple[int, Row]], list[Problem]]

_ENVELOPES: dict[type[Any], tuple[str, Any, Any]] = {
    PredictionIn: (
        "predictions",
        msgspec.json.Decoder(PredictionsIn),
        msgspec.json.Decoder(PredictionIn),
    ),
    LabelIn: ("labels", msgspec.json.Decoder(LabelsIn), msgspec.json.Decoder(LabelIn)),
}
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)
_DEPTH = 8  # of lists and objects in a row
_SPACE = re.compile(r"[ \t\r\n]*")


def rows(body: bytes, kind: type[Row], most: int) -> Found[Row]:
    """The rows of `{"predictions": […]}` or `{"labels": […]}`, and those that are no rows.

    Raises:
        InputError: not JSON, not that object, or more than `most` rows.
    """
    name, whole, _ = _ENVELOPES[kind]
    try:
        found: list[Row] = getattr(whole.decode(body), name)
    except _BROKEN:
        return _slowly(_elements(body, name, most), kind, name)
    if len(found) > most:
        raise _too_many(name, most)
    if b"\\u003" in body or body.count(b":") != 1 + sum(map(_colons, found)):
        return _slowly(_elements(body, name, most), kind, name)
    return list(enumerate(found)), []


def lines(body: bytes, kind: type[Row], most: int) -> Found[Row]:
    """The rows of NDJSON, one per line; empty lines are skipped and not counted.

    Raises:
        InputError: more than `most` rows.
    """
    name, _, one = _ENVELOPES[kind]
    found, problems = list[tuple[int, Row]](), list[Problem]()
    position = -1
    for line in _split(body):
        if not line.strip():
            continue
        position += 1
        if position >= most:
            raise _too_many(name, most)
        try:
            row: Row = one.decode(line)
            strict = b"\\u003" not in line and line.count(b":") == _colons(row)
        except _BROKEN:
            strict = False
        if strict:
            found.append((position, row))
            continue
        try:
            found.append((position, _convert(_value(line), kind)))
        except InputError as error:
            problems.append(problem(position, error, at=f"{name}[{position}]"))
    return found, problems


def strict(body: bytes) -> Any:
    """Any JSON value, read strictly: UTF-8, no member twice, no NaN, no numbers without end.

    Raises:
        Refused: it is not.
    """
    value = _value(body)
    _walk(value)
    return value


def complaint(message: str, value: Any, kind: type[Any] | None = None) -> InputError:
    """What msgspec says of a value that does not fit, as field, value and what was expected.

    Args:
        kind: the struct it should have been, so that its fields can be named.
    """
    what, _, where = message.partition(" - at `")
    field = where.strip("`").removeprefix("$").removeprefix(".")
    inner = f"{field}." if field else ""
    if missing := _MISSING.match(what):
        return Refused("missing_field", f"{inner}{missing[1]}", None, "a value (required)")
    if unknown := _UNKNOWN.match(what):
        fields = getattr(kind, "__struct_fields__", ()) if not inner else ()
        expected = f"one of {', '.join(fields)}" if fields else "no such field"
        return Refused("unknown_field", f"{inner}{unknown[1]}", unknown[1], expected)
    for part in re.findall(r"[^.\[\]]+", field):
        value = _step(value, part)
    expected = what.removeprefix("Expected ").replace("`", "")
    return Refused("type", field, value, expected)


_MISSING = re.compile(r"Object missing required field `(.+?)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`")


def _step(value: Any, part: str) -> Any:
    if isinstance(value, list) and part.isdigit() and int(part) < len(value):
        return value[int(part)]
    return value.get(part, value) if isinstance(value, dict) else value


def _slowly(elements: Iterator[Any], kind: type[Row], name: str) -> Found[Row]:
    found, problems = list[tuple[int, Row]](), list[Problem]()
    for position, value in enumerate(elements):
        try:
            found.append((position, _convert(value, kind)))
        except InputError as error:
            problems.append(problem(position, error, at=f"{name}[{position}]"))
    return found, problems


def _convert(value: Any, kind: type[Row]) -> Row:
    _walk(value)
    if not isinstance(value, dict):
        raise Refused("type", "row", value, "an object")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        if "[...]" in message:  # msgspec does not say which member of a mapping
            name = message.partition("`$.")[2].partition("[")[0]
            inner = value.get(name)
            for key, each in inner.items() if isinstance(inner, dict) else ():
                if isinstance(each, dict | list):
                    field = f"{name}.{key}"
                    raise Refused("type", field, each, "one value, no list or object") from None
        raise complaint(message, value, kind) from None


def _walk(value: Any, field: str = "", depth: int = 0) -> None:
    """Refuse what only a lenient parser lets through: members twice, NaN, Infinity, depth."""
    if depth > _DEPTH:
        raise Refused("nesting", "body", "deeply nested JSON", f"at most {_DEPTH} levels")
    if isinstance(value, _Twice):
        where = f"{field}.{value.name}" if field else value.name
        raise Refused("duplicate_key", where, "the name twice", "each name once in an object")
    if isinstance(value, float) and not math.isfinite(value):
        expected = "a finite number (JSON has no NaN or Infinity; a missing value is null)"
        raise Refused("not_finite", field, value, expected)
    if isinstance(value, dict):
        for key, each in value.items():
            _walk(each, f"{field}.{key}" if field else key, depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _walk(each, f"{field}[{index}]", depth + 1)


class _Twice:
    """Stands where an object had two members of one name."""

    def __init__(self, name: str) -> None:
        self.name = name


def _pairs(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                return _Twice(key)
            seen.add(key)
    return found


def _integer(digits: str) -> int | float:
    # int() refuses thousands of digits; as a float they are Infinity, which is refused by name.
    return int(digits) if len(digits) <= 400 else float(digits)


_decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer)


def _text(body: bytes) -> str:
    try:
        found = body.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = body[error.start : error.end]
        raise Refused("encoding", "body", bad, f"UTF-8 (byte {error.start})") from None
    return found.removeprefix("\ufeff")


def _value(body: bytes) -> Any:
    whole = _text(body)
    value, end = _raw(whole, _skip(whole, 0))
    if _skip(whole, end) != len(whole):
        raise Refused("json", "body", whole[end : end + 40], "nothing after the JSON value")
    return value


def _raw(whole: str, start: int) -> tuple[Any, int]:
    try:
        value, end = _decoder.raw_decode(whole, start)
    except RecursionError:
        raise Refused("nesting", "body", "deeply nested JSON", "rows of plain values") from None
    except ValueError as error:
        raise Refused("json", "body", whole[start : start + 40], f"valid JSON ({error})") from None
    if _surrogate(whole, start, end):
        _no_surrogates(value)
    return value, end


def _surrogate(whole: str, start: int, end: int) -> bool:
    return whole.find("\\ud", start, end) >= 0 or whole.find("\\uD", start, end) >= 0


def _no_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        expected = "characters (half a surrogate pair is none)"
        raise Refused("encoding", "body", "a lone surrogate", expected) from None


def _skip(whole: str, start: int) -> int:
    found = _SPACE.match(whole, start)
    return found.end() if found else start


def _elements(body: bytes, name: str, most: int) -> Iterator[Any]:
    """The elements of the one list in the body, each decoded when it is asked for."""
    whole = _text(body)
    start = re.compile(
        r'[ \t\r\n]*\{[ \t\r\n]*"(?:[^"\\]|\\.){0,100}"[ \t\r\n]*:[ \t\r\n]*\['
    ).match(whole)
    if start is None or not re.match(rf'[ \t\r\n]*\{{[ \t\r\n]*"{name}"', whole):
        value = _value(body)
        _walk(value)
        if not isinstance(value, dict):
            raise Refused("type", "body", value, f'{{"{name}": […]}}')
        for key in value:
            if key != name:
                raise Refused("unknown_field", key, key, f'no field but "{name}"')
        if name not in value:
            raise Refused("missing_field", name, None, "a list (required)")
        if not isinstance(value[name], list):
            raise Refused("type", name, value[name], "a list")
    return _walk_list(whole, start.end() if start else 0, name, most)


def _walk_list(whole: str, position: int, name: str, most: int) -> Iterator[Any]:
    found: list[Any] = []
    position = _skip(whole, position)
    while not whole.startswith("]", position):
        if len(found) >= most:
            raise _too_many(name, most)
        value, position = _raw(whole, position)
        found.append(value)
        position = _skip(whole, position)
        if whole.startswith(",", position):
            position = _skip(whole, position + 1)
            if whole.startswith("]", position):
                raise Refused("json", "body", ",]", "valid JSON (no comma before the end)")
        elif not whole.startswith("]", position):
            raise Refused("json", "body", whole[position : position + 40], "valid JSON: , or ]")
    after = _skip(whole, position + 1)
    if whole.startswith(",", after):
        key = re.compile(r'\s*"((?:[^"\\]|\\.){0,100})').match(whole, after + 1)
        what = key[1] if key else whole[after : after + 40]
        reason = "duplicate_key" if what == name else "unknown_field"
        raise Refused(reason, what, what, f'no field but one "{name}"')
    if not whole.startswith("}", after) or _skip(whole, after + 1) != len(whole):
        raise Refused("json", "body", whole[after : after + 40], "valid JSON: } and the end")
    return iter(found)


def _too_many(name: str, most: int) -> InputError:
    return Refused("rows", name, f"over {most} rows", f"at most {most}; send several requests")


def _split(body: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        yield body[start:end]
        start = end + 1


def _colons(row: Struct) -> int:
    """The colons that a row's JSON must have: one per member, and those within its strings."""
    total = 0
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if value is UNSET:
            continue
        total += 1
        if type(value) is str:
            total += value.count(":")
        elif type(value) is dict:
            total += _within(value)
    return total


def _within(value: dict[str, Any]) -> int:
    total = len(value)
    for key, each in value.items():
        if ":" in key:
            total += key.count(":")
        kind = type(each)
        if kind is str:
            total += each.count(":")
        elif kind is dict:
            total += _within(each)
    return total
