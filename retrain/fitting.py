"""From a champion to fitted candidates: the base pipeline, one window's fit, and blends.

Everything here runs in the training subprocess (`retrain.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import TrainerFailed
from core.spec import ModelSpec
from retrain.windows import Window, weights

if TYPE_CHECKING:
    import pandas as pd

#: Names of a blend's members start with this, so that the next run refits one pipeline, not two.
MEMBER = "window_"
Function = Callable[["pd.DataFrame", np.ndarray, Any], Any]


def fresh(champion: Any, function: Function | None) -> Any:
    """An unfitted clone of the champion's own pipeline; of a blend's, its first member's.

    Raises:
        TrainerFailed: it cannot be cloned, and no function stands in for it.
    """
    from sklearn.base import clone

    base = champion
    members = getattr(champion, "estimators", None)
    if isinstance(members, list) and members and all(_member(each) for each in members):
        base = members[0][1]
    try:
        return clone(base)
    except TypeError:  # no get_params: a model of another MLflow flavour
        if function is None:
            raise TrainerFailed(
                f"a {type(champion).__name__} cannot be cloned and refitted; set retrain.trainer "
                "to package.module:function"
            ) from None
        return base


def _member(each: object) -> bool:
    return isinstance(each, tuple) and str(each[0]).startswith(MEMBER)


def fit_window(
    window: Window | None,
    base: Any,
    inputs: pd.DataFrame,
    labels: np.ndarray,
    *,
    function: Function | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Any:
    """A clone of the base pipeline, fitted on the window's newest rows; all rows for None.

    Raises:
        TrainerFailed: the user's function returned no estimator, or the window weighs rows and the
            estimator takes no weights.
    """
    if window is not None:
        rows = min(window.rows, len(inputs))
        inputs, labels = inputs.iloc[len(inputs) - rows :], labels[len(labels) - rows :]
        inputs = inputs.reset_index(drop=True)
    weight = None if window is None else weights(window, len(inputs))
    if function is not None:
        if weight is not None:
            raise TrainerFailed("a trainer function takes no weights")
        return _fitted(function, function(inputs, labels, _copy(base)))
    model = _copy(base)
    if parameters:
        model.set_params(**parameters)
    return model.fit(inputs, labels, **_weighted(model, weight))


def _copy(base: Any) -> Any:
    from sklearn.base import clone

    try:
        return clone(base)
    except TypeError:  # a model only the user's function knows what to do with
        return base


def _weighted(model: Any, weight: np.ndarray | None) -> dict[str, np.ndarray]:
    """The argument by which a pipeline's last step takes weights."""
    from sklearn.utils.validation import has_fit_parameter

    if weight is None:
        return {}
    steps = getattr(model, "steps", None)
    last = steps[-1][1] if steps else model
    if not has_fit_parameter(last, "sample_weight"):
        raise TrainerFailed(f"{type(last).__name__} takes no sample_weight")
    return {f"{steps[-1][0]}__sample_weight" if steps else "sample_weight": weight}


def _fitted(function: Function, model: Any) -> Any:
    if not hasattr(model, "predict"):
        name = f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', '?')}"
        raise TrainerFailed(f"{name} returned {type(model).__name__}; expected a fitted estimator")
    return model


def blend(spec: ModelSpec, members: Sequence[tuple[str, Any]]) -> Any:
    """Fitted models as one that answers with their average: scikit-learn's voting estimators,
    put together without another fit.

    Args:
        members: window name and fitted model of each, all with the same classes.

    Raises:
        TrainerFailed: the members know different classes.
    """
    from sklearn.ensemble import VotingClassifier, VotingRegressor
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import Bunch

    named = [(f"{MEMBER}{name}", model) for name, model in members]
    fitted = [model for _, model in named]
    if spec.task == "regression":
        voting: Any = VotingRegressor(named)
    else:
        classes = [np.asarray(model.classes_).tolist() for model in fitted]
        if any(each != classes[0] for each in classes):
            raise TrainerFailed("the windows' models know different classes")
        voting = VotingClassifier(named, voting="soft")
        voting.le_ = LabelEncoder().fit(np.asarray(fitted[0].classes_))
        voting.classes_ = voting.le_.classes_
    voting.estimators_ = fitted
    voting.named_estimators_ = Bunch(**dict(named))
    return voting
