"""Simulated futures of a path of log ratios: four views of a life, and when they cross a line.

A local level with drift: the ratio of a window is level + noise (sd e), and with every step the
level moves by a drift b and at random (sd w). e and w come from the variogram
Var(r[t+h] - r[t]) = 2 e² + h w², pooled over the life and those of others (Cressie, Statistics for
Spatial Data, ch. 2); level and drift from a Kalman filter (Harvey, Forecasting, Structural Time
Series Models and the Kalman Filter, ch. 4).

own drift      b as this path alone says
shared drift   b drawn towards the other lives' mean, as far as they agree with each other
no drift       b = 0: decay that has gone on need not go on
analog         what really followed in other lives from a like age on, chained in pieces

Mixing them did better than each (docs/shelf_life.md). No drift has half a part: were it one of
four, a *yes* above .8 could hardly be said of a life whose other views all agree. Everything here
is arrays in, arrays out; randomness is a generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from monitor.measure.lives import Floats

SMOOTH = 3  # windows whose mean has to cross: one bad window is no end
PIECE = 12  # longest piece of another life that is copied at once
_LAGS = (1, 2, 4, 8)
_LEAST_NOISE, _LEAST_WANDER = 1e-4, 1e-6  # variances; nothing real is steadier
_SHRINK = 2  # pseudo-lives without drift in the other lives' mean drift


class Size(NamedTuple):
    """Standard deviations a step: of a window's noise, and of the level's random moves."""

    noise: float
    wander: float


class Normal(NamedTuple):
    """What is held of a number before the path is seen."""

    mean: float
    variance: float


VAGUE = Normal(0.0, 1.0)  # a log ratio, or its drift in one step, of e either way
NONE = Normal(0.0, 0.0)


class State(Struct, frozen=True, kw_only=True):
    """Level and drift of a life after its last window, as far as they are known.

    They are estimated together: a filter for the level alone would lag behind a steadily rising
    loss and date its end too late.
    """

    mean: Floats  # (level, drift), log ratio and log ratio per step
    cov: Floats  # their covariance, shape (2, 2)

    def draw(self, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Joint draws of level and drift, each of shape (draws,)."""
        found = rng.normal(size=(draws, 2)) @ np.linalg.cholesky(self.cov + 1e-12 * np.eye(2)).T
        return self.mean[0] + found[:, 0], self.mean[1] + found[:, 1]


def spread(paths: Sequence[Floats]) -> Size:
    """Noise and wander per step, from differences pooled over log-ratio paths."""
    moments, lags = [], []
    for lag in _LAGS:
        steps = [path[lag:] - path[:-lag] for path in paths if len(path) > lag]
        steps = [each[np.isfinite(each)] for each in steps]
        if steps and (pooled := np.concatenate(steps)).size > 1:
            moments.append(float(pooled.var()))
            lags.append(lag)
    if len(lags) < 2:
        guess = moments[0] if moments else 0.0
        return Size(max(guess / 2, _LEAST_NOISE) ** 0.5, max(guess / 4, _LEAST_WANDER) ** 0.5)
    design = np.column_stack([np.full(len(lags), 2.0), lags])
    noise, wander = np.linalg.lstsq(design, np.array(moments), rcond=None)[0]
    return Size(max(noise, _LEAST_NOISE) ** 0.5, max(wander, _LEAST_WANDER) ** 0.5)


def track(path: Floats, rows: Floats, size: Size, start: Normal, drift: Normal) -> State:
    """Kalman filter of level and drift along a path.

    Windows with fewer labelled rows than the path's usual weigh less; a NaN is a gap.
    """
    mean = np.array([start.mean, drift.mean])
    cov = np.diag([start.variance, drift.variance])
    move = np.array([[1.0, 1.0], [0.0, 1.0]])
    usual = float(np.nanmedian(rows)) if len(rows) else 1.0
    for at, (value, count) in enumerate(zip(path, rows, strict=True)):
        if at:
            mean, cov = move @ mean, move @ cov @ move.T
            cov[0, 0] += size.wander**2
        if np.isfinite(value):
            noise = size.noise**2 * max(usual / count, 1.0)
            gain = cov[:, 0] / (cov[0, 0] + noise)
            mean = mean + gain * (value - mean[0])
            cov = cov - np.outer(gain, cov[0])
    return State(mean=mean, cov=(cov + cov.T) / 2)


def usual_drift(others: Sequence[Floats], size: Size) -> Normal | None:
    """Drift of lives like these: precision-weighted mean, and how far they differ from each other.

    The mean is drawn towards none by `_SHRINK` pseudo-lives; None without lives of 4 windows.
    """
    long = [each for each in others if np.isfinite(each).sum() >= 4]
    if not long:
        return None
    states = [track(each, np.ones(len(each)), size, VAGUE, VAGUE) for each in long]
    drifts = np.array([state.mean[1] for state in states])
    variances = np.array([state.cov[1, 1] for state in states])
    mean = float(np.average(drifts, weights=1 / (variances + 1e-5)))
    mean *= len(drifts) / (len(drifts) + _SHRINK)
    between = float(((drifts - mean) ** 2).mean() - variances.mean())
    return Normal(mean, max(between, (0.3 * mean) ** 2, _LEAST_WANDER))


def beginning(others: Sequence[Floats]) -> Normal:
    """Level at which other lives began; vague without at least two."""
    first = [float(each[np.isfinite(each)][:SMOOTH].mean()) for each in others]
    if len(first) < 2:
        return VAGUE
    return Normal(float(np.mean(first)), float(np.var(first, ddof=1)))


