"""How much the baseline varies by itself: its time blocks compared with each other.

A column whose mean wanders from week to week would alarm every week under a null that takes rows
as independent. The factor φ, the mean of a statistic over the baseline's blocks divided by its
mean under that null, measures the wandering (iid rows: 1). Blocks are equal numbers of rows in
order of time, as long as a check's window where the baseline holds eight of them.

Each block is held against the straight line through all blocks: a column that only ever grew while
the baseline was recorded does not vary, it drifts, and taking its trend for natural variation
would hide that it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monitor.measure import drift, thresholds
from monitor.measure.profile import ColumnProfile, Values, cells_of
from monitor.measure.thresholds import BLOCKS, Calibration, ColumnCalibration

_MOST_BLOCKS = 200
_LEAST_ROWS = 20  # of a block
_BRIDGES, _SEED = 400, 1
# Denser towards both ends, where a heavy tail's width lies.
_HALF = np.concatenate([[0.0], np.geomspace(1e-4, 0.5, 40)])
_GRID = np.concatenate([_HALF, 1 - _HALF[-2::-1]])


def blocks_of(rows: int, window_rows: int | None) -> int:
    """How many blocks to cut the baseline into; 0 when it is too short for eight."""
    wanted = rows // window_rows if window_rows else 2 * BLOCKS
    blocks = min(max(wanted, BLOCKS), _MOST_BLOCKS)
    return blocks if rows // blocks >= _LEAST_ROWS else 0


def calibrate(
    profiles: Sequence[ColumnProfile],
    columns: Mapping[str, Values],
    *,
    order: np.ndarray | None,
    window_rows: int | None,
) -> Calibration:
    """The natural variation of every column.

    Args:
        columns: the baseline's values by `ColumnProfile.key`, all of one length.
        order: positions of the rows in order of time (argsort of their times); None when the rows
            have no times.
        window_rows: rows a check's window is expected to hold.
    """
    usable = [profile for profile in profiles if not profile.why]
    rows = max((columns[profile.key].rows for profile in usable), default=0)
    blocks = 0 if order is None else blocks_of(rows, window_rows)
    varied: dict[str, _Variation] = {}
    if order is not None and blocks:
        varied = {p.key: _variation(p, columns[p.key], order, blocks) for p in usable}
    # Degrees of freedom of one block's statistic: a Kolmogorov statistic squared is worth five,
    # a chi-squared its own; both shrink to one when one wandering mean is all there is.
    ks = _squeeze({k: v.ks for k, v in varied.items()}, blocks, lambda phi: 1 + 4 / phi**2)
    cells = float(np.median([v.df for v in varied.values()])) if varied else 1.0
    chi2 = _squeeze(
        {k: v.chi2 for k, v in varied.items()}, blocks, lambda phi: 1 + (cells - 1) / phi**2
    )
    missing = _squeeze({k: v.missing for k, v in varied.items()}, blocks, lambda _: 1.0)
    # A window longer than a block averages over several: a wandering that lasts would grow with
    # the ratio, one that is new in each block not at all. Half-way, for want of blocks to tell.
    stretch = math.sqrt(max((window_rows or 0) * blocks / rows, 1.0)) if blocks else 1.0
    calibrated = {}
    for profile in usable:
        key = profile.key
        w1 = wasserstein_null(columns[key].values, profile.sd) if profile.numeric else None
        calibrated[key] = ColumnCalibration(
            window_rows=(window_rows or rows // blocks) if blocks else 0,
            **_named("ks", ks.get(key), stretch),
            **_named("chi2", chi2.get(key), stretch),
            missing=1 + (missing[key][0] - 1) * stretch if key in missing else 1.0,
            w1_mean=w1[0] if w1 else None,
            w1_sd=w1[1] if w1 else None,
        )
    return Calibration(rows=rows, blocks=blocks, columns=calibrated)


def _named(name: str, found: tuple[float, float] | None, stretch: float) -> dict[str, float]:
    return {} if found is None else {name: 1 + (found[0] - 1) * stretch, f"{name}_df": found[1]}


class _Variation(NamedTuple):
    """φ of one column by itself; None where the column cannot tell."""

    ks: float | None
    chi2: float | None
    df: int  # of the chi-squared statistic
    missing: float | None


def _variation(
    profile: ColumnProfile, values: Values, order: np.ndarray, blocks: int
) -> _Variation:
    block = np.arange(values.rows) * blocks // values.rows
    place = np.where(values.present, np.cumsum(values.present) - 1, -1)[order]
    there = place >= 0
    width = len(profile.counts)
    cells = cells_of(profile, values.values)[place[there]]
    table = np.bincount(block[there] * width + cells, minlength=blocks * width)
    table = table.reshape(blocks, width)
    presence = np.stack([np.bincount(block[part], minlength=blocks) for part in (there, ~there)])
    chi2, df = _chi2_variation(_merged(profile, table))
    return _Variation(
        ks=_ks_variation(table) if profile.numeric else None,
        chi2=chi2,
        df=df,
        missing=_chi2_variation(presence.T)[0],
    )


def _merged(profile: ColumnProfile, table: np.ndarray) -> np.ndarray:
    """The cells of the chi-squared test; levels that no block can be expected to hold are one."""
    table = drift.fold_cells(profile, table, int(table.sum()) // len(table))
    if profile.numeric:
        return table
    thin = table.sum(axis=0) < len(table)
    return np.column_stack([table[:, ~thin], table[:, thin].sum(axis=1)])


def _residuals(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Shares per block minus their straight line over time, rows per block, degrees of freedom.

    None with fewer than six blocks that hold values. Blocks count by their rows.
    """
    n = table.sum(axis=1)
    time = np.flatnonzero(n).astype(np.float64)
    table, n = table[n > 0], n[n > 0]
    if len(n) < BLOCKS - 2:
        return None
    root = np.sqrt(n)[:, None]
    basis, _ = np.linalg.qr(root * np.stack([np.ones(len(n)), time], axis=1))
    weighted = root * (table / n[:, None])
    return (weighted - basis @ (basis.T @ weighted)) / root, n, len(n) - 2


