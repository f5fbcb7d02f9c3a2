"""Every metric of a task on rows with labels, each with an interval, n, and why where it has none.

Values are scikit-learn's to the last digits (a test compares them). Intervals are 95 %: Student's t
for means of row losses, Wilson's for shares (JASA 1927), DeLong's for the area under the ROC curve
(Biometrics 1988) and the delta method for F1, R² and averages over classes, both on the logit scale
where the metric lies in [0, 1]; Boyd, Eng and Page's logit interval for average precision (ECML
2013). Rows are taken as independent. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from core.spec import METRICS, ModelSpec, Task
from monitor.figures import Figure
from monitor.measure.performance import aggregate, matrix, metric_interval, row_loss

Better = Literal["lower", "higher"]
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
BINS = 10  # of equal width, of the calibration error
_DRAWS = 1000  # of the calibration error's noise, from a fixed seed

#: What people call each metric.
NAMES: dict[str, str] = {
    "brier": "Brier score",
    "log_loss": "log loss",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "calibration_error": "calibration error",
    "mae": "MAE",
    "rmse": "RMSE",
    "mape": "MAPE",
    "r2": "R²",
    "pinball": "pinball loss",
}
_CLASSES = ("roc_auc", "average_precision", "accuracy", "f1", "precision", "recall")
HIGHER = frozenset((*_CLASSES, "r2"))
#: The metrics of each task, the losses a model can be watched by first.
OF: dict[Task, tuple[str, ...]] = {
    "binary": (*METRICS["binary"], *_CLASSES, "calibration_error"),
    "multiclass": (*METRICS["multiclass"], *_CLASSES, "calibration_error"),
    "regression": (*METRICS["regression"], "mape", "r2", "pinball"),
}


class Choices(Struct, frozen=True, kw_only=True):
    """What a metric needs to know besides answers and labels."""

    threshold: float = 0.5  # probability from which a binary answer is positive
    quantile: float = 0.5  # that a regression answers, for the pinball loss


class Value(NamedTuple):
    """A metric's value and interval, NaN where it has none; n rows; why there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    why: str = ""


class _Rows(NamedTuple):
    """Usable rows: finite answers (n, k) and encoded labels (n,)."""

    spec: ModelSpec
    answers: np.ndarray
    y: np.ndarray
    choices: Choices

    @property
    def classes(self) -> int:
        return max(len(self.spec.classes), 2)

    def scores(self, index: int) -> np.ndarray:
        """The probability of one class, shape (n,)."""
        found: np.ndarray
        if self.spec.task == "binary":
            found = self.answers[:, 0] if index else 1 - self.answers[:, 0]
        else:
            found = self.answers[:, index]
        return found

    def answered(self) -> np.ndarray:
        """The class each row is answered with, shape (n,)."""
        if self.spec.task == "binary":
            return (self.answers[:, 0] >= self.choices.threshold).astype(np.intp)
        found: np.ndarray = self.answers.argmax(axis=1)
        return found


def better(name: str) -> Better:
    """Whether higher or lower values of a metric are good."""
    return "higher" if name in HIGHER else "lower"


def tolerated(name: str, expected: float, tolerance: float) -> float:
    """As bad as a metric may get: a share `tolerance` worse than expected.

    Of the value itself; R², which may be negative, by its shortfall from 1.
    """
    if name == "r2":
        return 1 - (1 - expected) * (1 + tolerance)
    return expected * (1 - tolerance if name in HIGHER else 1 + tolerance)


def measure(
    spec: ModelSpec,
    outputs: object,
    y: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    choices: Choices | None = None,
) -> dict[str, Value]:
    """The metrics of rows, those of the task when not named.

    Args:
        outputs: DataFrame with one column per `spec.outputs`, or the same as an array (n, k).
        y: encoded labels, shape (n,), NaN where there is none. Rows without a label or with an
            answer that is missing or infinite are left out.
    """
    import pandas as pd

    answers = matrix(spec, outputs) if isinstance(outputs, pd.DataFrame) else np.asarray(outputs)
    y = np.asarray(y, dtype=np.float64)
    usable = np.isfinite(y) & np.isfinite(answers).all(axis=1)
    if spec.task != "regression":
        usable &= (y >= 0) & (y < max(len(spec.classes), 2))
    rows = _Rows(spec, answers[usable], y[usable], choices or Choices())
    return {name: _one(name, rows) for name in names or OF[spec.task]}


