"""How surprising a window's counts are, in closed form, with the baseline's own noise paid for.

All functions take counts over the cells that the baseline fixed (`monitor.measure.profile`): `w` of
the window and `r` of the baseline, float64, any leading axes (columns, blocks, …), cells last; rows
of cells may be padded with zeros. n = rows of the window, m = rows of the baseline (of the same mix
of strata), n_e = nm / (n + m), g = pooled shares. Each test has one kind of change it is for:

loc      z of the mean mid-rank score (Wilcoxon's)                       a mean that moved
scale    z of the squared, centred mid-rank score (Mood's)               a spread that moved
bins     chi-squared on 8 cells minus its loc and scale parts            any other change of shape
         (Neyman's smooth test, the remainder)
beyond   k rows beyond the baseline's highest (lowest) value, mid-p      tails, units
share    Fisher's test of a 2 × 2 table, twice the smaller mid-p         missing, one level
levels   chi-squared of categories, a gamma with matched variance        many levels at once

Over-dispersion φ (`monitor.measure.variation`) divides squared z values, with Student's tail for
how surely it is known, and sample sizes where a test is exact.

Sources: Wilcoxon 1945; Mood 1954; Neyman 1937 and Rayner & Best 1989 (components of chi-squared);
Fisher 1935; Lancaster 1961 (mid-p); Rao & Scott 1981, 1984 (over-dispersed chi-squared).
"""

from __future__ import annotations

import numpy as np
from scipy import special

MANY = 1e6  # degrees of freedom that stand for certainty
_FINE, _COARSE = 8, 5  # cells of the shape test; fewer for small windows
_SMALL = 80  # rows
SCREEN = 5e-3  # above this the normal approximation of a share will do: nothing is decided there
_STRIDE = 32  # terms of a tail that are summed at a time
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


#: What the tests need of a numeric column's counts are sums: of rows, s, s², q, q² (s the mid-rank
#: score, q its centred square), of the outermost cells, and of 8 and of 5 coarse cells.
SUMS = 7 + _FINE + _COARSE


def basis(r: np.ndarray, last: np.ndarray) -> np.ndarray:
    """float64 (..., cells, `SUMS`): counts @ basis are the sums that `scores_z` and `coarse` read;
    `last` is the cell above the baseline's highest value.

    Scores and coarse cells are the baseline's as a whole, whatever mix of its strata a window is
    held against: any scores fixed beforehand make a valid test.
    """
    s = mid_ranks(r)
    q = spread_scores(r, s)
    cells = np.arange(r.shape[-1])
    beyond = [
        np.broadcast_to((cells == end).astype(np.float64), s.shape) for end in (0, last[..., None])
    ]
    hot = [
        coarse_cells(r, rows)[..., None] == np.arange(count)
        for rows, count in ((_SMALL, _FINE), (1, _COARSE))
    ]
    first = np.stack([np.ones_like(s), s, s * s, q, q * q, *beyond], axis=-1)
    found: np.ndarray = np.concatenate([first, *hot], axis=-1)
    return found


