"""Hyperparameters, searched in order of time: every fold is judged on rows newer than it learned.

Runs in the training subprocess, on the training rows alone: the gate's rows are not there. The
pipeline's own parameters are the first trial, so a search never picks what it could not beat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import TrainerFailed
from core.settings import SearchSettings, span
from core.spec import Metric, ModelSpec
from monitor.measure.performance import aggregate, row_loss
from retrain.job import Searched

if TYPE_CHECKING:
    import pandas as pd

Score = Callable[[Mapping[str, Any]], float]
_RANGE = {"low", "high", "log", "int"}


def search(
    score: Score, settings: SearchSettings, *, say: Callable[[str], None] = print
) -> Searched:
    """The best parameters of so many trials.

    Args:
        score: mean loss of parameters over the folds; lower is better. Trials that raise count
            as infinitely bad.
        say: hears of each trial.

    Raises:
        TrainerFailed: a space that cannot be read, or Optuna is asked for and not there.
    """
    _check(settings.space)
    end = time.monotonic() + span(settings.timeout).total_seconds()
    before = _try(score, {}, say)
    best, loss, trials, stopped = dict[str, Any](), before, 1, ""
    for parameters, tell in _ENGINES[settings.engine](settings):
        if trials >= settings.trials:
            break
        if time.monotonic() >= end:
            stopped = f"after {trials} trials the timeout of {settings.timeout} was over"
            break
        found = _try(score, parameters, say)
        tell(found)
        trials += 1
        if found < loss:
            best, loss = parameters, found
    return Searched(
        engine=settings.engine,
        trials=trials,
        best=best,
        loss=loss if math.isfinite(loss) else None,
        before=before if math.isfinite(before) else None,
        stopped=stopped,
    )


def _try(score: Score, parameters: Mapping[str, Any], say: Callable[[str], None]) -> float:
    words = ", ".join(f"{name} {value}" for name, value in parameters.items()) or "as it is"
    try:
        found = score(parameters)
    except Exception as error:  # whatever an estimator says to parameters it does not like
        say(f"trial {words}: {error}")
        return math.inf
    say(f"trial {words}: {found:.4g}")
    return found if math.isfinite(found) else math.inf


def folds_score(
    spec: ModelSpec,
    inputs: pd.DataFrame,
    y: np.ndarray,
    labels: np.ndarray,
    fit: Callable[[pd.DataFrame, np.ndarray, Mapping[str, Any]], Any],
    *,
    folds: int,
    metric: Metric | None,
) -> Score:
    """A score by forward folds: equal blocks, each judged by a fit on all rows before it."""
    from sklearn.model_selection import TimeSeriesSplit

    from registry.loading import predict

    splits = list(TimeSeriesSplit(folds).split(np.arange(len(inputs))))

    def score(parameters: Mapping[str, Any]) -> float:
        losses = []
        for train, test in splits:
            model = fit(inputs.iloc[train], labels[train], parameters)
            answers = predict(model, spec, inputs.iloc[test])
            losses.append(row_loss(spec, answers, y[test], metric))
        return aggregate(metric or spec.metric, np.concatenate(losses))

    return score


def _check(space: Mapping[str, Any]) -> None:
    for name, values in space.items():
        listed = isinstance(values, list) and values
        ranged = isinstance(values, dict) and {"low", "high"} <= set(values) <= _RANGE
        if not (listed or (ranged and values["low"] < values["high"])):
            raise TrainerFailed(
                f"retrain.search.space.{name} is {values!r}; expected a list of values or "
                "{low, high, log, int} with low < high"
            )


def _random(settings: SearchSettings) -> Iterator[tuple[dict[str, Any], Callable[[float], None]]]:
    """scikit-learn's ParameterSampler: every value of a finite space at most once."""
    from scipy import stats
    from sklearn.model_selection import ParameterSampler

    def distribution(values: Any) -> Any:
        if isinstance(values, list):
            return values
        low, high = values["low"], values["high"]
        if values.get("int"):
            drawn = stats.loguniform(low, high + 1) if values.get("log") else None
            return _Whole(drawn) if drawn is not None else stats.randint(low, high + 1)
        return stats.loguniform(low, high) if values.get("log") else stats.uniform(low, high - low)

    space = {name: distribution(values) for name, values in settings.space.items()}
    count = settings.trials
    if all(isinstance(values, list) for values in space.values()):
        count = min(count, math.prod(len(values) for values in space.values()))
    for drawn in ParameterSampler(space, count, random_state=settings.seed):
        yield {name: _plain(value) for name, value in drawn.items()}, lambda loss: None


class _Whole:
    """A distribution's draws, rounded down to whole numbers."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def rvs(self, random_state: Any = None) -> int:
        return int(self._inner.rvs(random_state=random_state))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _optuna(settings: SearchSettings) -> Iterator[tuple[dict[str, Any], Callable[[float], None]]]:
    """Optuna's tree-structured Parzen estimator, asked and told trial by trial."""
    try:
        import optuna
    except ImportError:
        raise TrainerFailed(
            "retrain.search.engine is optuna, which is not installed; pip install optuna, or set "
            "it to sklearn"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=settings.seed))

    def suggest(trial: Any, name: str, values: Any) -> Any:
        if isinstance(values, list):
            return trial.suggest_categorical(name, values)
        kind = trial.suggest_int if values.get("int") else trial.suggest_float
        return kind(name, values["low"], values["high"], log=bool(values.get("log")))

    while True:
        trial = study.ask()
        drawn = {name: suggest(trial, name, values) for name, values in settings.space.items()}

        def tell(loss: float, trial: Any = trial) -> None:
            if math.isfinite(loss):
                study.tell(trial, loss)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)

        yield drawn, tell


_ENGINES: Mapping[
    str,
    Callable[[SearchSettings], Iterator[tuple[dict[str, Any], Callable[[float], None]]]],
] = {"sklearn": _random, "optuna": _optuna}
