from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from core.errors import NotFound, RegistryError, UntrustedArtifact
from core.spec import ModelSpec
from registry import artifacts
from registry.loading import load_estimator, predict, pyfunc
from registry.versions import Registry, Version

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Add = Callable[..., Version]
EXTRA: dict[str, Any] = {"files": {"baseline.json": b"{}"}, "tags": {}, "metrics": {}, "now": NOW}


@pytest.fixture
def forget(registry: Registry) -> Callable[[], None]:
    """Empty the cache, as on another machine."""
    return lambda: shutil.rmtree(registry.cache / "models")


def _stored(registry: Registry, version: Version) -> Path:
    uri = registry.client.get_model_version_download_uri(version.model, version.version)
    return Path(uri.removeprefix("file://"))


def test_fetching_downloads_once_and_verifies(
    registry: Registry, add: Add, forget: Callable[[], None]
) -> None:
    version = add()
    forget()
    folder = registry.fetch(version)
    assert folder == registry.cache / "models" / version.sha256
    assert artifacts.sha256_model(folder) == version.sha256
    shutil.rmtree(_stored(registry, version))  # from now on only the cache has it
    assert registry.fetch(version) == folder
    assert [path.name for path in folder.parent.iterdir()] == [version.sha256]


@pytest.mark.parametrize("name", ["model.skops", "MLmodel", "requirements.txt"])
def test_a_changed_byte_is_refused(
    name: str, registry: Registry, add: Add, forget: Callable[[], None]
) -> None:
    version = add()
    forget()
    path = _stored(registry, version) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UntrustedArtifact, match="changed since"):
        registry.fetch(version)
    assert list((registry.cache / "models").iterdir()) == []


def test_an_added_or_missing_file_is_refused(
    registry: Registry, add: Add, forget: Callable[[], None]
) -> None:
    version = add()
    forget()
    stored = _stored(registry, version)
    (stored / "sitecustomize.py").write_text("")
    with pytest.raises(UntrustedArtifact, match="changed since"):
        registry.fetch(version)
    (stored / "sitecustomize.py").unlink()
    (stored / "MLmodel").rename(stored / "MLmodel2")
    with pytest.raises(UntrustedArtifact, match="changed since"):
        registry.fetch(version)
    (stored / "MLmodel2").rename(stored / "MLmodel")
    registry.fetch(version)


def test_a_damaged_cache_is_fetched_again(registry: Registry, add: Add) -> None:
    version = add()
    folder = registry.fetch(version)
    (folder / "model.skops").write_bytes(b"")
    load_estimator(registry.fetch(version))


def test_a_missing_artifact_is_an_error_that_leaves_nothing(
    registry: Registry, add: Add, forget: Callable[[], None]
) -> None:
    version = add()
    forget()
    shutil.rmtree(_stored(registry, version))
    with pytest.raises((RegistryError, UntrustedArtifact)):
        registry.fetch(version)
    assert list((registry.cache / "models").iterdir()) == []


@pytest.mark.parametrize("sha256", ["../../etc", "/etc", "0" * 63, "g" * 64, "A" * 64, ".."])
def test_a_recorded_hash_is_never_a_path(sha256: str, registry: Registry, add: Add) -> None:
    version = registry.tag(add(), artifact_sha256=sha256)
    with pytest.raises(UntrustedArtifact, match="64 hexadecimal"):
        registry.fetch(version)


def test_without_a_recorded_hash_nothing_is_fetched(registry: Registry, add: Add) -> None:
    version = registry.tag(add(), artifact_sha256=None)
    with pytest.raises(UntrustedArtifact, match="nobody vouched"):
        registry.fetch(version)


def test_a_symlink_in_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UntrustedArtifact, match="symlink"):
        artifacts.sha256_model(tmp_path)


def test_what_mlflow_adds_on_download_is_no_part_of_the_hash(registry: Registry, add: Add) -> None:
    folder = registry.fetch(add())
    before = artifacts.sha256_model(folder)
    (folder / "registered_model_meta").write_text("model_name: churn")
    assert artifacts.sha256_model(folder) == before
    (folder / "deeper").mkdir()
    (folder / "deeper" / "registered_model_meta").write_text("")
    assert artifacts.sha256_model(folder) != before


