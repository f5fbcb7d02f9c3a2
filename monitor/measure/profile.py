"""What a column of the baseline looked like: a few numbers and counts per cell, small and in JSON.

The cells are fixed by the baseline once: for numbers about thirty of equal mass (ties merge them)
between its lowest and highest value, and one on either side for what lies beyond; for categories
one per level and one for everything else. A single value of a million can therefore neither
stretch the cells nor hide a shift, as it does where bins are laid over both samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct

from core.spec import Kind

if TYPE_CHECKING:
    import pandas as pd

CELLS = 32  # equal-mass cells of a numeric column, before ties merge some
MAX_LEVELS = 200  # more categories than this are counted together as the rest
_RUN = 1 << 16  # values sorted at a time: what a core's own cache holds
_PIECE = 1 << 13  # values compared at a time: what stays in a core's first cache
_TRUTH = ("false", "true")

Role = Literal["input", "output"]


@dataclass(frozen=True)
class Values:
    """One column as it came: its usable values in order, and what was not usable.

    Attributes:
        values: float64 (numeric kinds) or intp codes into `names`, missing ones left out.
        present: bool per row: has a usable value; `present.sum() == len(values)`.
        missing: rows with None or NaN.
        invalid: rows whose value is of another type than the kind, or infinite.
        example: one invalid value, for messages.
        names: categorical, boolean: the distinct values; empty for numbers.
    """

    values: np.ndarray
    present: np.ndarray
    missing: int
    invalid: int
    example: object = None
    names: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.present)

    def spelled(self) -> np.ndarray:
        """The values themselves: float64, or str objects."""
        return np.array(self.names, dtype=object)[self.values] if self.names else self.values


class ColumnProfile(Struct, frozen=True, kw_only=True):
    """A baseline column. Cells are (edges[i], edges[i+1]], with one below and one above them."""

    column: str
    role: Role
    kind: Kind
    n: int  # rows with a usable value
    missing: int  # rows without one
    counts: tuple[int, ...]  # per cell, as `count` returns them
    edges: tuple[float, ...] = ()  # numeric: lowest value (exclusive), inner edges, highest value
    levels: tuple[str, ...] = ()  # categorical, boolean: most frequent first
    complete: bool = True  # every level the baseline had is in `levels`
    distinct: int = 0  # distinct values
    top_share: float = 0.0  # share of the most frequent value
    mean: float | None = None
    sd: float | None = None  # population sd (divisor n), as Evidently norms by
    usual: tuple[float, float] | None = None  # 1st and 99th percentile: the range without outliers
    why: str = ""  # why nothing can be compared with it

    @property
    def numeric(self) -> bool:
        return is_numeric(self.kind)

    @property
    def key(self) -> str:
        """Unique among inputs and outputs, which may share a name."""
        return f"{self.role}:{self.column}"

    @property
    def missing_share(self) -> float:
        return self.missing / max(self.n + self.missing, 1)


def is_numeric(kind: Kind) -> bool:
    """Whether the kind's values are numbers on a scale (a boolean's are two categories)."""
    return kind in ("numeric", "integer")


def read_values(kind: Kind, column: pd.Series) -> Values:
    """The column's usable values; whatever it holds, this does not raise."""
    if is_numeric(kind):
        return _numbers(column)
    found = _coded(column) if kind == "categorical" else None
    return found or _categories(column, _level if kind == "categorical" else _truth)


def _numbers(column: pd.Series) -> Values:
    import pandas as pd

    dtype: Any = column.dtype
    if getattr(dtype, "kind", "O") in "fiu":
        return _finite(column.to_numpy(dtype=np.float64, na_value=np.nan))
    objects = column.to_numpy(dtype=object)
    missing = np.asarray(pd.isna(column), dtype=bool)
    number = np.fromiter((_is_number(v) for v in objects), dtype=bool, count=len(objects))
    wrong = ~number & ~missing
    raw = np.full(len(objects), np.nan)
    raw[number] = [_float(v) for v in objects[number]]
    missing = missing | (number & np.isnan(raw))
    wrong = wrong | np.isinf(raw)
    present = ~(missing | wrong)
    example = column.iloc[int(wrong.argmax())] if wrong.any() else None
    return Values(raw[present], present, int(missing.sum()), int(wrong.sum()), example)


