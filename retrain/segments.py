"""Is the candidate clearly worse on any part of the held-out rows that the operator protects? Pure.

A segment is a level of a protected column (or a quarter of a number's range of values). Each with
enough rows gets its own paired interval; the confidence is shared over all of them (Bonferroni), so
that protecting many segments does not refuse a sound candidate by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from core.spec import ModelSpec
from retrain.gate_rule import evidence

if TYPE_CHECKING:
    import pandas as pd

_LEVELS = 20  # most distinct values of a number that are taken as levels
_MISSING = "missing"


class Segment(Struct, frozen=True, kw_only=True):
    """One segment's paired difference; `low` and `high` at the shared confidence."""

    name: str
    n: int
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    judged: bool = False

    @property
    def clearly_worse(self) -> bool:
        return self.judged and self.high is not None and self.high < 0


def split(
    spec: ModelSpec, inputs: pd.DataFrame, columns: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and boolean rows of every segment of the protected columns."""
    kinds = {feature.name: feature.kind for feature in spec.features}
    for column in columns:
        values = inputs[column]
        missing = values.isna().to_numpy(bool)
        if missing.any():
            yield f"{column} = {_MISSING}", missing
        numeric = kinds[column] in ("numeric", "integer")
        if numeric and values.nunique() > _LEVELS:
            yield from _quarters(column, values.to_numpy(np.float64), missing)
            continue
        for level in sorted(values.dropna().unique().tolist(), key=str):
            yield f"{column} = {level}", (values == level).fillna(False).to_numpy(bool)


def _quarters(
    column: str, values: np.ndarray, missing: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    edges = np.quantile(values[~missing], [0.25, 0.5, 0.75])
    place = np.searchsorted(edges, values, side="right")
    names = (
        f"{column} < {edges[0]:.4g}",
        f"{column} {edges[0]:.4g} to {edges[1]:.4g}",
        f"{column} {edges[1]:.4g} to {edges[2]:.4g}",
        f"{column} ≥ {edges[2]:.4g}",
    )
    for index, name in enumerate(names):
        yield name, (place == index) & ~missing


def judge(
    parts: Mapping[str, np.ndarray], difference: np.ndarray, *, min_rows: int, confidence: float
) -> tuple[Segment, ...]:
    """Every segment's difference, the worst first.

    Args:
        parts: boolean rows of each segment, shape (n,).
        difference: champion's loss minus candidate's, shape (n,), in order of time.
        min_rows: smaller segments are listed and not judged.
        confidence: one-sided, that no segment at all is called worse by chance.
    """
    finite = np.isfinite(difference)
    sizes = {name: int((rows & finite).sum()) for name, rows in parts.items()}
    judged = [name for name, n in sizes.items() if n >= min_rows]
    shared = 1 - (1 - confidence) / max(1, len(judged))
    found = [Segment(name=name, n=n) for name, n in sizes.items() if name not in judged and n]
    for name in judged:
        one = evidence(difference[parts[name] & finite], shared)
        found.append(
            Segment(name=name, n=one.n, gain=one.gain, low=one.low, high=one.high, judged=True)
        )
    return tuple(sorted(found, key=lambda part: (not part.judged, part.gain or 0.0)))
