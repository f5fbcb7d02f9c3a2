"""From a check's evidence to what carries the loss: the rows `monitor.measure.causes` compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from core.frames import to_frame
from core.spec import Metric, ModelSpec
from monitor.baseline import Baseline
from monitor.log.records import Rows
from monitor.measure import causes
from monitor.measure.performance import encode_labels
from monitor.results import Causes

if TYPE_CHECKING:
    import pandas as pd

    from monitor.measure.suspects import Predict


def carried(
    baseline: Baseline,
    reference: pd.DataFrame,
    labelled: Rows,
    metric: Metric,
    *,
    predict: Predict | None = None,
    hidden: frozenset[str] = frozenset(),
) -> Causes:
    """What carries the loss of labelled rows against the baseline's reference sample.

    Args:
        reference: `monitor.baseline.reference_sample`.
        labelled: rows this version answered, with their labels.
        hidden: inputs that privacy settings keep out of the log. With any of them the model cannot
            be asked again about the rows of the window.
    """
    spec = baseline.spec
    if hidden:
        predict = None
    known = [f"out:{name}" for name in spec.outputs]
    if "y" not in reference or any(name not in reference for name in known):
        return Causes(why="the baseline holds no answers with labels to compare with")
    outputs = reference[known].set_axis(spec.outputs, axis=1)
    y = reference["y"].to_numpy(np.float64)
    base = causes.sample(spec, _inputs(spec, reference, "in:", hidden), outputs, y, metric)
    found, _ = encode_labels(spec, labelled.meta["label"].tolist())
    inputs = _inputs(spec, labelled.inputs, "", hidden)
    window = causes.sample(spec, inputs, labelled.outputs, found, metric)
    return causes.explain(spec, base, window, predict, metric=metric)


def _inputs(
    spec: ModelSpec, frame: pd.DataFrame, prefix: str, hidden: frozenset[str]
) -> pd.DataFrame:
    """The inputs as the model takes them, without hidden ones; absent ones are missing."""
    absent = [None] * len(frame)
    columns = {
        name: frame[prefix + name].to_numpy(dtype=object) if prefix + name in frame else absent
        for name in spec.columns
    }
    return to_frame(spec, columns).drop(columns=list(hidden & set(spec.columns)))
