"""How much the baseline varies by itself: its time blocks compared, each with the rest.

A column whose mean wanders from week to week would alarm every week under a null that takes rows
as independent. The factor φ, the mean of a statistic over the baseline's blocks divided by its
mean under that null, measures the wandering (iid rows: 1). Blocks are equal numbers of rows in
order of time, as long as a check's window where the baseline holds eight of them.
"""

from __future__ import annotations

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
    calibrated = {}
    for profile in usable:
        key = profile.key
        w1 = wasserstein_null(columns[key].values, profile.sd) if profile.numeric else None
        calibrated[key] = ColumnCalibration(
            block_rows=rows // blocks if blocks else 0,
            **_named("ks", ks.get(key)),
            **_named("chi2", chi2.get(key)),
            missing=missing[key][0] if key in missing else 1.0,
            w1_mean=w1[0] if w1 else None,
            w1_sd=w1[1] if w1 else None,
        )
    return Calibration(rows=rows, blocks=blocks, columns=calibrated)


def _named(name: str, found: tuple[float, float] | None) -> dict[str, float]:
    return {} if found is None else {name: found[0], f"{name}_df": found[1]}


class _Variation(NamedTuple):
    """φ of one column by itself; None where the column cannot tell."""

    ks: float | None
    chi2: float | None
    df: int  # of the chi-squared statistic
    missing: float | None


def _variation(
    profile: ColumnProfile, values: Values, order: np.ndarray, blocks: int
) -> _Variation:
    rows = values.rows
    block = np.arange(rows) * blocks // rows
    place = np.where(values.present, np.cumsum(values.present) - 1, -1)[order]
    there = place >= 0
    ordered, owner = values.values[place[there]], block[there]
    chi2, df = _chi2_variation(profile, ordered, owner, blocks)
    return _Variation(
        ks=_ks_variation(ordered, owner, blocks) if profile.numeric else None,
        chi2=chi2,
        df=df,
        missing=_missing_variation(~there, block, blocks),
    )


def _ks_variation(values: np.ndarray, owner: np.ndarray, blocks: int) -> float | None:
    whole = np.sort(values)
    m = len(whole)
    found = []
    for part in np.split(values, np.searchsorted(owner, np.arange(1, blocks))):
        n = len(part)
        if n < _LEAST_ROWS // 2 or n == m:
            continue
        # F - F_rest = (F - F_whole) m/(m-n): the rest need not be sorted again for each block.
        gap = drift.ks(whole, np.sort(part)) * m / (m - n)
        found.append(gap**2 * n * (m - n) / m / thresholds.KS_MEAN)
    return float(np.mean(found)) if len(found) >= BLOCKS // 2 else None


def _chi2_variation(
    profile: ColumnProfile, values: np.ndarray, owner: np.ndarray, blocks: int
) -> tuple[float | None, int]:
    width = len(profile.counts)
    cells = cells_of(profile, values)
    table = np.bincount(owner * width + cells, minlength=blocks * width).reshape(blocks, width)
    table = drift.fold_cells(profile, table, len(values) // blocks)
    if not profile.numeric:
        thin = table.sum(axis=0) < blocks
        table = np.column_stack([table[:, ~thin], table[:, thin].sum(axis=1)])
    total = table.sum(axis=0)
    found, freedom = [], 1
    for part in table:
        if 0 < part.sum() < total.sum():
            value, df, _ = drift.chi_squared(part, total - part)
            if df:
                found.append(value / df)
                freedom = df
    return (float(np.mean(found)) if len(found) >= BLOCKS // 2 else None), freedom


def _missing_variation(missing: np.ndarray, block: np.ndarray, blocks: int) -> float | None:
    m, share = len(missing), float(missing.mean())
    if not 0 < share < 1:
        return None
    n = np.bincount(block, minlength=blocks)
    here = np.bincount(block, weights=missing, minlength=blocks)
    rest = (missing.sum() - here) / (m - n)
    squares = (here / n - rest) ** 2 / (share * (1 - share) * (1 / n + 1 / (m - n)))
    return float(squares.mean())


def _squeeze(
    found: Mapping[str, float | None], blocks: int, freedom: Callable[[float], float]
) -> dict[str, tuple[float, float]]:
    """(φ, degrees of freedom) per column that has one, moderated over the columns."""
    keys = [key for key, phi in found.items() if phi is not None]
    if not keys:
        return {}
    phi = np.array([found[key] for key in keys], dtype=np.float64)
    df = blocks * freedom(max(float(np.median(phi)), 1.0))
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
        sizes = np.abs(_bridges()) @ widths
    if not np.isfinite(sizes).all() or not sizes.std() > 0:
        return None
    return float(sizes.mean()), float(sizes.std())


def _bridges() -> np.ndarray:
    """Brownian bridges at the middle of each grid step, shape (bridges, steps)."""
    rng = np.random.default_rng(_SEED)
    steps = np.diff(_GRID)
    paths = np.cumsum(rng.normal(size=(_BRIDGES, len(steps))) * np.sqrt(steps), axis=1)
    ends = paths - _GRID[1:] * paths[:, -1:]
    starts = np.concatenate([np.zeros((_BRIDGES, 1)), ends[:, :-1]], axis=1)
    middles: np.ndarray = (starts + ends) / 2
    return middles
