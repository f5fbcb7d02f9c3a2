"""One column of values checked against its feature, all at once; no JSON and no pandas here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from core.errors import InputError
from core.spec import Feature, Kind, ModelSpec, Scalar

MAX_TEXT = 10_000  # characters of one category

#: What a column of each kind is declared as in the model's metadata.
DATATYPE: Mapping[Kind, str] = {
    "numeric": "FP64",
    "integer": "INT64",
    "boolean": "BOOL",
    "categorical": "BYTES",
}
_WHOLE = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_LARGEST = {"FP16": 65504.0, "FP32": 3.4028234663852886e38, "FP64": 1.7976931348623157e308}
#: Feature kinds that each datatype may carry. Integers in floats are common: pandas makes them.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "BOOL": ("boolean",),
    **dict.fromkeys(sorted(_WHOLE), ("numeric", "integer")),
    **dict.fromkeys(_LARGEST, ("numeric", "integer")),
    "BYTES": ("categorical",),
}


class Column(NamedTuple):
    """A checked column: the array a model takes, and the plain values the log keeps."""

    array: np.ndarray
    values: list[Scalar]


def column(feature: Feature, datatype: str, data: list[Any]) -> Column:
    """Check every value of a column.

    Args:
        datatype: one of `KINDS`, which has been found to suit the feature.
        data: at least one value, as JSON gave them.

    Raises:
        InputError: the first value that does not fit, with its row if there are several.
    """
    types = set(map(type, data))
    missing = type(None) in types
    types.discard(type(None))
    if not (missing and not feature.nullable) and types <= _TYPES[feature.kind]:
        found = _BUILD[feature.kind](feature, datatype, data, missing)
        if found is not None:
            return found
    raise _first_bad(feature, datatype, data)


def columns_of(spec: ModelSpec, values: Mapping[str, list[Any]]) -> dict[str, np.ndarray]:
    """Arrays for a model from plain values by column, checked like a request's.

    Raises:
        InputError: a value that does not fit.
    """
    return {f.name: column(f, DATATYPE[f.kind], values[f.name]).array for f in spec.features}


def _numbers(feature: Feature, datatype: str, data: list[Any], missing: bool) -> Column | None:
    array = _floats(datatype, data, missing)
    if array is None:
        return None
    numbers = array.tolist()
    return Column(array, [None if v != v else v for v in numbers] if missing else numbers)


def _floats(datatype: str, data: list[Any], missing: bool) -> np.ndarray | None:
    try:
        array = np.array(data, dtype=np.float64)  # None becomes NaN
    except OverflowError:  # an integer beyond a float's range
        return None
    return array if _fits(array, datatype, data, missing) else None


def _integers(feature: Feature, datatype: str, data: list[Any], missing: bool) -> Column | None:
    array = _floats(datatype, data, missing)
    if array is None:
        return None
    if float in set(map(type, data)):
        # 2^63 is a float and no int64; the largest float below it is.
        if not np.all((array == np.trunc(array)) & (np.abs(array) < 2.0**63) | np.isnan(array)):
            return None
        data = [None if value is None else int(value) for value in data]
    present = [value for value in data if value is not None] if missing else data
    if present and not (min(present) >= -(2**63) and max(present) < 2**63):
        return None
    return Column(array if feature.nullable else np.array(data, dtype=np.int64), data)


def _fits(array: np.ndarray, datatype: str, data: list[Any], missing: bool) -> bool:
    finite = np.isfinite(array)
    if not finite.all() and not (missing and data.count(None) == len(data) - finite.sum()):
        return False
    if datatype in _LARGEST:
        return datatype == "FP64" or not (np.abs(array) > _LARGEST[datatype]).any()
    low, high = _bounds(datatype)
    present = [value for value in data if value is not None] if missing else data
    return not present or (
        low <= min(present) and max(present) <= high and bool((array[finite] % 1 == 0).all())
    )


def _bounds(datatype: str) -> tuple[int, int]:
    bits = int(datatype.removeprefix("U").removeprefix("INT"))
    return (
        (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def _truths(feature: Feature, datatype: str, data: list[Any], missing: bool) -> Column | None:
    return Column(np.array(data, dtype=np.float64 if feature.nullable else np.bool_), data)


def _texts(feature: Feature, datatype: str, data: list[Any], missing: bool) -> Column | None:
    if max((len(value) for value in data if value is not None), default=0) > MAX_TEXT:
        return None
    return Column(np.array(data, dtype=object), data)


_TYPES: Mapping[Kind, set[type]] = {
    "numeric": {int, float},
    "integer": {int, float},
    "boolean": {bool},
    "categorical": {str},
}
_BUILD: Mapping[Kind, Callable[[Feature, str, list[Any], bool], Column | None]] = {
    "numeric": _numbers,
    "integer": _integers,
    "boolean": _truths,
    "categorical": _texts,
}


def _first_bad(feature: Feature, datatype: str, data: list[Any]) -> InputError:
    for row, value in enumerate(data):
        try:
            feature.check(value)
            _check_range(feature, datatype, value)
        except InputError as error:
            where = f" in row {row}" if len(data) > 1 else ""
            return InputError(error.field, error.value, error.expected + where)
    return InputError(feature.name, data, f"{feature.kind} values as {datatype}")


def _check_range(feature: Feature, datatype: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise InputError(feature.name, value, f"at most {MAX_TEXT} characters")
    elif datatype in _WHOLE:
        low, high = _bounds(datatype)
        if value != int(value) or not low <= value <= high:
            raise InputError(
                feature.name, value, f"a whole number from {low} to {high} ({datatype})"
            )
    elif datatype in _LARGEST and abs(value) > _LARGEST[datatype]:
        raise InputError(feature.name, value, f"a number within {datatype}")
