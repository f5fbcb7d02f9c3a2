"""What the baseline's own time says of its columns: counts per stratum, and natural variation.

Made once with the baseline and stored with it: a few kilobytes a column, counts compressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from monitor.measure import alarms, pairs, strata, variation
from monitor.measure.dispersion import Dispersion
from monitor.measure.pairs import PairBaseline
from monitor.measure.profile import ColumnProfile, Values
from monitor.measure.strata import LEAST, SCHEMES, Scheme
from monitor.measure.tally import Layout, Tally, merge, tally, tally_blocks
from monitor.measure.thresholds import wasserstein_null
from monitor.measure.variation import ScaleVariation

_BLOCK_ROWS = 20  # of a base block, on average: fewer say little of its mean
_MOST_BLOCKS = 4000
MOST_CELLS = 20_000_000  # of a table of blocks x columns x cells: 160 MB
_PIECES = 16  # that a baseline is cut into when nobody says how long a check's part is


class Calibration(Struct, frozen=True, kw_only=True):
    """Counts and variation of all columns; `blocks` 0 means that nothing is known of time."""

    rows: int
    blocks: int = 0  # non-empty base blocks
    block_s: float = 0.0  # their length, seconds
    scheme: Scheme = "none"
    strata: bytes = b""  # zlib of little-endian uint32: rows, then numeric, levels, missing counts
    variation: tuple[ScaleVariation, ...] = ()
    w1: dict[str, tuple[float, float]] = {}
    """Mean and sd of the normed Wasserstein distance's null, by column key (`thresholds`)."""
    pairs: PairBaseline | None = None  # None in baselines from before it was measured


class Spread(NamedTuple):
    """Over-dispersion of one column's rows in a window: of its location, categories, missing."""

    loc: float
    levels: float
    missing: float


class Reference:
    """A calibration made ready for checks; depends on the version alone and may be kept."""

    def __init__(self, profiles: Sequence[ColumnProfile], calibration: Calibration) -> None:
        self.layout = Layout.of(profiles)
        self.calibration = calibration
        self.strata = _unpack(self.layout, calibration)
        self.sums = alarms.Sums.of(self.layout, self.strata).with_unseen(self.layout)
        self.variation = calibration.variation or (variation.nothing_known(self.layout, 1),)
        self.dispersion = Dispersion.of(self.variation)
        self._place = {profile.key: i for i, profile in enumerate(self.layout.ordered)}

    def stratum(self, seconds: np.ndarray) -> np.ndarray:
        """The stratum of moments (seconds since 1970)."""
        return strata.stratum(self.calibration.scheme, seconds)

    def named(self, keys: Sequence[str]) -> list[ColumnProfile]:
        """The comparable profiles of these keys, in order."""
        ordered = self.layout.ordered
        return [ordered[self._place[key]] for key in keys]

    @property
    def kinds(self) -> int:
        """How many strata there are."""
        return len(self.strata)

    def at(self, length: timedelta, rows: float) -> ScaleVariation:
        """φ of a window of this length and so many rows."""
        blocks = length.total_seconds() / (self.calibration.block_s or 1.0)
        return variation.at(self.variation, blocks, rows)

    def over(self, windows: Sequence[tuple[timedelta, float]]) -> Dispersion:
        """φ of windows of these lengths and rows, as the tests need it."""
        block = self.calibration.block_s or 1.0
        return self.dispersion.at(
            self.variation, [(length.total_seconds() / block, rows) for length, rows in windows]
        )

    def spread(self, key: str, length: timedelta, rows: float) -> Spread:
        """φ of one column in such a window; ones for a column that cannot be compared."""
        place = self._place.get(key)
        if place is None:
            return Spread(1.0, 1.0, 1.0)
        # Of this column alone: asked for by every column, the whole scale would be quadratic.
        blocks = length.total_seconds() / (self.calibration.block_s or 1.0)
        found, factor = variation.carry(self.variation, blocks, rows)
        numbers, missing = len(self.layout.numeric), 1 + (found.share[place] - 1) * factor
        if place < numbers:
            wide = max(found.loc[place], found.scale_[place])
            bins = found.bins[place]
            return Spread(1 + (wide - 1) * factor, 1 + (bins - 1) * factor, missing)
        return Spread(1.0, 1 + (found.levels[place - numbers] - 1) * factor, missing)


