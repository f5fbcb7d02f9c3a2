"""Confidence-based performance estimation: what a classifier's own probabilities say it will score.

If the probabilities are calibrated, a row answered with .9 is wrong once in ten; the expected
confusion matrix, the expected ROC curve and every expected row loss follow without a label (Guo et
al., arXiv 2407.08649, the method of NannyML's CBPE). Probabilities are calibrated on the baseline's
rows first, where that helps, by isotonic regression.

The intervals hold what the labels of these rows may turn out to be, and how far the calibration may
be off (it is refitted on resampled baseline rows). They do not hold a change in what the inputs
mean: that shows when labels come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from core.spec import METRICS, Metric, ModelSpec
from monitor.measure.metrics import Choices, Value
from monitor.measure.performance import row_loss

REFITS = 20  # of the calibration on resampled baseline rows
_FOLDS = 5
_DRAWS = 60  # of the labels, for metrics that are not a mean over rows
_SIMULATED = 4000  # rows those are drawn for
_Z = 1.959963984540054


class Curve(NamedTuple):
    """A calibration: straight lines between points."""

    x: np.ndarray
    y: np.ndarray

    def __call__(self, score: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.interp(score, self.x, self.y)
        return found


_AS_IT_IS = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))


class Calibrated(Struct, kw_only=True):
    """Calibrations of every class: of the baseline's rows, and of resampled ones."""

    spec: ModelSpec
    curves: tuple[Curve, ...]  # one a class; for binary of the positive class alone
    again: tuple[tuple[Curve, ...], ...]  # REFITS times
    rows: int


def fit(spec: ModelSpec, answers: np.ndarray, y: np.ndarray, *, seed: int = 0) -> Calibrated:
    """Calibrations from baseline rows: answers (n, outputs), encoded labels (n,), all finite."""
    rng = np.random.default_rng(seed)
    columns = [
        (answers[:, i], (y == _label(spec, i)).astype(float)) for i in range(answers.shape[1])
    ]
    helps = [_helps(score, truth, rng) for score, truth in columns]
    curves = [_curve(s, t) if h else _AS_IT_IS for (s, t), h in zip(columns, helps, strict=True)]
    again = []
    for _ in range(REFITS):
        picked = rng.integers(len(y), size=len(y))
        again.append(
            tuple(
                _curve(s[picked], t[picked]) if h else _shifted(s[picked], t[picked])
                for (s, t), h in zip(columns, helps, strict=True)
            )
        )
    return Calibrated(spec=spec, curves=tuple(curves), again=tuple(again), rows=len(y))


def _label(spec: ModelSpec, output: int) -> int:
    return 1 if spec.task == "binary" else output


def _curve(score: np.ndarray, truth: np.ndarray) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(score, truth)
    return Curve(fitted.X_thresholds_, fitted.y_thresholds_)


def _shifted(score: np.ndarray, truth: np.ndarray) -> Curve:
    """Probabilities as they are, moved by what these resampled rows were off on average."""
    off = float((truth - score).mean())
    return Curve(np.array([0.0, 1.0]), np.clip([off, 1 + off], 0, 1))


