"""How a window differs from the baseline, column by column.

Definitions are Evidently's where both have the method (0.7.23: `legacy/calculations/stattests`),
on cells that the baseline fixed once instead of bins laid over both samples:

psi           sum over cells of (q - p) ln(q / p), a share of zero taken as 1e-4
js            Jensen–Shannon distance, sqrt(JS divergence), natural logarithm (scipy's)
wasserstein   first Wasserstein distance of the rows themselves over the baseline's sd
ks            two-sample Kolmogorov–Smirnov statistic of the rows themselves
tail          share of the rows beyond the baseline's highest or lowest value, the larger of both
chi2          two-sample chi-squared statistic against pooled shares, cells pooled until filled

The last three decide whether a column drifted: their null distributions are known, hold with ties
and unequal samples, and one wild value cannot move them.
PSI, Jensen–Shannon and Wasserstein are the effect sizes people read, shown beside a line at the
same error rate. They never decide: PSI fires far too often on small windows (empty cells), and
one value of a million is enough for Wasserstein.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from monitor.measure import thresholds
from monitor.measure.profile import ColumnProfile, Values, count
from monitor.measure.thresholds import ColumnCalibration
from monitor.results import ColumnDrift, Statistic

_FLOOR = 1e-4  # share given to an empty cell in PSI, as Evidently does
DECIDING = ("ks", "tail", "chi2")


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


def chi_squared(window: np.ndarray, baseline: np.ndarray) -> tuple[float, int, float]:
    """Two-sample chi-squared statistic, its degrees of freedom and its variance under the null.

    The variance is the multinomial's own, larger than 2 df where cells are thin; the gamma
    distribution with it keeps the tail right (`thresholds.chi2_line`).
    """
    filled = (window + baseline) > 0
    w, b = window[filled], baseline[filled]
    n, m, cells = w.sum(), b.sum(), int(filled.sum())
    pooled = (w + b) / (n + m)
    value = float(((w / n - b / m) ** 2 / pooled).sum() / (1 / n + 1 / m))
    excess = max(float((1 / pooled).sum()) - cells**2 - 2 * cells + 2, 0.0) / n * m / (n + m)
    return value, cells - 1, 2 * (cells - 1) + excess


def fold_cells(profile: ColumnProfile, counts: np.ndarray, n: int) -> np.ndarray:
    """Counts (…, cells) merged for the chi-squared test, the same way for both samples.

    Numbers: at most 10 neighbouring cells (5 for n < 200), what lies beyond the baseline counted
    with its neighbour. Categories: unchanged (`pool_thin` merges them).
    """
    if not profile.numeric:
        return counts
    inner = counts[..., 1:-1].copy()
    inner[..., 0] += counts[..., 0]
    inner[..., -1] += counts[..., -1]
    starts = np.unique(
        np.linspace(0, inner.shape[-1], (10 if n >= 200 else 5) + 1)[:-1].astype(int)
    )
    merged: np.ndarray = np.add.reduceat(inner, starts, axis=-1)
    return merged


def pool_thin(window: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with cells that expect less than one row of the window pooled into one."""
    expected = (window + baseline) * (window.sum() / (window.sum() + baseline.sum()))
    thin = expected < 1
    if thin.sum() < 2:
        return window, baseline
    return (
        np.append(window[~thin], window[thin].sum()),
        np.append(baseline[~thin], baseline[thin].sum()),
    )


def tests_of(profile: ColumnProfile) -> int:
    """How many deciding tests a column costs of the false-alarm budget."""
    return 0 if profile.why else 4 if profile.numeric else 1  # ks, chi2, either tail


def measure(
    profiles: Sequence[ColumnProfile],
    calibrations: Mapping[str, ColumnCalibration],
    reference: Mapping[str, np.ndarray],
    window: Mapping[str, Values],
    *,
    alpha: float,
    min_rows: int,
) -> tuple[ColumnDrift, ...]:
    """Every column of the window against the baseline; one broken column spoils only itself.

    Args:
        calibrations, reference, window: by `ColumnProfile.key`. `reference` holds the ascending
            values of numeric columns and may be kept between checks.
        alpha: error rate of each deciding test (`thresholds.alpha`).
        min_rows: columns with fewer values are not measured.
    """
    return tuple(
        measure_column(
            profile,
            calibrations.get(profile.key, ColumnCalibration()),
            reference.get(profile.key),
            window.get(profile.key),
            alpha=alpha,
            min_rows=min_rows,
        )
        for profile in profiles
    )


