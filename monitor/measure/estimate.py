"""Performance without labels: one estimator a version, CBPE for classes and DLE for numbers. Pure.

`learn` once from the version's baseline sample (it may be kept), `Estimator.whole` and
`Estimator.windows` for the rows of every check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct

from core.spec import Metric, ModelSpec
from core.times import from_micros
from monitor.figures import EstimatedWindow
from monitor.measure import cbpe, dle
from monitor.measure.metrics import Choices, Value
from monitor.measure.performance import matrix, row_loss

if TYPE_CHECKING:
    import pandas as pd

LEAST = 200  # labelled baseline rows
#: What is estimated beside the watched metric.
ALSO: dict[str, tuple[str, ...]] = {
    "binary": ("roc_auc", "accuracy", "f1", "precision", "recall"),
    "multiclass": ("roc_auc", "accuracy", "f1", "precision", "recall"),
    "regression": (),
}


class Estimator(Struct, kw_only=True):
    """What is known of a version's loss on rows whose labels are missing."""

    spec: ModelSpec
    metric: Metric
    choices: Choices
    method: Literal["CBPE", "DLE", ""] = ""
    classes: cbpe.Calibrated | None = None
    numbers: dle.LossModel | None = None
    why: str = ""  # why nothing can be estimated

    def whole(self, inputs: pd.DataFrame, outputs: pd.DataFrame) -> dict[str, Value]:
        """The watched metric of rows, and others of the task; empty without a usable row."""
        answers = matrix(self.spec, outputs)
        usable = np.isfinite(answers).all(axis=1)
        if not usable.any():
            return {}
        if self.classes is not None:
            names = (self.metric, *ALSO[self.spec.task])
            return cbpe.estimate(self.classes, answers[usable], names, self.choices)
        if self.numbers is not None:
            rows = dle.row_losses(self.numbers, inputs[usable], answers[usable, 0])
            return {self.metric: dle.mean_of(self.numbers, rows)}
        return {}

    def windows(
        self,
        inputs: pd.DataFrame,
        outputs: pd.DataFrame,
        times: np.ndarray,
        version: str,
        width: timedelta,
        *,
        since: int,
        least: int,
    ) -> tuple[EstimatedWindow, ...]:
        """The watched metric of each whole event-time window that starts at or after `since`.

        Args:
            times: microseconds since 1970, int64 (n,); windows begin at multiples of `width`.
            least: windows with fewer usable rows are left out.
        """
        answers = matrix(self.spec, outputs)
        usable = np.isfinite(answers).all(axis=1)
        if not usable.any() or not self.method:
            return ()
        step = width // timedelta(microseconds=1)
        starts = times[usable] // step * step
        one = self._by_rows(inputs[usable], answers[usable])
        found = []
        for start in np.unique(starts[starts >= since]).tolist():
            mine = np.flatnonzero(starts == start)
            if len(mine) < least:
                continue
            value = one(mine)
            found.append(
                EstimatedWindow(
                    start=from_micros(start),
                    end=from_micros(start + step),
                    version=version,
                    metric=self.metric,
                    value=value.value,
                    low=value.low,
                    high=value.high,
                    n=value.n,
                )
            )
        return tuple(found)

    def _by_rows(self, inputs: pd.DataFrame, answers: np.ndarray) -> _Part:
        if self.classes is not None:
            losses = cbpe.row_losses(self.classes, answers, self.metric)
            return lambda where: cbpe.mean_of(losses, where)
        assert self.numbers is not None  # noqa: S101 - `method` says that one of them is there
        known, rows = self.numbers, dle.row_losses(self.numbers, inputs, answers[:, 0])
        return lambda where: dle.mean_of(known, rows, where)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Part = Callable[[np.ndarray], Value]


def learn(
    spec: ModelSpec,
    inputs: pd.DataFrame,
    outputs: pd.DataFrame,
    y: np.ndarray,
    metric: Metric,
    *,
    choices: Choices | None = None,
    hidden: Sequence[str] = (),
) -> Estimator:
    """An estimator from baseline rows that the model was not fitted on.

    Args:
        y: encoded labels (n,), NaN where there is none.
        hidden: inputs that the log does not keep.
    """
    made = Estimator(spec=spec, metric=metric, choices=choices or Choices())
    answers = matrix(spec, outputs)
    y = np.asarray(y, dtype=np.float64)
    usable = np.isfinite(answers).all(axis=1) & np.isfinite(y)
    if usable.sum() < LEAST:
        made.why = (
            f"the baseline has {int(usable.sum()):,} rows with an answer and a label, "
            f"an estimate needs {LEAST}"
        )
        return made
    answers, y = answers[usable], y[usable]
    if spec.task != "regression":
        if len(np.unique(y)) < 2:
            made.why = "the baseline's labels are of one class only"
            return made
        made.classes, made.method = cbpe.fit(spec, answers, y), "CBPE"
        return made
    losses = row_loss(spec, answers, y, metric)
    made.numbers = dle.fit(spec, inputs[usable], answers[:, 0], losses, metric, hidden=hidden)
    made.method = "DLE"
    return made


def reference_parts(
    spec: ModelSpec, reference: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Inputs, outputs and labels of a version's reference sample; empty where it has no answers."""
    inputs = reference[[c for c in reference if str(c).startswith("in:")]]
    inputs = inputs.rename(columns=lambda name: str(name).removeprefix("in:"))
    outputs = reference[[f"out:{name}" for name in spec.outputs if f"out:{name}" in reference]]
    outputs = outputs.rename(columns=lambda name: str(name).removeprefix("out:"))
    y: np.ndarray = (
        reference["y"].to_numpy(np.float64) if "y" in reference else np.full(len(reference), np.nan)
    )
    return inputs, outputs, y


def differences(found: Mapping[str, Value], told: Mapping[str, Value]) -> dict[str, float]:
    """Estimate less realised value, by metric that both have."""
    return {name: found[name].value - told[name].value for name in found if name in told}
