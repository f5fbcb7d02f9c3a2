"""What callers hand the client (dicts, frames, arrays, numpy scalars) as rows of JSON.

Nothing here imports pandas or numpy: their objects are recognised by what they can do (`tolist`,
`item`, `to_dict`), so a service that has neither pays for neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode  # NaN and infinities become null
_PLAIN = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})
_MAX_ID = 256  # as the server's


def row(
    identity: str, moment: str, version: str, inputs: object, outputs: object, source: str
) -> bytes:
    """One prediction as the server reads it: a JSON object.

    Raises:
        ValueError: something that no JSON value stands for.
    """
    found = {
        "id": checked_id(identity),
        "time": moment,
        "inputs": values(inputs, "input"),
        "outputs": values(outputs, "prediction"),
        "source": source,
    }
    if version:  # otherwise the server names the champion of that time
        found["version"] = version
    return _encode(found)


def label(identity: str, value: object, moment: str) -> bytes:
    """One label as the server reads it: a JSON object.

    Raises:
        ValueError: no value, or one that is no JSON scalar.
    """
    found = scalar(value)
    if found is None or found != found or found in (float("inf"), float("-inf")):
        raise ValueError(f"the label of {identity!r} is {value!r}: no label at all")
    return _encode({"id": checked_id(identity), "label": found, "time": moment})


def checked_id(identity: object) -> str:
    """The id as text of 1 to 256 characters.

    Raises:
        ValueError: it is empty or longer.
    """
    text = identity if type(identity) is str else str(scalar(identity))
    if not 0 < len(text) <= _MAX_ID:
        raise ValueError(f"an id has 1 to {_MAX_ID} characters, not {len(text)}")
    return text


def values(given: Any, name: str) -> Mapping[str, Any]:
    """A mapping, a pandas row or a single value (then called `name`) with plain values only."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if not hasattr(given, "to_dict"):
            return {name: scalar(given)}
        given = given.to_dict()
    if _PLAIN.issuperset(map(type, given.values())) and _TEXT.issuperset(map(type, given)):
        plain: Mapping[str, Any] = given
        return plain
    return {str(key): scalar(value) for key, value in given.items()}


def scalar(value: Any) -> Any:
    """The JSON scalar of a value; missing ones (None, NaN, NaT, `pandas.NA`) are None.

    Raises:
        ValueError: it is a list, a dict or another thing with parts.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, datetime):
        return iso(value) if value == value else None
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _of_numpy(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):  # a subclass: an IntEnum, a numpy string
            return kind(value)
    if type(value).__name__ == "NAType":
        return None
    if isinstance(value, list | tuple | set | Mapping | bytes):
        raise ValueError(f"a {type(value).__name__} is no single value")
    return str(value)


def _of_numpy(value: Any) -> Any:
    """A numpy scalar, or an array of one value."""
    found = value.tolist()
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    if type(found) in _PLAIN or isinstance(found, date):
        return scalar(found)
    if type(value).__name__ == "datetime64":
        return None if str(value) == "NaT" else str(value)
    raise ValueError(f"an array of several values ({type(value).__name__}) is no single value")


def iso(moment: object) -> str:
    """A moment as ISO 8601 in UTC; naive ones are taken to be UTC, numbers are epoch seconds.

    Raises:
        ValueError: it is no moment.
    """
    if isinstance(moment, str):
        return moment
    if type(moment).__name__ == "datetime64":
        moment = datetime.fromisoformat(str(moment)[:26])
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        moment = datetime.fromtimestamp(moment, tz=UTC)
    if not isinstance(moment, datetime) or moment != moment:
        raise ValueError(f"{moment!r} is no moment: give a datetime, ISO 8601 or epoch seconds")
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.replace(tzinfo=None).isoformat() + "Z"


def rows_of(inputs: Any) -> list[Any] | None:
    """The rows of a batch; None when `inputs` is one row.

    A batch is a DataFrame, a list of mappings, or a mapping of columns (lists or arrays of one
    length).

    Raises:
        ValueError: columns of different lengths.
    """
    if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):
        names = [str(name) for name in inputs.columns]
        columns = [_listed(inputs[name]) for name in inputs.columns]
        return [dict(zip(names, each, strict=True)) for each in zip(*columns, strict=True)]
    if isinstance(inputs, Mapping):
        if not inputs or not all(_is_column(value) for value in inputs.values()):
            return None
        names = [str(name) for name in inputs]
        columns = [_listed(value) for value in inputs.values()]
        return [dict(zip(names, each, strict=True)) for each in zip(*columns, strict=True)]
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        return list(inputs)
    return None


def each_of(given: Any, count: int, name: str) -> Iterable[Any]:
    """One value per row: a list's own, or the same for all.

    Raises:
        ValueError: a list of another length.
    """
    batch = rows_of(given) if not isinstance(given, str) else None
    if batch is None and _is_column(given):
        batch = _listed(given)
    if batch is None:
        return [given] * count
    if len(batch) != count:
        raise ValueError(f"{name}: {len(batch)} values for {count} rows")
    return batch


def _is_column(value: Any) -> bool:
    if isinstance(value, str | bytes | Mapping):
        return False
    shape = getattr(value, "shape", None)
    return bool(shape) if shape is not None else isinstance(value, Sequence)


def _listed(column: Any) -> list[Any]:
    return list(column.tolist()) if hasattr(column, "tolist") else list(column)
