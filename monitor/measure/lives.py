"""Lives of models: how much worse each got with age, as ratios of its loss to a yardstick.

Two yardsticks. *Absolute*: the loss the model was expected to have when it was accepted; the ratio
rises with decay and also with a harder season. *Relative*: the loss of the newest model on the same
rows; the season cancels, what is left is what a retraining would win.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from monitor.figures import Yardstick as Yardstick

Floats = NDArray[np.float64]
_DAY = 86_400.0


class Path(Struct, frozen=True, kw_only=True):
    """One model's life so far: a loss ratio for each window whose labels are known.

    ages    days from `began` to each window's end, rising
    ratios  mean loss of the window over the yardstick's (1 = as good); a value that is not a
            positive number (NaN: the metric could not be computed) is a window without a point
    rows    labelled rows of each window, or empty where nobody counted
    """

    began: datetime
    ages: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    yardstick: Yardstick = "relative"

    def __post_init__(self) -> None:
        if len(self.ages) != len(self.ratios):
            raise InputError("ratios", len(self.ratios), f"{len(self.ages)} values, one an age")
        if self.rows and len(self.rows) != len(self.ages):
            raise InputError("rows", len(self.rows), f"{len(self.ages)} values, one an age")
        if not np.all(np.isfinite(self.ages)) or np.any(np.diff(self.ages) <= 0):
            raise InputError("ages", self.ages, "finite days, each larger than the one before")
        if self.yardstick not in ("absolute", "relative"):
            raise InputError("yardstick", self.yardstick, "absolute or relative")

    @property
    def points(self) -> int:
        """Windows with a usable ratio."""
        return int(self.usable.sum())

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which windows have a usable ratio, shape (windows,)."""
        ratios = np.asarray(self.ratios, dtype=np.float64)
        return np.isfinite(ratios) & (ratios > 0)

    @property
    def step(self) -> float | None:
        """Median days between neighbouring windows; None with fewer than two."""
        return float(np.median(np.diff(self.ages))) if len(self.ages) > 1 else None

    def until(self, moment: datetime, *, label_lag: timedelta = timedelta(0)) -> Path:
        """What was known of this life at a moment: windows whose labels had arrived by then."""
        span = (moment - label_lag - self.began).total_seconds() / _DAY
        kept = sum(age <= span for age in self.ages)
        return Path(
            began=self.began,
            ages=self.ages[:kept],
            ratios=self.ratios[:kept],
            rows=self.rows[:kept],
            yardstick=self.yardstick,
        )


class Lives(Struct, frozen=True, kw_only=True):
    """Lives of other models of the same name: predecessors scored on in shadow, or back-tested."""

    paths: tuple[Path, ...] = ()

    @classmethod
    def known(
        cls, paths: Sequence[Path], *, at: datetime, label_lag: timedelta = timedelta(0)
    ) -> Lives:
        """The lives cut at a moment, so that a forecast never learns from its own future."""
        cut = (path.until(at, label_lag=label_lag) for path in paths)
        return cls(paths=tuple(path for path in cut if path.points))


def on_grid(path: Path, step: float) -> tuple[Floats, Floats]:
    """Log ratios and rows of a path on a grid of `step` days from its first window on.

    Returns two arrays of one length, NaN where no window fell; windows that share a cell are
    averaged with their rows as weights, so that lives with other window lengths can be compared.
    """
    usable = path.usable
    if not usable.any():
        return np.empty(0), np.empty(0)
    ages = np.asarray(path.ages)[usable]
    rows = np.asarray(path.rows or [1] * len(path.ages), dtype=np.float64)[usable].clip(1)
    cell = np.rint((ages - ages[0]) / step).astype(int)
    count = np.bincount(cell, rows)
    total = np.bincount(cell, rows * np.log(np.asarray(path.ratios)[usable]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan), np.where(count > 0, count, np.nan)


def backtested_lives(
    losses: ArrayLike,
    *,
    ends: Sequence[datetime],
    expected: Sequence[float],
    rows: Sequence[int] = (),
    yardstick: Yardstick = "relative",
) -> Lives:
    """Lives on day one: models trained on earlier parts of the training window, scored onwards.

    Cut the training window into B blocks in order of time and fit models on the first parts of it.

    losses    shape (models, B): mean loss of each model on each block; NaN where the model had
              already learned from the block, and after that no NaN unless it cannot be computed
    ends      B moments, the end of each block, rising
    expected  each model's expected loss, its yardstick when `yardstick` is absolute
    rows      B counts of labelled rows
    relative  each block's yardstick is the loss of the newest model that had not seen it, which is
              the one with the fewest blocks to score; that model itself is no life

    Raises InputError when the shapes do not fit each other.
    """
    matrix = np.asarray(losses, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape != (len(expected), len(ends)):
        shape = (len(expected), len(ends))
        raise InputError("losses", matrix.shape, f"the shape (models, blocks), here {shape}")
    if rows and len(rows) != len(ends):
        raise InputError("rows", len(rows), f"{len(ends)} values, one a block")
    seen = np.isfinite(matrix)
    first = np.where(seen.any(axis=1), seen.argmax(axis=1), len(ends))
    measure = _newest(matrix, first)
    paths = []
    for at, start in enumerate(first):
        if start == len(ends) or (start == 0 and len(ends) < 2):
            continue
        began = ends[start - 1] if start else ends[0] - (ends[1] - ends[0])
        bar = measure if yardstick == "relative" else np.full(len(ends), float(expected[at]))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = matrix[at] / bar
        path = Path(
            began=began,
            ages=tuple((end - began).total_seconds() / _DAY for end in ends[start:]),
            ratios=tuple(float(value) for value in ratios[start:]),
            rows=tuple(rows[start:]),
            yardstick=yardstick,
        )
        if path.points and not (yardstick == "relative" and np.all(ratios[start:] == 1.0)):
            paths.append(path)
    return Lives(paths=tuple(paths))


def _newest(matrix: Floats, first: NDArray[np.intp]) -> Floats:
    """Loss of the newest model on each block; NaN where none had not seen it."""
    found = np.full(matrix.shape[1], np.nan)
    for block in range(matrix.shape[1]):
        able = np.flatnonzero(np.isfinite(matrix[:, block]))
        if len(able):
            found[block] = matrix[able[first[able].argmax()], block]
    return found
