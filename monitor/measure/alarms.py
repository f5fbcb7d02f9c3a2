"""Which columns drifted, under one budget of false alarms for the model and the quarter.

A window is looked at as the parts its checks added (an hour each, say). At every check the tests
look at the sums of the newest 1, 2, 4, 8, … parts, so that a gross shift is found at once and a
faint one as soon as its rows suffice. The budget is shared equally by the scales; within one it
pays for all tests and for as many independent looks as rolling sums amount to (`looks_of`):

    alpha = budget / scales / looks / tests

A window is held against the baseline's rows of its own strata in its own mix: p = sum of f_s p_s
with effective size 1 / sum of f_s² / m_s (direct standardisation).

Sources: Siegmund 1985, chapter 10 (rolling sums); Rosenbaum 1987 (standardisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from monitor.measure import pvalues
from monitor.measure.tally import Layout, Tally
from monitor.measure.variation import ScaleVariation

NUMBER_TESTS = ("loc", "scale", "bins", "above", "below", "missing")
LEVEL_TESTS = ("levels", "level", "missing")
LEAST_ROWS = 50  # of a window; fewer decide nothing


@dataclass(frozen=True)
class Windows:
    """The newest parts summed at several scales, shortest first.

    Attributes:
        scales: parts in each.
        counts: one `Tally` part per scale.
        mix: float64 (scales, strata), rows of each stratum.
    """

    scales: tuple[int, ...]
    counts: Tally
    mix: np.ndarray


@dataclass(frozen=True)
class Looks:
    """The p-values of all scales.

    Attributes:
        scales: parts in each window.
        rows: int64 (scales,).
        alphas: float64 (scales,), what a p-value must fall below.
        numbers: (scales, numeric columns, `NUMBER_TESTS`).
        names: (scales, categorical columns, `LEVEL_TESTS`).
    """

    scales: tuple[int, ...]
    rows: np.ndarray
    alphas: np.ndarray
    numbers: np.ndarray
    names: np.ndarray


def tests_of(layout: Layout) -> int:
    """Tests of one look."""
    return len(layout.numeric) * len(NUMBER_TESTS) + len(layout.categorical) * len(LEVEL_TESTS)


def scales_for(parts: int, rows_per_part: float) -> tuple[int, ...]:
    """The scales worth a share of the budget: powers of two up to the window, and the window
    itself, those that can be expected to hold fifty rows."""
    longest = max(parts, 1)
    scales = [1 << power for power in range(longest.bit_length()) if (1 << power) * 1.5 <= longest]
    kept = [s for s in (*scales, longest) if s * rows_per_part >= LEAST_ROWS]
    return tuple(kept) or (longest,)


def looks_of(checks: float, scale: int, alpha: float) -> float:
    """How many independent looks at level `alpha` so many rolling ones amount to.

    Neighbouring sums of `scale` parts share all but one part: an excursion of their z value beyond
    u is one clump of looks. Clumps begin at the rate u² / s × ν(u sqrt(2 / s)) P(Z > u) a look,
    with Siegmund's ν for discrete time (Siegmund 1985, 10.37).
    """
    u = float(-special.ndtri(alpha / 2))
    x = u * math.sqrt(2 / scale)
    half = x / 2
    density = math.exp(-half * half / 2) / math.sqrt(2 * math.pi)
    nu = (2 / x) * (float(special.ndtr(half)) - 0.5) / (half * float(special.ndtr(half)) + density)
    return max(checks * min(u * u / scale * nu, 1.0), 1.0)


def alpha(budget: float, checks: float, scale: int, scales: int, tests: int) -> float:
    """Error rate of one test at one look of one scale.

    Args:
        budget: false alarms a quarter.
        checks: checks a quarter.
    """
    share = budget / scales / max(tests, 1)
    level = min(share / max(checks, 1.0), 0.05)
    for _ in range(5):  # the number of looks depends on the level, weakly
        level = min(share / looks_of(checks, scale, level), 0.05)
    return level


def windows(parts: Tally, mix: np.ndarray, scales: Sequence[int]) -> Windows:
    """The newest parts summed.

    Args:
        parts: oldest first; `mix` (parts, strata) says how many rows of each stratum they hold.
        scales: how many parts to sum, each at most all of them.
    """
    place = np.array(scales) - 1

    def newest(table: np.ndarray) -> np.ndarray:
        summed: np.ndarray = np.cumsum(table[::-1], axis=0)[place]
        return summed

    counts = Tally(
        newest(parts.rows),
        newest(parts.numeric),
        tuple(newest(table) for table in parts.levels),
        newest(parts.missing),
    )
    return Windows(tuple(scales), counts, newest(mix).astype(np.float64))


@dataclass(frozen=True)
class Base:
    """The baseline in each window's mix, as effective counts: float64, scales first."""

    rows: np.ndarray  # (scales,)
    numeric: np.ndarray  # (scales, columns, cells)
    levels: tuple[np.ndarray, ...]
    missing: np.ndarray  # (scales, columns)