def _finite(raw: np.ndarray) -> Values:
    usable = np.isfinite(raw)
    if usable.all():
        return Values(raw, usable, 0, 0)
    wrong = np.isinf(raw)
    example = float(raw[int(wrong.argmax())]) if wrong.any() else None
    return Values(raw[usable], usable, int(np.isnan(raw).sum()), int(wrong.sum()), example)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf


def _coded(column: pd.Series) -> Values | None:
    """A column of nothing but strings and gaps, coded by Arrow in one pass; None for any other."""
    import pyarrow as pa

    try:
        array: Any = pa.array(column, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, UnicodeEncodeError):
        return None
    return code_strings(array)


def code_strings(array: Any) -> Values | None:
    """An Arrow array of strings (plain or dictionary) as codes; None for any other type."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
    if not pa.types.is_dictionary(array.type):
        if not _text(array.type):
            return None
        if pa.types.is_string_view(array.type):  # polars'; Arrow cannot encode it
            array = array.cast(pa.large_string())
        array = array.dictionary_encode()
    if not _text(array.type.value_type):
        return None
    present = validity(array)
    codes = _plain(array.indices.drop_null()).astype(np.intp)
    names = tuple(array.dictionary.to_pylist())
    return Values(codes, present, int((~present).sum()), 0, names=names)


def code_numbers(array: Any) -> Values:
    """An Arrow array of numbers as float64 values."""
    import pyarrow as pa

    known = _plain(array.drop_null().cast(pa.float64()))
    if len(known) == len(array):
        return _finite(known)
    raw = np.full(len(array), np.nan)
    raw[validity(array)] = known
    return _finite(raw)


def code_booleans(array: Any) -> Values:
    """An Arrow array of booleans as codes."""
    import pyarrow as pa

    codes = _plain(array.drop_null().cast(pa.uint8())).astype(np.intp)
    present = validity(array)
    return Values(codes, present, int((~present).sum()), 0, names=_TRUTH)


def validity(array: Any) -> np.ndarray:
    """Which entries of an Arrow array are not null, bool."""
    import pyarrow as pa

    return _plain(array.is_valid().cast(pa.uint8())).astype(bool)


def _plain(array: Any) -> np.ndarray:
    """An Arrow array of numbers without nulls, as NumPy's. Arrow's own `to_numpy`, and any
    scalar, import pandas where it is installed, which costs half a second."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if not len(array):
        return np.empty(0)
    found: np.ndarray = np.from_dlpack(array)
    return found


def _text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _categories(column: pd.Series, spell: Any) -> Values:
    import pandas as pd

    objects = column.to_numpy(dtype=object)
    missing = np.asarray(pd.isna(column), dtype=bool)
    spelled = [None if gone else spell(v) for v, gone in zip(objects, missing, strict=True)]
    present = np.fromiter((v is not None for v in spelled), dtype=bool, count=len(spelled))
    wrong = ~present & ~missing
    example = objects[int(wrong.argmax())] if wrong.any() else None
    codes: dict[str, int] = {}
    values = np.fromiter(
        (codes.setdefault(v, len(codes)) for v in spelled if v is not None), dtype=np.intp
    )
    invalid = int(wrong.sum())
    return Values(values, present, int(missing.sum()), invalid, example, names=tuple(codes))


