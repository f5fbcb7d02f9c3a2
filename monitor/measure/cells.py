"""Columns as cells the baseline fixes: what reweighting, rank maps and small trees work on.

Numbers fall into about sixteen cells of equal baseline mass (ties merge them; few distinct values
get a cell each) with one below and one above the baseline's range; categories into one per frequent
level, one for the rest and one for levels the baseline never saw. Missing values have their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.spec import Kind

if TYPE_CHECKING:
    import pandas as pd

_CELLS = 16  # of equal mass
_EACH = 24  # at most this many distinct numbers have a cell each
_LEVELS = 30  # at most this many categories do
_EMPTY = 1e-4  # a cell's share in PSI, so that its logarithm exists


@dataclass(frozen=True)
class Column:
    """One column of the reference (`base`, shape (m,)) and of the window (`now`, shape (n,)).

    Attributes:
        base, now: float64, NaN where missing or unusable; categories as codes, -1 for unseen.
        base_cells, now_cells: the cell of each row; `missing` for a missing value.
        size: number of cells, that of missing values (the last one) included.
        edges: numeric: cell c is (edges[c-1], edges[c]].
        levels: categorical: the level of each cell, then the rest and the unseen.
    """

    name: str
    numeric: bool
    base: np.ndarray
    now: np.ndarray
    base_cells: np.ndarray
    now_cells: np.ndarray
    size: int
    edges: np.ndarray
    levels: tuple[str, ...] = ()

    @property
    def missing(self) -> int:
        return self.size - 1

    def base_shares(self) -> np.ndarray:
        """Share of the reference rows in each cell, shape (size,)."""
        return shares(self.base_cells, self.size)

    def now_shares(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(Weighted) share of the window's rows in each cell, shape (size,)."""
        return shares(self.now_cells, self.size, weights)


def shares(cells: np.ndarray, size: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The share of the rows, or of their weights, in each of `size` cells."""
    counts = np.bincount(cells, weights=weights, minlength=size).astype(np.float64)
    found: np.ndarray = counts / max(counts.sum(), 1e-300)
    return found


def psi(base: np.ndarray, now: np.ndarray) -> float:
    """Population stability index of two vectors of shares."""
    p, q = np.maximum(base, _EMPTY), np.maximum(now, _EMPTY)
    return float(((q - p) * np.log(q / p)).sum())


def noise(size: int, base_rows: int, now_rows: float) -> float:
    """PSI that two samples of one population have by chance: its mean plus three sd (Yurdakul)."""
    unit = 1 / max(base_rows, 1) + 1 / max(now_rows, 1.0)
    return float(unit * (size - 1 + 3 * np.sqrt(2 * (size - 1))))


def code(name: str, kind: Kind, base: pd.Series, now: pd.Series, base_loss: np.ndarray) -> Column:
    """A column of the reference and the window in common cells; whatever it holds, no error.

    Args:
        base_loss: shape (len(base),); orders categories, so that a tree can split them.
    """
    if kind == "categorical":
        return _categories(name, base, now, base_loss)
    return numbers(name, _floats(base), _floats(now))


def _floats(column: pd.Series) -> np.ndarray:
    import pandas as pd

    if column.dtype.kind not in "fiub":
        column = pd.to_numeric(column, errors="coerce")
    values: np.ndarray = np.array(column.to_numpy(dtype=np.float64, na_value=np.nan))
    values[~np.isfinite(values)] = np.nan
    return values


def numbers(name: str, base: np.ndarray, now: np.ndarray) -> Column:
    """A numeric column; NaN where missing."""
    known = np.sort(base[~np.isnan(base)])
    distinct = known[np.concatenate([[True], np.diff(known) > 0])] if len(known) else known
    if not len(distinct):
        edges = np.empty(0)
    else:
        if len(distinct) > _EACH:
            at = (np.arange(1, _CELLS) / _CELLS * len(known)).astype(np.intp)
            inner = np.unique(known[at])
        else:
            inner = distinct[:-1]
        lowest = np.nextafter(distinct[0], -np.inf)
        edges = np.unique(np.concatenate([[lowest], inner, [distinct[-1]]]))
    size = len(edges) + 2

    def cells(values: np.ndarray) -> np.ndarray:
        found = np.searchsorted(edges, values, "left")
        return np.where(np.isnan(values), size - 1, found)

    return Column(name, True, base, now, cells(base), cells(now), size, edges)


def _categories(name: str, base: pd.Series, now: pd.Series, base_loss: np.ndarray) -> Column:
    import pandas as pd

    codes, found = pd.factorize(base.astype(object), use_na_sentinel=True)
    texts = [str(level) for level in found]
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    sums = np.bincount(codes[codes >= 0], base_loss[codes >= 0], minlength=len(texts))
    kept = np.argsort(-counts, kind="stable")[:_LEVELS]
    kept = kept[np.argsort((sums / np.maximum(counts, 1))[kept], kind="stable")]
    cell_of = np.full(len(texts) + 1, len(kept))  # the rest
    cell_of[kept] = np.arange(len(kept))
    index = pd.Index(found)
    other = now.astype(object)
    now_codes = index.get_indexer(pd.Index(other)) if len(index) else np.full(len(now), -1)
    absent = np.asarray(pd.isna(other), dtype=bool)
    size = len(kept) + 3

    def cells(coded: np.ndarray, missing: np.ndarray) -> np.ndarray:
        known = np.where(coded >= 0, cell_of[coded], size - 2)
        return np.where(missing, size - 1, known)

    levels = (*(texts[i] for i in kept), "another level", "an unseen level")
    return Column(
        name,
        False,
        np.where(codes >= 0, codes, np.nan).astype(np.float64),
        np.where(absent, np.nan, now_codes).astype(np.float64),
        cells(codes, codes < 0),
        cells(now_codes, absent),
        size,
        np.empty(0),
        levels,
    )
