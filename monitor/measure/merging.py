"""Parts of a baseline, counted where they lie, and merged into the profile of the whole.

A part (an hour, a replica, a task) keeps of a column each distinct value and how often it came, in
order. Parts merge in any order and grouping, and the profile of the merged part is the profile of
all rows at once, number for number: quantile cells need order statistics, and these are exact here.
Windows merge more cheaply, as counts over the cells that the baseline fixed (`tally`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import InputError
from core.spec import Kind
from monitor.measure.profile import ColumnProfile, Role, Values, is_numeric, profile_column


@dataclass(frozen=True)
class ColumnPart:
    """One column of one part.

    Attributes:
        values: distinct values ascending, float64; positions in `names` for categories.
        counts: int64, how often each came.
        missing: rows without a usable value, `invalid` of them of another type or infinite.
        names: categories, ascending.
    """

    kind: Kind
    values: np.ndarray
    counts: np.ndarray
    missing: int
    invalid: int
    names: tuple[str, ...] = ()


def part_of(kind: Kind, column: Values) -> ColumnPart:
    """A column of one part, counted."""
    gone = column.rows - len(column.values)
    if is_numeric(kind):
        values, counts = np.unique(column.values, return_counts=True)
        return ColumnPart(kind, values, counts, gone, column.invalid)
    counts = np.bincount(column.values, minlength=len(column.names))
    seen = sorted((name, int(n)) for name, n in zip(column.names, counts, strict=True) if n)
    return ColumnPart(
        kind,
        np.arange(len(seen)),
        np.array([n for _, n in seen], dtype=np.int64),
        gone,
        column.invalid,
        tuple(name for name, _ in seen),
    )


def merged(parts: Sequence[ColumnPart]) -> ColumnPart:
    """One part that holds them all.

    Raises:
        InputError: no part, or parts of different kinds.
    """
    kinds = {part.kind for part in parts}
    if len(kinds) != 1:
        raise InputError("parts", sorted(kinds), "parts of one kind, at least one")
    kind, missing = parts[0].kind, sum(part.missing for part in parts)
    invalid = sum(part.invalid for part in parts)
    if is_numeric(kind):
        values, place = np.unique(np.concatenate([p.values for p in parts]), return_inverse=True)
        counts = np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([part.counts for part in parts]))
        return ColumnPart(kind, values, counts, missing, invalid)
    found: dict[str, int] = {}
    for part in parts:
        for name, n in zip(part.names, part.counts.tolist(), strict=True):
            found[name] = found.get(name, 0) + n
    names = tuple(sorted(found))
    counts = np.array([found[name] for name in names], dtype=np.int64)
    return ColumnPart(kind, np.arange(len(names)), counts, missing, invalid, names)


def profile_of(name: str, role: Role, part: ColumnPart) -> ColumnProfile:
    """The profile that `profile_column` makes of the rows themselves."""
    values = np.repeat(part.values, part.counts)
    present = np.arange(len(values) + part.missing) < len(values)
    rows = Values(values, present, part.missing - part.invalid, part.invalid, names=part.names)
    return profile_column(name, role, part.kind, rows)
