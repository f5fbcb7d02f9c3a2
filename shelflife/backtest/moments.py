"""Times of rows and of labels, as whole microseconds since 1970 in UTC.

Nothing here guesses silently: every interpretation that a person might not expect is a note.
"""

from __future__ import annotations

import re
import warnings
from datetime import timedelta
from typing import Any, cast

import numpy as np
import pandas as pd

from core.errors import InputError
from core.times import duration
from retrain.wording import plural

NEVER = np.iinfo(np.int64).max  # the label time of a row whose label never became known
_ZONED = re.compile(r"(?:Z|[+-]\d\d:?\d\d)$")
_DAY = 86_400_000_000
_EPOCHS: tuple[tuple[float, float, Any], ...] = (
    (1e8, 1e11, "s"),
    (1e11, 1e14, "ms"),
    (1e14, 1e17, "us"),
    (1e17, 9.2e18, "ns"),
)
_LONGEST = timedelta(days=36_525)


def read_times(column: pd.Series, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds (int64) and which rows have a time (bool), both of shape (rows,).

    Takes datetimes (naive ones as UTC), ISO 8601 and other date texts, epochs in s, ms, µs or ns,
    years, dates as 20260131, and plain step numbers (a step is a day).

    Raises:
        InputError: values that are no times, or texts of which only some have a time zone.
    """
    name = str(column.name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        moments = pd.to_datetime(column, utc=True)
    elif pd.api.types.is_bool_dtype(column.dtype):
        raise InputError(name, str(column.dtype), "dates, ISO 8601 times or numbers of an epoch")
    elif pd.api.types.is_numeric_dtype(column.dtype):
        moments = _from_numbers(column, notes)
    else:
        moments = _from_texts(column, notes)
    known = moments.notna().to_numpy()
    micros = np.zeros(len(moments), np.int64)
    micros[known] = moments[known].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    return micros, known


def _from_numbers(column: pd.Series, notes: list[str]) -> pd.Series:
    name, numbers = str(column.name), pd.to_numeric(column).astype("float64")
    found = numbers[np.isfinite(numbers)]
    if not len(found):
        raise InputError(name, "no value", "a time in every row")
    low, high = float(found.min()), float(found.max())
    whole = bool((found % 1 == 0).all())
    finite = numbers.where(np.isfinite(numbers))
    if whole and low >= 1800 and high <= 2200:
        notes.append(f"{name} was read as years")
        texts = finite.map(lambda year: None if np.isnan(year) else f"{int(year)}-01-01")
        return pd.to_datetime(texts, utc=True)
    if whole and low >= 18_000_101 and high <= 22_001_231:
        notes.append(f"{name} was read as dates written 20260131")
        texts = finite.map(lambda day: None if np.isnan(day) else str(int(day)))
        try:
            return pd.to_datetime(texts, utc=True, format="%Y%m%d")
        except ValueError as error:
            raise InputError(name, str(error)[:100], "dates written 20260131") from None
    for least, most, unit in _EPOCHS:
        if least <= low and high < most:
            notes.append(f"{name} was read as {unit} since 1970")
            exact: Any = column.astype("Int64") if whole else finite
            return cast("pd.Series", pd.to_datetime(exact, unit=unit, utc=True))
    if low < -1e6 or high - low > _LONGEST.days:
        hint = "dates, ISO 8601 times, or numbers of one epoch (s, ms, µs or ns since 1970)"
        raise InputError(name, f"numbers from {low:g} to {high:g}", hint)
    notes.append(f"{name} has plain step numbers; one step is taken as one day, from 2000-01-01 on")
    return pd.to_datetime((finite * _DAY).round().astype("Int64"), unit="us", utc=True) + (
        pd.Timestamp("2000-01-01", tz="UTC") - pd.Timestamp(0, tz="UTC")
    )


def _from_texts(column: pd.Series, notes: list[str]) -> pd.Series:
    name = str(column.name)
    texts = column.map(lambda value: value.strip() or None if isinstance(value, str) else value)
    strings = texts[texts.map(lambda value: isinstance(value, str))]
    zoned = strings.map(lambda text: bool(_ZONED.search(text)) and ":" in text)
    if len(strings) and bool(zoned.any()) and not bool(zoned.all()):
        example = strings[~zoned].iloc[0]
        count = plural(int((~zoned).sum()), "time")
        hint = f"times that all have a time zone or all have none ({count} of {len(strings):,}"
        raise InputError(name, example, f"{hint} have none)")
    try:
        return pd.to_datetime(texts, utc=True, format="ISO8601")
    except (ValueError, TypeError):
        pass
    read = {first: _written(texts, dayfirst=first) for first in (False, True)}
    moments = read[False] if read[False] is not None else read[True]
    if moments is None:
        hint = "dates or ISO 8601 times such as 2026-01-31T08:00:00Z, written alike in every row"
        raise InputError(name, _odd(texts, column), hint)
    example = strings.index[0]
    notes.append(
        f"{name} is not written as ISO 8601; {strings[example]!r} was read as "
        f"{moments[example]:%d %B %Y}"
    )
    return moments


def _written(texts: pd.Series, *, dayfirst: bool) -> pd.Series | None:
    """The texts in the one format that the first of them has; None if they are not all in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pd.to_datetime(texts, utc=True, dayfirst=dayfirst)
        except (ValueError, TypeError):
            return None


def _odd(texts: pd.Series, column: pd.Series) -> object:
    """A value that is no time, for the message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pd.to_datetime(texts, utc=True, format="mixed", errors="coerce")
    bad = texts[read.isna()].dropna()
    return bad.iloc[0] if len(bad) else column.iloc[0]


def spread_ties(micros: np.ndarray, batch: int, notes: list[str]) -> np.ndarray:
    """Strictly increasing times, in the order given, so that no window's edge cuts a moment.

    Rows of one moment follow each other a microsecond apart. Where more rows than half a window
    share a moment (a year, a month, a day is all the file knows), they are spread evenly until the
    next moment instead.

    Args:
        micros: ascending, shape (rows,).
        batch: rows that a window holds.
    """
    starts = np.flatnonzero(np.r_[True, micros[1:] != micros[:-1]])
    sizes = np.diff(np.r_[starts, len(micros)])
    if sizes.max() == 1:
        return micros
    moments = micros[starts]
    gaps = np.diff(moments)
    # After the last moment nothing tells how long it lasted: as long as the longest before it.
    last = int(gaps.max()) if len(gaps) else _DAY
    gaps = np.r_[gaps, last]
    coarse = sizes > max(1, batch // 2)
    place = np.arange(len(micros)) - np.repeat(starts, sizes)
    step = np.where(coarse, gaps / sizes, 1.0)
    spread: np.ndarray = micros + np.floor(place * np.repeat(step, sizes)).astype(np.int64)
    for index in np.flatnonzero(spread[1:] <= spread[:-1]) + 1:  # a microsecond ran into the next
        spread[index] = max(spread[index], spread[index - 1] + 1)
    if coarse.any():
        rows = int(sizes[coarse].sum())
        notes.append(
            f"{plural(rows, 'row')} share their time with many others; they are spread, in the "
            "order of the file, evenly until the next time"
        )
    return spread


def parse_span(text: str, option: str) -> timedelta:
    """A duration option such as 7d.

    Raises:
        InputError: not a duration, or not positive.
    """
    try:
        found = duration(text)
    except (InputError, OverflowError):
        expected = "a duration such as 90s, 30m, 12h, 7d, 4w"
        raise InputError(option, text, expected) from None
    return found