def _helps(score: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether isotonic regression lowers the Brier score of rows it was not fitted on."""
    if len(np.unique(truth)) < 2 or len(score) < 2 * _FOLDS:
        return False
    fold = rng.permutation(len(score)) % _FOLDS
    before = after = 0.0
    for number in range(_FOLDS):
        test = fold == number
        curve = _curve(score[~test], truth[~test])
        before += float(((score[test] - truth[test]) ** 2).sum())
        after += float(((curve(score[test]) - truth[test]) ** 2).sum())
    return after < before


def chances(
    known: Calibrated, answers: np.ndarray, curves: Sequence[Curve] | None = None
) -> np.ndarray:
    """The probability of each class, shape (n, classes), by the baseline's calibration."""
    chosen = known.curves if curves is None else curves
    if known.spec.task == "binary":
        positive = chosen[0](answers[:, 0])
        return np.column_stack([1 - positive, positive])
    found = np.column_stack([curve(answers[:, i]) for i, curve in enumerate(chosen)])
    total = found.sum(axis=1, keepdims=True)
    flat: np.ndarray = np.where(
        total > 0, found / np.where(total > 0, total, 1), 1 / found.shape[1]
    )
    return flat


class RowLosses(NamedTuple):
    """The watched loss of each row as the calibration sees it."""

    mean: np.ndarray  # (n,)
    variance: np.ndarray  # (n,) of the label's chance
    again: np.ndarray  # (REFITS, n) the mean under each refitted calibration


def row_losses(known: Calibrated, answers: np.ndarray, metric: Metric) -> RowLosses:
    """Expected loss of each row, whatever its label."""
    classes = max(len(known.spec.classes), 2)
    n = len(answers)
    losses = np.column_stack(
        [row_loss(known.spec, answers, np.full(n, float(k)), metric) for k in range(classes)]
    )
    chance = chances(known, answers)
    mean = (chance * losses).sum(axis=1)
    variance = (chance * losses**2).sum(axis=1) - mean**2
    again = np.stack([(chances(known, answers, c) * losses).sum(axis=1) for c in known.again])
    return RowLosses(mean, variance.clip(0), again)


def mean_of(rows: RowLosses, where: np.ndarray | slice = slice(None)) -> Value:
    """The mean loss of some rows with the interval of what it will turn out to be."""
    mean = rows.mean[where]
    n = len(mean)
    value = float(mean.mean())
    error = math.sqrt(
        float(rows.variance[where].sum()) / n**2 + float(rows.again[:, where].mean(axis=1).var())
    )
    return Value(value, max(value - _Z * error, 0.0), value + _Z * error, n)


def estimate(
    known: Calibrated, answers: np.ndarray, names: Sequence[str], choices: Choices, *, seed: int = 0
) -> dict[str, Value]:
    """Metrics of rows without labels; answers float64 (n, outputs), finite, n > 0.

    Metrics that it does not know (calibration error: it is taken to be none) are left out.
    """
    found: dict[str, Value] = {}
    ratios = [name for name in names if name in _SHARES or name == "roc_auc"]
    for name in names:
        if name in METRICS[known.spec.task]:
            found[name] = mean_of(row_losses(known, answers, name))
    if not ratios:
        return found
    board = _Board(known.spec, answers, choices)
    chance = chances(known, answers)
    rng = np.random.default_rng(seed)
    n = len(answers)
    few = np.arange(n) if n <= _SIMULATED else np.sort(rng.choice(n, _SIMULATED, replace=False))
    small = _Board(known.spec, answers[few], choices)
    drawn = [_drawn(chance[few], rng) for _ in range(_DRAWS)]
    refitted = [chances(known, answers, curves) for curves in known.again]
    for name in ratios:
        value, why = board.score(name, chance)
        if why:
            found[name] = Value(n=n, why=why)
            continue
        label = np.array([small.score(name, each)[0] for each in drawn])
        other = np.array([board.score(name, each)[0] for each in refitted])
        error = math.sqrt(_variance(label) * len(few) / n + _variance(other))
        low, high = max(value - _Z * error, 0.0), min(value + _Z * error, 1.0)
        found[name] = Value(value, low, high, n)
    return found


def _variance(values: np.ndarray) -> float:
    """Of the values that could be computed; 0 where fewer than two could."""
    finite = values[np.isfinite(values)]
    return float(finite.var()) if len(finite) > 1 else 0.0


def _drawn(chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels as the chances have it, one-hot, shape (n, classes)."""
    picked = (rng.random(len(chance))[:, None] > np.cumsum(chance, axis=1)[:, :-1]).sum(axis=1)
    found: np.ndarray = np.eye(chance.shape[1])[picked]
    return found


_SHARES = ("accuracy", "f1", "precision", "recall")


class _Board:
    """Answers made ready to be scored by chances of the classes: hits count as much as they may."""

    def __init__(self, spec: ModelSpec, answers: np.ndarray, choices: Choices) -> None:
        binary = spec.task == "binary"
        self.classes = [1] if binary else list(range(answers.shape[1]))
        said = (answers[:, 0] >= choices.threshold) if binary else answers.argmax(axis=1)
        self.said = said.astype(np.intp)
        self.orders = []
        for column in range(answers.shape[1]):
            order = np.argsort(-answers[:, column], kind="stable")
            sorted_ = answers[order, column]
            last = np.append(np.flatnonzero(np.diff(sorted_)), len(sorted_) - 1)
            self.orders.append((order, last))

    def score(self, name: str, chance: np.ndarray) -> tuple[float, str]:
        """A metric where row i is of class k with chance[i, k]; NaN and why where it is none."""
        if name == "accuracy":
            return float(chance[np.arange(len(chance)), self.said].mean()), ""
        values = []
        for column, label in enumerate(self.classes):
            truth, told = chance[:, label], self.said == label
            true, answered = float(truth.sum()), float(told.sum())
            if name == "roc_auc":
                if not 0 < true < len(truth):
                    return math.nan, "no row is expected to be of one of the classes"
                values.append(_area(truth, *self.orders[column]))
                continue
            total = {"f1": true + answered, "precision": answered, "recall": true}[name]
            if not total:
                return math.nan, "no row is answered, or expected to be, of one of the classes"
            values.append(float(truth[told].sum()) * (2 if name == "f1" else 1) / total)
        return float(np.mean(values)), ""


def _area(truth: np.ndarray, order: np.ndarray, last: np.ndarray) -> float:
    """Area under the expected ROC curve; equal scores are one step of it."""
    hits = np.concatenate([[0.0], np.cumsum(truth[order])[last]])
    misses = np.concatenate([[0.0], last + 1.0]) - hits
    return float(np.trapezoid(hits / hits[-1], misses / misses[-1]))