def standardised(strata: Tally, mix: np.ndarray) -> Base:
    """Effective counts of the baseline in the windows' mixes.

    Rows of strata that the baseline never saw are compared with the strata it did see.
    """
    m = strata.rows.astype(np.float64)
    mix = np.where(m > 0, mix, 0.0)
    mix = np.where(mix.sum(-1, keepdims=True) > 0, mix, m)
    mix = mix / mix.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(m > 0, mix / m, 0.0)  # (scales, strata)
        effective = 1 / (mix * weight).sum(-1)
    factor = effective[:, None] * weight
    return Base(
        rows=effective,
        numeric=np.tensordot(factor, strata.numeric, axes=1),
        levels=tuple(factor @ table for table in strata.levels),
        missing=factor @ strata.missing,
    )


def look(
    layout: Layout,
    found: Windows,
    base: Base,
    variation: Sequence[ScaleVariation],
    alphas: Sequence[float],
) -> Looks:
    """The p-values of all windows.

    Args:
        variation: one per scale, at the window's own number of rows (`variation.at`).
    """
    return Looks(
        scales=found.scales,
        rows=found.counts.rows,
        alphas=np.array(alphas),
        numbers=_numbers(layout, found.counts, base, variation),
        names=_names(layout, found.counts, base, variation),
    )


def _stacked(variation: Sequence[ScaleVariation], name: str) -> np.ndarray:
    return np.array([getattr(each, name) for each in variation], dtype=np.float64)


def _numbers(
    layout: Layout, window: Tally, base: Base, variation: Sequence[ScaleVariation]
) -> np.ndarray:
    count = len(layout.numeric)
    if not count:
        return np.ones((len(variation), 0, len(NUMBER_TESTS)))
    w, r = window.numeric.astype(np.float64), base.numeric
    n, m = w.sum(-1), r.sum(-1)
    scores = pvalues.mid_ranks(r)
    loc, spread = _stacked(variation, "loc"), _stacked(variation, "scale_")
    df = _stacked(variation, "df")[:, None]
    cells = pvalues.coarse_cells(r, n)
    remainder = pvalues.shape_remainder(pvalues.folded(w, cells), pvalues.folded(r, cells))
    widest = np.maximum(loc, spread)
    last = np.array([len(profile.counts) - 1 for profile in layout.numeric])
    beyond = (w[:, np.arange(count), last], w[..., 0])
    squares = pvalues.spread_scores(r, scores)
    tests = [
        pvalues.p_normal(pvalues.z_score(w, r, scores), loc, df),
        pvalues.p_normal(pvalues.z_score(w, r, squares), spread, df),
        pvalues.p_chi_squared(
            *remainder, _stacked(variation, "bins"), _stacked(variation, "uneven")
        ),
        *(pvalues.p_beyond(np.floor(k / widest), n / widest, m / widest) for k in beyond),
        _missing(window, base, variation)[:, :count],
    ]
    found = np.stack(tests, axis=-1)
    found[(n < LEAST_ROWS) | (m < 1), :-1] = 1.0
    return found


def _missing(window: Tally, base: Base, variation: Sequence[ScaleVariation]) -> np.ndarray:
    phi = _stacked(variation, "share")
    n, m = window.rows[:, None], base.rows[:, None]
    found = pvalues.p_share(np.floor(window.missing / phi), n / phi, base.missing / phi, m / phi)
    return np.where(n >= LEAST_ROWS, found, 1.0)


def _names(
    layout: Layout, window: Tally, base: Base, variation: Sequence[ScaleVariation]
) -> np.ndarray:
    if not layout.categorical:
        return np.ones((len(variation), 0, len(LEVEL_TESTS)))
    missing = _missing(window, base, variation)[:, len(layout.numeric) :]
    whole_phi = _stacked(variation, "levels")
    counts = [table.astype(np.float64) for table in window.levels]
    singles = _singles(counts, base.levels, variation)
    columns = []
    for index, (w, r) in enumerate(zip(counts, base.levels, strict=True)):
        statistic, df, variance = pvalues.level_statistic(w, r)
        whole = pvalues.p_chi_squared(statistic, df, variance, whole_phi[:, index])
        enough = (w.sum(-1) >= LEAST_ROWS) & (r.sum(-1) >= 1)
        columns.append(np.where(enough[:, None], np.stack([whole, singles[index]], -1), 1.0))
    return np.concatenate([np.stack(columns, axis=1), missing[..., None]], axis=-1)


def _singles(
    counts: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    variation: Sequence[ScaleVariation],
) -> list[np.ndarray]:
    """Each column's smallest p-value of a single level, times its levels: one per scale.

    All columns' levels side by side in one call: the exact test's loop costs the same for many.
    """
    widths = [table.shape[1] for table in counts]
    w, r = np.concatenate(counts, axis=1), np.concatenate(baseline, axis=1)
    phi = np.array([np.concatenate(each.level) for each in variation])
    column = np.repeat(np.arange(len(widths)), widths)
    n, m = (np.stack([t.sum(-1) for t in tables], 1)[:, column] for tables in (counts, baseline))
    p = pvalues.p_share(np.floor(w / phi), n / phi, r / phi, m / phi)
    begins = np.cumsum([0, *widths[:-1]])
    filled = np.add.reduceat(((w + r) > 0).astype(np.intp), begins, axis=1)
    smallest = np.minimum(np.minimum.reduceat(p, begins, axis=1) * filled, 1.0)
    return list(smallest.T)
