"""Counts of a part (an hour, a replica, a task) over the cells that the baseline fixed.

Tallies of parts add up to the tally of the whole, exactly and in any order: what a check needs of
long windows is a sum of short ones, and replicas can count for themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from core.errors import InputError
from monitor.measure import pvalues
from monitor.measure.profile import ColumnProfile, Values, cells_of, count


@dataclass(frozen=True)
class Layout:
    """Where each column's counts lie; follows from the profiles alone."""

    profiles: tuple[ColumnProfile, ...]  # those that can be compared

    @classmethod
    def of(cls, profiles: Sequence[ColumnProfile]) -> Layout:
        return cls(tuple(profile for profile in profiles if not profile.why))

    @cached_property
    def numeric(self) -> tuple[ColumnProfile, ...]:
        return tuple(profile for profile in self.profiles if profile.numeric)

    @cached_property
    def categorical(self) -> tuple[ColumnProfile, ...]:
        return tuple(profile for profile in self.profiles if not profile.numeric)

    @cached_property
    def cells(self) -> int:
        """Cells of the widest numeric column."""
        return max((len(profile.counts) for profile in self.numeric), default=0)

    @cached_property
    def basis(self) -> np.ndarray:
        """float64 (numeric columns, cells, sums), see `pvalues.basis`."""
        counts = np.zeros((len(self.numeric), self.cells))
        for index, profile in enumerate(self.numeric):
            counts[index, : len(profile.counts)] = profile.counts
        last = np.array([len(profile.counts) - 1 for profile in self.numeric], dtype=np.intp)
        return pvalues.basis(counts, last)

    @cached_property
    def begins(self) -> np.ndarray:
        """Where each categorical column's levels begin when all lie side by side, intp."""
        widths = [len(profile.counts) for profile in self.categorical]
        return np.cumsum([0, *widths[:-1]]) if widths else np.zeros(0, dtype=np.intp)

    @cached_property
    def owner(self) -> np.ndarray:
        """Which categorical column each level belongs to, intp."""
        widths = [len(profile.counts) for profile in self.categorical]
        return np.repeat(np.arange(len(widths)), widths)

    @cached_property
    def level_shares(self) -> np.ndarray:
        """Share of each level among its column's values in the baseline, float64."""
        counts = [np.array(profile.counts, dtype=np.float64) for profile in self.categorical]
        return np.concatenate([np.zeros(0), *(each / each.sum() for each in counts)])

    @cached_property
    def seen_once(self) -> np.ndarray:
        """Levels of each categorical column that the baseline saw exactly once, float64; 0 where
        not all of its levels are told apart."""
        return np.array(
            [float(p.counts[:-1].count(1)) if p.complete else 0.0 for p in self.categorical]
        )

    @cached_property
    def ever_missing(self) -> np.ndarray:
        """Whether the baseline's column had rows without a value, bool, in order of `ordered`."""
        return np.array([profile.missing > 0 for profile in self.ordered], dtype=bool)

    @property
    def ordered(self) -> tuple[ColumnProfile, ...]:
        """Numeric columns, then categorical ones: the order of `Tally.missing`."""
        return self.numeric + self.categorical


@dataclass(frozen=True)
class Tally:
    """Counts of one or more parts.

    Attributes:
        rows: int64 (parts,): rows of each part, values or not.
        numeric: int64 (parts, numeric columns, cells), narrow columns padded with zeros.
        levels: per categorical column int64 (parts, levels + 1), the last for unseen ones.
        missing: int64 (parts, columns of `Layout.ordered`): rows without a usable value.
    """

    rows: np.ndarray
    numeric: np.ndarray
    levels: tuple[np.ndarray, ...]
    missing: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, which: slice | np.ndarray) -> Tally:
        """Some of the parts."""
        levels = tuple(table[which] for table in self.levels)
        return Tally(self.rows[which], self.numeric[which], levels, self.missing[which])

    def total(self) -> Tally:
        """One part that holds them all."""
        return Tally(
            self.rows.sum(keepdims=True),
            self.numeric.sum(0, keepdims=True),
            tuple(table.sum(0, keepdims=True) for table in self.levels),
            self.missing.sum(0, keepdims=True),
        )


def tally(layout: Layout, window: Mapping[str, Values], rows: int) -> Tally:
    """Count one part.

    Args:
        window: by `ColumnProfile.key`; a column that is not there counts as missing in every row.
        rows: rows of the part.
    """
    known = {p.key: v for p in layout.profiles if (v := window.get(p.key)) is not None}
    profiles = {profile.key: profile for profile in layout.profiles}
    counts = {key: count(profiles[key], values) for key, values in known.items()}
    missing = {key: rows - len(values.values) for key, values in known.items()}
    return assembled(layout, counts, missing, rows)


def assembled(
    layout: Layout, counts: Mapping[str, np.ndarray], missing: Mapping[str, int], rows: int
) -> Tally:
    """One part from each column's own counts, by `ColumnProfile.key` (see `tally`)."""
    numeric = np.zeros((1, len(layout.numeric), layout.cells), dtype=np.int64)
    for index, profile in enumerate(layout.numeric):
        if profile.key in counts:
            numeric[0, index, : len(profile.counts)] = counts[profile.key]
    levels = tuple(
        counts[p.key][None, :] if p.key in counts else np.zeros((1, len(p.counts)), dtype=np.int64)
        for p in layout.categorical
    )
    gone = np.array([[missing.get(profile.key, rows) for profile in layout.ordered]])
    return Tally(np.array([rows]), numeric, levels, gone)


def tally_blocks(
    layout: Layout, columns: Mapping[str, Values], block: np.ndarray, blocks: int
) -> Tally:
    """Count rows into blocks of time.

    Args:
        columns: the rows' values by `ColumnProfile.key`, all of the length of `block`.
        block: intp, each row's block in 0 … blocks - 1, or -1 for none.
    """
    inside = block >= 0
    rows = np.bincount(block[inside], minlength=blocks)
    numeric = np.zeros((blocks, len(layout.numeric), layout.cells), dtype=np.int64)
    levels, usable = [], np.zeros((blocks, len(layout.ordered)), dtype=np.int64)
    for index, profile in enumerate(layout.ordered):
        values = columns[profile.key]
        mine = block[values.present]
        kept = mine >= 0
        cells = cells_of(profile, values)
        width = len(profile.counts)
        flat = mine[kept] * width + cells[kept]
        table = np.bincount(flat, minlength=blocks * width).reshape(blocks, width)
        if index < len(layout.numeric):
            numeric[:, index, :width] = table
        else:
            levels.append(table)
        usable[:, index] = table.sum(1)
    return Tally(rows, numeric, tuple(levels), rows[:, None] - usable)


def merge(parts: Sequence[Tally]) -> Tally:
    """Parts side by side, in order (see `Tally.total` for their sum).

    Raises:
        InputError: tallies over different layouts, or none.
    """
    if not parts:
        raise InputError("tallies", "none", "at least one")
    shapes = {(p.numeric.shape[1:], tuple(t.shape[1] for t in p.levels)) for p in parts}
    if len(shapes) > 1:
        raise InputError("tallies", sorted(map(str, shapes)), "counts over one baseline's cells")
    return Tally(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.numeric for part in parts]),
        tuple(np.concatenate(tables) for tables in zip(*(p.levels for p in parts), strict=True)),
        np.concatenate([part.missing for part in parts]),
    )
