"""XGBoost, LightGBM and CatBoost: fitted, saved, loaded, refitted, without trusting a pickle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from core.errors import UntrustedArtifact
from core.spec import infer_spec
from registry.loading import describe, load_estimator, predict, save_estimator
from retrain.dataset import Slice
from retrain.job import Job, read_frame, write_slice
from retrain.trainer import fit
from retrain.windows import Window

ROWS = 240
START = datetime(2024, 1, 1, tzinfo=UTC)


def boosters(kind: str) -> dict[str, Callable[[], Any]]:
    """Unfitted estimators of every library, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        catboost = pytest.importorskip("catboost")
        lightgbm = pytest.importorskip("lightgbm")
        xgboost = pytest.importorskip("xgboost")
    classifier = kind != "regression"
    quiet = {"verbose": 0, "allow_writing_files": False, "thread_count": 1}
    return {
        "xgboost": lambda: (xgboost.XGBClassifier if classifier else xgboost.XGBRegressor)(
            n_estimators=5, n_jobs=1
        ),
        "lightgbm": lambda: (lightgbm.LGBMClassifier if classifier else lightgbm.LGBMRegressor)(
            n_estimators=5, n_jobs=1, verbose=-1
        ),
        "catboost": lambda: (
            catboost.CatBoostClassifier if classifier else catboost.CatBoostRegressor
        )(iterations=5, **quiet),
        "sklearn": lambda: (
            HistGradientBoostingClassifier if classifier else HistGradientBoostingRegressor
        )(max_iter=5),
    }


def rows(kind: str) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=ROWS),
            "k": rng.integers(0, 9, ROWS),
            "c": rng.choice(["red", "green"], ROWS),
        }
    )
    score = frame["x"] + (frame["c"] == "red") + rng.normal(scale=0.3, size=ROWS)
    if kind == "regression":
        return frame, score.to_numpy()
    edges = [0.5] if kind == "binary" else [0.0, 1.0]
    return frame, np.digitize(score, edges)


def pipeline(estimator: Any) -> Any:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    numbers = make_column_transformer((encoder, ["c"]), remainder="passthrough")
    return make_pipeline(numbers.set_output(transform="pandas"), estimator)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost", "sklearn"])
def test_saved_and_loaded_it_answers_the_same(library: str, kind: str, tmp_path: Path) -> None:
    frame, y = rows(kind)
    model = pipeline(boosters(kind)[library]()).fit(frame, y)
    task, classes = describe(model)
    spec = infer_spec("b", frame, target="y", task=task, classes=classes)
    assert task == kind
    path = save_estimator(model, tmp_path / "model.skops")
    assert path.suffix == ".skops"  # no pickle
    again = load_estimator(path)
    assert predict(again, spec, frame).equals(predict(model, spec, frame))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_the_trainer_refits_it(library: str, tmp_path: Path) -> None:
    frame, y = rows("binary")
    champion = pipeline(boosters("binary")[library]()).fit(frame[:100], y[:100])
    spec = infer_spec("b", frame, target="y", task="binary", classes=(0, 1))
    times = tuple(START + timedelta(hours=i) for i in range(ROWS))
    folder = tmp_path / "job"
    train = Slice(inputs=frame[:200], y=y[:200].astype(float), times=times[:200])
    holdout = Slice(inputs=frame[200:], y=y[200:].astype(float), times=times[200:])
    write_slice(folder / "train.parquet", train, labels=True)
    write_slice(folder / "holdout.parquet", holdout, labels=False)
    save_estimator(champion, tmp_path / "champion" / "model.skops")
    windows = (
        Window(name="recent", rows=100, since=times[100]),
        Window(name="all", rows=200, since=times[0]),
        Window(name="decay", rows=200, since=times[0], half_life=50),
        Window(name="blend", rows=200, since=times[0], parts=("recent", "all")),
    )
    job = Job(
        spec=spec,
        champion=str(tmp_path / "champion"),
        trust_pickle=False,
        trainer="",
        user_folder="",
        dataset="d",
        threads=1,
        memory_bytes=int(16e9),
        time_limit_s=300,
        windows=windows,
        judged_rows=40,
    )
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    seen: list[float] = []
    result = fit(folder, time_limit="300s", progress=lambda found: seen.append(found.percent))
    assert result.reproduces
    assert result.choice is not None
    assert {score.name for score in result.choice.scores} == {"recent", "all", "decay", "blend"}
    assert result.fits == 3 + (2 if result.choice.window.parts else 1)
    assert seen[-1] == 100
    assert result.latency_ms is not None
    candidate = load_estimator(folder / "model")
    written = read_frame(folder / "predictions.parquet")["candidate:probability"]
    assert predict(candidate, spec, frame[200:])["probability"].tolist() == written.tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_parameter_that_is_code_is_refused(tmp_path: Path) -> None:
    frame, y = rows("regression")
    model = boosters("regression")["lightgbm"]().fit(frame[["x"]], y)
    model.set_params(objective=run_anything)
    with pytest.raises(UntrustedArtifact, match="run_anything"):
        save_estimator(model, tmp_path / "model.skops")


def run_anything(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return p - y, np.ones_like(y)