def measure_column(
    profile: ColumnProfile,
    calibration: ColumnCalibration,
    reference: np.ndarray | None,
    window: Values | None,
    *,
    alpha: float,
    min_rows: int,
) -> ColumnDrift:
    """One column; `why` says why it could not be measured, and then it has not drifted."""
    n = 0 if window is None else len(window.values)
    why = _unmeasurable(profile, window, min_rows)
    statistics: tuple[Statistic, ...] = ()
    if window is not None and not why:
        counted = _counted(profile, calibration, window.values, alpha)
        ranked = _ranked(profile, calibration, reference, window.values, alpha)
        statistics = (*counted[:2], *ranked, *counted[2:])
    return ColumnDrift(
        column=profile.column,
        role=profile.role,
        kind=profile.kind,
        n=n,
        missing_share=0.0 if window is None else window.missing / max(window.rows, 1),
        statistics=statistics,
        drifted=any(s.alarm for s in statistics if s.name in DECIDING),
        why=why,
    )


def _unmeasurable(profile: ColumnProfile, window: Values | None, min_rows: int) -> str:
    if profile.why:
        return profile.why
    if window is None:
        return "the window does not have this column"
    n = len(window.values)
    if n >= max(min_rows, 1):
        return ""
    if window.invalid:
        return f"{window.invalid:,} of {window.rows:,} values are no {profile.kind} values"
    if n == 0 and window.rows:
        return f"all {window.rows:,} values are missing"
    return f"{n:,} values, fewer than the {min_rows:,} a comparison needs"


def _counted(
    profile: ColumnProfile, calibration: ColumnCalibration, values: np.ndarray, alpha: float
) -> list[Statistic]:
    """PSI, Jensen–Shannon, the tails and chi-squared from counts per cell."""
    baseline, window = np.asarray(profile.counts), count(profile, values)
    n, m = int(window.sum()), int(baseline.sum())
    filled = int(((window + baseline) > 0).sum())
    spread = calibration.at(n)
    line = thresholds.psi_line(n, m, filled, alpha, spread.chi2)
    found = [
        _judged("psi", psi(window, baseline), line),
        _judged("js", jensen_shannon(window, baseline), thresholds.js_line(line)),
    ]
    if profile.numeric:
        beyond = max(window[0], window[-1]) / n
        widest = max(spread.ks, spread.chi2)
        found.append(_judged("tail", float(beyond), thresholds.tail_line(n, m, alpha, widest)))
    w, b = fold_cells(profile, window, n), fold_cells(profile, baseline, n)
    if not profile.numeric:
        w, b = pool_thin(w, b)
    value, df, variance = chi_squared(w, b)
    if df < 1:
        found.append(_unknown("chi2", "all values lie in one cell"))
    else:
        limit = thresholds.chi2_line(df, variance, alpha, spread.chi2, spread.chi2_df)
        found.append(_judged("chi2", value, limit))
    return found


def _ranked(
    profile: ColumnProfile,
    calibration: ColumnCalibration,
    reference: np.ndarray | None,
    values: np.ndarray,
    alpha: float,
) -> list[Statistic]:
    """Wasserstein and Kolmogorov–Smirnov from the rows themselves; numeric columns only."""
    if not profile.numeric:
        return []
    if reference is None or not len(reference):
        why = "the reference sample has no value in this column"
        return [_unknown("wasserstein", why), _unknown("ks", why)]
    window = np.sort(values)
    n, m = len(window), len(reference)
    spread = calibration.at(n)
    distance = wasserstein(reference, window) / profile.sd if profile.sd else np.nan
    limit = thresholds.wasserstein_line(
        n, m, alpha, calibration.w1_mean, calibration.w1_sd, spread.ks
    )
    why = "the baseline is constant" if profile.sd == 0 else "the values are too large for it"
    return [
        _judged("wasserstein", distance, limit)
        if np.isfinite(distance)
        else _unknown("wasserstein", why),
        _judged(
            "ks", ks(reference, window), thresholds.ks_line(n, m, alpha, spread.ks, spread.ks_df)
        ),
    ]


def _judged(name: str, value: float, threshold: float | None) -> Statistic:
    value = float(value)  # NumPy's scalars are not JSON's
    if threshold is None:
        why = "too few rows for a line"
        return Statistic(name=name, value=value, threshold=None, why=why)
    limit = float(threshold)
    return Statistic(name=name, value=value, threshold=limit, alarm=value > limit)


def _unknown(name: str, why: str) -> Statistic:
    return Statistic(name=name, value=None, threshold=None, why=why)
