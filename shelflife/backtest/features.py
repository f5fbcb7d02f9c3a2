"""Columns as a served model can take them: numbers, whole numbers, truths, categories.

What the service could not take either (lists, free text, one value everywhere) is left out and
said. Only training rows decide what is left out, so that nothing is learned from later ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from core.errors import InputError
from shelflife.backtest.reading import find_column

_IDENTIFIER = 0.5  # a text column with more distinct values than this share of its rows
_TEXT_LEVELS = 50  # ... and more than this many is an identifier or free text
_SHOWN = 8


def choose(
    frame: pd.DataFrame,
    aside: Sequence[str],
    features: Sequence[str],
    drop: Sequence[str],
) -> list[str]:
    """The columns that are inputs: those asked for, else all but those set aside or dropped.

    Raises:
        InputError: a column that is not there, set aside, or no column left.
    """
    for name in features:
        find_column(frame.columns, name, "--features")
        if name in aside:
            raise InputError("--features", name, "columns other than target, times and id")
    for name in drop:
        find_column(frame.columns, name, "--drop")
    wanted = list(features) or [str(name) for name in frame.columns]
    left = [name for name in wanted if name not in aside and name not in drop]
    if not left:
        raise InputError("--features", list(frame.columns), "at least one column to learn from")
    return left


def prepare(
    frame: pd.DataFrame, columns: Sequence[str], micros: np.ndarray, train: int, notes: list[str]
) -> pd.DataFrame:
    """The inputs, in the order of `columns`.

    Args:
        frame: rows in order of time.
        micros: times of the rows.
        train: the first so many rows decide what is left out.

    Raises:
        InputError: nothing usable is left.
    """
    made: dict[str, pd.Series] = {}
    left_out: dict[str, list[str]] = {}
    for name in columns:
        column = frame[name]
        if pd.api.types.is_datetime64_any_dtype(column.dtype) or _dates(column.iloc[:train]):
            _from_moments(name, column, micros, made, notes)
            continue
        values, why = _usable(column, train, notes)
        if values is None:
            left_out.setdefault(why, []).append(name)
        else:
            made[name] = values
    for why, names in left_out.items():
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        notes.append(f"left out, {why}: {shown}")
    if not made:
        said = "; ".join(notes[-len(left_out) :]) if left_out else "no column"
        raise InputError("features", said, "at least one usable column")
    return pd.DataFrame(made).reset_index(drop=True)


def _usable(column: pd.Series, train: int, notes: list[str]) -> tuple[pd.Series | None, str]:
    """The column with a dtype that `core.spec.infer_feature` knows, or why it is left out."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_timedelta64_dtype(dtype):
        column = column.dt.total_seconds()
    if pd.api.types.is_complex_dtype(dtype):
        return None, "because they hold complex numbers"
    head = column.iloc[:train]
    if not head.notna().any():
        return None, "because no training row has a value"
    if pd.api.types.is_bool_dtype(column.dtype):
        return _plain_bool(column), ""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _plain_number(column, notes), ""
    return _from_objects(column, head, notes)


def _plain_bool(column: pd.Series) -> pd.Series:
    if not column.isna().any():
        return column.astype(bool)
    return column.astype("object").map({True: 1.0, False: 0.0}).astype("float64")


def _plain_number(column: pd.Series, notes: list[str]) -> pd.Series:
    if pd.api.types.is_integer_dtype(column.dtype) and not column.isna().any():
        large = column.abs().max() >= 2**63 if column.dtype == np.uint64 else False
        return column.astype("float64" if large else "int64")
    numbers = column.astype("float64")
    infinite = int(np.isinf(numbers).sum())
    if infinite:
        notes.append(f"{column.name}: {infinite:,} infinite values are taken as missing")
        numbers = numbers.where(np.isfinite(numbers))
    return numbers


def _from_objects(
    column: pd.Series, head: pd.Series, notes: list[str]
) -> tuple[pd.Series | None, str]:
    values = column.astype(object).where(column.notna(), None)
    known = head.dropna()
    if not known.map(lambda value: isinstance(value, str | int | float | bool | np.generic)).all():
        return None, "because they hold other things than numbers and texts"
    if known.map(lambda value: isinstance(value, bool | np.bool_)).all():
        truths = values.map({True: 1.0, False: 0.0})
        return pd.to_numeric(truths, errors="coerce").astype("float64"), ""
    if not known.map(lambda value: isinstance(value, str)).all():
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers.iloc[: len(head)].notna().sum() >= 0.95 * len(known):
            lost = int(numbers.isna().sum() - column.isna().sum())
            if lost:
                notes.append(f"{column.name}: {lost:,} values that are no numbers become missing")
            return numbers.astype("float64").where(np.isfinite(numbers.astype("float64"))), ""
    texts = values.map(lambda value: None if value is None else str(value))
    levels = texts.iloc[: len(head)].nunique()
    if levels > max(_TEXT_LEVELS, _IDENTIFIER * len(known)):
        return None, "because nearly every row has its own value (identifiers or free text)"
    return texts, ""


def _dates(head: pd.Series) -> bool:
    """Whether an object column holds dates (Parquet's date32 and Python's)."""
    import datetime

    if head.dtype != object:
        return False
    known = head.dropna()
    return len(known) > 0 and bool(known.map(lambda v: isinstance(v, datetime.date)).all())


def _from_moments(
    name: str,
    column: pd.Series,
    micros: np.ndarray,
    made: dict[str, pd.Series],
    notes: list[str],
) -> None:
    """A moment becomes its hour, weekday and month, and how many days before the row it lies."""
    moments = pd.to_datetime(column, utc=True, errors="coerce").reset_index(drop=True)
    own = pd.Series(pd.to_datetime(micros, unit="us", utc=True))
    before = (own - moments).dt.total_seconds() / 86_400
    parts: dict[str, pd.Series] = {
        "hour": moments.dt.hour,
        "weekday": moments.dt.weekday,
        "month": moments.dt.month,
        "days_before": before,
    }
    for part, values in parts.items():
        if values.nunique() > 1:
            made[f"{name}_{part}"] = values.astype("float64")
    notes.append(f"{name} is a time; the model gets its hour, weekday, month and distance in days")
    later = float((before < 0).mean())
    if later > 0.01:
        notes.append(
            f"{name} lies after the row's own time in {later:.0%} of the rows: it may tell the "
            f"future; leave it out with --drop {name} if it is not known when the model is asked"
        )


def suspicious(inputs: pd.DataFrame, y: np.ndarray, train: int) -> list[str]:
    """Columns that equal the label (or its negation) in nearly every training row."""
    labels = pd.Series(y[:train])
    found = []
    for name in inputs:
        column = inputs[name].iloc[:train].reset_index(drop=True)
        both = labels.notna() & column.notna()
        if both.sum() < 50 or column.nunique() < 2 or labels.nunique() < 2:
            continue
        if not pd.api.types.is_numeric_dtype(column.dtype):
            continue
        numbers = column[both].astype("float64")
        if numbers.std() > 0 and abs(float(np.corrcoef(numbers, labels[both])[0, 1])) > 0.999:
            found.append(str(name))
    return found