def _level(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _truth(value: object) -> str | None:
    # A nullable boolean column is float64 on its way to the model (core.frames).
    if isinstance(value, bool | np.bool_ | int | float) and value in (0, 1):
        return _TRUTH[int(value)]
    return None


def profile_column(name: str, role: Role, kind: Kind, column: Values) -> ColumnProfile:
    """Fix the cells of a baseline column and count them; an empty column says why in `why`."""
    basics: dict[str, Any] = {
        "column": name,
        "role": role,
        "kind": kind,
        "n": len(column.values),
        "missing": column.rows - len(column.values),
    }
    if not len(column.values):
        return ColumnProfile(**basics, counts=(), why="the baseline has no value in this column")
    if is_numeric(kind):
        return _profile_numbers(basics, column.values)
    return _profile_levels(basics, column)


def _profile_numbers(basics: dict[str, Any], values: np.ndarray) -> ColumnProfile:
    ordered = np.sort(values)
    low, high = float(ordered[0]), float(ordered[-1])
    cuts = _order_statistics(ordered, np.arange(1, CELLS) / CELLS)
    below = float(np.nextafter(low, -np.inf))
    floor = below if np.isfinite(below) else low
    edges = np.concatenate([[floor], np.unique(cuts[cuts < high]), [high]])
    inside = np.searchsorted(ordered, edges, side="right")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, sd = float(ordered.mean()), float(ordered.std())  # the same in any order of rows
    runs = np.diff(np.flatnonzero(np.diff(ordered, prepend=np.nan)), append=len(ordered))
    lower, upper = _order_statistics(ordered, np.array([0.01, 0.99]))
    return ColumnProfile(
        **basics,
        edges=tuple(edges.tolist()),
        counts=tuple(np.diff(inside, prepend=0, append=len(ordered)).tolist()),
        distinct=len(runs),
        top_share=float(runs.max() / len(values)),
        mean=mean if np.isfinite(mean) else None,
        sd=sd if np.isfinite(sd) else None,
        usual=(float(lower), float(upper)),
    )


def _order_statistics(ordered: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Quantiles that are values of the sample (the inverse of its distribution function)."""
    place = np.ceil(shares * len(ordered) - 1e-9).astype(np.intp) - 1
    found: np.ndarray = ordered[np.clip(place, 0, len(ordered) - 1)]
    return found


def _profile_levels(basics: dict[str, Any], column: Values) -> ColumnProfile:
    counts = np.bincount(column.values, minlength=len(column.names)).tolist()
    found = sorted(zip(column.names, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
    found = [pair for pair in found if pair[1]]
    kept = found[:MAX_LEVELS]
    rest = len(column.values) - sum(repeats for _, repeats in kept)
    return ColumnProfile(
        **basics,
        levels=tuple(level for level, _ in kept),
        counts=(*(repeats for _, repeats in kept), rest),
        complete=rest == 0,
        distinct=len(found),
        top_share=found[0][1] / len(column.values),
    )


def cells_of(profile: ColumnProfile, column: Values) -> np.ndarray:
    """The cell of each usable value, in 0 … len(profile.counts) - 1, intp."""
    if profile.numeric:
        return _places(np.asarray(profile.edges), column.values)
    known = {level: index for index, level in enumerate(profile.levels)}
    rest = len(profile.levels)
    table = np.array([known.get(name, rest) for name in column.names], dtype=np.intp)
    return table[column.values] if len(table) else np.empty(0, dtype=np.intp)


def _places(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many edges lie below each value: a value equal to an edge belongs to the cell that ends
    there. Comparing all values with one edge after another runs at the speed of the cache, several
    times faster than a binary search per value."""
    found = np.empty(len(values), dtype=np.intp)
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        counter = np.zeros(len(piece), dtype=np.uint8)
        for edge in edges:
            counter += piece > edge
        found[start : start + _PIECE] = counter
    return found


def count(profile: ColumnProfile, column: Values) -> np.ndarray:
    """Values per cell of the baseline, int64: below, cells, above; or levels, everything else."""
    if profile.numeric:
        return _count_numbers(profile, column.values)
    return np.bincount(cells_of(profile, column), minlength=len(profile.counts))


def _count_numbers(profile: ColumnProfile, values: np.ndarray) -> np.ndarray:
    """Sorting a cacheful at a time and cutting the sorted run at the edges is several times faster
    than finding each value's cell."""
    edges = np.asarray(profile.edges)
    below = np.zeros(len(edges), dtype=np.int64)
    for start in range(0, len(values), _RUN):
        # A value equal to an edge belongs to the cell that ends there: it counts as below.
        below += np.searchsorted(np.sort(values[start : start + _RUN]), edges, side="right")
    return np.diff(below, prepend=0, append=len(values))
