"""What a logged column looks like when it is read, the same from every store.

    whole numbers                       int64
    ... some of them missing            float64, or object where one is beyond 2**53
    numbers, missing or not finite      float64 (NaN where missing)
    true and false                      bool, or object where one is missing
    strings                             str (NaN where missing)
    nothing but missing values          object (None)
    anything mixed                      object, values as logged (None where missing)

NaN and infinities are missing values: JSON, in which rows travel, has no words for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.times import micros

EXACT = 2**53  #: whole numbers up to here are exact as float64


def series(values: Iterable[object]) -> pd.Series:
    """Logged values as a column of the type in the table above."""
    given = [None if _missing(value) else value for value in values]
    kinds = {type(value) for value in given}
    kinds.discard(type(None))
    gaps = any(value is None for value in given)
    if kinds <= {int, float} and kinds:
        return _numbers(given, whole=kinds == {int}, gaps=gaps)
    if kinds == {bool} and not gaps:
        return pd.Series(given, dtype=bool)
    if kinds == {str}:
        return pd.Series(given, dtype="str")
    return pd.Series(given, dtype=object)


def _numbers(given: list[Any], *, whole: bool, gaps: bool) -> pd.Series:
    big = any(isinstance(v, int) and abs(v) > EXACT for v in given)
    if whole and not gaps and all(-(2**63) <= value < 2**63 for value in given):
        return pd.Series(given, dtype="int64")
    if big:
        return pd.Series(given, dtype=object)
    return pd.Series([math.nan if v is None else v for v in given], dtype="float64")


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def clean(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of inputs or outputs with the column types above and a fresh index."""
    columns = {}
    for name, column in frame.items():
        kind = column.dtype
        if isinstance(kind, np.dtype) and kind.kind == "f":
            values = column.to_numpy(np.float64, copy=True)
            values[~np.isfinite(values)] = np.nan
            columns[name] = pd.Series(values)
        elif isinstance(kind, pd.StringDtype) or getattr(kind, "kind", "O") in "iub":
            columns[name] = column.reset_index(drop=True)
        else:
            columns[name] = series(python(column))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(frame)), copy=False)


def join(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other: a column that one of them lacks is missing there."""
    names = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    columns = {name: _below([(f.get(name), len(f)) for f in frames]) for name in names}
    return pd.DataFrame(columns, index=pd.RangeIndex(sum(map(len, frames))), copy=False)


def _below(parts: Sequence[tuple[pd.Series | None, int]]) -> pd.Series:
    kinds = {str(part.dtype) if part is not None else "none" for part, _ in parts}
    if len(kinds) == 1 and "object" not in kinds:
        return pd.concat([part for part, _ in parts], ignore_index=True)
    values: list[object] = []
    for part, length in parts:
        values += [None] * length if part is None else python(part)
    return series(values)


def python(column: pd.Series) -> list[Any]:
    """A column's values as Python's own, None where missing."""
    values = column.astype(object)
    found: list[Any] = values.where(values.notna(), None).tolist()
    return found


def to_micros(times: Any) -> np.ndarray:
    """Moments of any spelling as int64 microseconds since 1970, shape (n,); naive ones are UTC."""
    if isinstance(times, np.ndarray) and times.dtype.kind in "iu":
        return times.astype(np.int64)
    if isinstance(times, (pd.Series, pd.DatetimeIndex, np.ndarray)):
        moments = pd.DatetimeIndex(times)
        moments = moments.tz_localize("UTC") if moments.tz is None else moments.tz_convert("UTC")
        return moments.as_unit("us").asi8.copy()
    return np.array([micros(moment) for moment in times], dtype=np.int64)
