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
    """Two-sample Kolmogorov–Smirnov statistic of two ascending samples; exact with ties.

    The largest gap lies at a value of the window or just below one, so only those are looked at:
    O(n log m) with a presorted baseline of m rows.
    """
    m, n = len(baseline), len(window)
    gaps = [
        np.searchsorted(window, window, side) / n - np.searchsorted(baseline, window, side) / m
        for side in ("left", "right")
    ]
    return float(np.abs(gaps).max())


def wasserstein(baseline: np.ndarray, window: np.ndarray) -> float:
    """First Wasserstein distance of two ascending samples, in their own unit (scipy's)."""
    values = np.concatenate([baseline, window])
    values.sort(kind="stable")  # two ascending runs: a merge
    at = values[:-1]
    p = np.searchsorted(baseline, at, "right") / len(baseline)
    q = np.searchsorted(window, at, "right") / len(window)
    with np.errstate(over="ignore", invalid="ignore"):
        return float((np.abs(q - p) * np.diff(values)).sum())
