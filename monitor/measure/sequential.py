"""Has the loss risen? An e-detector that may be looked at after every new label. Pure.

A betting e-process on bounded losses (Podkopaev and Ramdas, arXiv 2110.06177) grows only when the
mean loss is above a line; summed over all possible starting points it becomes an e-detector (Shin,
Ramdas and Rinaldo, arXiv 2203.03532): if the loss never rose above the line, it needs on average at
least `a` windows to reach `a`. So the line between noise and alarm is itself a promise, and looking
more often costs nothing.

Beside it stands the e-process of one life (`follow`): the same bets, started at every part with a
weight of 1/(t (t + 1)), which sum to one. By Ville's inequality it reaches 1 / alpha in at most a
share alpha of all lives without a rise, however long they are and however often one looks.

One part of the stream multiplies each bet's evidence by a number that depends on that part alone
(`growth`), so a ledger keeps those numbers and the evidence is folded from them (`evidence`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct

_BETS = (0.05, 0.1, 0.2, 0.4)  # of the largest sensible bet: for small and for large rises
_MOST = 0.5  # no bet may lose more than this share on one row
_FULL = 600.0  # logarithm of evidence at which it is kept: more would overflow
_CEILING = 50.0  # log evidence one part can add: more is certain already, and would overflow


class Line(Struct, frozen=True, kw_only=True):
    """The mean loss that counts as normal, and the bets against it.

    `high` is the loss that counts as 1; larger ones are cut off there, which keeps one absurd row
    from being evidence of anything.
    """

    mean: float  # of the scaled loss, tolerance and the reference's own error included
    high: float
    bets: tuple[float, ...]


def line(
    losses: np.ndarray,
    *,
    expected: float | None = None,
    tolerance: float = 0.05,
    sure: float = 1.0,
) -> Line:
    """The line for a model whose reference rows lost `losses`, shape (n,), finite, n > 0.

    Args:
        expected: what it is now expected to lose on average; the mean of `losses` when None.
        tolerance: a mean this share above what is expected is still normal.
        sure: standard errors of the reference's own mean that are added to the line.
    """
    scale = 1.0 if expected is None else expected / max(float(losses.mean()), 1e-12)
    scaled = losses * scale
    high = max(float(np.quantile(scaled, 0.995)), 1e-9)
    unit = np.minimum(scaled, high) / high
    return _line(float(unit.mean()), float(unit.std()), len(unit) / sure**2, high, tolerance)


def line_of(mean: float, sd: float, n: int, high: float, *, tolerance: float = 0.05) -> Line:
    """The same from numbers: mean and sd of the loss over n reference rows."""
    return _line(min(mean / high, 1.0), sd / high, n, high, tolerance)


def _line(mean: float, sd: float, n: float, high: float, tolerance: float) -> Line:
    normal = mean * (1 + tolerance) + sd / math.sqrt(max(n, 1))
    largest = min(1.0, normal / (sd**2 + 1e-6))
    bets = tuple(min(bet * largest, _MOST / max(normal, 1e-6)) for bet in _BETS)
    return Line(mean=normal, high=high, bets=bets)


def growth(line: Line, losses: np.ndarray) -> tuple[float, ...]:
    """Log of what each bet's evidence is multiplied by after these rows; NaN losses are left out.

    Additive over rows: the growth of two parts is the sum of theirs.
    """
    unit = np.minimum(losses[np.isfinite(losses)], line.high) / line.high
    return tuple(float(np.log1p(bet * (unit - line.mean)).sum()) for bet in line.bets)


class Following(Struct, frozen=True, kw_only=True):
    """The e-process of one life so far."""

    looks: int = 0
    rows: int = 0
    bets: tuple[float, ...] = ()  # logarithm of what each bet's evidence has grown to

    @property
    def evidence(self) -> float:
        """The e-process's value: 1 before the first look."""
        if not self.bets:
            return 1.0
        waiting = 1 / (self.looks + 1)  # the weight of the starts that are still to come
        grown = [math.exp(min(bet, _FULL)) for bet in self.bets]
        return waiting + sum(grown) / len(grown)


def follow(before: Following, line: Line, losses: np.ndarray) -> Following:
    """The e-process after these rows as well; a look without a usable loss changes nothing.

    Args:
        losses: row losses (n,), NaN ones are left out; squared errors for RMSE.
    """
    rows = int(np.isfinite(losses).sum())
    if not rows:
        return before
    looks = before.looks + 1
    start = -math.log(looks * (looks + 1))
    known = before.bets or (-math.inf,) * len(line.bets)
    grown = growth(line, losses)
    bets = tuple(
        min(float(np.logaddexp(bet, start)) + step, _FULL)
        for bet, step in zip(known, grown, strict=True)
    )
    return Following(looks=looks, rows=before.rows + rows, bets=bets)


def evidence(parts: Iterable[tuple[float, Sequence[float]]]) -> float:
    """The e-detector's value after parts (windows they answer for, their `growth`), oldest first.

    Alarm when it is at least the average number of windows between false alarms one accepts.
    """
    return next(reversed(path(parts)), 0.0)


def highest(parts: Iterable[tuple[float, Sequence[float]]]) -> float:
    """The largest value the e-detector had after any of the parts; an alarm does not expire."""
    return max(path(parts), default=0.0)


def path(parts: Iterable[tuple[float, Sequence[float]]]) -> list[float]:
    """The e-detector's value after each part, in one pass."""
    total: list[float] = []
    found: list[float] = []
    for windows, grown in parts:
        total = total or [0.0] * len(grown)
        total = [
            (value + windows) * math.exp(min(max(step, -700.0), _CEILING))
            for value, step in zip(total, grown, strict=True)
        ]
        total = [min(value, 1e300) for value in total]
        found.append(sum(total) / len(total))
    return found
