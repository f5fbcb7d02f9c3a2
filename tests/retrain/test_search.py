"""The search: in order of time, every trial counted, never worse than the pipeline's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from core.errors import TrainerFailed
from core.settings import SearchSettings
from core.spec import Feature, ModelSpec
from retrain.fitting import fit_window
from retrain.search import folds_score, search

SPEC = ModelSpec(
    name="m",
    task="regression",
    target="y",
    features=(Feature(name="x", kind="numeric"),),
    metric="mae",
)


def distance(parameters: Mapping[str, Any]) -> float:
    """Best at alpha = 3; the pipeline's own is worth 2.5."""
    return abs(parameters["alpha"] - 3) if parameters else 2.5


@pytest.mark.parametrize("engine", ["sklearn", "optuna"])
def test_the_best_of_so_many_trials(engine: str) -> None:
    if engine == "optuna":
        pytest.importorskip("optuna")
    said: list[str] = []
    settings = SearchSettings(
        space={"alpha": {"low": 0.0, "high": 10.0}},
        engine=engine,
        trials=25,  # type: ignore[arg-type]
    )
    found = search(distance, settings, say=said.append)
    assert found.trials == 25 == len(said)
    assert found.before == 2.5
    assert found.loss is not None
    assert found.loss < 1
    assert abs(found.best["alpha"] - 3) == pytest.approx(found.loss)
    assert search(distance, settings).best == found.best  # seeded


def test_a_small_space_is_exhausted_and_nothing_better_changes_nothing() -> None:
    settings = SearchSettings(space={"alpha": [9, 10]}, trials=50)
    found = search(distance, settings)
    assert (found.trials, found.best, found.loss) == (3, {}, 2.5)


def test_trials_that_raise_or_give_nan_lose() -> None:
    def score(parameters: Mapping[str, Any]) -> float:
        if parameters.get("alpha") == 1:
            raise ValueError("alpha is not for me")
        return math.nan if parameters.get("alpha") == 2 else distance(parameters)

    said: list[str] = []
    found = search(score, SearchSettings(space={"alpha": [1, 2, 3]}), say=said.append)
    assert found.best == {"alpha": 3}
    assert any("alpha is not for me" in line for line in said)


def test_no_trial_is_begun_after_the_timeout() -> None:
    found = search(distance, SearchSettings(space={"alpha": [1, 3]}, timeout="0s"))
    assert (found.trials, found.best) == (1, {})
    assert "timeout of 0s was over" in found.stopped


@pytest.mark.parametrize("values", [[], {"low": 2, "high": 1}, {"low": 1}, 3, {"low": 1, "hi": 2}])
def test_a_space_that_cannot_be_read_is_told(values: Any) -> None:
    with pytest.raises(TrainerFailed, match=r"retrain.search.space.alpha"):
        search(distance, SearchSettings(space={"alpha": values}))


def test_whole_and_logarithmic_ranges() -> None:
    drawn: list[Mapping[str, Any]] = []

    def score(parameters: Mapping[str, Any]) -> float:
        drawn.append(parameters)
        return 1.0

    space = {
        "depth": {"low": 1, "high": 3, "int": True},
        "leaves": {"low": 2, "high": 64, "int": True, "log": True},
        "rate": {"low": 0.01, "high": 1.0, "log": True},
    }
    search(score, SearchSettings(space=space, trials=60))
    assert {each["depth"] for each in drawn[1:]} == {1, 2, 3}
    assert all(isinstance(each["leaves"], int) for each in drawn[1:])
    assert {min(each["leaves"] for each in drawn[1:])} <= {2, 3}
    assert 0.3 < np.mean([each["rate"] < 0.1 for each in drawn[1:]]) < 0.7


def test_folds_go_forward_in_time() -> None:
    frame = pd.DataFrame({"x": np.arange(40.0)})
    y = np.arange(40.0)
    seen: list[tuple[float, float]] = []

    class Spy(Ridge):
        def fit(self, x: Any, y: Any) -> Any:
            seen.append((x["x"].max(), np.nan))
            return super().fit(x, y)

        def predict(self, x: Any) -> Any:
            seen[-1] = (seen[-1][0], x["x"].min())
            return super().predict(x)

    def fit(inputs: pd.DataFrame, labels: np.ndarray, parameters: Mapping[str, Any]) -> Any:
        return fit_window(None, make_pipeline(Spy()), inputs, labels, parameters=parameters)

    score = folds_score(SPEC, frame, y, y, fit, folds=3, metric=None)
    assert score({"spy__alpha": 1e-9}) == pytest.approx(0, abs=1e-6)
    assert seen == [(9, 10), (19, 20), (29, 30)]
    assert score({"spy__alpha": 1e9}) > 5
