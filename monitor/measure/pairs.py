"""Whether two numeric columns belong together as they did: rank correlations, all pairs.

Columns that each look as before may still have come apart (a join gone wrong, a sensor swapped).
Each column is scored by the mid-rank of its cell in the baseline, so that the scores are bounded
and their products well-behaved; a pair's correlation r of scores is compared with the baseline's by

    z = (atanh r - atanh r0) / sqrt(v / n + v0 / m)

with v the asymptotic variance of atanh r from the rows' own fourth moments, which holds for columns
of any shape and dependence (Steiger & Hakstian 1982), not only for normal ones. What r varies by
from one of the baseline's time blocks to the next is paid for by over-dispersion φ, one for all
pairs. Only inputs are paired: outputs are another version's in part. The transformation is Fisher's
(1921).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from msgspec import Struct

from monitor.measure import pvalues
from monitor.measure.profile import ColumnProfile, Values, cells_of
from monitor.measure.tally import Layout

MOST_COLUMNS = 100  # numeric columns whose pairs are looked at: 4,950 of them
LEAST = 50  # rows of a window; fewer decide nothing
MOST_ROWS = 20_000  # of a baseline and of a window, evenly thinned: more would say little more
_BLOCKS = 8  # of the baseline, from which their variation can be told
_CLOSE = 0.999  # correlations are cut here: atanh has no value at 1


class PairBaseline(Struct, frozen=True, kw_only=True):
    """Correlations of all pairs of `columns`, in `itertools.combinations` order."""

    columns: tuple[str, ...]  # `ColumnProfile.key`
    rows: int
    r: bytes  # zlib of little-endian float32
    v: bytes  # likewise, the variance of atanh r times rows
    phi: float = 1.0  # over-dispersion between blocks of `block_rows` rows
    block_rows: float = 0.0


@dataclass(frozen=True)
class Moved:
    """A pair of columns whose correlation is compared with the baseline's."""

    columns: tuple[str, str]  # keys
    before: float
    now: float
    p: float  # one test's, φ paid for