def drifting(state: State, size: Size, draws: int, steps: int, rng: np.random.Generator) -> Floats:
    """Log ratios of a local level with drift, shape (draws, steps)."""
    level, drift = state.draw(draws, rng)
    walk = size.wander * np.cumsum(rng.normal(size=(draws, steps)), axis=1)
    trend = drift[:, None] * np.arange(1, steps + 1)
    found: Floats = level[:, None] + trend + walk + size.noise * rng.normal(size=(draws, steps))
    return found


class Pieces(Struct, frozen=True, kw_only=True):
    """What followed in other lives: `moves` (pieces, PIECE) against the level before each piece."""

    moves: Floats  # NaN after the life's end
    length: Floats
    shift: Floats  # level at the piece's end against the level before it
    age: Floats
    weight: Floats  # one over the number of pieces of the same life


def pieces(others: Sequence[Floats], size: Size) -> Pieces | None:
    """All pieces of the other lives; None where fewer than two lives are long enough."""
    long = [_filled(each) for each in others if np.isfinite(each).sum() >= 6]
    if len(long) < 2:
        return None
    back = 5 if size.noise > size.wander else 2  # windows that make up the level before
    moves, length, shift, age, weight = [], [], [], [], []
    for life in long:
        starts = range(1, len(life) - 2)
        for at in starts:
            ref = life[max(0, at - back + 1) : at + 1].mean()
            piece = life[at + 1 : at + 1 + PIECE] - ref
            whole = np.full(PIECE, np.nan)
            whole[: len(piece)] = piece
            moves.append(whole)
            length.append(len(piece))
            shift.append(life[max(at, at + len(piece) - 3) : at + 1 + len(piece)].mean() - ref)
            age.append(at)
            weight.append(1 / len(starts))
    columns = (np.array(each, dtype=np.float64) for each in (length, shift, age, weight))
    counts, shifts, ages, weights = columns
    return Pieces(moves=np.array(moves), length=counts, shift=shifts, age=ages, weight=weights)


def analog(given: Pieces, base: Floats, age: int, steps: int, rng: np.random.Generator) -> Floats:
    """Chained pieces of other lives from ages within a factor 2, shape (draws, steps).

    `base` holds a level for each draw, `age` the steps lived so far.
    """
    found = np.full((len(base), steps + PIECE), np.nan)
    done, base = np.zeros(len(base), dtype=int), base.copy()
    while (open_ := np.flatnonzero(done < steps)).size:
        picked = np.empty(len(open_), dtype=int)
        for more in np.unique(done[open_]):
            mine = done[open_] == more
            chance = np.cumsum(_alike(given, age + int(more)))
            drawn = rng.random(int(mine.sum())) * chance[-1]
            picked[mine] = np.searchsorted(chance, drawn, side="right")
        columns = done[open_][:, None] + np.arange(PIECE)
        found[open_[:, None], columns] = base[open_][:, None] + given.moves[picked]
        done[open_] += given.length[picked].astype(int)
        base[open_] += given.shift[picked]
    return found[:, :steps]


def _alike(given: Pieces, age: int) -> Floats:
    """Weights of the pieces that began within a factor 2 of an age, of all where none did."""
    weight = given.weight * ((given.age >= age // 2) & (given.age <= 2 * age + 3))
    return weight if weight.any() else given.weight


def _filled(path: Floats) -> Floats:
    """The path with its gaps drawn as straight lines."""
    at, seen = np.arange(len(path)), np.isfinite(path)
    return np.interp(at, at[seen], path[seen])


def futures(
    own: Floats,
    rows: Floats,
    others: Sequence[Floats],
    *,
    draws: int,
    steps: int,
    rng: np.random.Generator,
) -> Floats:
    """Log ratios of the next steps, shape (3.5 draws, steps): the four views mixed."""
    views = states(own, rows, others)
    size = views.size
    known = pieces(others, size)
    like_others = (
        drifting(views.shared, size, draws, steps, rng)
        if known is None
        else analog(known, views.shared.draw(draws, rng)[0], len(own), steps, rng)
    )
    parts = [drifting(each, size, draws, steps, rng) for each in (views.alone, views.shared)]
    parts.append(drifting(views.steady, size, draws // 2, steps, rng))
    return np.concatenate([*parts, like_others])


class Views(NamedTuple):
    """One life on its own, in the light of the others, and as if it did not drift."""

    size: Size
    alone: State
    shared: State
    steady: State


def states(own: Floats, rows: Floats, others: Sequence[Floats]) -> Views:
    """Level and drift after the last window; `alone` is `shared` with fewer than three windows."""
    size = spread([own, *others])
    seen = int(np.isfinite(own).sum())
    start = VAGUE if seen else beginning(others)
    shared = track(own, rows, size, start, usual_drift(others, size) or VAGUE)
    alone = track(own, rows, size, start, VAGUE) if seen >= SMOOTH else shared
    return Views(size, alone, shared, track(own, rows, size, start, NONE))


def passage(last: Floats, ahead: Floats, line: float) -> Floats:
    """Steps until the mean of SMOOTH ratios first exceeds `line`; inf where it never does.

    last   the newest ratios that are known, at most SMOOTH - 1 of them
    ahead  simulated ratios, shape (draws, steps)
    """
    known = np.broadcast_to(last, (len(ahead), len(last)))
    total = np.cumsum(np.column_stack([np.zeros(len(ahead)), known, ahead]), axis=1)
    over = (total[:, SMOOTH:] - total[:, :-SMOOTH]) / SMOOTH > line
    missing = SMOOTH - 1 - len(last)  # the first steps complete the mean, they cannot cross yet
    steps = over.argmax(axis=1) + 1.0 + missing
    return np.where(over.any(axis=1), steps, np.inf)
