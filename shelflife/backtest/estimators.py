"""The estimator that is fitted at first and refitted since: the user's, or one that takes anything.

The default is gradient-boosted trees on histograms (scikit-learn's `HistGradientBoosting*`, after
LightGBM, Ke et al. 2017): missing values and categories need no preparation, and no scaling is
needed.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, cast

from core.errors import InputError
from core.spec import ModelSpec, Task

_LEVELS = 200  # categories kept apart by the trees (their histograms hold 255); rarer ones share

Factory = Callable[[Task, ModelSpec, int], Any]


def factory(given: str | Callable[..., Any] | object | None) -> Factory:
    """Something that makes an unfitted estimator for a task, a spec and a seed.

    Args:
        given: `package.module:name` of a factory, class or estimator; such a thing itself; None for
            the default. A factory may take `task`, `spec` and `seed`, by these names, or nothing.

    Raises:
        InputError: it cannot be imported, or is nothing to fit.
    """
    if given is None:
        return default
    made = _imported(given) if isinstance(given, str) else given

    def make(task: Task, spec: ModelSpec, seed: int) -> Any:
        from sklearn.base import clone

        if hasattr(made, "fit") and not isinstance(made, type):
            estimator = clone(made)
        elif callable(made):
            given = _accepted(made, {"task": task, "spec": spec, "seed": seed})
            try:
                estimator = made(**given)
            except Exception as error:  # their code may raise anything
                hint = f"a factory that works ({type(error).__name__}: {error})"
                raise InputError("--estimator", _named(made), hint) from error
        else:
            estimator = made
        if not hasattr(estimator, "fit") or not hasattr(estimator, "predict"):
            hint = "a factory that returns an unfitted estimator with fit and predict"
            raise InputError("--estimator", type(estimator).__name__, hint)
        return _seeded(estimator, seed)

    return make


def _named(made: Any) -> str:
    return str(getattr(made, "__qualname__", made))


def _imported(reference: str) -> Any:
    module, colon, name = reference.partition(":")
    if not colon or not module or not name:
        raise InputError("--estimator", reference, "package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: no file of theirs shadows one of ours
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError("--estimator", reference, f"something to import ({error})") from None
    return found


def _accepted(made: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    """Those of our arguments that the factory names; a class takes none of them."""
    if isinstance(made, type):
        return {}
    try:
        names = inspect.signature(made).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in known.items() if name in names}


def _seeded(estimator: Any, seed: int) -> Any:
    """The estimator with every unset `random_state` set, so that a repeat gives the same."""
    if not hasattr(estimator, "get_params"):
        return estimator
    unset = {
        name: seed
        for name, value in estimator.get_params(deep=True).items()
        if name.split("__")[-1] == "random_state" and value is None
    }
    return estimator.set_params(**unset) if unset else estimator


def default(task: Task, spec: ModelSpec, seed: int) -> Any:
    """Histogram gradient boosting behind an encoder of categories; unseen ones count as missing."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    texts = [f.name for f in spec.features if f.kind == "categorical"]
    options: dict[str, Any] = {
        "max_iter": 60,  # a backtest fits often; more rounds change little of what is compared
        "learning_rate": 0.15,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 20,
        "early_stopping": False,  # a share held out at random would hold out what comes later
        "random_state": seed,
    }
    if texts:
        options["categorical_features"] = list(range(len(texts)))
    if task == "regression":
        # The median is what the absolute error is smallest for, and MAE is what is watched.
        loss = "absolute_error" if spec.metric == "mae" else "squared_error"
        model: Any = HistGradientBoostingRegressor(loss=loss, **options)
    else:
        model = HistGradientBoostingClassifier(**options)
    if not texts:
        return model
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=float("nan"),
        max_categories=_LEVELS,
    )
    split = ColumnTransformer([("categories", encoder, texts)], remainder="passthrough")
    return cast("Any", make_pipeline(split, model))