def scores_z(w: np.ndarray, r: np.ndarray, which: int) -> np.ndarray:
    """`z_score` from sums: of the mid-rank score (`which` 1) or its centred square (3)."""
    n, m = w[..., 0], r[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        both = (w[..., which : which + 2] + r[..., which : which + 2]) / (n + m)[..., None]
        variance = np.maximum(both[..., 1] - both[..., 0] ** 2, 0.0)
        z = (w[..., which] / n - r[..., which] / m) / np.sqrt(variance * (1 / n + 1 / m))
    return np.where(np.isfinite(z) & (variance > 1e-12), z, 0.0)


def coarse(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The coarse cells' counts from sums: 8 of them, or 5 and zeros where n is small."""
    fine = sums[..., 7 : 7 + _FINE]
    small = n < _SMALL
    if not small.any():
        return fine
    few = np.zeros_like(fine)
    few[..., :_COARSE] = sums[..., 7 + _FINE :]
    return np.where(small[..., None], few, fine)


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
    """Two-sided p-value of z / sqrt(φ), Student's with `df` degrees of freedom.

    Student's tail is dear to compute: within two standard errors the normal one stands for it.
    """
    t = -np.abs(z) / np.sqrt(phi)
    p: np.ndarray = 2 * special.ndtr(t)
    df = np.broadcast_to(df, p.shape)
    heavy = (t < -2) & (df < MANY)
    if heavy.any():
        p[heavy] = 2 * special.stdtr(df[heavy], t[heavy])
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
    """The mid-p-value of k of n window rows beyond all m of the baseline, rows exchangeable:
    P(more than k) + P(exactly k) / 2, with P(at least k) = n! (n + m - k)! / ((n - k)! (n + m)!).
    Real-valued arguments are effective sizes."""
    k = np.minimum(k, n)
    logs = (
        special.gammaln(n + 1)
        - special.gammaln(n - k + 1)
        + special.gammaln(n + m - k + 1)
        - special.gammaln(n + m + 1)
    )
    # One more row beyond is (n - k) / (n + m - k) times as likely.
    p: np.ndarray = np.minimum(np.exp(logs), 1.0) * (1 + (n - k) / np.maximum(n + m - k, 1e-9)) / 2
    return p


def p_share(
    k: np.ndarray, n: np.ndarray, others: np.ndarray, m: np.ndarray, screen: float = SCREEN
) -> np.ndarray:
    """Fisher's test of k of n window rows against `others` of m baseline rows, as a mid-p-value.

    Twice the smaller one-sided mid-p-value, P(beyond) + P(exactly this) / 2: the exact test spends
    half of its error rate where counts are small, this one nearly all (Lancaster 1961). What the
    normal approximation (with Yates' correction) puts above `screen`, or with 50 rows expected
    below 1e-12, is left at that: nothing is decided there.
    """
    k, n, others, m = np.broadcast_arrays(k, n, others, m)
    k, others = np.rint(k), np.rint(others)
    n, m = np.maximum(np.rint(n), k), np.maximum(np.rint(m), others)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (k + others) / (n + m)
        size = 1 / n + 1 / m
        gap = np.maximum(np.abs(k / n - others / m) - size / 2, 0.0)
        z = gap / np.sqrt(pooled * (1 - pooled) * size)
    p = 2 * special.ndtr(-z)
    rough = np.where(np.isfinite(p), np.minimum(p, 1.0), 1.0)
    near = rough < screen
    if near.any():
        k, n, others, m, pooled = k[near], n[near], others[near], m[near], pooled[near]
        known = rough[near]
        many = np.minimum(pooled, 1 - pooled) * np.minimum(n, m) > _PLAIN[0]
        exact = ~(many & (known < _PLAIN[1]))
        known[exact] = _fisher(k[exact], n[exact], others[exact], m[exact])
        rough[near] = known
    return rough


def _fisher(k: np.ndarray, n: np.ndarray, others: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Twice the smaller mid-tail of the hypergeometric distribution, summed outward from k."""
    more = k * m >= others * n  # which side of what is expected k lies on
    # Fewer of these is more of the others: one formula for both sides.
    k, others = np.where(more, k, n - k), np.where(more, others, m - others)
    marked, total = k + others, n + m
    first = (
        _choose(marked, k) + _choose(total - marked, n - k) - _choose(total, n)
    )  # log P(exactly k)
    ratio_sum, left = np.ones_like(k), np.arange(len(k))
    term, i = np.ones_like(k), k[:, None] + np.arange(_STRIDE)
    while len(left):  # terms fall at least geometrically past the mode
        a, b = marked[left, None], n[left, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            step = (a - i) * (b - i) / ((i + 1) * (total[left, None] - a - b + i + 1))
        terms = np.cumprod(np.where(i < np.minimum(a, b), step, 0.0), axis=1) * term[:, None]
        ratio_sum[left] += terms.sum(1)
        going = terms[:, -1] > 1e-7 * ratio_sum[left]
        left, term, i = left[going], terms[going, -1], i[going] + _STRIDE
    p: np.ndarray = np.minimum(2 * np.exp(first) * (ratio_sum - 0.5), 1.0)
    return p


def _choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    logs: np.ndarray = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return logs


def level_statistic(w: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two-sample chi-squared of categories: statistic, degrees of freedom and its variance.

    Levels that expect less than one row of the window are pooled into one.
    """
    found = level_statistics(
        np.atleast_2d(w), np.atleast_2d(r), np.zeros(1, np.intp), np.zeros(w.shape[-1], np.intp)
    )
    statistic, df, variance = (each[..., 0].reshape(w.shape[:-1]) for each in found)
    return statistic, df, variance


def level_statistics(
    w: np.ndarray, r: np.ndarray, begins: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`level_statistic` of many columns at once, their levels side by side: (windows, columns).

    Args:
        w, r: (windows, levels of all columns).
        begins: where each column's levels begin; `column` (levels,) says whose a level is.
    """

    def each(values: np.ndarray) -> np.ndarray:
        summed: np.ndarray = np.add.reduceat(values, begins, axis=1, dtype=np.float64)
        return summed

    n, m = each(w), each(r)
    with np.errstate(divide="ignore", invalid="ignore"):
        total, size = n + m, 1 / n + 1 / m
        both = w + r
        thin = both * (n / total)[:, column] < 1
        pools = each(thin) >= 2
        thin &= pools[:, column]
        g = np.where(thin, 0.0, both / total[:, column])
        inverse = np.where(g > 0, 1 / np.where(g > 0, g, 1), 0.0)
        gap = w / n[:, column] - r / m[:, column]
        rest = np.where(pools, each(both * thin) / total, 0.0)
        rest_inverse = np.where(rest > 0, 1 / np.where(rest > 0, rest, 1), 0.0)
        statistic = (
            each(gap * gap * inverse) + each(np.where(thin, gap, 0.0)) ** 2 * rest_inverse
        ) / size
        k = each(g > 0) + (rest > 0)
        excess = (each(inverse) + rest_inverse - k**2 - 2 * k + 2) / n * (m / total)
    df = np.maximum(k - 1, 0)
    return statistic, df, 2 * df + np.maximum(excess, 0.0)
