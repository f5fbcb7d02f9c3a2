"""The lines beside the numbers that people read: what chance exceeds once in 1 / alpha looks.

psi           (1/n + 1/m) χ²_{K-1}(1-α) φ
js            sqrt(psi line / 8), as JS divergence ≈ PSI / 8
wasserstein   gamma with the null's mean and sd, times sqrt(φ)
ks            see `ks_line`
chi2          see `chi2_line`

None of them decides (`monitor.measure.alarms` does): they say how large a number of its kind is, at
the error rate of one test on the whole window. n rows of the window, m of the baseline; φ >= 1 is
the natural variation beyond independent rows (`monitor.measure.variation`).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import special

KS_MEAN = math.pi**2 / 12  # mean of the squared Kolmogorov distribution
_MANY = 1e6  # degrees of freedom that stand for certainty
_PER_CELL = 10  # rows of the window a cell needs before PSI has a line
_BRIDGES, _SEED = 400, 1
# Denser towards both ends, where a heavy tail's width lies.
_HALF = np.concatenate([[0.0], np.geomspace(1e-4, 0.5, 40)])
_GRID = np.concatenate([_HALF, 1 - _HALF[-2::-1]])


def psi_line(n: int, m: int, cells: int, alpha: float, phi: float = 1.0) -> float | None:
    """PSI that chance exceeds with probability alpha.

    None for fewer than two cells, and for fewer than ten rows a cell: there empty cells lift PSI
    far above any such line (35 times too often at n = 60 in 22 cells).
    """
    if cells < 2 or n < _PER_CELL * cells:
        return None
    return (1 / n + 1 / m) * _chi2_isf(alpha, cells - 1) * phi


def js_line(psi: float | None) -> float | None:
    """The Jensen–Shannon distance that belongs to a PSI line: divergence = PSI / 8."""
    return None if psi is None else math.sqrt(psi / 8)


def ks_line(n: int, m: int, alpha: float, phi: float = 1.0, df: float = _MANY) -> float:
    """Kolmogorov–Smirnov statistic that chance exceeds with probability at most alpha.

    Kolmogorov's limit with effective n = nm/(n+m), a little too high for small samples and for
    ties, never too low. What φ adds is a wandering of the column, normal from block to block and
    known from few of them, so its part has Student's tail: heavier than Kolmogorov's own.
    """
    wander = KS_MEAN * max(phi - 1, 0.0) * _student_isf(alpha / 2, df) ** 2
    return math.sqrt((1 / n + 1 / m) * (float(special.kolmogi(alpha)) ** 2 + wander))


def chi2_line(
    df: int, variance: float, alpha: float, phi: float = 1.0, phi_df: float = _MANY
) -> float:
    """Chi-squared statistic that chance exceeds with probability about alpha.

    Without over-dispersion: a gamma with the statistic's mean and variance (thin cells make its
    tail heavier than chi-squared's). With it, the larger of two lines: all components inflated
    alike (Rao & Scott 1981), and the whole excess in one component,
    (1 + df (φ-1)) χ²_1(1-α) + df - 1, which is what a shifting mean does.
    """
    scale = variance / (2 * df)
    alike = _gamma_isf(alpha, df / scale / 2, 2 * scale) * phi
    if phi_df < _MANY:  # F instead of chi-squared: φ itself is an estimate
        alike *= float(special.fdtri(df, phi_df, 1 - alpha)) / (_chi2_isf(alpha, df) / df)
    if phi <= 1:
        return alike
    one = (1 + df * (phi - 1)) * _student_isf(alpha / 2, phi_df) ** 2 + df - 1
    return max(alike, one)


def wasserstein_line(
    n: int, m: int, alpha: float, mean: float | None, sd: float | None, phi: float = 1.0
) -> float | None:
    """Normed Wasserstein distance that chance exceeds with probability about alpha.

    A gamma with the null's mean and sd, which `dispersion.wasserstein_null` finds. Heavy tails
    make it rough: one wild value can cross it, which is why it decides nothing.
    """
    if mean is None or sd is None or not mean > 0 or not sd > 0:
        return None
    shape = (mean / sd) ** 2
    return _gamma_isf(alpha, shape, mean / shape) * math.sqrt((1 / n + 1 / m) * phi)


def _chi2_isf(alpha: float, df: float) -> float:
    return _gamma_isf(alpha, df / 2, 2.0)


def _gamma_isf(alpha: float, shape: float, scale: float) -> float:
    return float(special.gammainccinv(shape, alpha)) * scale


def _student_isf(tail: float, df: float) -> float:
    return -float(special.ndtri(tail) if df >= _MANY else special.stdtrit(df, tail))


def moderate(phi: np.ndarray, df: float) -> tuple[np.ndarray, float]:
    """Over-dispersion per column, each estimated on `df` degrees of freedom, squeezed together.

    Columns that differ by no more than chance share one value; the more they truly differ, the
    more each keeps its own (empirical Bayes of Smyth 2004, as in limma). Returns φ >= 1 per column
    and the degrees of freedom behind each.
    """
    if len(phi) < 3:
        return np.maximum(phi, 1.0), df
    logs = np.log(np.maximum(phi, 1e-9))
    centred = logs - special.digamma(df / 2) + math.log(df / 2)
    prior = _inverse_trigamma(float(centred.var(ddof=1)) - float(special.polygamma(1, df / 2)))
    centre = math.exp(
        float(centred.mean()) + float(special.digamma(prior / 2)) - math.log(prior / 2)
    )
    squeezed = (prior * centre + df * phi) / (prior + df)
    # What all columns share is no better known than from all of them together.
    return np.maximum(squeezed, 1.0), min(prior + df, len(phi) * df, _MANY)


def _inverse_trigamma(value: float) -> float:
    """Twice the y with trigamma(y) = value; many degrees of freedom when value is not positive."""
    if value <= 1e-6:
        return 1e4
    y = 0.5 + 1 / value
    for _ in range(50):  # Newton on 1/trigamma, monotone (Smyth 2004, appendix)
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if abs(step) < 1e-8 * y:
            break
    return min(2 * max(y, 1e-3), 1e4)


def wasserstein_null(values: np.ndarray, sd: float | None) -> tuple[float, float] | None:
    """Mean and sd of sqrt(nm/(n+m)) W1 / sd when nothing drifts; None for a constant column.

    Its limit is the integral of |B(F(x))| over x, B a Brownian bridge (del Barrio et al. 1999),
    here over 400 seeded bridges on the column's quantiles.
    """
    if not sd or not len(values):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        ordered = np.sort(values)
        widths = np.diff(ordered[np.rint(_GRID * (len(ordered) - 1)).astype(np.intp)]) / sd
        sizes = _bridges() @ widths
    if not np.isfinite(sizes).all() or not sizes.std() > 0:
        return None
    return float(sizes.mean()), float(sizes.std())


@cache
def _bridges() -> np.ndarray:
    """Absolute values of seeded Brownian bridges between the points of the grid."""
    at = (_GRID[1:] + _GRID[:-1]) / 2
    rng = np.random.default_rng(_SEED)
    steps = np.diff(np.concatenate([[0.0], at, [1.0]]))
    paths = np.cumsum(rng.normal(size=(_BRIDGES, len(steps))) * np.sqrt(steps), axis=1)
    bridges: np.ndarray = np.abs(paths[:, :-1] - at * paths[:, -1:])
    return bridges