def test_a_version_mlflow_already_has_becomes_managed(
    registry: Registry, add: Add, frame: pd.DataFrame, spec: ModelSpec
) -> None:
    source = _stored(registry, add())
    registry.client.create_registered_model("theirs")
    registry.client.create_model_version("theirs", source.as_uri())
    assert registry.models() == ["churn"]
    found = registry.get("theirs", "1")
    with pytest.raises(UntrustedArtifact):
        registry.fetch(found)

    for _ in range(2):  # doing it again changes nothing
        version = registry.adopt("theirs", "models:/theirs/1", spec, **EXTRA)
        assert (version.model, version.version) == ("theirs", "1")
    assert registry.models() == ["churn", "theirs"]
    assert len(registry.versions("theirs")) == 1
    assert registry.file(version, "baseline.json") == b"{}"
    assert msgspec.json.decode(registry.file(version, "spec.json"), type=ModelSpec) == spec
    assert version.created == found.created
    predict(load_estimator(registry.fetch(version)), spec, frame)

    (source / "requirements.txt").write_text("evil")
    with pytest.raises(UntrustedArtifact, match="as a new version"):
        registry.adopt("theirs", "models:/theirs/1", spec, **EXTRA)


@pytest.mark.parametrize("form", ["version", "alias", "logged", "run", "folder"])
def test_any_mlflow_uri_becomes_a_new_version(
    form: str, registry: Registry, add: Add, spec: ModelSpec, home: Path, frame: pd.DataFrame
) -> None:
    first = add()
    registry.set_alias("churn", "champion", "1")
    model_id = registry.client.search_logged_models([registry.store.experiment])[0].model_id
    uri = {
        "version": "models:/churn/1",
        "alias": "models:/churn@champion",
        "logged": f"models:/{model_id}",
        "run": f"runs:/{first.run_id}/churn",
        "folder": str(shutil.copytree(registry.fetch(first), home / "cache" / "copy")),
    }[form]
    version = registry.adopt("twin", uri, spec, **EXTRA)
    assert (version.version, version.sha256) == ("1", first.sha256)
    assert registry.adopt("twin", uri, spec, **EXTRA) == version
    assert registry.file(version, "baseline.json") == b"{}"
    shutil.rmtree(registry.cache / "models")
    predict(load_estimator(registry.fetch(version)), spec, frame)


def test_adopting_what_may_not_be_loaded_leaves_no_version(
    registry: Registry, home: Path, spec: ModelSpec, frame: pd.DataFrame, target: np.ndarray
) -> None:
    pyfunc()
    import mlflow.sklearn

    estimator = LogisticRegression().fit(frame, target)
    folder = home / "cache" / "pickled"
    mlflow.sklearn.save_model(
        estimator, str(folder), serialization_format="pickle", pip_requirements=[]
    )
    with pytest.raises(UntrustedArtifact, match="trust_pickle"):
        registry.adopt("churn", str(folder), spec, **EXTRA)
    assert registry.versions("churn") == []
    version = registry.adopt("churn", str(folder), spec, **EXTRA, trust_pickle=True)
    loaded = load_estimator(registry.fetch(version), trust_pickle=True)
    expected = estimator.predict_proba(frame)[:, 1]
    np.testing.assert_array_equal(predict(loaded, spec, frame)["probability"], expected)


@pytest.mark.parametrize(
    "uri",
    [
        "models:/nobody/1",
        "models:/nobody@x",
        "models:/nobody",
        f"models:/m-{'0' * 32}",
        "runs:/0/m",
    ],
)
def test_a_uri_mlflow_does_not_know_is_not_found(
    uri: str, registry: Registry, spec: ModelSpec
) -> None:
    with pytest.raises(NotFound, match="MLflow model"):
        registry.adopt("churn", uri, spec, **EXTRA)


def test_a_folder_without_a_model_is_not_found(
    registry: Registry, spec: ModelSpec, home: Path
) -> None:
    (home / "cache" / "empty").mkdir(parents=True)
    with pytest.raises(NotFound, match="MLmodel"):
        registry.adopt("churn", str(home / "cache" / "empty"), spec, **EXTRA)
