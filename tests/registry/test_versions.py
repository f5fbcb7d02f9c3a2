from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from core.errors import InputError, NotFound, RegistryError, UntrustedArtifact
from core.spec import ModelSpec
from registry.loading import load_estimator, predict
from registry.store import without_password
from registry.versions import Registry, Version

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Add = Callable[..., Version]


def test_a_version_is_whole_when_it_appears(
    registry: Registry, frame: pd.DataFrame, target: np.ndarray, spec: ModelSpec
) -> None:
    estimator = LogisticRegression().fit(frame, target)
    version = registry.add(
        "churn",
        estimator,
        spec,
        files={"baseline.json": b'{"rows": 200}', "gate.json": b"{}"},
        tags={"shelflife.trigger": "decay"},
        metrics={"brier": 0.125},
        now=NOW,
    )
    assert (version.model, version.version, version.status) == ("churn", "1", "READY")
    assert version.created == NOW
    assert version.tags["shelflife.trigger"] == "decay"
    assert len(version.sha256) == 64
    assert registry.file(version, "baseline.json") == b'{"rows": 200}'
    assert msgspec.json.decode(registry.file(version, "spec.json"), type=ModelSpec) == spec
    assert registry.models() == ["churn"]
    run = registry.client.get_run(version.run_id)
    assert run.data.metrics == {"brier": 0.125}
    assert run.info.status == "FINISHED"

    loaded = load_estimator(registry.fetch(version))
    expected = estimator.predict_proba(frame)[:, 1]
    np.testing.assert_array_equal(predict(loaded, spec, frame)["probability"], expected)


def test_mlflow_itself_can_load_what_was_added(registry: Registry, add: Add, home: Path) -> None:
    folder = registry.download(f"models:/churn/{add().version}", home / "copy")
    described = (folder / "MLmodel").read_text()
    assert "loader_module: mlflow.sklearn" in described
    signature = yaml.safe_load(described)["signature"]
    kinds = {column["name"]: column["type"] for column in json.loads(signature["inputs"])}
    assert kinds == {"a": "double", "n": "long", "b": "double"}
    assert "scikit-learn==" in (folder / "requirements.txt").read_text()


def test_the_same_key_never_makes_a_second_version(registry: Registry, add: Add) -> None:
    first = add(key="run-1")
    assert add(key="run-1") == first
    assert add(key="run-2").version == "2"
    assert [version.version for version in registry.versions("churn")] == ["2", "1"]


