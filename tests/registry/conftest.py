from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from core.ledger import Ledger
from core.spec import ModelSpec, infer_spec
from registry.store import Store
from registry.versions import Registry, Version

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with its tables and nothing else: migrating takes seconds, copying none."""
    folder = tmp_path_factory.mktemp("mlflow")
    path = folder / "mlflow.db"
    _ = Store(f"sqlite:///{path}", folder / "artifacts", folder / "lock").client
    return path


@pytest.fixture
def home(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a real, empty MLflow store; also the working directory."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registry(home: Path) -> Registry:
    registry = Registry(f"sqlite:///{home}/mlflow.db", home / "mlartifacts", home / "cache")
    registry.prepare()
    return registry


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db").create()


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {"a": rng.normal(size=200), "n": rng.integers(0, 9, size=200), "b": rng.normal(size=200)}
    )


@pytest.fixture
def target(frame: pd.DataFrame) -> np.ndarray:
    return np.where(frame["a"] + frame["b"] > 0, "yes", "no")


@pytest.fixture
def spec(frame: pd.DataFrame) -> ModelSpec:
    return infer_spec("churn", frame, target="y", task="binary", classes=("no", "yes"))


@pytest.fixture
def add(
    registry: Registry, frame: pd.DataFrame, target: np.ndarray, spec: ModelSpec
) -> Callable[..., Version]:
    """Register a small fitted model; each call with other weights, so with another hash."""
    made = 0

    def adding(
        key: str = "", files: dict[str, bytes] | None = None, tags: dict[str, str] | None = None
    ) -> Version:
        nonlocal made
        made += 1
        estimator = LogisticRegression(C=1 / made).fit(frame, target)
        return registry.add(
            "churn",
            estimator,
            spec,
            files=files or {},
            tags=tags or {},
            metrics={"brier": 0.1},
            now=NOW,
            idempotency_key=key,
        )

    return adding
