"""Adopting a model, as somebody would who has one."""

from __future__ import annotations

from pathlib import Path

import joblib
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from shop import NOW
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression

from core.errors import InputError, UntrustedArtifact
from registry.versions import Version
from shelflife.register import register
from shelflife.service import Service


def test_the_first_version_is_champion_with_baseline_and_history(
    service: Service, champion: Version, frame: pd.DataFrame
) -> None:
    assert champion.version == "1"
    assert champion.aliases == ("champion",)
    baseline, reference = service.baseline(champion)
    assert [f.name for f in baseline.spec.features] == ["age", "spent"]
    assert baseline.expected is not None
    assert baseline.expected.how == "out-of-fold"
    assert 0.05 < baseline.expected.value < 0.2  # a good model of this relation; 0.25 is none
    assert len(reference) == len(frame)
    history = service.log.read("shop", roles=("history",), labelled=True)
    assert history.meta["id"].tolist() == frame["id"].tolist()
    assert history.meta["label"].tolist() == frame["bought"].tolist()


def test_registering_again_makes_a_challenger_and_no_second_history(
    service: Service, champion: Version, model: object, frame: pd.DataFrame
) -> None:
    again = register(
        "shop", model, reference=frame, target="bought", time="at", id="id", service=service
    )
    assert again.version == "2"
    assert again.aliases == ("challenger",)
    assert service.log.counts("shop").predictions == len(frame)


def test_a_regression_of_ones_own_from_a_file(service: Service, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=200), "z": rng.integers(0, 5, 200)})
    frame["price"] = 3 * frame["x"] + frame["z"] + rng.normal(size=200)
    joblib.dump(LinearRegression().fit(frame[["x", "z"]], frame["price"]), tmp_path / "m.joblib")
    with pytest.raises(UntrustedArtifact, match="trust"):
        register("price", tmp_path / "m.joblib", reference=frame, target="price", service=service)
    version = register(
        "price",
        tmp_path / "m.joblib",
        reference=frame,
        target="price",
        service=service,
        trust_pickle=True,
    )
    baseline, _ = service.baseline(version)
    assert baseline.spec.task == "regression"
    assert baseline.spec.metric == "mae"
    assert baseline.expected is not None
    assert 0.6 < baseline.expected.value < 1.0  # E|N(0,1)| = 0.80


def test_equal_rows_are_all_kept_and_a_repeat_adds_none(service: Service) -> None:
    frame = pd.DataFrame({"x": [0.0, 1.0] * 100})
    frame["y"] = frame["x"] * 2
    estimator = LinearRegression().fit(frame[["x"]], frame["y"])
    for _ in range(2):
        register("twins", estimator, reference=frame, target="y", service=service)
    assert service.log.counts("twins").predictions == len(frame)


def test_held_out_rows_are_scored_directly(service: Service) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=300), "kind": rng.choice(["a", "b", "c"], 300)})
    forest = RandomForestClassifier(n_estimators=10, random_state=0)
    forest.fit(frame[["x"]], frame["kind"])
    version = register(
        "kinds", forest, reference=frame, target="kind", held_out=True, service=service
    )
    baseline, _ = service.baseline(version)
    assert baseline.spec.classes == ("a", "b", "c")
    assert baseline.expected is not None
    assert baseline.expected.how == "reference"


def test_an_mlflow_model_is_adopted(
    service: Service, model: object, frame: pd.DataFrame, home: Path
) -> None:
    mlflow.set_tracking_uri(service.settings.tracking_uri)
    service.registry.prepare()
    logged = mlflow.sklearn.log_model(
        model, name="theirs", registered_model_name="theirs", pip_requirements=["scikit-learn"]
    )
    assert logged.model_uri
    version = register(
        "theirs",
        "models:/theirs/1",
        reference=frame,
        target="bought",
        time="at",
        id="id",
        service=service,
        now=NOW,
    )
    assert version.version == "1"
    assert version.aliases == ("champion",)
    assert service.baseline(version)[0].expected is not None
    assert service.registry.fetch(version).is_dir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "label"}, ["target", "'label'", "one of the columns"]),
        ({"time": "when"}, ["time", "'when'"]),
        ({"name": "a b"}, ["a b", "letters"]),
        ({"model": "nowhere.skops"}, ["nowhere.skops", "path"]),
        ({"model": object()}, ["predict"]),
        ({"metric": "mae"}, ["mae", "brier"]),
    ],
)
def test_a_mistake_is_named(
    service: Service, model: object, frame: pd.DataFrame, change: dict, words: list[str]
) -> None:
    given = {"name": "shop", "model": model, "target": "bought", "time": "at", "id": "id"} | change
    with pytest.raises(InputError) as caught:
        register(given.pop("name"), given.pop("model"), reference=frame, service=service, **given)
    for word in words:
        assert word in str(caught.value)
    assert service.registry.models() == []


def test_bad_reference_rows_are_named(service: Service, model: object, frame: pd.DataFrame) -> None:
    def attempt(rows: pd.DataFrame) -> str:
        with pytest.raises(InputError) as caught:
            register("shop", model, reference=rows, target="bought", id="id", service=service)
        return str(caught.value)

    assert "0 rows" in attempt(frame.head(0))
    assert "missing labels" in attempt(frame.assign(bought=frame["bought"].where(frame.index > 3)))
    assert "two classes" in attempt(frame.assign(bought=1))
    assert "spent" in attempt(frame.drop(columns="spent"))
    assert "occur once" in attempt(frame.assign(id="same"))
    assert "other columns or types" in attempt(frame.assign(age="old"))
