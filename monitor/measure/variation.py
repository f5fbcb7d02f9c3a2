"""How much the baseline varies by itself, at every time scale: its blocks of time compared.

φ is the mean of a squared z value over the baseline's own blocks, 1 when rows are independent.
Blocks are first adjusted for what is known to vary, their stratum (hour, weekend) and one straight
line over the whole baseline: a column that only ever grew while the baseline was recorded does not
vary, it drifts, and taking its trend for natural variation would hide that it goes on. What the
adjustment costs in degrees of freedom is counted exactly, at every scale, as the trace of the
residual-maker (weighted least squares, blocks weigh as many as their rows).

Columns lend each other strength (`thresholds.moderate`, limma). Scales too long for eight blocks
are extrapolated along the slope of log(φ - 1) over log(scale), between 0 (variation that is new in
every block) and 1 (variation that lasts: the design effect).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct, structs

from monitor.measure import pvalues
from monitor.measure.strata import LEAST
from monitor.measure.tally import Layout, Tally
from monitor.measure.thresholds import moderate


class ScaleVariation(Struct, frozen=True, kw_only=True):
    """Over-dispersion at one time scale. Columns in `Layout.numeric` or `.categorical` order."""

    scale: int  # base blocks summed
    rows: float  # of such a block, on average
    blocks: int  # of this length in the baseline
    known: bool  # estimated from at least eight blocks; otherwise extrapolated or assumed
    loc: tuple[float, ...]
    scale_: tuple[float, ...]
    bins: tuple[float, ...]
    uneven: tuple[float, ...]
    share: tuple[float, ...]  # missing values, all columns
    levels: tuple[float, ...]  # categorical columns, mean over their components
    level: tuple[tuple[float, ...], ...]  # each level by itself
    df: float  # behind loc and scale_


@dataclass(frozen=True)
class _Adjusted:
    """Weighted residuals of block means, and the orthonormal basis they were freed of."""

    basis: np.ndarray  # (blocks, parameters)
    weights: np.ndarray  # square root of the blocks' rows


def nothing_known(layout: Layout, scale: int) -> ScaleVariation:
    """The iid null, where the baseline has no blocks."""
    numbers, names = len(layout.numeric), len(layout.categorical)
    ones = (1.0,) * numbers
    return ScaleVariation(
        scale=scale,
        rows=1.0,
        blocks=0,
        known=False,
        loc=ones,
        scale_=ones,
        bins=ones,
        uneven=ones,
        share=(1.0,) * (numbers + names),
        levels=(1.0,) * names,
        level=tuple((1.0,) * len(p.counts) for p in layout.categorical),
        df=pvalues.MANY,
    )


def measure(
    layout: Layout, blocks: Tally, strata: np.ndarray, place: np.ndarray, scales: Sequence[int]
) -> tuple[ScaleVariation, ...]:
    """φ of every column and test at every scale.

    Args:
        blocks: the baseline's counts per base block.
        strata: intp (blocks,), see `monitor.measure.strata`.
        place: int64 (blocks,), number of each block in time; gaps are allowed.
    """
    filled = blocks.rows > 0
    blocks, strata, place = blocks.part(filled), strata[filled], place[filled]
    if len(blocks) < LEAST:
        return tuple(nothing_known(layout, scale) for scale in scales)
    adjusted = _adjust(blocks.rows, strata, place)
    values = _block_values(adjusted, blocks)
    found: list[ScaleVariation] = []
    for scale in scales:
        group = np.unique(place // scale, return_inverse=True)[1]
        groups = int(group.max()) + 1
        if groups >= LEAST or not found:
            found.append(
                _at_scale(values, _grouping(adjusted, group), scale, float(blocks.rows.sum()))
            )
        else:
            found.append(_extrapolated(found, scale, groups))
    return tuple(found)


def _adjust(rows: np.ndarray, strata: np.ndarray, place: np.ndarray) -> _Adjusted:
    weights = np.sqrt(rows.astype(np.float64))
    present = np.unique(strata)
    columns = [(strata == s).astype(np.float64) for s in present]
    if len(rows) > len(present) + 2:
        centred = place - place.mean()
        columns.append(centred / max(np.abs(centred).max(), 1.0))
    basis, _ = np.linalg.qr(weights[:, None] * np.stack(columns, axis=1))
    return _Adjusted(basis, weights)


@dataclass(frozen=True)
class _Values:
    """Weighted residuals of all block means, and their variances under independent rows."""

    loc: np.ndarray  # (blocks, numeric)
    loc_variance: np.ndarray  # (numeric,)
    spread: np.ndarray
    spread_variance: np.ndarray
    bins: np.ndarray  # (blocks, numeric, coarse cells): shares
    bin_shares: np.ndarray  # (numeric, coarse cells)
    present: np.ndarray  # (blocks, numeric): share of the rows that have a value
    missing: np.ndarray  # (blocks, columns)
    missing_shares: np.ndarray
    levels: tuple[np.ndarray, ...]  # each (blocks, levels + 1)
    level_shares: tuple[np.ndarray, ...]


def _block_values(adjusted: _Adjusted, blocks: Tally) -> _Values:
    counts = blocks.numeric.astype(np.float64)
    whole = counts.sum(0)
    scores = pvalues.mid_ranks(whole)
    squares = pvalues.spread_scores(whole, scores)
    n = np.maximum(counts.sum(-1), 1e-12)
    empty = counts.sum(-1) == 0
    pooled = whole / np.maximum(whole.sum(-1, keepdims=True), 1)
    cells = pvalues.coarse_cells(whole, int(np.median(blocks.rows)))
    folded = pvalues.folded(counts, cells)
    shares_of_bins = folded.sum(0) / np.maximum(folded.sum((0, 2)), 1)[:, None]
    shares = [table.sum(0) / max(table.sum(), 1) for table in blocks.levels]
    return _Values(
        # A block without values of a column lies at its mean, zero, and is not counted (`present`).
        loc=_residual(adjusted, np.where(empty, 0.0, (counts * scores).sum(-1) / n)),
        loc_variance=_variance(pooled, scores),
        spread=_residual(adjusted, np.where(empty, 0.0, (counts * squares).sum(-1) / n)),
        spread_variance=_variance(pooled, squares),
        bins=_residual(adjusted, np.where(empty[..., None], shares_of_bins, folded / n[..., None])),
        bin_shares=shares_of_bins,
        present=counts.sum(-1) / blocks.rows[:, None],
        missing=_residual(adjusted, blocks.missing / blocks.rows[:, None]),
        missing_shares=blocks.missing.sum(0) / blocks.rows.sum(),
        levels=tuple(
            _residual(adjusted, t / np.maximum(t.sum(1, keepdims=True), 1)) for t in blocks.levels
        ),
        level_shares=tuple(shares),
    )


def _variance(shares: np.ndarray, scores: np.ndarray) -> np.ndarray:
    mean = (shares * scores).sum(-1)
    variance: np.ndarray = np.maximum((shares * scores**2).sum(-1) - mean**2, 0.0)
    return variance


def _residual(adjusted: _Adjusted, values: np.ndarray) -> np.ndarray:
    """Block means freed of strata and trend, weighted; shape of `values`."""
    flat = values.reshape(len(values), -1)
    weighted = adjusted.weights[:, None] * flat
    freed: np.ndarray = weighted - adjusted.basis @ (adjusted.basis.T @ weighted)
    return freed.reshape(values.shape)


@dataclass(frozen=True)
class _Grouping:
    """Base blocks gathered into longer ones.

    Attributes:
        share: (blocks,) weight of a block within its group.
        begins: where groups begin; blocks are in order of time.
        freedom: expected sum of squares of the groups' scaled residuals, in variances of a row.
    """

    share: np.ndarray
    begins: np.ndarray
    freedom: float

    def __len__(self) -> int:
        return len(self.begins)

    def gather(self, residual: np.ndarray) -> np.ndarray:
        share = self.share.reshape(-1, *[1] * (residual.ndim - 1))
        gathered: np.ndarray = np.add.reduceat(share * residual, self.begins)
        return gathered


def _grouping(adjusted: _Adjusted, group: np.ndarray) -> _Grouping:
    size = np.sqrt(np.bincount(group, adjusted.weights**2))
    found = _Grouping(
        adjusted.weights / size[group], np.flatnonzero(np.diff(group, prepend=-1)), 0.0
    )
    freedom = len(size) - float((found.gather(adjusted.basis) ** 2).sum())
    return _Grouping(found.share, found.begins, max(freedom, 1.0))


def _at_scale(values: _Values, group: _Grouping, scale: int, rows: float) -> ScaleVariation:
    # A mean of fewer values than rows varies more, and an empty block not at all: undo both.
    filled = values.present > 0
    thin = np.where(filled, values.present, 0.0).sum(0) / np.maximum(filled.sum(0), 1)
    thin = thin / np.maximum(filled.mean(0), 1e-9)
    freedom = group.freedom
    loc = _ratio(group, values.loc, values.loc_variance)
    spread = _ratio(group, values.spread, values.spread_variance)
    loc, spread = loc * thin, spread * thin
    bins, uneven = _shape(values, group)
    bins = np.maximum(bins * thin, 1.0)
    share = _ratio(group, values.missing, values.missing_shares * (1 - values.missing_shares))
    levels, level = [], []
    for table, shares in zip(values.levels, values.level_shares, strict=True):
        each = _ratio(group, table, shares * (1 - shares))
        weights = 1 - shares  # chi-squared is the sum over levels of (1 - share) φ
        k = max(int((shares > 0).sum()) - 1, 1)
        levels.append(max(float((each * weights)[shares > 0].sum()) / k, 1.0))
        level.append(tuple(_round(moderate(each, freedom)[0] if len(each) > 2 else each)))
    names = moderate(np.array(levels), freedom)[0] if len(levels) > 2 else np.array(levels)
    groups = len(group)
    loc, df = moderate(loc, freedom) if len(loc) else (loc, pvalues.MANY)
    spread, _ = moderate(spread, freedom) if len(spread) else (spread, df)
    varied = values.missing_shares > 0
    if varied.sum() > 2:
        share[varied] = moderate(share[varied], freedom)[0]
    return ScaleVariation(
        scale=scale,
        rows=rows / groups,
        blocks=groups,
        known=groups >= LEAST,
        loc=_round(loc),
        scale_=_round(spread),
        bins=_round(bins),
        uneven=_round(uneven),
        share=_round(share),
        levels=_round(names),
        level=tuple(level),
        df=float(df),
    )


def _ratio(group: _Grouping, residual: np.ndarray, variance: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = (group.gather(residual) ** 2).sum(0) / (variance * group.freedom)
    return np.where(variance > 1e-12, phi, 1.0)


def _shape(values: _Values, group: _Grouping) -> tuple[np.ndarray, np.ndarray]:
    """φ and unevenness of the chi-squared remainder."""
    residual, g = group.gather(values.bins), values.bin_shares
    statistic = np.where(g > 0, residual**2 / np.where(g > 0, g, 1), 0.0).sum(-1)
    for direction in pvalues.smooth(g):
        statistic = statistic - (residual * direction).sum(-1) ** 2
    df = np.maximum((g > 0).sum(-1) - 3, 1)
    per_group = np.maximum(statistic, 0.0) / df * len(group) / group.freedom
    mean = per_group.mean(0)
    ratio = per_group.var(0) / np.maximum(mean, 1e-9) ** 2 * df / 2
    uneven = np.maximum((ratio + np.median(ratio)) / 2, 1.0) if len(ratio) else ratio
    phi = moderate(mean, group.freedom * float(np.median(df)))[0] if len(mean) else mean
    return phi, uneven


def _extrapolated(found: Sequence[ScaleVariation], scale: int, groups: int) -> ScaleVariation:
    """A scale the baseline is too short for, from the longest ones it holds."""
    last = found[-1]
    before = found[-2] if len(found) > 1 else None
    stretch = scale / last.scale

    def carried(name: str) -> tuple[float, ...]:
        late = np.array(getattr(last, name))
        slope = np.ones(len(late))
        if before is not None and len(late):
            early = np.array(getattr(before, name))
            with np.errstate(divide="ignore", invalid="ignore"):
                rise = np.log((late - 1) / (early - 1)) / np.log(last.scale / before.scale)
            slope = np.clip(np.where(np.isfinite(rise), rise, 0.5), 0.0, 1.0)
            slope = (slope + np.median(slope)) / 2  # columns lend each other strength
        return _round(1 + (late - 1) * stretch**slope)

    return ScaleVariation(
        scale=scale,
        rows=last.rows * stretch,
        blocks=groups,
        known=False,
        loc=carried("loc"),
        scale_=carried("scale_"),
        bins=carried("bins"),
        uneven=last.uneven,
        share=carried("share"),
        levels=carried("levels"),
        level=tuple(
            _round(1 + (np.array(phi) - 1) * stretch**0.5) if phi else () for phi in last.level
        ),
        df=last.df,
    )


def _round(values: np.ndarray | Sequence[float]) -> tuple[float, ...]:
    """Four digits are more than φ is known to, and a third of the bytes."""
    return tuple(float(f"{max(value, 1.0):.4g}") for value in values)


def carry(
    known: Sequence[ScaleVariation], scale: float, rows: float
) -> tuple[ScaleVariation, float]:
    """The nearest known scale, and what its φ - 1 is to be multiplied by (see `at`)."""
    nearest = min(known, key=lambda each: abs(np.log(max(scale, 1e-9) / each.scale)))
    factor = max(rows, 1.0) / max(nearest.rows, 1.0)
    return nearest, 1.0 if nearest.blocks == 0 or abs(factor - 1) < 0.02 else factor


def at(known: Sequence[ScaleVariation], scale: float, rows: float) -> ScaleVariation:
    """φ of a window of another length or with other traffic than the baseline's blocks.

    The nearest known scale, carried to the window's rows by the design effect: what a block's
    rows share adds a fixed variance to their mean, however many they are, so φ - 1 grows with n.
    """
    nearest, factor = carry(known, scale, rows)
    if factor == 1:
        return nearest

    def carried(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((1 + (np.array(values) - 1) * factor).tolist())

    return structs.replace(
        nearest,
        loc=carried(nearest.loc),
        scale_=carried(nearest.scale_),
        bins=carried(nearest.bins),
        share=carried(nearest.share),
        levels=carried(nearest.levels),
        level=tuple(map(carried, nearest.level)),
    )
