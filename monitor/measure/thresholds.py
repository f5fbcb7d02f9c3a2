"""Every drift threshold from one number: the false alarms a quarter that somebody tolerates.

The budget is divided by Bonferroni over the checks of a quarter and the deciding tests of all
columns (`alpha`); each statistic's line is then the closed-form quantile of its null distribution
at that rate, with the baseline's own sampling noise in it (m baseline rows, n window rows):

psi           (1/n + 1/m) χ²_{K-1}(1-α) φ                       shown, never decides
js            sqrt(psi line / 8), as JS divergence ≈ PSI / 8      shown, never decides
wasserstein   gamma with the null's mean and sd, times sqrt(φ)   shown, never decides
ks            see `ks_line`                                      decides for numbers
tail          see `tail_line`                                    decides for numbers
chi2          see `chi2_line`                                    decides for all kinds

φ >= 1 says how much more the baseline's own time blocks differ from each other than chance allows
(`monitor.measure.dispersion`); it is carried to a window that holds more or fewer rows than usual
by the design effect, φ(n) = 1 + (n - 1) ρ. Checks whose windows overlap see the same rows again,
so that the promise is kept with room to spare.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from scipy import special

QUARTER = timedelta(days=90)
BLOCKS = 8  # windows a baseline must hold for its thresholds to be more than provisional
KS_MEAN = math.pi**2 / 12  # mean of the squared Kolmogorov distribution
_MANY = 1e6  # degrees of freedom that stand for certainty
_LEAST = 1e-12  # a smaller error rate than this is beyond what the closed forms can tell
_MOST = 0.05
_PER_CELL = 10  # rows of the window a cell needs before PSI has a line


class Spread(NamedTuple):
    """Over-dispersion of one column for windows of one size, and how surely it is known."""

    ks: float
    ks_df: float
    chi2: float
    chi2_df: float
    missing: float


class ColumnCalibration(Struct, frozen=True, kw_only=True):
    """What the baseline's own time blocks say of one column; the defaults mean: nothing known."""

    window_rows: int = 0  # rows of the window that φ holds for; 0 when there were no blocks
    ks: float = 1.0  # φ of the Kolmogorov–Smirnov statistic, squared scale
    ks_df: float = _MANY
    chi2: float = 1.0  # φ of the chi-squared statistic, mean over its components
    chi2_df: float = _MANY
    missing: float = 1.0  # φ of the missing share
    w1_mean: float | None = None  # mean and sd of sqrt(nm/(n+m)) W1/sd under the null
    w1_sd: float | None = None

    def at(self, n: int) -> Spread:
        """φ for a window of n rows, by the design effect."""
        scale = (max(n, 2) - 1) / (self.window_rows - 1) if self.window_rows > 1 else 1.0

        def carried(phi: float) -> float:
            return 1 + max(phi - 1, 0.0) * scale

        return Spread(
            ks=carried(self.ks),
            ks_df=self.ks_df,
            chi2=carried(self.chi2),
            chi2_df=self.chi2_df,
            missing=carried(self.missing),
        )


class Calibration(Struct, frozen=True, kw_only=True):
    """The calibration of all columns, by `ColumnProfile.key`."""

    rows: int
    blocks: int  # 0: the baseline has no times, or too few rows
    columns: dict[str, ColumnCalibration]


def alpha(false_alarms: float, check_every: timedelta, tests: int) -> float:
    """Error rate of one deciding test so that a quarter of checks keeps the promise (union bound).

    At most 0.05 and at least 1e-12.
    """
    checks = max(QUARTER / check_every, 1.0)
    return min(max(false_alarms / checks / max(tests, 1), _LEAST), _MOST)


def provisional(calibration: Calibration, window_rows: int) -> str:
    """Why the thresholds are provisional, for people; empty when they are not."""
    if not calibration.blocks:
        return "the baseline has no time blocks, so its natural variation is not known"
    windows = calibration.rows / max(window_rows, 1)
    if windows >= BLOCKS:
        return ""
    return (
        f"the baseline holds {windows:.3g} windows of {window_rows:,} rows, fewer than the "
        f"{BLOCKS} that thresholds need; its natural variation is extrapolated from shorter blocks"
    )


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


def tail_line(n: int, m: int, alpha: float, phi: float = 1.0) -> float:
    """Share of window values beyond the baseline's highest (or lowest) that chance may exceed.

    Exact for exchangeable rows: k values beyond all m have probability
    n! (n+m-k)! / ((n-k)! (n+m)!). Over-dispersion divides n, m and k alike. 1.0 where no share
    would be surprising.
    """
    rows, others = n / phi, m / phi
    log, k, limit = 0.0, 0, math.log(alpha)
    while log >= limit:
        if k + 1 > rows:
            return 1.0
        log += math.log((rows - k) / (rows + others - k))
        k += 1
    return min((math.ceil(k * phi) - 1) / n, 1.0)


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
    return np.maximum(squeezed, 1.0), min(prior + df, _MANY)


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
