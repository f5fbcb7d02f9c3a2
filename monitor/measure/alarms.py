"""Which columns drifted, under one budget of false alarms for the model and the quarter.

A window is looked at as the parts its checks added (an hour each, say). At every check the tests
look at the sums of the newest 1, 2, 4, 8, … parts, so that a gross shift is found at once and a
faint one as soon as its rows suffice. The budget is shared equally by the scales; within one it
pays for all tests and for as many independent looks as rolling sums amount to (`looks_of`):

    alpha = budget / scales / looks / tests

A window is held against the baseline's rows of its own strata in its own mix: p = sum of f_s p_s
with effective size 1 / sum of f_s² / m_s (direct standardisation).

Tests that can rarely spend their share of the budget (values beyond the baseline's, missing values)
are given a smaller one, and a level by its share of the baseline's rows: what a p-value must fall
below is alpha times the test's weight, so it is p / weight that is kept and compared with alpha.
The weights depend on the baseline alone (weighted Bonferroni: Genovese, Roeder & Wasserman 2006).

Sources: Siegmund 1985, chapter 10 (rolling sums); Rosenbaum 1987 (standardisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from monitor.measure import pvalues
from monitor.measure.dispersion import Dispersion
from monitor.measure.tally import Layout, Tally

NUMBER_TESTS = ("loc", "scale", "bins", "above", "below", "missing")
LEVEL_TESTS = ("levels", "level", "missing")
LEAST_ROWS = 50  # of a window; fewer decide nothing
_BEYOND = 0.1  # weights: each of a numeric column's two tails,
_MISSING, _NEVER = 0.5, 0.05  # missing values, and those of a column that never had any
_BY_SHARE = 0.5  # of the weight of single levels that goes by their share; the rest is equal
_FAR = 1e3  # p-values so many times above what decides need not be exact


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
        numbers: (scales, numeric columns, `NUMBER_TESTS`), p-values over their tests' weights.
        names: (scales, categorical columns, `LEVEL_TESTS`), likewise.
    """

    scales: tuple[int, ...]
    rows: np.ndarray
    alphas: np.ndarray
    numbers: np.ndarray
    names: np.ndarray


def tests_of(layout: Layout) -> float:
    """Tests of one look, by their weights."""
    numbers = len(layout.numeric) * (3 + 2 * _BEYOND)
    return numbers + 2 * len(layout.categorical) + float(_missing_weights(layout).sum())


def _missing_weights(layout: Layout) -> np.ndarray:
    return np.where(layout.ever_missing, _MISSING, _NEVER)


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


def alpha(budget: float, checks: float, scale: int, scales: int, tests: float) -> float:
    """Error rate of one test at one look of one scale.

    Args:
        budget: false alarms a quarter.
        checks: checks a quarter.
    """
    share = budget / scales / max(tests, 1.0)
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
    begins = len(parts) - np.array(scales)[::-1]  # stretches between one scale and the next

    def newest(table: np.ndarray) -> np.ndarray:
        stretches = np.add.reduceat(table, begins, axis=0)
        summed: np.ndarray = np.cumsum(stretches[::-1], axis=0)
        return summed

    counts = Tally(
        newest(parts.rows),
        newest(parts.numeric),
        tuple(newest(table) for table in parts.levels),
        newest(parts.missing),
    )
    return Windows(tuple(scales), counts, newest(mix).astype(np.float64))


@dataclass(frozen=True)
class Sums:
    """Counts boiled down to what the tests need; parts, scales or strata first.

    Attributes:
        rows: float64 (parts,).
        numbers: (parts, numeric columns, `pvalues.SUMS`).
        levels: (parts, levels of all categorical columns side by side).
        missing: (parts, columns of `Layout.ordered`).
    """

    rows: np.ndarray
    numbers: np.ndarray
    levels: np.ndarray
    missing: np.ndarray

    @classmethod
    def of(cls, layout: Layout, counts: Tally) -> Sums:
        by_column = counts.numeric.astype(np.float64).transpose(1, 0, 2)
        empty = np.zeros((len(counts), 0))
        return cls(
            counts.rows.astype(np.float64),
            (by_column @ layout.basis).transpose(1, 0, 2),
            np.concatenate([empty, *counts.levels], axis=1),
            counts.missing.astype(np.float64),
        )

    def with_unseen(self, layout: Layout) -> Sums:
        """The baseline's sums with what it must have missed: levels it never saw hold about as many
        rows as those it saw once (Good 1953), spread over its parts like its rows."""
        if not len(layout.begins) or not self.rows.sum():
            return self
        levels = self.levels.copy()
        last = np.append(layout.begins[1:], len(layout.owner)) - 1
        levels[:, last] += (self.rows / self.rows.sum())[:, None] * layout.seen_once
        return Sums(self.rows, self.numbers, levels, self.missing)

    @cached_property
    def _flat(self) -> np.ndarray:
        """Everything but the rows, side by side."""
        parts = (self.numbers.reshape(len(self.rows), -1), self.levels, self.missing)
        return np.concatenate(parts, axis=1)

    def mixed(self, factor: np.ndarray, rows: np.ndarray) -> Sums:
        """Weighted sums of the parts, `factor` (results, parts)."""
        flat, shape = factor @ self._flat, self.numbers.shape[1:]
        ends = np.cumsum([int(np.prod(shape)), self.levels.shape[1]])
        numbers, levels, missing = np.split(flat, ends, axis=1)
        return Sums(rows, numbers.reshape(len(rows), *shape), levels, missing)


