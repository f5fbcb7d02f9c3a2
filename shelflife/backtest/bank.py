"""Every model fitted in a backtest, once: policies that train on the same rows share the fit.

What is shared is only the computing. Each policy that asks for a fit is charged for it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from msgspec import Struct, field

from core.errors import BadOutput, InputError, ShelflifeError, TrainerFailed
from core.frames import to_frame
from core.spec import ModelSpec, infer_spec
from monitor.baseline import Baseline
from monitor.measure.performance import encode_labels
from registry.loading import describe, predict
from shelflife.backtest.estimators import Factory
from shelflife.backtest.history import History, Window
from shelflife.backtest.moments import NEVER
from shelflife.backtest.targets import spelled

if TYPE_CHECKING:
    from core.spec import Metric


class Fitted(Struct, kw_only=True):
    """An estimator with what it answered so far, and its baseline once somebody needed it."""

    estimator: Any
    key: str
    answers: dict[tuple[int, int], pd.DataFrame] = field(default_factory=dict)
    reproduces: bool | None = None
    baseline: tuple[Baseline, pd.DataFrame] | None = None


class Bank:
    """Models of one history.

    Args:
        make: the factory of estimators.
        metric: the loss to watch; the task's own when None.
        seed: of the estimators that have one.
    """

    def __init__(
        self, history: History, make: Factory, *, metric: Metric | None, seed: int, model: str
    ) -> None:
        self.history, self.seed = history, seed
        self.fits = 0  # that were really computed
        self._fitted: dict[str, Fitted] = {}
        start = history.times[history.train]
        self.known = np.flatnonzero(history.known[: history.train] <= start)
        head = history.inputs.iloc[self.known]
        open_spec = infer_spec(model, head, target=history.target, task=history.task, metric=metric)
        self.spec, self.first = self._first(make, open_spec)
        self.inputs = _as_served(self.spec, history.inputs)
        self.y, self.unknown_labels = encode_labels(self.spec, history.labels.tolist())

    def _first(self, make: Factory, spec: ModelSpec) -> tuple[ModelSpec, Fitted]:
        """The first model, fitted on the training rows whose label is known."""
        import msgspec

        estimator = make(self.history.task, spec, self.seed)
        inputs = _as_served(spec, self.history.inputs.iloc[self.known])
        labels = self.history.labels[self.known]
        target = labels.astype(np.float64) if spec.task == "regression" else spelled(labels)
        fitted = self.fit("first", lambda: estimator.fit(inputs, target))
        task, classes = describe(fitted.estimator)
        if task != spec.task:
            hint = f"an estimator for a {spec.task} task, or --task {task}"
            raise InputError("--estimator", type(fitted.estimator).__name__, hint)
        return msgspec.structs.replace(spec, classes=classes), fitted

    def unknown_classes(self) -> list[str]:
        """Labels that no training row has, in order of appearance."""
        strange = np.isnan(self.y) & (self.history.known < NEVER)
        return list(dict.fromkeys(str(label) for label in self.history.labels[strange]))[:5]

    def rounds(self) -> int:
        """Boosting rounds, or trees, of the estimator; one where it has none."""
        settings = self.first.estimator.get_params(deep=True)
        wanted = ("max_iter", "n_estimators", "iterations")
        found = [v for k, v in settings.items() if k.split("__")[-1] in wanted]
        counts = [value for value in found if isinstance(value, int) and value > 0]
        return max(counts, default=1)

    def described(self) -> str:
        """The estimator's class, or the classes of a pipeline's steps."""
        steps = getattr(self.first.estimator, "steps", None)
        parts = [step for _, step in steps] if steps else [self.first.estimator]
        return " → ".join(type(part).__name__ for part in parts)

    def fit(self, key: str, train: Callable[[], Any]) -> Fitted:
        """What `train` fits; computed once per key.

        Raises:
            TrainerFailed: it raised.
        """
        if key not in self._fitted:
            np.random.seed(self.seed)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # convergence and the like
                    estimator = train()
            except ShelflifeError:
                raise
            except Exception as error:
                raise TrainerFailed(f"{type(error).__name__}: {error}") from error
            self.fits += 1
            self._fitted[key] = Fitted(estimator=estimator, key=key)
        return self._fitted[key]

    def keep(self, key: str, estimator: Any) -> Fitted:
        """A model that was put together elsewhere, once per key."""
        return self._fitted.setdefault(key, Fitted(estimator=estimator, key=key))

    def answer(self, fitted: Fitted, window: Window) -> pd.DataFrame:
        """The outputs for a window's rows; NaN where the model cannot answer."""
        place = (window.first, window.last)
        if place not in fitted.answers:
            rows = self.inputs.iloc[window.first : window.last]
            fitted.answers[place] = self.outputs(fitted, rows)
        return fitted.answers[place]

    def outputs(self, fitted: Fitted, inputs: pd.DataFrame) -> pd.DataFrame:
        """The outputs for rows; NaN where the model cannot answer."""
        if not len(inputs):
            return pd.DataFrame(columns=self.spec.outputs, dtype=np.float64)
        try:
            return predict(fitted.estimator, self.spec, inputs)
        except BadOutput:
            return pd.DataFrame(np.nan, index=inputs.index, columns=self.spec.outputs)

    def reproduces(self, fitted: Fitted, inputs: pd.DataFrame, outputs: pd.DataFrame) -> bool:
        """Whether the model gives the very same outputs after it was saved and loaded."""
        import joblib

        if fitted.reproduces is None:
            buffer = io.BytesIO()
            joblib.dump(fitted.estimator, buffer)
            buffer.seek(0)
            again = Fitted(estimator=joblib.load(buffer), key="")
            found = self.outputs(again, inputs).to_numpy()
            fitted.reproduces = bool(np.array_equal(found, outputs.to_numpy()))
        return fitted.reproduces


def _as_served(spec: ModelSpec, inputs: pd.DataFrame) -> pd.DataFrame:
    """The rows as the model is given them, with an index of their own."""
    return to_frame(spec, {name: inputs[name].to_numpy() for name in spec.columns})
