"""Remaining shelf life: when will a model's loss cross its tolerance, and within 7 or 30 days?

A forecast simulates the life onwards (`monitor.measure.futures`) from its own path and the lives of
its predecessors (`monitor.measure.lives`), and takes the first step at which the mean of three
windows exceeds 1 + tolerance. The date is a guess within a factor of two at best; whether it comes
within a horizon can be answered, or honestly not: *yes* when the probability exceeds .8, *no* when
it is below .2, else *cannot tell*. Pure: no clock, no I/O; the same arguments give the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from core.errors import InputError
from monitor.figures import Ahead as Ahead
from monitor.figures import Answer as Answer
from monitor.figures import Forecast as Forecast
from monitor.figures import Within as Within
from monitor.measure.futures import SMOOTH, futures, passage
from monitor.measure.lives import Floats, Lives, Path, on_grid

STEPS = 80  # windows a life is simulated onwards; what lasts longer is "beyond"
LEAST_LIVES = 2  # other lives that can stand in for an own path of fewer than SMOOTH points
YES, NO = 0.8, 0.2
_DRAWS = 360  # of each view, half as many of no drift


def forecast(
    path: Path,
    lives: Lives,
    *,
    tolerance: float,
    horizons: Sequence[float] = (7.0, 30.0),
    seed: int = 0,
    ahead: int = 30,
) -> Forecast:
    """When the mean of the newest three loss ratios first exceeds 1 + tolerance.

    path       the model's own life up to now; may be empty on day one
    lives      other lives as far as they were known by now (`Lives.known`), same yardstick
    tolerance  acceptable rise, 0.2 for 20 %
    horizons   days ahead to answer for
    ahead      windows of the band

    Never raises on poor data: with fewer than three own points and fewer than two other lives the
    result's `why` says what is missing. Raises InputError on a tolerance or horizon that is not
    positive, or lives of another yardstick.
    """
    _check(path, lives, tolerance, horizons)
    usable = path.usable
    base = Forecast(
        yardstick=path.yardstick,
        tolerance=tolerance,
        age=path.ages[-1] if path.ages else 0.0,
        points=path.points,
        missing=len(path.ages) - path.points,
        lives=0,
        rows=int(np.asarray(path.rows)[usable].sum()) if path.rows else 0,
        step=_step(path, lives),
    )
    others = _others(lives, base.step)
    base = replace(base, lives=len(others))
    newest = np.asarray(path.ratios, dtype=np.float64)[usable][-SMOOTH:]
    if len(newest) == SMOOTH:
        base = replace(
            base, level=float(newest.mean()), expired=bool(newest.mean() > 1 + tolerance)
        )
    if base.expired:
        sure = tuple(Within(days=each, probability=1.0, answer="yes") for each in horizons)
        base = replace(base, within=sure, median=0.0, low=0.0, high=0.0)
    if (why := _why(base, others)) is not None:
        return base if base.expired else replace(base, why=why)
    assert base.step is not None  # noqa: S101  `_why` has seen to it
    own, rows = on_grid(path, base.step)
    logs = futures(own, rows, others, draws=_DRAWS, steps=STEPS, rng=np.random.default_rng(seed))
    band = _band(logs[:, :ahead], base.step)
    if base.expired:
        return replace(base, band=band)
    steps = passage(newest[-(SMOOTH - 1) :], np.exp(logs), 1 + tolerance)
    low, median, high = np.quantile(steps, [0.1, 0.5, 0.9], method="inverted_cdf") * base.step
    return replace(
        base,
        within=tuple(_within(steps, days, base.step) for days in horizons),
        median=_finite(median),
        low=_finite(low),
        high=_finite(high),
        beyond=STEPS * base.step,
        band=band,
    )


def answer(probability: float) -> Answer:
    """Yes above .8, no below .2, else cannot tell."""
    return "yes" if probability > YES else "no" if probability < NO else "cannot tell"


def _check(path: Path, lives: Lives, tolerance: float, horizons: Sequence[float]) -> None:
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise InputError("tolerance", tolerance, "a positive number such as 0.2 for 20 %")
    for days in horizons:
        if not (np.isfinite(days) and days > 0):
            raise InputError("horizons", days, "positive numbers of days")
    for other in lives.paths:
        if other.yardstick != path.yardstick:
            raise InputError("lives", other.yardstick, f"lives of the path's {path.yardstick}")


def _step(path: Path, lives: Lives) -> float | None:
    """Days of a window: the life's own, else the other lives'."""
    if path.step is not None:
        return path.step
    known = [each.step for each in lives.paths if each.step is not None]
    return float(np.median(known)) if known else None


def _others(lives: Lives, step: float | None) -> list[Floats]:
    if step is None:
        return []
    paths = (on_grid(each, step)[0] for each in lives.paths)
    return [each for each in paths if np.isfinite(each).sum() >= SMOOTH]


def _why(base: Forecast, others: Sequence[Floats]) -> str | None:
    if base.step is None or (base.points < SMOOTH and len(others) < LEAST_LIVES):
        return (
            f"{base.points} of the {SMOOTH} windows with labels that a forecast needs, and "
            f"{len(others)} of the {LEAST_LIVES} earlier lives that could stand in for them"
        )
    return None


def _within(steps: Floats, days: float, step: float) -> Within:
    """The share of simulations that crossed, read between two windows on a straight line."""
    whole, part = divmod(days / step, 1.0)
    if part > 1 - 1e-9:  # 3 windows of 0.1 days are 0.3 days
        whole, part = whole + 1, 0.0
    before, after = float((steps <= whole).mean()), float((steps <= whole + 1).mean())
    probability = before + part * (after - before)
    return Within(days=days, probability=probability, answer=answer(probability))


def _band(logs: Floats, step: float) -> tuple[Ahead, ...]:
    low, middle, high = np.exp(np.quantile(logs, [0.1, 0.5, 0.9], axis=0))
    return tuple(
        Ahead(days=(at + 1) * step, low=float(l_), middle=float(m), high=float(h))
        for at, (l_, m, h) in enumerate(zip(low, middle, high, strict=True))
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
