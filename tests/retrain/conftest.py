"""A small world: a stream whose relation turns round, a champion that learned it before, a log."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from toyworld import TRAINED_UNTIL, World, settle

from core.frames import to_frame
from core.ledger import Ledger
from core.spec import ModelSpec, infer_spec
from monitor.baseline import build, dump
from monitor.log.log import InferenceLog
from monitor.log.records import Label, Prediction
from registry.promotion import promote
from registry.versions import Registry

START = datetime(2020, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=30)
LAG = timedelta(days=1)
HISTORY, SERVED = 600, 900


def stream(n: int, seed: int, turned: bool) -> pd.DataFrame:
    """Rows half an hour apart; `turned` reverses what `x` means for the answer."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "x": rng.normal(0, 1, n),
            "k": rng.integers(0, 5, n),
            "c": rng.choice(["red", "green"], n),
        }
    )
    slope = np.where(frame["c"] == "red", 2.0, 1.0) * (-1 if turned else 1)
    p = 1 / (1 + np.exp(-slope * frame["x"]))
    frame["answer"] = np.where(rng.random(n) < p, "yes", "no")
    return frame


def columns(frame: pd.DataFrame, spec: ModelSpec) -> dict[str, list[Any]]:
    return {name: frame[name].tolist() for name in spec.columns}


def pipeline() -> Any:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return make_pipeline(
        make_column_transformer((encoder, ["c"]), remainder="passthrough"),
        HistGradientBoostingClassifier(max_iter=20, random_state=0),
    )


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    frame = stream(50, 0, False).drop(columns="answer")
    return infer_spec("toy", frame, target="answer", task="binary", classes=("no", "yes"))


@pytest.fixture(scope="session")
def champion(spec: ModelSpec) -> Any:
    old = stream(HISTORY, 1, False)
    return pipeline().fit(to_frame(spec, columns(old, spec)), old["answer"])


def fill(log: InferenceLog, spec: ModelSpec, champion: Any, *, turned: bool) -> None:
    """History the champion learned from, then rows it answered; every label a day late."""
    from registry.loading import predict

    old, new = stream(HISTORY, 1, False), stream(SERVED, 2, turned)
    frame = pd.concat([old, new], ignore_index=True)
    p = predict(champion, spec, to_frame(spec, columns(frame, spec)))
    rows, labels = [], []
    for i, row in enumerate(frame.to_dict("records")):
        answer, time = row.pop("answer"), START + i * STEP
        rows.append(
            Prediction(
                model=spec.name,
                id=f"r{i}",
                version="1",
                time=time,
                inputs={str(name): value for name, value in row.items()},
                outputs={"probability": float(p["probability"].iloc[i])},
                role="history" if i < HISTORY else "champion",
            )
        )
        labels.append(Label(model=spec.name, id=f"r{i}", value=answer, time=time + LAG))
    log.append(rows, received=START)
    log.append_labels(labels, received=START)


@pytest.fixture(scope="session")
def logged(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, champion: Any
) -> Callable[[bool], Path]:
    """Makes (once each) a home folder whose log holds the stream, turned or not."""
    made: dict[bool, Path] = {}

    def make(turned: bool) -> Path:
        if turned not in made:
            home = tmp_path_factory.mktemp("logged")
            ledger = Ledger(f"sqlite:///{home / 'ledger.db'}").create()
            fill(InferenceLog(ledger, home / "segments"), spec, champion, turned=turned)
            ledger.close()
            made[turned] = home
        return made[turned]

    return make


@pytest.fixture
def open_log(logged: Callable[[bool], Path], tmp_path: Path) -> Any:
    """A fresh copy of such a home's log."""
    opened = []

    def make(turned: bool = True) -> InferenceLog:
        shutil.copytree(logged(turned), tmp_path / "home")
        ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}")
        opened.append(ledger)
        return InferenceLog(ledger, tmp_path / "home" / "segments")

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, champion: Any) -> Path:
    """A home folder with an MLflow store in which version 1 is champion."""
    home = tmp_path_factory.mktemp("template")
    with warnings.catch_warnings():  # MLflow warns of its own type hints when it is imported
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        import mlflow.sklearn  # noqa: F401
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}").create()
    registry = Registry(f"sqlite:///{home / 'mlflow.db'}", home / "mlartifacts", home / "cache")
    registry.prepare()
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0], "k": [1, 2, 3], "c": ["red", "green", "red"]})
    baseline = build(
        spec,
        frame,
        None,
        None,
        None,
        created=START,
        how="holdout",
        trained_until=TRAINED_UNTIL,
    )
    version = registry.add(
        "toy",
        champion,
        spec,
        files={"spec.json": msgspec.json.encode(spec), "baseline.json": dump(baseline)},
        tags={},
        metrics={},
        now=START,
    )
    promote(
        registry,
        ledger,
        "toy",
        version.version,
        expected=None,
        kind="first",
        by="tester",
        reason="first",
        now=START,
    )
    ledger.close()
    return home


@pytest.fixture
def world(
    template: Path, logged: Callable[[bool], Path], tmp_path: Path
) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(turned: bool = True, **settings: Any) -> World:
        made.append(settle(tmp_path / "home", template, logged(turned), **settings))
        return made[-1]

    yield make
    for world in made:
        world.ledger.close()


@pytest.fixture(scope="session")
def gated(
    template: Path, logged: Callable[[bool], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A home whose run waits for approval of version 2, and that run's id."""
    here = settle(tmp_path_factory.mktemp("gated") / "home", template, logged(True), mode="approve")
    run_id = here.start()
    waiting = here.advance(run_id)
    assert (waiting.state, waiting.step, waiting.candidate) == ("waiting", "approve", "2")
    assert here.told[-1][0] == "waiting"
    here.ledger.close()
    return here.home, run_id


@pytest.fixture
def waiting(gated: tuple[Path, str], tmp_path: Path) -> Iterator[Callable[..., World]]:
    """A copy of it, with settings of the test's own."""
    made: list[World] = []

    def make(**settings: Any) -> World:
        shutil.copytree(gated[0], tmp_path / "home")
        world = World(tmp_path / "home", f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}", **settings)
        made.append(world)
        return world

    yield make
    for world in made:
        world.ledger.close()
