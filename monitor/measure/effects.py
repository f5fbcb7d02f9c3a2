"""How much a window differs from the baseline, in the numbers people know.

psi           sum over cells of (q - p) ln(q / p), a share of zero taken as 1e-4
js            Jensen–Shannon distance, sqrt(JS divergence), natural logarithm (scipy's)
hellinger     sqrt(1 - sum of sqrt(p q))
tv            total variation, half the sum of |q - p|
wasserstein   first Wasserstein distance of the rows themselves over the baseline's sd
ks            two-sample Kolmogorov–Smirnov statistic of the rows themselves
chi2          two-sample chi-squared statistic against pooled shares, thin levels pooled
              (`monitor.measure.pvalues.level_statistic`)

Definitions are Evidently's (0.7.23: `legacy/calculations/stattests`) where both have the method.
PSI, Jensen–Shannon, Hellinger and Wasserstein are equal to 1e-9 on the same cells
(`tests/monitor/test_report.py`), Kolmogorov–Smirnov and Wasserstein are SciPy's. Two things differ
on purpose. Numbers are counted in cells that the baseline fixed once; Evidently lays new bins over
both samples each time, so that one wild value empties them. And chi-squared is the two-sample
statistic; Evidently takes the baseline's shares as known without error.
"""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-4  # share given to an empty cell in PSI, as Evidently does


def psi(window: np.ndarray, baseline: np.ndarray) -> float:
    """Population stability index of two vectors of counts over the same cells."""
    q, p = window / window.sum(), baseline / baseline.sum()
    seen = (window + baseline) > 0
    q, p = np.maximum(q[seen], _FLOOR), np.maximum(p[seen], _FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(window: np.ndarray, baseline: np.ndarray) -> float:
    """Jensen–Shannon distance in nats^½, 0 … sqrt(ln 2), of two vectors of counts."""
    q, p = window / window.sum(), baseline / baseline.sum()
    middle = (q + p) / 2
    divergence = (_relative_entropy(q, middle) + _relative_entropy(p, middle)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _relative_entropy(a: np.ndarray, b: np.ndarray) -> float:
    filled = a > 0
    return float((a[filled] * np.log(a[filled] / b[filled])).sum())


def hellinger(window: np.ndarray, baseline: np.ndarray) -> float:
    """Hellinger distance, 0 … 1, of two vectors of counts."""
    q, p = window / window.sum(), baseline / baseline.sum()
    return float(np.sqrt(max(1 - np.sqrt(q * p).sum(), 0.0)))


def total_variation(window: np.ndarray, baseline: np.ndarray) -> float:
    """Total variation distance, 0 … 1, of two vectors of counts."""
    return float(np.abs(window / window.sum() - baseline / baseline.sum()).sum() / 2)


def ks(baseline: np.ndarray, window: np.ndarray) -> float:
    """Two-sample Kolmogorov–Smirnov statistic of two ascending samples; exact with ties."""
    return ks_and_wasserstein(baseline, window)[0]


def wasserstein(baseline: np.ndarray, window: np.ndarray) -> float:
    """First Wasserstein distance of two ascending samples, in their own unit (scipy's)."""
    return ks_and_wasserstein(baseline, window)[1]


def ks_and_wasserstein(baseline: np.ndarray, window: np.ndarray) -> tuple[float, float]:
    """Both in one pass over the merged samples.

    Sorting is faster than searching for where each value goes, so the last bit of a value says
    which sample it is of while both are sorted; its own last bit is lost (1e-16 of the value).
    """
    m, n = len(baseline), len(window)
    values = np.concatenate([baseline, window], dtype=np.float64)
    bits = values.view(np.int64)
    bits &= ~1
    bits[m:] |= 1
    values.sort()
    gap = np.cumsum(np.array([1 / m, -1 / n])[bits & 1])  # of the distribution functions
    np.abs(gap, out=gap)
    bits &= ~1
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(values)
        distance = float(gap[:-1] @ steps)
    gap[:-1][steps == 0] = 0.0  # amid equal values neither function has its value yet
    return float(gap.max()), distance
