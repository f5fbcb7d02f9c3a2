"""A user's history, ready to be replayed: inputs, labels, when each was known, and the windows.

`open_history` is the one door: whatever was given, it returns rows in order of time or says what is
wrong with them. Everything it decided by itself is in `History.notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from msgspec import Struct

from core.errors import InputError
from core.spec import Task
from core.times import from_micros, spell
from retrain.wording import plural
from shelflife.backtest import features, moments, targets
from shelflife.backtest.moments import NEVER
from shelflife.backtest.reading import find_column, read_table

_LEAST_TRAIN = 50  # labelled training rows below which nothing can be said
_LEAST_WINDOWS = 3
_MOST_WINDOWS = 5_000
_TRAIN_SHARE, _WINDOWS = 0.2, 40  # where nobody says: a fifth to learn from, forty windows
_TIMES = ("time", "timestamp", "t", "ts", "datetime", "date", "event_time", "created_at", "at")


class Columns(Struct, frozen=True, kw_only=True):
    """What the columns mean, as the user says it."""

    target: str
    time: str = ""
    label_time: str = ""
    id: str = ""
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class Cut(Struct, frozen=True, kw_only=True):
    """How the history is cut, as the user says it; None and 0 are chosen here."""

    label_delay: timedelta | None = None
    train_rows: int = 0
    batch_rows: int = 0
    window: timedelta | None = None


class Window(Struct, frozen=True):
    """Rows first <= i < last, asked from `start` until `end`; the check happens at `end`."""

    start: datetime
    end: datetime
    first: int
    last: int


class History(Struct, kw_only=True):
    """Rows in order of time.

    Attributes:
        inputs: one column per feature, shape (rows, features), as a model takes them.
        labels: plain Python scalars, None where there is none, shape (rows,), dtype object.
        times, known: µs since 1970 of the row and of its label (`moments.NEVER`: never known).
        train: rows before the first window.
    """

    inputs: pd.DataFrame
    labels: np.ndarray
    times: np.ndarray
    known: np.ndarray
    ids: list[str]
    task: Task
    target: str
    train: int
    windows: tuple[Window, ...]
    label_delay: timedelta | None
    labels_known: str  # when, in words
    notes: tuple[str, ...]

    @property
    def replayed(self) -> int:
        """Rows in windows."""
        return self.windows[-1].last - self.windows[0].first

    def moments(self, rows: slice | np.ndarray) -> list[datetime]:
        """The times of some rows."""
        return [from_micros(int(count)) for count in self.times[rows]]


def open_history(source: Any, columns: Columns, cut: Cut, task: Task | None = None) -> History:
    """Read, check, sort and cut a history.

    Raises:
        InputError: see `reading.read_table`, `moments.read_times`, `targets.read_task`; or too few
            rows for a first model and three windows.
    """
    frame, notes = read_table(source)
    columns = _found(frame, columns, notes)
    _check_cut(cut, columns)
    times, keep = _times(frame, columns, notes)
    frame, times = frame[keep].reset_index(drop=True), times[keep]
    if (times[1:] < times[:-1]).any():
        notes.append("the rows were not in order of time; they are now")
        order = np.argsort(times, kind="stable")
        frame, times = frame.iloc[order].reset_index(drop=True), times[order]
    frame, times = _once(frame, times, columns, notes)
    task = targets.read_task(frame[columns.target], task, notes)
    labels = targets.read_labels(frame[columns.target], task, notes)
    train, batch = _sizes(len(frame), cut, times, notes)
    own = moments.spread_ties(times, batch, notes)
    known = _known(frame, columns, cut, own, labels, notes)
    windows = _windows(own, train, batch, cut, notes)
    _learnable(labels, known, own, train, windows)
    inputs = _inputs(frame, columns, own, labels, train, task, notes)
    return History(
        inputs=inputs,
        labels=labels,
        times=own,
        known=known,
        ids=_ids(frame, columns),
        task=task,
        target=columns.target,
        train=train,
        windows=windows,
        label_delay=cut.label_delay,
        labels_known=_when(columns, cut),
        notes=tuple(notes),
    )


def _found(frame: pd.DataFrame, columns: Columns, notes: list[str]) -> Columns:
    names = list(frame.columns)
    for option, name in (
        ("--target", columns.target),
        ("--time", columns.time),
        ("--label-time", columns.label_time),
        ("--id", columns.id),
    ):
        if name:
            find_column(names, name, option)
    roles = [c for c in (columns.target, columns.time, columns.id) if c]
    if len(set(roles)) < len(roles):
        raise InputError("--target", columns.target, "a column that is not the time or the id too")
    if columns.time:
        return columns
    dated = [c for c in names if pd.api.types.is_datetime64_any_dtype(frame[c].dtype)]
    dated = [c for c in dated if c not in (columns.target, columns.label_time)]
    named = [c for wanted in _TIMES for c in names if c.casefold() == wanted]
    guesses = dated if len(dated) == 1 else named
    if not guesses or guesses[0] == columns.target:
        shown = ", ".join(names[:12])
        raise InputError("--time", "", f"the column with the time of each row; there are {shown}")
    notes.append(f"time {guesses[0]} (guessed); --time chooses another")
    return msgspec.structs.replace(columns, time=guesses[0])


def _check_cut(cut: Cut, columns: Columns) -> None:
    if cut.label_delay is not None and columns.label_time:
        raise InputError("--label-delay", spell(cut.label_delay), "either it or --label-time")
    if cut.batch_rows and cut.window is not None:
        raise InputError("--batch-rows", cut.batch_rows, "either it or --window")
    for option, count in (("--train-rows", cut.train_rows), ("--batch-rows", cut.batch_rows)):
        if count < 0:
            raise InputError(option, count, "a positive number of rows")
    if cut.window is not None and cut.window <= timedelta():
        raise InputError("--window", spell(cut.window), "a span longer than nothing")


def _times(
    frame: pd.DataFrame, columns: Columns, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    times, has = moments.read_times(frame[columns.time], notes)
    missing = int((~has).sum())
    if missing > len(has) / 2:
        hint = f"a time in every row ({missing:,} of {len(has):,} have none)"
        raise InputError("--time", columns.time, hint)
    if missing:
        notes.append(f"{plural(missing, 'row')} without a time are left out")
    return times, has


def _once(
    frame: pd.DataFrame, times: np.ndarray, columns: Columns, notes: list[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows with an id seen before are left out, as the service's log does; equal rows stay."""
    if columns.id:
        twice = frame[columns.id].astype(str).duplicated().to_numpy()
        if twice.any():
            count = plural(int(twice.sum()), "row")
            notes.append(f"{count} repeat an id; the first of each counts")
            frame, times = frame[~twice].reset_index(drop=True), times[~twice]
        return frame, times
    try:
        equal = int(frame.duplicated().sum())
    except TypeError:  # columns of unhashable values
        equal = 0
    if equal:
        notes.append(
            f"{plural(equal, 'row')} equal another one in every column; they are kept (name an "
            "--id if they are the same event twice)"
        )
    return frame, times


