"""What the gate wants to know of the training itself, and where the training rows look wrong. Pure.

A candidate that learned from damaged rows may still be ahead on a lucky week. What gives the damage
away lies in the training: rows no newer than the champion's, a fraction of its rows, two columns
that carry each other's values.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from core.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 2_000  # of each side, for telling columns apart
_LEAST = 30
#: Columns count as swapped when each is at least this far from itself and at most half as far
#: from the other (Kolmogorov-Smirnov distance).
_FAR = 0.2


class TrainingFacts(Struct, frozen=True, kw_only=True):
    """What is known of how candidate and champion were trained; None: not known."""

    trained_until: datetime | None = None  # event time of the newest training row
    champion_until: datetime | None = None
    rows: int | None = None
    champion_rows: int | None = None
    window_won: bool = False  # the stretch of history was chosen by a competition
    swapped: tuple[tuple[str, str], ...] = ()
    latency_ms: float | None = None  # p99 of one row, both measured in turn in one process
    champion_latency_ms: float | None = None


def swapped_columns(
    spec: ModelSpec, train: pd.DataFrame, holdout: pd.DataFrame
) -> tuple[tuple[str, str], ...]:
    """Pairs of numeric columns that look like each other's held-out values, not like their own.

    Drift moves a column away from itself; only a mix-up brings it onto another one. Compares the
    newest 2,000 training rows with the held-out ones.
    """
    names = [f.name for f in spec.features if f.kind in ("numeric", "integer")]
    sides = [
        {name: _sorted(frame[name].to_numpy(np.float64)) for name in names}
        for frame in (train.tail(_ROWS), holdout.tail(_ROWS))
    ]
    usable = [n for n in names if min(len(sides[0][n]), len(sides[1][n])) >= _LEAST]
    own = {name: _distance(sides[0][name], sides[1][name]) for name in usable}
    moved = [name for name in usable if own[name] > _FAR]
    pairs = []
    for i, one in enumerate(moved):
        for other in moved[i + 1 :]:
            crossed = max(
                _distance(sides[0][one], sides[1][other]), _distance(sides[0][other], sides[1][one])
            )
            if crossed < 0.5 * min(own[one], own[other]):
                pairs.append((one, other))
    return tuple(pairs)


def _sorted(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sort(values[np.isfinite(values)])
    return found


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two sorted samples, between 0 and 1."""
    points = np.concatenate([first, second])
    below = [np.searchsorted(side, points, side="right") / len(side) for side in (first, second)]
    return float(np.abs(below[0] - below[1]).max())