def figure(
    name: str,
    found: Value,
    *,
    expected: Value | None = None,
    tolerance: float,
    min_rows: int,
) -> Figure:
    """A metric as a value object, judged against what the baseline's rows gave.

    `worse` is None with fewer than `min_rows` rows, without a value, or without an expectation.
    """
    least = max(min_rows, 2)
    value, low, high = _number(found.value), _number(found.low), _number(found.high)
    hoped = None if expected is None else _number(expected.value)
    line = None if hoped is None else tolerated(name, hoped, tolerance)
    worse, why = None, found.why
    if value is not None and found.n < least:
        why = f"{found.n:,} rows, fewer than the {least:,} a verdict needs"
    elif value is not None and line is not None and low is not None and high is not None:
        worse = high < line if name in HIGHER else low > line
    return Figure(
        name=name,
        better=better(name),
        value=value,
        low=low,
        high=high,
        n=found.n,
        expected=hoped,
        tolerated=line,
        worse=worse,
        why=why,
    )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _one(name: str, rows: _Rows) -> Value:
    if not len(rows.y):
        return Value(why="no row has both a label and an answer")
    if name in METRICS[rows.spec.task]:
        losses = row_loss(rows.spec, rows.answers, rows.y, name)
        low, high = metric_interval(name, losses)
        return Value(aggregate(name, losses), low, high, len(rows.y))
    return _METHODS[name](rows)


# --- classes ------------------------------------------------------------------------------------
def _per_class(rows: _Rows) -> range:
    """The classes a metric is averaged over: the positive one, or every one."""
    return range(1, 2) if rows.spec.task == "binary" else range(rows.classes)


def _name(rows: _Rows, index: int) -> str:
    classes = rows.spec.classes
    return repr(classes[index] if index < len(classes) else index)


def _absent(rows: _Rows) -> str:
    """Why ranks cannot be compared: a class, or every other class, has no row."""
    present = np.unique(rows.y)
    if len(present) == 1:
        return f"one class only: every label is {_name(rows, int(present[0]))}"
    gone = [i for i in range(rows.classes) if i not in present]
    return f"no label is {_name(rows, gone[0])}" if gone else ""


def _roc_auc(rows: _Rows) -> Value:
    n = len(rows.y)
    if why := _absent(rows):
        return Value(n=n, why=why)
    values, influence = [], np.zeros(n)
    for index in _per_class(rows):
        value, part = _auc(rows.scores(index), rows.y == index)
        values.append(value)
        influence += part
    smallest = int(np.bincount(rows.y.astype(np.intp), minlength=rows.classes).min())
    return _logit(float(np.mean(values)), influence / len(values), smallest, n)