def _sizes(rows: int, cut: Cut, times: np.ndarray, notes: list[str]) -> tuple[int, int]:
    """Rows to train on, and rows a window holds (about, where windows are spans of time)."""
    train = cut.train_rows or max(_LEAST_TRAIN, round(rows * _TRAIN_SHARE))
    if not cut.train_rows:
        notes.append(f"the first {train:,} rows are the first model's; --train-rows sets it")
    left = rows - train
    if left < _LEAST_WINDOWS:
        raise InputError(
            "history",
            plural(rows, "row"),
            f"more rows: {train:,} to train on and {_LEAST_WINDOWS} windows after them",
        )
    if cut.batch_rows:
        batch = cut.batch_rows
    elif cut.window is not None:
        length = max(1, int(times[-1] - times[train]))
        share = cut.window / timedelta(microseconds=1) / length
        batch = max(1, min(left, round(left * share)))
    else:
        batch = max(1, left // _WINDOWS)
        notes.append(f"windows of {batch:,} rows; --batch-rows or --window set them")
    return train, batch


def _known(
    frame: pd.DataFrame,
    columns: Columns,
    cut: Cut,
    times: np.ndarray,
    labels: np.ndarray,
    notes: list[str],
) -> np.ndarray:
    """When each label became known, never before its row was asked."""
    known = times.copy()
    if columns.label_time:
        given, has = moments.read_times(frame[columns.label_time], notes)
        early = has & (given < times)
        if early.mean() > 0.5:
            hint = f"label times at or after --time {columns.time} ({early.mean():.0%} lie before)"
            raise InputError("--label-time", columns.label_time, hint)
        # Rows of one moment were set apart by microseconds: those are not early.
        truly = int((has & (given < times - 1_000_000)).sum())
        if truly:
            notes.append(f"{plural(truly, 'label')} known before their row are taken as known then")
        known = np.where(has, np.maximum(given, times), NEVER)
        silent = int((~has & np.array([label is not None for label in labels])).sum())
        if silent:
            notes.append(f"{plural(silent, 'label')} have no label time: never known")
    elif cut.label_delay is not None:
        known = times + int(cut.label_delay / timedelta(microseconds=1))
    else:
        notes.append("labels are taken as known at once; --label-delay or --label-time say when")
    known[np.array([label is None for label in labels])] = NEVER
    return known


def _when(columns: Columns, cut: Cut) -> str:
    if columns.label_time:
        return f"at {columns.label_time}"
    return "at once" if cut.label_delay is None else f"{spell(cut.label_delay)} later"


def _windows(
    times: np.ndarray, train: int, batch: int, cut: Cut, notes: list[str]
) -> tuple[Window, ...]:
    edges = _time_edges(times, train, cut) if cut.window else _row_edges(times, train, batch)
    if len(edges) - 1 > _MOST_WINDOWS:
        hint = f"at most {_MOST_WINDOWS:,} windows; choose longer ones"
        raise InputError("--window", f"{len(edges) - 1:,} windows", hint)
    places = np.searchsorted(times, np.array(edges), side="left")
    found = tuple(
        Window(from_micros(int(a)), from_micros(int(b)), int(i), int(j))
        for a, b, i, j in zip(edges[:-1], edges[1:], places[:-1], places[1:], strict=True)
    )
    if len(found) < _LEAST_WINDOWS:
        raise InputError(
            "history",
            plural(len(found), "window"),
            f"at least {_LEAST_WINDOWS} windows after the {train:,} training rows: more rows, or "
            "smaller --train-rows, --batch-rows or --window",
        )
    rest = len(times) - found[-1].last
    if rest:
        notes.append(f"the last {plural(rest, 'row')} do not fill half a window and are left out")
    return found


def _row_edges(times: np.ndarray, train: int, batch: int) -> list[int]:
    """Edges at the first row of each window; after the last row, its usual distance."""
    starts = list(range(train, len(times), batch))
    rest = len(times) - starts[-1]
    if rest < batch and rest < (batch + 1) // 2:
        return [int(times[i]) for i in starts]
    return [*(int(times[i]) for i in starts), int(times[-1]) + 1]


def _time_edges(times: np.ndarray, train: int, cut: Cut) -> list[int]:
    length = int((cut.window or timedelta()) / timedelta(microseconds=1))
    first, last = int(times[train]), int(times[-1])
    count = -(-(last + 1 - first) // length)
    if count > _MOST_WINDOWS:
        return [0] * (count + 1)  # told by the caller
    if count > 1 and last + 1 - (first + (count - 1) * length) < length / 2:
        count -= 1
    return [first + i * length for i in range(count + 1)]


def _learnable(
    labels: np.ndarray,
    known: np.ndarray,
    times: np.ndarray,
    train: int,
    windows: Sequence[Window],
) -> None:
    """The first model needs labels that were known before the first window."""
    start = int(times[train])
    usable = int((known[:train] <= start).sum())
    if usable < _LEAST_TRAIN:
        raise InputError(
            "--train-rows",
            train,
            f"at least {_LEAST_TRAIN} training rows whose label is known when the first window "
            f"starts ({plural(usable, 'row')} have one); take more, or a shorter --label-delay",
        )
    if len({str(label) for label in labels[:train][known[:train] <= start]}) < 2:
        hint = "training labels of at least two values; take more --train-rows"
        raise InputError("--train-rows", train, hint)
    later = known[windows[0].first : windows[-1].last]
    if not (later < NEVER).any():
        raise InputError("--target", "no label in any window", "labels to judge the answers by")


def _inputs(
    frame: pd.DataFrame,
    columns: Columns,
    times: np.ndarray,
    labels: np.ndarray,
    train: int,
    task: Task,
    notes: list[str],
) -> pd.DataFrame:
    aside = [c for c in (columns.target, columns.time, columns.label_time, columns.id) if c]
    chosen = features.choose(frame, aside, columns.features, columns.drop)
    inputs = features.prepare(frame, chosen, times, train, notes)
    numbers = pd.to_numeric(pd.Series(labels), errors="coerce")
    if task != "multiclass" and numbers.isna().all():
        codes = pd.factorize(pd.Series(labels), sort=False)[0].astype("float64")
        numbers = pd.Series(np.where(codes < 0, np.nan, codes))
    for name in features.suspicious(inputs, numbers.to_numpy(np.float64), train):
        notes.append(f"{name} equals the label: is it known when the model is asked? (--drop it)")
    return inputs


def _ids(frame: pd.DataFrame, columns: Columns) -> list[str]:
    if columns.id:
        return [str(value) for value in frame[columns.id]]
    return [f"r{i}" for i in range(len(frame))]