def test_an_error_after_mlflow_committed_makes_no_second_version(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = registry.client.create_model_version

    def commit_then_fail(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        raise OSError("500 after commit")

    monkeypatch.setattr(registry.client, "create_model_version", commit_then_fail)
    with pytest.raises(RegistryError, match="500 after commit"):
        add(key="run-1")
    monkeypatch.undo()
    assert add(key="run-1").version == "1"
    assert len(registry.versions("churn")) == 1


def test_a_run_left_without_a_version_is_used_again(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*args: Any, **kwargs: Any) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(registry.client, "create_model_version", down)
    with pytest.raises(RegistryError, match="connection refused"):
        add(key="run-1")
    assert registry.versions("churn") == []
    monkeypatch.undo()
    version = add(key="run-1")
    experiment = [registry.store.experiment]
    assert [run.info.run_id for run in registry.client.search_runs(experiment)] == [version.run_id]
    assert len(registry.client.search_logged_models(experiment)) == 1
    load_estimator(registry.fetch(version))


def test_an_untrusted_estimator_leaves_nothing_behind(
    registry: Registry, frame: pd.DataFrame, target: np.ndarray, spec: ModelSpec
) -> None:
    own = make_pipeline(FunctionTransformer(np.asarray), LogisticRegression()).fit(frame, target)
    extra: dict[str, Any] = {"files": {}, "tags": {}, "metrics": {}, "now": NOW}
    with pytest.raises(UntrustedArtifact, match=r"numpy\.asarray.*trust_pickle"):
        registry.add("churn", own, spec, **extra)
    assert registry.versions("churn") == []
    assert not registry.client.search_runs([registry.store.experiment])

    version = registry.add("churn", own, spec, **extra, trust_pickle=True)
    folder = registry.fetch(version)
    with pytest.raises(UntrustedArtifact, match="pickle"):
        load_estimator(folder)
    outputs = predict(load_estimator(folder, trust_pickle=True), spec, frame)
    np.testing.assert_array_equal(outputs["probability"], own.predict_proba(frame)[:, 1])


def test_aliases_are_seen_and_reserved_names_refused(registry: Registry, add: Add) -> None:
    first, second = add(), add()
    assert registry.by_alias("churn", "champion") is None
    assert registry.by_alias("nobody", "champion") is None
    registry.set_alias("churn", "champion", first.version)
    registry.set_alias("churn", "challenger", second.version)
    registry.set_alias("churn", "canary", second.version)
    champion = registry.by_alias("churn", "champion")
    assert champion is not None
    assert champion.version == "1"
    assert [v.aliases for v in registry.versions("churn")] == [
        ("canary", "challenger"),
        ("champion",),
    ]
    registry.drop_alias("churn", "canary")
    registry.drop_alias("churn", "canary")
    assert registry.get("churn", "2").aliases == ("challenger",)
    for name in ("latest", "v3", "V3", "a b", ""):
        with pytest.raises(InputError, match="alias"):
            registry.set_alias("churn", name, "1")
    with pytest.raises(NotFound, match="9"):
        registry.set_alias("churn", "champion", "9")


def test_listing_pages_through_everything(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        add()
    for name in ("a", "b", "c"):
        registry.client.create_registered_model(name, tags={"shelflife.managed": "true"})
    registry.client.create_registered_model("foreign")
    for name in ("search_model_versions", "search_registered_models"):
        search = getattr(registry.client, name)

        def two(*, _search: Any = search, **kwargs: Any) -> Any:
            return _search(**{**kwargs, "max_results": 2})

        monkeypatch.setattr(registry.client, name, two)
    assert [version.version for version in registry.versions("churn")] == ["3", "2", "1"]
    assert registry.models() == ["a", "b", "c", "churn"]


def test_absent_things_are_not_found(registry: Registry, add: Add) -> None:
    version = add()
    assert registry.versions("nobody") == []
    for number in ("7", "../1", ""):
        with pytest.raises(NotFound, match="version of churn"):
            registry.get("churn", number)
    with pytest.raises(NotFound, match="gate"):
        registry.file(version, "gate.json")
    with pytest.raises(InputError, match="plain file name"):
        registry.file(version, "../model/MLmodel")
    with pytest.raises(InputError, match="model"):
        registry.versions("a' or name like '%")
    with pytest.raises(InputError, match="idempotency_key"):
        add(key="x' or '1'='1")


def test_tags_and_files_are_attached_later(registry: Registry, add: Add) -> None:
    version = registry.tag(add(), gate="passed", **{"team": "x", "other.name": "y"})
    assert version.tags["shelflife.gate"] == "passed"
    assert version.tags["other.name"] == "y"
    assert "shelflife.gate" not in registry.tag(version, gate=None).tags
    registry.attach(version, "gate.json", b"[1]")
    assert registry.file(version, "gate.json") == b"[1]"
    registry.attach(version, "gate.json", b"[2]")
    assert registry.file(version, "gate.json") == b"[2]"
    assert registry.url(version) == "/#/models/churn/versions/1"


def test_a_changed_baseline_is_refused(registry: Registry, add: Add) -> None:
    version = add(files={"baseline.json": b"{}"})
    registry.attach(version, "baseline.json", b'{"rows": 1}')
    version = registry.get("churn", version.version)
    assert registry.file(version, "baseline.json") == b'{"rows": 1}'
    registry.client.log_text(version.run_id, '{"rows": 9}', "shelflife/baseline.json")
    with pytest.raises(RegistryError, match="recorded was"):
        registry.file(version, "baseline.json")


def test_no_global_uri_is_used(registry: Registry, add: Add, home: Path) -> None:
    registry.fetch(add())
    registry.adopt("twin", "models:/churn/1", _spec(registry), **_extra())
    # MLflow's own default would be a database or a folder in the working directory.
    assert {path.name for path in home.iterdir()} <= {"mlflow.db", "mlartifacts", "cache"}


def test_two_processes_may_prepare_a_fresh_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from registry.versions import Registry\n"
        "home = Path(sys.argv[1])\n"
        "registry = Registry(f'sqlite:///{home}/new/mlflow.db', home / 'art', home / 'cache')\n"
        "registry.prepare(); print(registry.store.experiment)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    started = [
        subprocess.Popen(
            command,
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert [talk for _, talk in answers] == ["", ""]  # alembic's noise is kept away


def test_an_unreachable_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for uri in (f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}"):
        registry = Registry(uri, tmp_path / "artifacts", tmp_path / "cache")
        with pytest.raises(RegistryError, match="MLflow could not open sqlite"):
            registry.prepare()


def test_messages_show_no_password() -> None:
    shown = without_password("postgresql://me:hunter2@db.example/x")
    assert shown == "postgresql://me:***@db.example/x"
    assert without_password("https://:t0ken@host/a?b=c:d@e") == "https://:***@host/a?b=c:d@e"
    assert without_password("sqlite:////a/b:c@d") == "sqlite:////a/b:c@d"


def test_threads_share_a_registry(registry: Registry, add: Add) -> None:
    version = add()
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.fetch(version))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def _spec(registry: Registry) -> ModelSpec:
    return msgspec.json.decode(
        registry.file(registry.get("churn", "1"), "spec.json"), type=ModelSpec
    )


def _extra() -> dict[str, Any]:
    return {"files": {}, "tags": {}, "metrics": {}, "now": NOW}
