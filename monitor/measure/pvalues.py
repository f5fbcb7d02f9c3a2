"""How surprising a window's counts are, in closed form, with the baseline's own noise paid for.

All functions take counts over the cells that the baseline fixed (`monitor.measure.profile`): `w` of
the window and `r` of the baseline, float64, any leading axes (columns, blocks, …), cells last; rows
of cells may be padded with zeros. n = rows of the window, m = rows of the baseline (of the same mix
of strata), n_e = nm / (n + m), g = pooled shares. Each test has one kind of change it is for:

loc      z of the mean mid-rank score (Wilcoxon's)                       a mean that moved
scale    z of the squared, centred mid-rank score (Mood's)               a spread that moved
bins     chi-squared on 8 cells minus its loc and scale parts            any other change of shape
         (Neyman's smooth test, the remainder)
beyond   k rows beyond the baseline's highest (lowest) value, exact      tails, units
share    Fisher's exact test of a 2 × 2 table, twice the smaller side    missing, unseen, one level
levels   chi-squared of categories, a gamma with matched variance        many levels at once

Over-dispersion φ (`monitor.measure.variation`) divides squared z values, with Student's tail for
how surely it is known, and sample sizes where a test is exact.

Sources: Wilcoxon 1945; Mood 1954; Neyman 1937 and Rayner & Best 1989 (components of chi-squared);
Fisher 1935; Rao & Scott 1981, 1984 (over-dispersed chi-squared).
"""

from __future__ import annotations

import numpy as np
from scipy import special

MANY = 1e6  # degrees of freedom that stand for certainty
_FINE, _COARSE = 8, 5  # cells of the shape test; fewer for small windows
_SMALL = 80  # rows
_EXACT = 5e-3  # above this the normal approximation of a share will do: nothing is decided there
_PLAIN = (50, 1e-12)  # expected rows and p-value from which on it decides alike


def mid_ranks(r: np.ndarray) -> np.ndarray:
    """Mid-rank score of each cell in the baseline, centred, in (-½, ½); shape of `r`."""
    p = r / np.maximum(r.sum(-1, keepdims=True), 1)
    scores: np.ndarray = np.cumsum(p, -1) - p / 2 - 0.5
    return scores