def standardised(strata: Sums, mix: np.ndarray) -> Sums:
    """The baseline in each window's mix, as effective counts.

    Rows of strata that the baseline never saw are compared with the strata it did see.
    """
    m = strata.rows
    mix = np.where(m > 0, mix, 0.0)
    mix = np.where(mix.sum(-1, keepdims=True) > 0, mix, m)
    mix = mix / mix.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(m > 0, mix / m, 0.0)  # (scales, strata)
        effective = 1 / (mix * weight).sum(-1)
    return strata.mixed(effective[:, None] * weight, effective)


def look(
    layout: Layout,
    found: Windows,
    base: Sums,
    variation: Dispersion,
    alphas: Sequence[float],
) -> Looks:
    """The p-values of all windows.

    Args:
        variation: one row per scale, at the window's own number of rows (`Dispersion.at`).
    """
    window = Sums.of(layout, found.counts)
    singles, missing = _shares(layout, window, base, variation, _FAR * max(alphas))
    count = len(layout.numeric)
    return Looks(
        scales=found.scales,
        rows=found.counts.rows,
        alphas=np.array(alphas),
        numbers=_numbers(window.numbers, base.numbers, variation, missing[:, :count]),
        names=_names(layout, window.levels, base.levels, variation, singles, missing[:, count:]),
    )


def _numbers(
    w: np.ndarray, r: np.ndarray, variation: Dispersion, missing: np.ndarray
) -> np.ndarray:
    if not missing.shape[1]:
        return np.ones((len(variation.df), 0, len(NUMBER_TESTS)))
    n, m = w[..., 0], r[..., 0]
    loc, spread, df = variation.loc, variation.scale_, variation.df
    remainder = pvalues.shape_remainder(pvalues.coarse(w, n), pvalues.coarse(r, n))
    shape = pvalues.p_chi_squared(*remainder, variation.bins, variation.uneven)
    widest = np.maximum(loc, spread)[..., None]
    beyond = pvalues.p_beyond(
        np.floor(w[..., 6:4:-1] / widest), n[..., None] / widest, m[..., None] / widest
    )
    found = np.empty((*n.shape, len(NUMBER_TESTS)))
    found[..., 0] = pvalues.p_normal(pvalues.scores_z(w, r, 1), loc, df)
    found[..., 1] = pvalues.p_normal(pvalues.scores_z(w, r, 3), spread, df)
    found[..., 2] = shape
    found[..., 3:5] = np.minimum(beyond / _BEYOND, 1.0)
    found[(n < LEAST_ROWS) | (m < 1)] = 1.0
    found[..., 5] = missing
    return found


def _shares(
    layout: Layout,
    window: Sums,
    base: Sums,
    variation: Dispersion,
    screen: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Each column's smallest weighted p-value of a single level, (scales, categorical columns), and
    of its missing values, (scales, columns). One call of the exact test for all of them."""
    owner, begins = layout.owner, layout.begins
    phi = np.concatenate([variation.level, variation.share], axis=1)
    rows, known = window.rows[:, None], base.rows[:, None]
    if len(begins):
        n, m = (np.add.reduceat(t, begins, axis=1)[:, owner] for t in (window.levels, base.levels))
    else:
        n = m = np.zeros((len(rows), 0))
    k = np.concatenate([window.levels, window.missing], axis=1)
    others = np.concatenate([base.levels, base.missing], axis=1)
    n = np.concatenate([n, np.broadcast_to(rows, window.missing.shape)], axis=1)
    m = np.concatenate([m, np.broadcast_to(known, base.missing.shape)], axis=1)
    p = pvalues.p_share(
        np.floor(k / phi), n / phi, others / phi, m / phi, min(screen, pvalues.SCREEN)
    )
    levels, missing = p[:, : len(owner)], p[:, len(owner) :]
    missing = np.where(rows >= LEAST_ROWS, missing / _missing_weights(layout), 1.0)
    if not len(begins):
        return np.ones((len(rows), 0)), np.minimum(missing, 1.0)
    weighted = levels / _level_weights(layout)
    smallest = np.minimum(np.minimum.reduceat(weighted, begins, axis=1), 1.0)
    return smallest, np.minimum(missing, 1.0)


def _level_weights(layout: Layout) -> np.ndarray:
    """Of each level within its column, adding up to 1: half of it equal, half by share."""
    equal = 1 / np.bincount(layout.owner)[layout.owner]
    weights: np.ndarray = (1 - _BY_SHARE) * equal + _BY_SHARE * layout.level_shares
    return weights


def _names(
    layout: Layout,
    w: np.ndarray,
    r: np.ndarray,
    variation: Dispersion,
    singles: np.ndarray,
    missing: np.ndarray,
) -> np.ndarray:
    begins = layout.begins
    if not len(begins):
        return np.ones((len(variation.df), 0, len(LEVEL_TESTS)))
    statistic, df, variance = pvalues.level_statistics(w, r, begins, layout.owner)
    whole = pvalues.p_chi_squared(statistic, df, variance, variation.levels)
    found = np.stack([whole, singles, missing], axis=-1)
    n, m = (np.add.reduceat(table, begins, axis=1) for table in (w, r))
    found[(n < LEAST_ROWS) | (m < 1), :2] = 1.0
    return found
