"""φ of many windows at once, as arrays: what the tests of one check divide by.

Made ready once from what the baseline knows (`monitor.measure.variation`), then carried to the
length and the rows of each window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from monitor.measure.variation import ScaleVariation, carry


@dataclass(frozen=True)
class Dispersion:
    """φ by window: float64, windows (or known scales) first.

    Attributes:
        loc, scale_, bins, uneven: (windows, numeric columns).
        share: (windows, columns of `Layout.ordered`), missing values.
        levels: (windows, categorical columns); `level` (windows, all their levels side by side).
        df: (windows, 1), degrees of freedom behind loc and scale_.
    """

    loc: np.ndarray
    scale_: np.ndarray
    bins: np.ndarray
    uneven: np.ndarray
    share: np.ndarray
    levels: np.ndarray
    level: np.ndarray
    df: np.ndarray

    @classmethod
    def of(cls, known: Sequence[ScaleVariation]) -> Dispersion:
        """One row per scale."""

        def stacked(rows: list[tuple[float, ...]]) -> np.ndarray:
            return np.array(rows, dtype=np.float64).reshape(len(rows), -1)

        return cls(
            **{
                name: stacked([getattr(each, name) for each in known])
                for name in ("loc", "scale_", "bins", "uneven", "share", "levels")
            },
            level=stacked([tuple(f for level in each.level for f in level) for each in known]),
            df=stacked([(each.df,) for each in known]),
        )

    def at(
        self, known: Sequence[ScaleVariation], windows: Sequence[tuple[float, float]]
    ) -> Dispersion:
        """Carried to windows of (base blocks, rows), as `variation.at` does for one of them.

        Args:
            known: what `of` was given.
        """
        nearest, factors = [], []
        for scale, rows in windows:
            found, factor = carry(known, scale, rows)
            nearest.append(next(i for i, each in enumerate(known) if each is found))
            factors.append(factor)
        stretch = np.array(factors)[:, None]
        tables = {field.name: getattr(self, field.name)[nearest] for field in fields(self)}
        fixed = ("uneven", "df")
        return Dispersion(
            **{
                name: table if name in fixed else 1 + (table - 1) * stretch
                for name, table in tables.items()
            }
        )
