"""One installation with a small model of its own: real MLflow store, real ledger, no servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from shop import HOUR, NOW, SETTINGS, customers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core.settings import load
from registry.versions import Version
from shelflife.register import register
from shelflife.service import Service


@pytest.fixture
def home(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a settings file and an empty MLflow store; the working directory."""
    (tmp_path / "home").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "home" / "mlflow.db")
    (tmp_path / "shelflife.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    service = Service(load(home / "shelflife.yaml"), folder=home)
    yield service
    service.close()


@pytest.fixture
def service_on_postgres(home: Path, postgres_database: str) -> Iterator[Service]:
    """The same installation with its ledger on PostgreSQL."""
    file = home / "shelflife.yaml"
    file.write_text(f"ledger: {postgres_database}\n{file.read_text()}")
    service = Service(load(file), folder=home)
    yield service
    service.close()


@pytest.fixture
def frame() -> pd.DataFrame:
    return customers(600, seed=1, start=NOW - 600 * HOUR / 2)


@pytest.fixture
def model(frame: pd.DataFrame) -> object:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(
        frame[["age", "spent"]], frame["bought"]
    )


@pytest.fixture
def champion(service: Service, model: object, frame: pd.DataFrame) -> Version:
    """The model registered as `shop`, version 1, champion."""
    return register(
        "shop",
        model,
        reference=frame,
        target="bought",
        time="at",
        id="id",
        service=service,
        by="test",
        now=NOW,
    )