def spread_scores(r: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Squared mid-rank scores, centred at the baseline."""
    p = r / np.maximum(r.sum(-1, keepdims=True), 1)
    squared = scores * scores
    centred: np.ndarray = squared - (p * squared).sum(-1, keepdims=True)
    return centred


def z_score(w: np.ndarray, r: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Difference of mean scores over its standard error under the pooled sample; 0 where the pooled
    sample does not vary. Shape of `w` without cells."""
    n, m = w.sum(-1), r.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = (w + r) / (n + m)[..., None]
        mean = (g * scores).sum(-1)
        variance = np.maximum((g * scores**2).sum(-1) - mean**2, 0.0)
        gap = (w * scores).sum(-1) / n - (r * scores).sum(-1) / m
        z = gap / np.sqrt(variance * (1 / n + 1 / m))
    return np.where(np.isfinite(z) & (variance > 1e-12), z, 0.0)


def p_normal(
    z: np.ndarray, phi: np.ndarray | float = 1.0, df: np.ndarray | float = MANY
) -> np.ndarray:
    """Two-sided p-value of z / sqrt(φ), Student's with `df` degrees of freedom."""
    t = -np.abs(z) / np.sqrt(phi)
    p: np.ndarray = 2 * np.where(np.asarray(df) >= MANY, special.ndtr(t), special.stdtr(df, t))
    return p


def coarse_cells(r: np.ndarray, n: np.ndarray | float) -> np.ndarray:
    """The shape test's cell of each cell, by the baseline's mid-rank: intp, shape of `r`.

    By rank instead of by position, so that columns whose ties merged cells are cut as evenly as
    they can be; what lies beyond the baseline falls into the outermost cells.
    """
    cells = np.where(np.asarray(n) >= _SMALL, _FINE, _COARSE)[..., None]
    place = np.floor((mid_ranks(r) + 0.5) * cells).astype(np.intp)
    clipped: np.ndarray = np.clip(place, 0, cells - 1)
    return clipped


def folded(counts: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Counts summed into coarse cells; `cells` broadcasts against `counts`."""
    width = int(cells.max(initial=0)) + 1
    hot = cells[..., None, :] == np.arange(width)[:, None]
    summed: np.ndarray = np.einsum("...k,...ck->...c", counts, hot.astype(np.float64))
    return summed


def shape_remainder(w: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chi-squared on coarse cells minus its location and scale components.

    Returns the statistic, its degrees of freedom (filled cells - 3; at least 0) and its variance
    under multinomial sampling, each of the shape of `w` without cells.
    """
    n, m = w.sum(-1, keepdims=True), r.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = (w + r) / (n + m)
        filled = g > 0
        safe = np.where(filled, g, 1.0)
        gap = np.where(filled, w / n - r / m, 0.0)
        size = (1 / n + 1 / m)[..., 0]
        statistic = (gap**2 / safe).sum(-1) / size
        k = filled.sum(-1)
        thin = (np.where(filled, 1 / safe, 0.0).sum(-1) - k**2 - 2 * k + 2) / n[..., 0]
        variance = 2 * (k - 1) + np.maximum(thin * (m / (n + m))[..., 0], 0.0)
        for direction in smooth(g):
            statistic = statistic - (gap * direction).sum(-1) ** 2 / size
    df = np.maximum(k - 3, 0)
    return np.maximum(statistic, 0.0), df, np.maximum(variance - 4, 2.0 * df)


def smooth(g: np.ndarray) -> list[np.ndarray]:
    """The linear and quadratic scores of cells, orthonormal under the shares `g`: the directions of
    a change of location and of scale."""
    score = np.cumsum(g, -1) - g / 2 - 0.5
    found: list[np.ndarray] = []
    for raw in (score, score * score):
        direction = raw - (g * raw).sum(-1, keepdims=True)
        for other in found:
            direction = direction - (g * direction * other).sum(-1, keepdims=True) * other
        length = np.sqrt(np.maximum((g * direction**2).sum(-1, keepdims=True), 1e-12))
        found.append(direction / length)
    return found


def p_chi_squared(
    statistic: np.ndarray,
    df: np.ndarray,
    variance: np.ndarray,
    phi: np.ndarray | float = 1.0,
    uneven: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Upper tail of a chi-squared statistic, over-dispersed to second order.

    Without over-dispersion a gamma with the statistic's mean and variance. `phi` multiplies the
    mean; `uneven` >= 1 says that the excess sits in few components, which leaves df / uneven
    degrees of freedom (Rao & Scott 1984). 1.0 where df is 0.
    """
    df = np.asarray(df, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch = np.maximum(variance / (2 * df), 1.0) * uneven
        p = special.gammaincc(df / stretch / 2, statistic / phi / stretch / 2)
    return np.where(df > 0, p, 1.0)


def p_beyond(k: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """P(at least k of n window rows lie beyond all m of the baseline), rows exchangeable. Exact:
    n! (n + m - k)! / ((n - k)! (n + m)!); real-valued arguments are effective sizes."""
    k = np.minimum(k, n)
    logs = (
        special.gammaln(n + 1)
        - special.gammaln(n - k + 1)
        + special.gammaln(n + m - k + 1)
        - special.gammaln(n + m + 1)
    )
    p: np.ndarray = np.minimum(np.exp(logs), 1.0)
    return p


def p_share(k: np.ndarray, n: np.ndarray, others: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Fisher's exact test: k of n window rows against `others` of m baseline rows.

    Twice the smaller one-sided p-value. What the normal approximation (with Yates' correction) puts
    above 0.005, or with 50 rows expected below 1e-12, is left at that: no budget decides there.
    """
    k, n, others, m = np.broadcast_arrays(k, n, others, m)
    k, others = np.rint(k), np.rint(others)
    n, m = np.maximum(np.rint(n), k), np.maximum(np.rint(m), others)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (k + others) / (n + m)
        error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        gap = np.maximum(np.abs(k / n - others / m) - (1 / n + 1 / m) / 2, 0.0)
        z = np.where(error > 0, gap / error, 0.0)
    p = 2 * special.ndtr(-z)
    rough = np.where(np.isfinite(p), np.minimum(p, 1.0), 1.0)
    many = np.minimum(pooled, 1 - pooled) * np.minimum(n, m) > _PLAIN[0]
    near = (rough < _EXACT) & ~(many & (rough < _PLAIN[1]))
    if near.any():
        rough = rough.copy()
        rough[near] = _fisher(k[near], n[near], others[near], m[near])
    return rough


def _fisher(k: np.ndarray, n: np.ndarray, others: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Twice the smaller tail of the hypergeometric distribution, summed outward from k."""
    more = k * m >= others * n  # which side of what is expected k lies on
    # Fewer of these is more of the others: one formula for both sides.
    k, others = np.where(more, k, n - k), np.where(more, others, m - others)
    marked, total = k + others, n + m
    first = (
        _choose(marked, k) + _choose(total - marked, n - k) - _choose(total, n)
    )  # log P(exactly k)
    ratio_sum, term, i = np.ones_like(k), np.ones_like(k), k.copy()
    for _ in range(100_000):  # terms fall at least geometrically past the mode
        with np.errstate(divide="ignore", invalid="ignore"):
            step = (marked - i) * (n - i) / ((i + 1) * (total - marked - n + i + 1))
        term = np.where(i < np.minimum(marked, n), term * step, 0.0)
        ratio_sum = ratio_sum + term
        i = i + 1
        if (term <= 1e-7 * ratio_sum).all():
            break
    p: np.ndarray = np.minimum(2 * np.exp(first) * ratio_sum, 1.0)
    return p


def _choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    logs: np.ndarray = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return logs


def level_statistic(w: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two-sample chi-squared of categories: statistic, degrees of freedom and its variance.

    Levels that expect less than one row of the window are pooled into one.
    """
    n, m = w.sum(-1, keepdims=True), r.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        thin = (w + r) * (n / (n + m)) < 1
        thin &= thin.sum(-1, keepdims=True) >= 2
        w = np.concatenate([np.where(thin, 0, w), (w * thin).sum(-1, keepdims=True)], axis=-1)
        r = np.concatenate([np.where(thin, 0, r), (r * thin).sum(-1, keepdims=True)], axis=-1)
        g = (w + r) / (n + m)
        filled = g > 0
        inverse = np.where(filled, 1 / np.where(filled, g, 1), 0.0)
        statistic = ((w / n - r / m) ** 2 * inverse).sum(-1) / (1 / n + 1 / m)[..., 0]
        k = filled.sum(-1)
        excess = (inverse.sum(-1) - k**2 - 2 * k + 2) / n[..., 0] * (m / (n + m))[..., 0]
    df = np.maximum(k - 1, 0)
    return statistic, df, 2 * df + np.maximum(excess, 0.0)