def _ks_variation(table: np.ndarray) -> float | None:
    """φ of the Kolmogorov–Smirnov statistic, looked at on the edges of the cells."""
    found = _residuals(table)
    if found is None:
        return None
    residuals, n, df = found
    gaps = np.abs(residuals.cumsum(axis=1)).max(axis=1)
    at = np.cumsum(table.sum(axis=0))[:-1] / table.sum()
    at = np.unique(at[(at > 0) & (at < 1)])
    if not len(at):
        return None
    usual = float((np.abs(_bridges(at)).max(axis=1) ** 2).mean())
    return float((gaps**2 * n).sum() / df / usual)


def _chi2_variation(table: np.ndarray) -> tuple[float | None, int]:
    """φ of the chi-squared statistic and its degrees of freedom in one block."""
    table = table[:, table.sum(axis=0) > 0]
    found, cells = _residuals(table), table.shape[1] - 1
    if found is None or cells < 1:
        return None, max(cells, 1)
    residuals, n, df = found
    pooled = table.sum(axis=0) / table.sum()
    return float(((residuals**2 / pooled).sum(axis=1) * n).sum() / df / cells), cells


def _squeeze(
    found: Mapping[str, float | None], blocks: int, freedom: Callable[[float], float]
) -> dict[str, tuple[float, float]]:
    """(φ, degrees of freedom) per column that has one, moderated over the columns.

    `freedom` says what one block's statistic is worth at a given φ.
    """
    keys = [key for key, phi in found.items() if phi is not None]
    if not keys:
        return {}
    phi = np.array([found[key] for key in keys], dtype=np.float64)
    df = (blocks - 2) * freedom(max(float(np.median(phi)), 1.0))
    squeezed, total = thresholds.moderate(phi, df)
    return {key: (float(value), total) for key, value in zip(keys, squeezed, strict=True)}


def wasserstein_null(values: np.ndarray, sd: float | None) -> tuple[float, float] | None:
    """Mean and sd of sqrt(nm/(n+m)) W1 / sd when nothing drifts; None for a constant column.

    Its limit is the integral of |B(F(x))| over x, B a Brownian bridge (del Barrio et al. 1999),
    here over 400 seeded bridges on the column's quantiles.
    """
    if not sd or not len(values):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        widths = np.diff(np.quantile(values, _GRID)) / sd
        sizes = np.abs(_bridges((_GRID[1:] + _GRID[:-1]) / 2)) @ widths
    if not np.isfinite(sizes).all() or not sizes.std() > 0:
        return None
    return float(sizes.mean()), float(sizes.std())


def _bridges(at: np.ndarray) -> np.ndarray:
    """Seeded Brownian bridges at ascending points in (0, 1), shape (bridges, points)."""
    rng = np.random.default_rng(_SEED)
    steps = np.diff(np.concatenate([[0.0], at, [1.0]]))
    paths = np.cumsum(rng.normal(size=(_BRIDGES, len(steps))) * np.sqrt(steps), axis=1)
    bridges: np.ndarray = paths[:, :-1] - at * paths[:, -1:]
    return bridges