def _auc(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """Area by the Mann–Whitney statistic, and each row's influence on it (DeLong's components)."""
    from scipy.stats import rankdata

    n1, n0 = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(score)
    inside = np.empty(len(score))
    inside[positive] = (ranks[positive] - rankdata(score[positive])) / n0
    inside[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / n1
    value = (ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
    weight = np.where(positive, len(score) / n1, len(score) / n0)
    return float(value), (inside - value) * weight


def _average_precision(rows: _Rows) -> Value:
    n = len(rows.y)
    if why := _absent(rows):
        return Value(n=n, why=why)
    values, errors = [], []
    for index in _per_class(rows):
        positive = rows.y == index
        value = _step_area(rows.scores(index), positive)
        values.append(value)
        errors.append(math.sqrt(max(value * (1 - value), 0.0) / int(positive.sum())))
    # Classes go up and down together at worst, so their errors are added, not their variances.
    value, error = float(np.mean(values)), float(np.mean(errors))
    return _around(value, error, n, n)


def _step_area(score: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision times the step in recall, over the distinct scores from the top."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(positive[order])[last]
    precision = hits / (last + 1)
    return float((np.diff(hits, prepend=0) / hits[-1] * precision).sum())


def _accuracy(rows: _Rows) -> Value:
    return _wilson(int((rows.answered() == rows.y).sum()), len(rows.y), len(rows.y))


def _precision(rows: _Rows) -> Value:
    return _share(rows, "precision")


def _recall(rows: _Rows) -> Value:
    return _share(rows, "recall")


def _f1(rows: _Rows) -> Value:
    return _share(rows, "f1")


def _share(rows: _Rows, name: str) -> Value:
    """Precision, recall or F1: of the positive class, or averaged over the classes there are."""
    n, said = len(rows.y), rows.answered()
    values, influence = [], np.zeros(n)
    binary = rows.spec.task == "binary"
    for index in _per_class(rows):
        told, true = said == index, rows.y == index
        if not binary and not told.any() and not true.any():
            continue
        whole = {"precision": told, "recall": true, "f1": told.astype(np.int64) + true}[name]
        total = int(whole.sum())
        if not total:
            what = "answered with" if name == "precision" else "labelled"
            return Value(n=n, why=f"no row is {what} {_name(rows, index)}")
        hits = (told & true).astype(np.float64) * (2 if name == "f1" else 1)
        if binary and name != "f1":
            return _wilson(int(hits.sum()), total, n)
        value = float(hits.sum() / total)
        values.append(value)
        influence += (hits - value * whole) * (n / total)
    return _logit(float(np.mean(values)), influence / len(values), n, n)


def _calibration_error(rows: _Rows) -> Value:
    """Mean over bins of |share that is right - mean probability|, weighted by their rows.

    Binary: of the positive class's probability; several classes: of the answered class's. The
    interval: by the triangle inequality the value is off by at most the mean of the bins' own
    errors, whose 95 % quantile is simulated; it is wide rather than wrong.
    """
    n = len(rows.y)
    if rows.spec.task == "binary":
        said, right = rows.answers[:, 0], rows.y
    else:
        said = rows.answers.max(axis=1)
        right = (rows.answers.argmax(axis=1) == rows.y).astype(np.float64)
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], said)
    count = np.bincount(bins, minlength=BINS)
    gap = np.bincount(bins, right - said, minlength=BINS)
    value = float(np.abs(gap).sum() / n)
    variance = np.bincount(bins, (right - said) ** 2, minlength=BINS) - gap**2 / count.clip(1)
    binomial = np.bincount(bins, (said * (1 - said)).clip(0), minlength=BINS)
    sd = np.sqrt(np.maximum(variance, binomial).clip(0))  # a bin without a hit is not certain
    noise = np.random.default_rng(0).normal(size=(_DRAWS, BINS)) * sd
    off = float(np.quantile(np.abs(noise).sum(axis=1) / n, 0.95))
    return Value(value, max(value - off, 0.0), min(value + off, 1.0), n)


# --- numbers ------------------------------------------------------------------------------------
def _mape(rows: _Rows) -> Value:
    known = rows.y != 0
    if not known.any():
        return Value(n=0, why="every label is 0, which no error is a share of")
    shares = np.abs(rows.answers[known, 0] - rows.y[known]) / np.abs(rows.y[known])
    zeros = int((~known).sum())
    why = f"{zeros:,} rows whose label is 0 were left out" if zeros else ""
    return Value(*_mean(shares), int(known.sum()), why)


def _r2(rows: _Rows) -> Value:
    n, spread = len(rows.y), (rows.y - rows.y.mean()) ** 2
    if n < 2 or not spread.any():
        return Value(n=n, why="every label is alike, so there is no variance to explain")
    errors = (rows.y - rows.answers[:, 0]) ** 2
    value = 1 - float(errors.sum() / spread.sum())
    influence = -(errors - (1 - value) * spread) / spread.mean()
    half = _Z * float(influence.std(ddof=1)) / math.sqrt(n)
    return Value(value, value - half, min(value + half, 1.0), n)


def _pinball(rows: _Rows) -> Value:
    error, q = rows.y - rows.answers[:, 0], rows.choices.quantile
    return Value(*_mean(np.maximum(q * error, (q - 1) * error)), len(rows.y))


def _mean(losses: np.ndarray) -> tuple[float, float, float]:
    low, high = metric_interval("mae", losses)
    return float(losses.mean()), low, high


# --- intervals ----------------------------------------------------------------------------------
def _wilson(hits: float, of: int, n: int) -> Value:
    share, z2 = hits / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return Value(share, max(middle - half, 0.0), min(middle + half, 1.0), n)


def _logit(value: float, influence: np.ndarray, effective: int, n: int) -> Value:
    """An interval from each row's influence; `effective` rows where the influence is all zero."""
    error = float(influence.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return _around(value, error, effective, n)


def _around(value: float, error: float, effective: int, n: int) -> Value:
    if n < 2:
        return Value(value, n=n)
    if not 0 < value < 1 or error == 0:  # nothing varied: as for a share of so many rows
        return _wilson(value * effective, max(effective, 1), n)
    half = _Z * error / (value * (1 - value))
    middle = math.log(value / (1 - value))
    return Value(value, _expit(middle - half), _expit(middle + half), n)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-min(max(x, -700.0), 700.0)))


_METHODS: Mapping[str, Callable[[_Rows], Value]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "calibration_error": _calibration_error,
    "mape": _mape,
    "r2": _r2,
    "pinball": _pinball,
}