def baseline_of(
    layout: Layout, columns: Mapping[str, Values], block: np.ndarray | None, most: int = MOST_ROWS
) -> PairBaseline | None:
    """The baseline's correlations; None with fewer than two numeric columns or fifty rows.

    Args:
        block: each row's block of time, -1 for none; None when nothing is known of time.
        most: rows, evenly thinned where there are more.
    """
    profiles = [p for p in layout.numeric if p.distinct > 1 and p.role == "input"][:MOST_COLUMNS]
    if len(profiles) < 2:
        return None
    step = -(-max(columns[p.key].rows for p in profiles) // most)
    scores = scored(profiles, columns, step)
    block = None if block is None else block[::step]
    if len(scores) < LEAST:
        return None
    r, v = _correlations(scores)
    phi, size = (1.0, 0.0) if block is None else _variation(scores, block, r, v)
    return PairBaseline(
        columns=tuple(profile.key for profile in profiles),
        rows=len(scores),
        r=_pack(r),
        v=_pack(v),
        phi=phi,
        block_rows=size,
    )


def scored(
    profiles: Sequence[ColumnProfile], columns: Mapping[str, Values], step: int = 1
) -> np.ndarray:
    """Mid-rank scores of every `step`-th row, float32 (rows, columns); 0, the middle, where a value
    is missing."""
    rows = max((columns[p.key].rows for p in profiles if p.key in columns), default=0)
    found = np.zeros((len(range(0, rows, step)), len(profiles)), dtype=np.float32)
    for index, profile in enumerate(profiles):
        if profile.key in columns:
            values = thinned(columns[profile.key], step)
            scores = pvalues.mid_ranks(np.array(profile.counts, dtype=np.float64))
            found[values.present, index] = scores[cells_of(profile, values)]
    return found


def thinned(values: Values, step: int) -> Values:
    """Every `step`-th row of a column."""
    if step == 1:
        return values
    present = values.present[::step]
    if len(values.values) == values.rows:
        kept = values.values[::step]
    else:
        kept = values.values[(np.cumsum(values.present) - 1)[::step][present]]
    return Values(kept, present, len(present) - len(kept), 0, names=values.names)


def compared(known: PairBaseline, scores: np.ndarray) -> list[Moved]:
    """The pairs of a window beside the baseline; none when the window is too short.

    Args:
        scores: of the window's rows (see `scored`), columns as in `known`.
    """
    n = len(scores)
    if n < LEAST:
        return []
    before, spread = _unpack(known.r), _unpack(known.v)
    now, v = _correlations(scores)
    # The baseline's own variance steadies the window's, which few rows tell poorly.
    v = np.maximum((n * v + known.rows * spread) / (n + known.rows), 0.05)
    phi = 1 + (known.phi - 1) * (n / known.block_rows if known.block_rows else 0.0)
    with np.errstate(invalid="ignore"):
        z = (np.arctanh(now) - np.arctanh(before)) / np.sqrt(v / n + spread / known.rows)
    usable = np.isfinite(z) & np.isfinite(v)
    p = pvalues.p_normal(np.where(usable, z, 0.0), phi)
    pairs = list(combinations(known.columns, 2))
    return [
        Moved(pair, float(before[i]), float(now[i]), float(p[i]))
        for i, pair in enumerate(pairs)
        if usable[i]  # not where a column has no value or one only
    ]


def _correlations(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r of each pair, and the variance of atanh r times rows; NaN where a column is constant."""
    x = scores.astype(np.float64) - scores.mean(0, dtype=np.float64)
    n = len(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = x / np.sqrt((x * x).mean(0))
        squares = x * x
        r = np.clip(x.T @ x / n, -_CLOSE, _CLOSE)
        cubes = (squares * x).T @ x / n  # mean of x_i³ x_j
        both = squares.T @ squares / n  # mean of x_i² x_j²
        fourth = np.diag(both)
        v = both - r * (cubes + cubes.T)
        v = v + r * r / 4 * (fourth[:, None] + 2 * both + fourth[None, :])
        v = np.maximum(v, 0.0) / (1 - r * r) ** 2
    place = np.triu_indices(x.shape[1], 1)
    return r[place], v[place]


def _variation(
    scores: np.ndarray, block: np.ndarray, r: np.ndarray, v: np.ndarray
) -> tuple[float, float]:
    """φ of blocks of at least fifty rows, and their rows: how much r varies by itself.

    The larger of all pairs' mean and the 90th percentile of single pairs': one pair that wanders
    must not raise alarms, and chance in few blocks widens that percentile too.
    """
    kept = np.flatnonzero(block >= 0)
    order = kept[np.argsort(block[kept], kind="stable")]
    groups = max(len(np.unique(block[order])), 1)
    size = max(len(order) / groups, 1.0)
    pieces = min(int(len(order) / max(size, LEAST)), 200)
    if pieces < _BLOCKS:
        return 1.0, 0.0
    squares = []
    for rows in np.array_split(order, pieces):
        found, _ = _correlations(scores[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            squares.append((np.arctanh(found) - np.arctanh(r)) ** 2 * len(rows) / v)
    each = np.nanmean(np.where(np.isfinite(squares), squares, np.nan), axis=0)
    each = each[np.isfinite(each)]
    if not len(each):
        return 1.0, 0.0
    excess = 1 + np.sqrt(2 / pieces) * 1.3  # the 90th percentile of a mean of squares by chance
    phi = max(float(each.mean()), float(np.quantile(each, 0.9)) / excess, 1.0)
    return float(f"{phi:.4g}"), len(order) / pieces


def _pack(values: np.ndarray) -> bytes:
    return zlib.compress(values.astype("<f4").tobytes(), 9)


def _unpack(data: bytes) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), dtype="<f4").astype(np.float64)
