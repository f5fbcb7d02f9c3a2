"""Labels as they come: which are usable numbers, which are left out and why, how late they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from core.errors import shown
from core.spec import ModelSpec
from monitor.measure.performance import encode_labels
from monitor.results import LabelProblem

if TYPE_CHECKING:
    import pandas as pd

#: A label may be this much older than its prediction: clocks of two machines differ.
SKEW = timedelta(minutes=5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_TEXTS = {
    "null": "{} labels are null",
    "text": "{} labels are text where the target is a number",
    "boolean": "{} labels are true or false where the target is a number",
    "not_finite": "{} labels are NaN or infinite",
    "unknown_class": "{} labels are none of the model's classes",
    "other": "{} labels are no scalar",
    "before_prediction": "{} labels became known before their prediction was made",
}


def usable(spec: ModelSpec, meta: pd.DataFrame) -> tuple[np.ndarray, tuple[LabelProblem, ...]]:
    """Labels of log rows as numbers, shape (n,), NaN where there is none or a bad one; what is bad.

    Args:
        meta: `Rows.meta` with `label`, `label_time` and `time`; a row without `label_time` has no
            label and is no problem.

    A label that says the truth was known more than `SKEW` before the prediction was made is left
    out: either its time or its id is wrong.
    """
    has = meta["label_time"].notna().to_numpy(dtype=bool)
    early = before_prediction(meta)
    raw = meta["label"].tolist()
    y, _ = encode_labels(spec, raw)
    found: dict[str, list[object]] = {}
    for index in np.flatnonzero(has & np.isnan(y)):
        found.setdefault(_kind(spec, raw[index]), []).append(raw[index])
    y[early] = np.nan
    y[~has] = np.nan
    problems = [_problem(kind, values) for kind, values in found.items()]
    if early.any():
        problems.append(_problem("before_prediction", meta["id"][early].tolist()))
    order = list(_TEXTS)
    return y, tuple(sorted(problems, key=lambda problem: order.index(problem.kind)))


def before_prediction(meta: pd.DataFrame) -> np.ndarray:
    """Rows whose label became known more than `SKEW` before they were asked; bool, shape (n,)."""
    found: np.ndarray = ((meta["label_time"] - meta["time"]) < -SKEW).to_numpy(dtype=bool)
    return found


def _problem(kind: str, values: Sequence[object]) -> LabelProblem:
    example = shown(values[0])
    text = f"{_TEXTS[kind].format(f'{len(values):,}')}, such as {example}"
    return LabelProblem(kind=kind, count=len(values), example=example, text=text)


def _kind(spec: ModelSpec, value: object) -> str:
    if value is None:
        return "null"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int | float) and number and not _finite(value):
        return "not_finite"
    if not isinstance(value, str | int | float):
        return "other"
    if spec.task != "regression":
        return "unknown_class"
    return "text" if isinstance(value, str) else "boolean" if not number else "other"


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def lags(meta: pd.DataFrame) -> np.ndarray:
    """Seconds from prediction to label of the rows that have one, shape (labelled,)."""
    spans = meta["label_time"] - meta["time"]
    found: np.ndarray = spans.dropna().dt.total_seconds().to_numpy()
    return found


def quantiles(seconds: np.ndarray) -> tuple[tuple[float, float], ...]:
    """(quantile, seconds) at `QUANTILES` by linear interpolation; empty without labels."""
    if not len(seconds):
        return ()
    values = np.quantile(seconds, QUANTILES)
    return tuple((q, float(value)) for q, value in zip(QUANTILES, values, strict=True))