def calibrate(
    profiles: Sequence[ColumnProfile],
    columns: Mapping[str, Values],
    *,
    seconds: np.ndarray | None,
    part: timedelta | None,
    window: timedelta | None,
    pair_rows: int = pairs.MOST_ROWS,
) -> Calibration:
    """Count the baseline's rows into blocks of time and measure how they vary.

    Args:
        columns: the baseline's values by `ColumnProfile.key`, all of one length.
        seconds: float64, event time of each row in seconds since 1970, NaN where there is none;
            None when the rows have no times.
        part: time that one check adds (its rhythm); a sixteenth of the baseline when None.
        window: the longest span a check looks back over; the baseline's own when None.
        pair_rows: rows that correlations are measured on.
    """
    layout = Layout.of(profiles)
    rows = max((columns[profile.key].rows for profile in layout.profiles), default=0)
    w1 = {
        profile.key: found
        for profile in layout.numeric
        if (found := wasserstein_null(columns[profile.key].values, profile.sd)) is not None
    }
    cut = None if seconds is None or not layout.profiles else _cut(layout, seconds, part, window)
    if cut is None:
        related = pairs.baseline_of(layout, columns, None, pair_rows)
        return Calibration(
            rows=rows, strata=_pack(_whole(layout, columns, rows)), w1=w1, pairs=related
        )
    length, block, blocks = cut
    counted = tally_blocks(layout, columns, block, blocks)
    filled = counted.rows > 0
    starts = float(np.nanmin(seconds)) + np.flatnonzero(filled) * length  # type: ignore[arg-type]
    scheme = strata.choose(starts, timedelta(seconds=length))
    kinds = strata.stratum(scheme, starts)
    parts = counted.part(filled)
    longest = window.total_seconds() / length if window else blocks
    scales = alarms.scales_for(max(round(longest), 1), alarms.LEAST_ROWS)
    by_stratum = [parts.part(kinds == s).total() for s in range(SCHEMES[scheme][0])]
    return Calibration(
        rows=rows,
        blocks=len(parts),
        block_s=length,
        scheme=scheme,
        strata=_pack(merge(by_stratum)),
        variation=variation.measure(layout, parts, kinds, np.flatnonzero(filled), scales),
        w1=w1,
        pairs=pairs.baseline_of(layout, columns, block, pair_rows),
    )


def provisional(calibration: Calibration, window: timedelta) -> str:
    """Why the thresholds are provisional, for people; empty when they are not."""
    if not calibration.blocks:
        return "the baseline has no time blocks, so its natural variation is not known"
    blocks = calibration.blocks * calibration.block_s / window.total_seconds()
    if blocks >= LEAST:
        return ""
    return (
        f"the baseline spans {blocks:.3g} check windows, fewer than the {LEAST} that thresholds "
        "need; its natural variation is extrapolated from shorter blocks"
    )


def _cut(
    layout: Layout, seconds: np.ndarray, part: timedelta | None, window: timedelta | None
) -> tuple[float, np.ndarray, int] | None:
    """Length of the base blocks (s), each row's block (-1: no time), and how many there are.

    Blocks are as long as a part, or a power of two longer where that holds too few rows; None when
    the baseline is too short for eight.
    """
    known = np.isfinite(seconds)
    if known.sum() < LEAST * _BLOCK_ROWS:
        return None
    first, last = float(seconds[known].min()), float(seconds[known].max())
    span = last - first
    if span <= 0:
        return None
    length = part.total_seconds() if part else span / _PIECES * (1 + 1e-9)
    rows = float(known.sum())
    most = min(_MOST_BLOCKS, MOST_CELLS // max(len(layout.numeric) * layout.cells, 1))
    while span / length > max(most, LEAST) or rows / max(span / length, 1.0) < _BLOCK_ROWS:
        length *= 2
    if window is not None and length > window.total_seconds():
        length = window.total_seconds()
    if span / length < LEAST:
        length = span / LEAST * (1 + 1e-9)
    block = np.full(len(seconds), -1, dtype=np.intp)
    block[known] = ((seconds[known] - first) // length).astype(np.intp)
    return length, block, int(block.max()) + 1


def _whole(layout: Layout, columns: Mapping[str, Values], rows: int) -> Tally:
    return tally(layout, columns, rows)


def _pack(counted: Tally) -> bytes:
    tables = (counted.rows, counted.numeric, *counted.levels, counted.missing)
    flat = np.concatenate([table.reshape(-1) for table in tables]).astype("<u4")
    # Byte planes: the high bytes of counts are nearly all zero and cost nothing.
    return zlib.compress(np.ascontiguousarray(flat.view(np.uint8).reshape(-1, 4).T).tobytes(), 9)


def _unpack(layout: Layout, calibration: Calibration) -> Tally:
    if not calibration.strata:  # a baseline of before: its profiles are all there is
        return _from_profiles(layout, calibration.rows)
    planes = np.frombuffer(zlib.decompress(calibration.strata), dtype=np.uint8).reshape(4, -1)
    flat = np.ascontiguousarray(planes.T).view("<u4").reshape(-1).astype(np.int64)
    kinds = SCHEMES[calibration.scheme][0]
    shapes = [
        (kinds,),
        (kinds, len(layout.numeric), layout.cells),
        *((kinds, len(profile.counts)) for profile in layout.categorical),
        (kinds, len(layout.ordered)),
    ]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    tables = [t.reshape(s) for t, s in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    return Tally(tables[0], tables[1], tuple(tables[2:-1]), tables[-1])


def _from_profiles(layout: Layout, rows: int) -> Tally:
    numeric = np.zeros((1, len(layout.numeric), layout.cells), dtype=np.int64)
    for index, profile in enumerate(layout.numeric):
        numeric[0, index, : len(profile.counts)] = profile.counts
    return Tally(
        np.array([rows]),
        numeric,
        tuple(np.array([profile.counts]) for profile in layout.categorical),
        np.array([[profile.missing for profile in layout.ordered]]),
    )
