"""Direct loss estimation: a model of the model's own loss, learned on the baseline's rows.

Gradient-boosted trees predict each row's loss from its inputs and its answer; their mean over a
window is what the window will score (NannyML's DLE, which fits one LightGBM model). Here the trees
are fitted on folds, so that the rows they have not seen tell how far they are off: that levels the
estimate and gives its interval. Like every estimate without labels it cannot see that inputs have
come to mean something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from core.spec import Metric, ModelSpec
from monitor.measure.metrics import Value

if TYPE_CHECKING:
    import pandas as pd

_FOLDS = 3
_BOTTOM = 0.02  # of the mean loss: no row is expected to lose less
_LEVELS = 200  # categories told apart; rarer ones are one
_Z = 1.959963984540054
_TREES = {
    "max_iter": 80,
    "learning_rate": 0.1,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "early_stopping": False,
    "random_state": 0,
}


class LossModel(Struct, kw_only=True):
    """Trees that know the loss, and how well they do."""

    spec: ModelSpec
    metric: Metric
    columns: tuple[str, ...]  # inputs they look at
    levels: dict[str, dict[str, int]]
    trees: tuple[Any, ...]
    scale: float  # that brings their mean to the mean loss of rows they had not seen
    floor: float
    noise: float  # variance of a row's loss over the square of its expectation
    error: float  # standard error of the level
    spread: float  # variance of the folds' disagreement, per mean, over its square


def fit(
    spec: ModelSpec,
    inputs: pd.DataFrame,
    answers: np.ndarray,
    losses: np.ndarray,
    metric: Metric,
    *,
    hidden: Sequence[str] = (),
    seed: int = 0,
) -> LossModel:
    """Trees from baseline rows.

    Args:
        inputs: one column per feature, as logged or as in the baseline's sample.
        answers: float64 (n,), finite.
        losses: the row losses of `metric`, float64 (n,), finite; squared errors for RMSE.
        hidden: inputs that may not be looked at.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    columns = tuple(name for name in spec.columns if name not in hidden)
    levels = {
        f.name: _levels(inputs[f.name])
        for f in spec.features
        if f.kind == "categorical" and f.name in columns
    }
    made = _matrix(columns, levels, inputs, answers)
    ordinal = [index for index, name in enumerate(columns) if name in levels]
    fold = np.random.default_rng(seed).permutation(len(losses)) % _FOLDS
    unseen, trees = np.empty(len(losses)), []
    with threadpool_limits(1):
        for number in range(_FOLDS):
            test = fold == number
            model = HistGradientBoostingRegressor(categorical_features=ordinal or None, **_TREES)
            trees.append(model.fit(made[~test], losses[~test]))
            unseen[test] = model.predict(made[test])
    mean = float(losses.mean())
    floor = max(_BOTTOM * mean, 1e-300)
    unseen = np.maximum(unseen, floor)
    scale = mean / float(unseen.mean()) if mean > 0 else 1.0
    expected = unseen * scale
    wrong = losses - expected
    apart = (
        [float(expected[fold == number].mean() / mean) for number in range(_FOLDS)]
        if mean
        else [1.0]
    )
    return LossModel(
        spec=spec,
        metric=metric,
        columns=columns,
        levels=levels,
        trees=tuple(trees),
        scale=scale,
        floor=floor,
        noise=float((wrong**2).mean() / max((expected**2).mean(), 1e-300)),
        error=float(wrong.std()) / math.sqrt(len(losses)),
        spread=float(np.var(apart)) / max(mean, 1e-300) ** 2,
    )


class RowLosses(Struct, kw_only=True):
    """Expected loss of each row and the variance of what it will be, both (n,)."""

    mean: np.ndarray
    variance: np.ndarray
    level: float  # relative standard error that all rows share


def row_losses(known: LossModel, inputs: pd.DataFrame, answers: np.ndarray) -> RowLosses:
    """The expected loss of each row; answers float64 (n,), finite."""
    from threadpoolctl import threadpool_limits

    made = _matrix(known.columns, known.levels, inputs, answers)
    with threadpool_limits(1):
        each = np.stack([tree.predict(made) for tree in known.trees])
    mean = np.maximum(each.mean(axis=0), known.floor) * known.scale
    return RowLosses(mean=mean, variance=known.noise * mean**2, level=math.sqrt(known.spread))


def mean_of(known: LossModel, rows: RowLosses, where: np.ndarray | slice = slice(None)) -> Value:
    """The metric of some rows with the interval of what it will turn out to be."""
    mean = rows.mean[where]
    n, value = len(mean), float(mean.mean())
    error = math.sqrt(
        float(rows.variance[where].sum()) / n**2 + known.error**2 + (rows.level * value) ** 2
    )
    low, high = max(value - _Z * error, 0.0), value + _Z * error
    if known.metric == "rmse":
        return Value(math.sqrt(value), math.sqrt(low), math.sqrt(high), n)
    return Value(value, low, high, n)


def _levels(column: pd.Series) -> dict[str, int]:
    counts = column.dropna().astype(str).value_counts()
    return {level: code for code, level in enumerate(counts.index[:_LEVELS])}


def _matrix(
    columns: Sequence[str],
    levels: dict[str, dict[str, int]],
    inputs: pd.DataFrame,
    answers: np.ndarray,
) -> np.ndarray:
    """Inputs and the answer as float64 (n, columns + 1); what is unknown is NaN."""
    import pandas as pd

    made = np.full((len(inputs), len(columns) + 1), np.nan)
    for index, name in enumerate(columns):
        if name not in inputs.columns:
            continue
        if name in levels:
            codes = inputs[name].astype(object).map(lambda v, known=levels[name]: known.get(str(v)))
            made[:, index] = pd.to_numeric(codes, errors="coerce").to_numpy(np.float64)
        else:
            numbers = pd.to_numeric(inputs[name], errors="coerce")
            made[:, index] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    made[:, -1] = answers
    made[~np.isfinite(made)] = np.nan
    return made
