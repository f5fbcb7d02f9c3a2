"""One column of values checked against its feature, all at once; no JSON and no pandas here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """A checked column: the array a model takes, and the plain values the log keeps, where they
    are not simply the array's (see `plain`)."""

    array: np.ndarray
    values: list[Scalar] | None = None


class Table(Mapping[str, np.ndarray]):
    """Columns by name.

    Attributes:
        names: of the columns, in the spec's order.
        matrix: the same as one float64 array [rows, columns], where a request came as one; the
            columns are views of it, made when somebody asks for them: most interpreters do not.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray] | None = None,
        *,
        names: Sequence[str] = (),
        matrix: np.ndarray | None = None,
    ) -> None:
        self.names = names if columns is None else tuple(columns)
        self.matrix, self._columns = matrix, columns

    @classmethod
    def of_matrix(cls, names: Sequence[str], matrix: np.ndarray) -> Table:
        """The columns of a matrix."""
        return cls(names=names, matrix=matrix)

    def _all(self) -> Mapping[str, np.ndarray]:
        if self._columns is None:
            assert self.matrix is not None  # noqa: S101 - one of the two is given
            self._columns = dict(zip(self.names, self.matrix.T, strict=True))
        return self._columns

    def __getitem__(self, name: str) -> np.ndarray:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def stacked(parts: Sequence[Mapping[str, np.ndarray]]) -> Table:
    """The rows of several requests one below the other; they have the same columns."""
    names = tuple(parts[0])
    matrices = [matrix for part in parts if (matrix := getattr(part, "matrix", None)) is not None]
    if len(matrices) == len(parts):
        return Table.of_matrix(names, np.concatenate(matrices))
    return Table({name: np.concatenate([part[name] for part in parts]) for name in names})


def plain(column: Column) -> list[Scalar]:
    """A column as the log keeps it: NaN is a missing value."""
    if column.values is not None:
        return column.values
    found: list[Scalar] = column.array.tolist()
    if column.array.dtype.kind == "f" and np.isnan(column.array).any():
        return [None if value != value else value for value in found]
    return found


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
    if feature.nullable and any(value != value for value in data):  # NaN is a missing value
        present = [None if value != value else value for value in data]
        return column(feature, datatype, present)
    raise _first_bad(feature, datatype, data)


def columns_of(spec: ModelSpec, values: Mapping[str, list[Any]]) -> Table:
    """Arrays for a model from plain values by column, checked like a request's.

    Raises:
        InputError: a value that does not fit.
    """
    return Table({f.name: column(f, DATATYPE[f.kind], values[f.name]).array for f in spec.features})


def column_of_array(feature: Feature, array: np.ndarray) -> Column:
    """Check a column that came as an array (binary tensors, Arrow): numbers or truths, in which
    NaN is a missing value.

    Raises:
        InputError: the first value that does not fit, with its row if there are several.
    """
    kind = array.dtype.kind
    if feature.kind == "boolean":
        if kind != "b":
            raise InputError(feature.name, str(array.dtype), "truth values")
        return Column(array.astype(np.float64) if feature.nullable else array, array.tolist())
    floats = array.astype(np.float64)
    fits = np.isfinite(floats)
    if feature.nullable and kind == "f":
        fits |= np.isnan(floats)
    if feature.kind == "integer" and kind != "f":
        fits &= array <= np.uint64(2**63 - 1) if kind == "u" else True
    elif feature.kind == "integer":
        with np.errstate(invalid="ignore"):
            whole = (floats == np.trunc(floats)) & (np.abs(floats) < 2.0**63)
        fits &= whole | np.isnan(floats)
    if not fits.all():
        row = int(np.argmin(fits))
        where = f" in row {row}" if len(array) > 1 else ""
        raise InputError(feature.name, array[row].item(), f"{_expected(feature)}{where}")
    if feature.kind == "numeric":
        return Column(floats)
    if not feature.nullable:
        return Column(array.astype(np.int64))
    return Column(floats, [None if v != v else int(v) for v in array.tolist()])


def _expected(feature: Feature) -> str:
    what = "a whole number within 64 bits" if feature.kind == "integer" else "a finite number"
    return what if not feature.nullable else f"{what}, or NaN where it is missing"


def _numbers(feature: Feature, datatype: str, data: list[Any], missing: bool) -> Column | None:
    array = _floats(datatype, data, missing)
    if array is None:
        return None
    return Column(array)


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


def largest(datatype: str) -> tuple[float, float]:
    """The least and the greatest number of a numeric datatype."""
    if datatype in _LARGEST:
        return -_LARGEST[datatype], _LARGEST[datatype]
    low, high = _bounds(datatype)
    return float(low), float(high)


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
