"""The fake registry answers as the real one does, on everything the run asks of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeRegistry
from sklearn.linear_model import LogisticRegression

from core.errors import NotFound
from core.ledger import Ledger
from core.spec import infer_spec
from registry.artifacts import sha256_model
from registry.promotion import observe, promote, rollback, verify, withdraw
from registry.versions import Registry

NOW = datetime(2026, 3, 1, tzinfo=UTC)
Add = Callable[[str], Any]


@pytest.fixture(params=["fake", "real"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Add]:
    """A registry, and how to add a version to it under a key."""
    if request.param == "fake":
        fake = FakeRegistry(tmp_path / "fake")
        return fake, lambda key: fake.add("churn", f"model {key}".encode(), idempotency_key=key)
    shutil.copy(request.getfixturevalue("empty_mlflow"), tmp_path / "mlflow.db")
    real = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", tmp_path / "cache")
    real.prepare()
    frame = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]})
    spec = infer_spec("churn", frame, target="y", task="binary", classes=(0, 1))

    def add(key: str) -> Any:
        estimator = LogisticRegression(C=1 + len(key)).fit(frame, np.array([0, 1, 0, 1]))
        return real.add(
            "churn", estimator, spec, files={}, tags={}, metrics={}, now=NOW, idempotency_key=key
        )

    return real, add


def test_both_registries_behave_alike(store: tuple[Any, Add], tmp_path: Path) -> None:
    registry, add = store
    assert registry.by_alias("churn", "champion") is None
    assert registry.versions("churn") == []
    first, second = add("run-1"), add("run-22")
    assert (first.version, second.version) == ("1", "2")
    assert add("run-1") == first
    assert len(first.sha256) == 64
    assert first.sha256 != second.sha256
    assert registry.by_key("churn", "run-22") == registry.get("churn", "2")
    assert registry.by_key("churn", "run-3") is None
    with pytest.raises(NotFound):
        registry.get("churn", "9")
    with pytest.raises(NotFound):
        registry.set_alias("churn", "champion", "9")
    assert [version.version for version in registry.versions("churn")] == ["2", "1"]
    registry.set_alias("churn", "champion", "1")
    registry.set_alias("churn", "challenger", "1")
    assert registry.get("churn", "1").aliases == ("challenger", "champion")
    assert registry.by_alias("churn", "champion") == registry.get("churn", "1")
    registry.drop_alias("churn", "challenger")
    registry.drop_alias("churn", "nothing")
    assert registry.get("churn", "1").aliases == ("champion",)
    tagged = registry.tag(first, gate="passed")
    assert tagged.tags["shelflife.gate"] == "passed"
    assert "shelflife.gate" not in registry.tag(tagged, gate=None).tags
    assert registry.tag(second, artifact_sha256=None).sha256 == ""
    registry.tag(second, artifact_sha256=second.sha256)
    folder = registry.download("models:/churn/2", tmp_path / "here")
    assert sha256_model(folder) == second.sha256


def test_promotions_behave_alike_on_both(store: tuple[Any, Add], tmp_path: Path) -> None:
    registry, add = store
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    versions = [add(f"run-{'x' * i}") for i in range(3)]
    verify(registry, versions[1], versions[1].sha256)

    def move(version: str, expected: str | None, run_id: str) -> None:
        promote(
            registry, ledger, "churn", version, expected=expected, kind="gate", by="run",
            reason="", now=NOW, run_id=run_id, artifact=versions[int(version) - 1].sha256,
        )  # fmt: skip

    move("1", None, "r1")
    registry.set_alias("churn", "challenger", "2")
    withdraw(registry, ledger, "churn", "2", "r2")
    assert registry.by_alias("churn", "challenger") is None
    move("2", "1", "r2")
    found = registry.get("churn", "2")
    assert (found.aliases, found.tags["shelflife.promoted_by"]) == (("champion",), "run")
    assert registry.get("churn", "1").aliases == ("previous",)
    back = rollback(registry, ledger, "churn", by="ann", reason="", now=NOW)
    assert (back.version, back.aliases) == ("1", ("champion",))
    seen = observe(registry, ledger, "churn", now=NOW)
    assert seen is not None
    assert seen.version == "1"
    ledger.close()
