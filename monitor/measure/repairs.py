"""Undoing one suspected cause, and how much loss that removes, row by row.

- *shift*: the window's rows are weighted so that a column has its baseline distribution (importance
  weighting, Shimodaira 2000), which is right when the population moved and P(y | x) did not.
- *prior*: the same with the label (Saerens et al. 2002).
- *broken*: a column's values are mapped back by rank and predicted again, which is right when the
  same things arrive in another unit; where a feed is dead there is nothing to map back, so the
  reference is broken in the same way and the loss that costs is measured there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from monitor.measure.cells import Column, noise, psi, shares

if TYPE_CHECKING:
    import pandas as pd

CLIP = 10.0  # heaviest weight of a row
_ESS = 0.05  # least effective share of the rows that weights may leave
_LOST = 0.5  # baseline mass whose cells are all but empty now: reweighting has nothing to weight
_DEAD = 0.2  # rise of the missing, unseen or most frequent share that makes a feed suspect


@dataclass
class Repair:
    """A suspect: the loss its repair removes and each row's part in that.

    Attributes:
        influence: what each window row adds to `gain`, centred, so that its variance over n is the
            gain's; two suspects are compared row by row with it. None where rows differ.
        se: standard error of `gain`.
    """

    kind: Literal["shift", "broken", "prior", "segment"]
    columns: tuple[str, ...]
    gain: float
    se: float
    n: int
    text: str = ""
    influence: np.ndarray | None = None
    weights: np.ndarray | None = None  # of the window's rows once it is undone
    column: pd.Series | None = None  # repaired values for every row of the window
    reference: np.ndarray | None = None  # the reference's losses when broken alike
    mask: np.ndarray | None = None  # rows of a segment
    excess: float = 0.0  # their loss beyond what was expected
    rule: dict[str, tuple[int, int]] = field(default_factory=dict)


def mean_gain(loss: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, np.ndarray]:
    """Loss that other weights remove, and each row's influence on it (linearised ratio means)."""
    a, b = before / before.mean(), after / after.mean()
    old, new = float((a * loss).mean()), float((b * loss).mean())
    return old - new, a * (loss - old) - b * (loss - new)


def reweighted(
    base_cells: np.ndarray, now_cells: np.ndarray, size: int, loss: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Gain, influence and weights of giving cells their baseline shares; None without support."""
    want, have = shares(base_cells, size), shares(now_cells, size, weights)
    ratio = np.minimum(want / np.maximum(have, 1e-9), CLIP)
    after = weights * ratio[now_cells]
    if want[have < want / 50].sum() >= _LOST or after.mean() <= 0:
        return None
    if after.mean() ** 2 / (after**2).mean() <= _ESS:
        return None
    gain, influence = mean_gain(loss, weights, after)
    return gain, influence, after


def shift(column: Column, loss: np.ndarray, weights: np.ndarray) -> Repair | None:
    """The column given its baseline distribution; a rise of missing values counts as broken."""
    found = reweighted(column.base_cells, column.now_cells, column.size, loss, weights)
    if found is None:
        return None
    gain, influence, after = found
    nulls = column.now_shares(weights)[-1] - column.base_shares()[-1]
    return Repair(
        kind="broken" if nulls > _DEAD / 2 else "shift",
        columns=(column.name,),
        gain=gain,
        se=float(influence.std() / np.sqrt(len(loss))),
        n=len(loss),
        influence=influence,
        weights=after,
    )


def prior(
    target: Column, outputs: list[Column], loss: np.ndarray, weights: np.ndarray
) -> Repair | None:
    """The label given its baseline distribution.

    Under a shift of the label mix P(x | y) stands, so that the same weights bring the model's
    outputs back to their baseline too. A changed P(y | x) moves the label and not the outputs: then
    the weights drive them away, and the label mix is not what happened.
    """
    found = reweighted(target.base_cells, target.now_cells, target.size, loss, weights)
    if found is None:
        return None
    gain, influence, after = found
    rows = weights.sum() ** 2 / (weights**2).sum()
    for column in outputs:
        base = column.base_shares()
        before = psi(base, column.now_shares(weights))
        if before < noise(column.size, len(column.base), rows):
            return None
        if psi(base, column.now_shares(after)) > 0.6 * before:
            return None
    return Repair(
        kind="prior",
        columns=(target.name,),
        gain=gain,
        se=float(influence.std() / np.sqrt(len(loss))),
        n=len(loss),
        influence=influence,
        weights=after,
    )


def mapped_back(
    column: Column, values: pd.Series, base: pd.Series, rng: np.random.Generator
) -> pd.Series:
    """The window's column with each value replaced by the baseline's of the same rank.

    Numbers by their rank, ties broken at random; categories by how frequent they are. Missing
    values beyond the baseline's share are filled with baseline draws.
    """
    known_base = np.flatnonzero(~np.isnan(column.base))
    missing = np.isnan(column.now)
    if not len(known_base) or missing.all():
        return values.copy()
    taken = np.full(len(values), -1)
    here = np.flatnonzero(~missing)
    if column.numeric:
        order = known_base[np.argsort(column.base[known_base], kind="stable")]
        rank = np.empty(len(here))
        rank[np.lexsort((rng.random(len(here)), column.now[here]))] = np.arange(len(here))
        taken[here] = order[((rank + 0.5) / len(here) * len(order)).astype(np.intp)]
    else:
        taken[here] = _by_frequency(column, values, here, known_base)
    surplus = missing.mean() - np.isnan(column.base).mean()
    if surplus > 0:
        filled = np.flatnonzero(missing)
        filled = filled[rng.random(len(filled)) < surplus / missing.mean()]
        taken[filled] = rng.choice(known_base, len(filled))
    repaired: pd.Series = base.iloc[np.maximum(taken, 0)].reset_index(drop=True)
    left = taken < 0
    if left.any():
        repaired = repaired.astype(object) if repaired.dtype.kind in "iub" else repaired
        repaired[left] = np.nan
        repaired = repaired.infer_objects()
    return repaired


def _by_frequency(
    column: Column, values: pd.Series, here: np.ndarray, known_base: np.ndarray
) -> np.ndarray:
    """For each row the index of a baseline row with the level as frequent there as its own here."""
    import pandas as pd

    codes, _ = pd.factorize(values.astype(object).iloc[here])
    _, first, counts = np.unique(column.base[known_base], return_index=True, return_counts=True)
    ranked_base = known_base[first[np.argsort(-counts, kind="stable")]]
    ranked_now = np.argsort(np.argsort(-np.bincount(codes), kind="stable"), kind="stable")
    found: np.ndarray = ranked_base[np.minimum(ranked_now, len(ranked_base) - 1)][codes]
    return found


def dead(column: Column) -> bool:
    """Whether what the column said is gone, so that no value can be mapped back."""
    base, now = column.base_shares(), column.now_shares()
    lost = base[now < base / 50].sum() >= _LOST
    nulls = now[-1] - base[-1] > _DEAD
    unseen = not column.numeric and now[-2] > _DEAD
    return bool(lost or nulls or unseen or _top(column.now) - _top(column.base) > 2.5 * _DEAD)


def _top(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0
    return float(np.unique(known, return_counts=True)[1].max() / len(values))


def rank_correlation(one: Column, other: Column) -> float:
    """|Spearman's correlation| of two columns' baseline cells, 0 where one is constant."""
    a, b = one.base_cells.astype(np.float64), other.base_cells.astype(np.float64)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(abs(np.corrcoef(a, b)[0, 1]))
