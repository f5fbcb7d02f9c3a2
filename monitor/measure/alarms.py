"""Which columns drifted, under one budget of false alarms for the model and the quarter.

A window is looked at as the parts its checks added (an hour each, say). At every check the tests
look at the sums of the newest 1, 2, 4, 8, … parts, so that a gross shift is found at once and a
faint one as soon as its rows suffice. The budget is shared equally by the scales; within one it
pays for all tests and for as many independent looks as rolling sums amount to (`looks_of`):

    alpha = budget / scales / looks / tests

A window is held against the baseline's rows of its own strata in its own mix: p = sum of f_s p_s
with effective size 1 / sum of f_s² / m_s (direct standardisation).

Sources: Siegmund & Yakir 2000 and Siegmund 1985, chapter 10 (rolling sums); Rosenbaum 1987
(standardisation).
"""

from __future__ import annotations

import math
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
class Reference:
    """The baseline as the tests need it: counts per stratum."""

    layout: Layout
    strata: Tally  # one part per stratum
    variation: tuple[ScaleVariation, ...]


@dataclass(frozen=True)
class Look:
    """One scale's p-values.

    Attributes:
        numbers: (numeric columns, `NUMBER_TESTS`).
        names: (categorical columns, `LEVEL_TESTS`).
    """

    scale: int
    rows: int
    alpha: float
    known: bool
    numbers: np.ndarray
    names: np.ndarray

    @property
    def drifted(self) -> np.ndarray:
        """Per column of `Layout.ordered`: whether any test crossed."""
        parts = [self.numbers.min(1, initial=1.0), self.names.min(1, initial=1.0)]
        crossed: np.ndarray = np.concatenate(parts) < self.alpha
        return crossed


def tests_of(layout: Layout) -> int:
    """Tests of one look."""
    numbers, names = len(layout.numeric), len(layout.categorical)
    return numbers * len(NUMBER_TESTS) + names * len(LEVEL_TESTS)


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


def look(
    reference: Reference,
    parts: Tally,
    strata: np.ndarray,
    variation: ScaleVariation,
    *,
    alpha: float,
) -> Look:
    """The p-values of one window against its own mix of the baseline.

    Args:
        parts: what the window consists of; `strata` says which stratum each part lies in.
    """
    window = parts.total()
    base = standardised(reference.strata, parts.rows, strata)
    return Look(
        scale=variation.scale,
        rows=int(window.rows[0]),
        alpha=alpha,
        known=variation.known,
        numbers=_numbers(reference.layout, window, base, variation),
        names=_names(reference.layout, window, base, variation),
    )


@dataclass(frozen=True)
class Base:
    """The baseline in a window's mix, as effective counts (float64)."""

    numeric: np.ndarray  # (columns, cells)
    levels: tuple[np.ndarray, ...]
    missing: np.ndarray  # (columns,)
    rows: float


def standardised(reference: Tally, rows: np.ndarray, strata: np.ndarray) -> Base:
    """Effective counts of the baseline in the mix of the parts."""
    mix = np.bincount(strata, rows, minlength=len(reference)).astype(np.float64)
    mix = np.where(reference.rows > 0, mix, 0.0)
    if not mix.sum():  # strata the baseline never saw: all of it is the best there is
        mix = reference.rows.astype(np.float64)
    mix = mix / mix.sum()
    used = mix > 0
    mix, m = mix[used], reference.rows[used].astype(np.float64)
    effective = 1 / (mix**2 / m).sum()
    factor = effective * mix / m
    return Base(
        numeric=np.einsum("s,sck->ck", factor, reference.numeric[used]),
        levels=tuple(factor @ table[used] for table in reference.levels),
        missing=factor @ reference.missing[used],
        rows=float(effective),
    )


def _numbers(layout: Layout, window: Tally, base: Base, variation: ScaleVariation) -> np.ndarray:
    count = len(layout.numeric)
    if not count:
        return np.ones((0, len(NUMBER_TESTS)))
    w, r = window.numeric[0].astype(np.float64), base.numeric
    n, m = w.sum(-1), r.sum(-1)
    scores = pvalues.mid_ranks(r)
    loc, spread = np.array(variation.loc), np.array(variation.scale_)
    cells = pvalues.coarse_cells(r, int(n.min()))
    remainder = pvalues.shape_remainder(pvalues.folded(w, cells), pvalues.folded(r, cells))
    widest = np.maximum(loc, spread)
    last = np.array([len(profile.counts) - 1 for profile in layout.numeric])
    above = w[np.arange(count), last]
    tests = [
        pvalues.p_normal(pvalues.z_score(w, r, scores), loc, variation.df),
        pvalues.p_normal(
            pvalues.z_score(w, r, pvalues.spread_scores(r, scores)), spread, variation.df
        ),
        pvalues.p_chi_squared(*remainder, np.array(variation.bins), np.array(variation.uneven)),
        *(pvalues.p_beyond(np.floor(k / widest), n / widest, m / widest) for k in (above, w[:, 0])),
        _missing(window, base, np.array(variation.share))[:count],
    ]
    found = np.stack(tests, axis=1)
    found[n < LEAST_ROWS, :-1] = 1.0
    return found


def _missing(window: Tally, base: Base, phi: np.ndarray) -> np.ndarray:
    n = float(window.rows[0])
    return pvalues.p_share(
        np.floor(window.missing[0] / phi), n / phi, base.missing / phi, base.rows / phi
    )


def _names(layout: Layout, window: Tally, base: Base, variation: ScaleVariation) -> np.ndarray:
    first = len(layout.numeric)
    if not layout.categorical:
        return np.ones((0, len(LEVEL_TESTS)))
    missing = _missing(window, base, np.array(variation.share))[first:]
    rows = []
    for index in range(len(layout.categorical)):
        w, r = window.levels[index][0].astype(np.float64), base.levels[index]
        if w.sum() < LEAST_ROWS or not r.sum():
            rows.append((1.0, 1.0))
            continue
        statistic, df, variance = pvalues.level_statistic(w, r)
        whole = pvalues.p_chi_squared(
            np.array(statistic), np.array(df), np.array(variance), variation.levels[index]
        )
        phi = np.array(variation.level[index])
        each = pvalues.p_share(np.floor(w / phi), w.sum() / phi, r / phi, r.sum() / phi)
        rows.append((float(whole), min(float(each.min()) * int((w + r > 0).sum()), 1.0)))
    return np.column_stack([np.array(rows), missing])
