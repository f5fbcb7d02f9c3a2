"""How good the answers turned out to be: per-row losses, their mean with an interval, a verdict.

Every metric here is a loss: lower is better. The interval is Student's t on per-row losses taken as
independent; rows that come in clumps (one customer, one storm) make it too narrow, which is why
`monitor.verdict` asks for two checks in a row before it speaks of decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from core.errors import InputError
from core.spec import Metric, ModelSpec
from monitor.results import Performance

if TYPE_CHECKING:
    import pandas as pd

_CLIP = 1e-15  # log loss of a certain, wrong answer is 34.5, not infinite

#: What people call each metric.
METRIC_NAMES: dict[str, str] = {
    "brier": "Brier score",
    "log_loss": "log loss",
    "mae": "MAE",
    "rmse": "RMSE",
}


def row_loss(
    spec: ModelSpec,
    outputs: pd.DataFrame | np.ndarray,
    y: np.ndarray,
    metric: Metric | None = None,
) -> np.ndarray:
    """The loss of each row, shape (n,); NaN where an output or the label is missing or infinite.

    Args:
        outputs: one column per `spec.outputs`; other columns are ignored, an absent one is missing.
            Or the same as an array, float64 (n, outputs).
        y: encoded labels (`ModelSpec.encode_label`), shape (n,), NaN where there is none.
        metric: the spec's own when None. brier: (p - y)^2, for several classes summed over them
            (Brier 1950); log_loss: -ln of the true class's probability, clipped to [1e-15, 1];
            mae: |error|; rmse: squared error, whose mean `aggregate` takes the root of.
    """
    chosen = metric or spec.metric
    y = np.asarray(y, dtype=np.float64)
    answers = outputs if isinstance(outputs, np.ndarray) else matrix(spec, outputs)
    losses: np.ndarray
    with np.errstate(all="ignore"):  # NaN and overflow are answers here: the row has no loss
        if spec.task == "regression":
            error = answers[:, 0] - y
            losses = np.abs(error) if chosen == "mae" else error**2
        elif spec.task == "binary":
            p = answers[:, 0]
            truth = np.where(y == 1.0, p, 1.0 - p) if chosen == "log_loss" else (p - y) ** 2
            losses = _negative_log(truth) if chosen == "log_loss" else truth
        else:
            losses = _multiclass(answers, y, chosen)
        losses[~(np.isfinite(losses) & np.isfinite(y) & np.isfinite(answers).all(axis=1))] = np.nan
    return losses


def matrix(spec: ModelSpec, outputs: pd.DataFrame) -> np.ndarray:
    """The outputs as float64 (n, outputs), NaN for a column that is not there or not a number."""
    import pandas as pd

    matrix = np.full((len(outputs), len(spec.outputs)), np.nan)
    for index, name in enumerate(spec.outputs):
        if name in outputs.columns:
            numbers = pd.to_numeric(outputs[name], errors="coerce")
            matrix[:, index] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    return matrix


def _multiclass(answers: np.ndarray, y: np.ndarray, metric: Metric) -> np.ndarray:
    known = (y >= 0) & (y < answers.shape[1])
    index = np.where(known, y, 0).astype(np.intp)
    losses: np.ndarray
    if metric == "log_loss":
        losses = _negative_log(answers[np.arange(len(y)), index])
    else:
        truth = np.zeros_like(answers)
        truth[np.arange(len(y)), index] = 1.0
        losses = ((answers - truth) ** 2).sum(axis=1)
    losses[~known] = np.nan
    return losses


def _negative_log(p: np.ndarray) -> np.ndarray:
    logs: np.ndarray = -np.log(np.clip(p, _CLIP, 1.0))
    return logs


def aggregate(metric: Metric, losses: np.ndarray) -> float:
    """The metric of rows with these losses; NaN losses are left out, NaN when none is left."""
    usable = losses[~np.isnan(losses)]
    if not len(usable):
        return math.nan
    with np.errstate(over="ignore"):
        mean = float(usable.mean())
    return math.sqrt(mean) if metric == "rmse" else mean


def mean_interval(losses: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean loss; (NaN, NaN) for fewer than two usable rows."""
    from scipy.special import stdtrit

    usable = losses[~np.isnan(losses)]
    n = len(usable)
    if n < 2:
        return math.nan, math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        mean, sd = float(usable.mean()), float(usable.std(ddof=1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * sd / math.sqrt(n)
    return mean - half, mean + half


def metric_interval(
    metric: Metric, losses: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of `aggregate`: for RMSE the root of both ends, never below zero."""
    low, high = mean_interval(losses, confidence)
    if metric == "rmse":
        return math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))
    return max(low, 0.0) if low == low else low, high


def encode_labels(spec: ModelSpec, raw: Sequence[object]) -> tuple[np.ndarray, int]:
    """Labels as numbers, shape (n,), NaN where there is none or a bad one; and how many are bad.

    None is "no label" and not counted; NaN, a third class or a string for a number is bad.
    """
    known: dict[object, float] = {}
    encoded = np.full(len(raw), np.nan)
    bad = 0
    for index, value in enumerate(raw):
        if value is None:
            continue
        key = (type(value), value) if isinstance(value, str | int | float) else None
        if key is None or key not in known:
            number = _encode(spec, value)
            if key is not None and spec.task != "regression" and len(known) < 1000:
                known[key] = number
        else:
            number = known[key]
        encoded[index] = number
        bad += math.isnan(number)
    return encoded, bad


def _encode(spec: ModelSpec, value: object) -> float:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return spec.encode_label(value)
    except (InputError, TypeError, ValueError, OverflowError):
        return math.nan


def realised(
    spec: ModelSpec,
    metric: Metric,
    outputs: pd.DataFrame,
    labels: Sequence[object],
    *,
    expected: float | None,
    tolerance: float,
    min_rows: int,
    coverage: float | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Performance:
    """The metric on rows whose labels have arrived, judged against the baseline's.

    Args:
        labels: as given, one per row of `outputs`; None or a bad one leaves its row out.
        expected: the baseline's metric, None when it has none.
        tolerance: how much worse than expected it may get, as a share of expected.
        min_rows: with fewer usable rows there is a number, but no judgement (`worse` is None).
        coverage, since, until: carried into the result as they are.

    `worse` is True when the lower end of the 95 % interval is above expected * (1 + tolerance):
    a promise of at most 2.5 % per look for a model exactly at the line.
    """
    y, _ = encode_labels(spec, labels)
    bad = int(np.isnan(y).sum())
    losses = row_loss(spec, outputs, y, metric)
    unusable = int(np.isnan(losses).sum()) - bad
    n = int(np.isfinite(losses).sum())
    value = aggregate(metric, losses)
    low, high = metric_interval(metric, losses)
    tolerated = None if expected is None else expected * (1 + tolerance)
    judged = tolerated is not None and n >= max(min_rows, 2)
    return Performance(
        metric=metric,
        value=_number(value),
        low=_number(low),
        high=_number(high),
        n=n,
        coverage=coverage,
        expected=expected,
        tolerated=tolerated,
        worse=low > tolerated if judged and tolerated is not None else None,
        since=since,
        until=until,
        why=_why(n, bad, unusable, min_rows, expected, y),
        bad_labels=bad,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _why(
    n: int, bad: int, unusable: int, min_rows: int, expected: float | None, y: np.ndarray
) -> str:
    """What limits the number, as one line; empty when nothing does."""
    reasons = []
    if not len(y):
        reasons.append("no label has arrived")
    elif n < max(min_rows, 2):
        reasons.append(f"{n:,} labelled rows, fewer than the {max(min_rows, 2):,} a verdict needs")
    if bad:
        reasons.append(f"{bad:,} labels are no value of the target and were left out")
    if unusable > 0:
        reasons.append(f"{unusable:,} rows have no usable output and were left out")
    if expected is None:
        reasons.append("the baseline has no expected value to compare with")
    return "; ".join(reasons)
