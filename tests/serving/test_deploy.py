"""From a real MLflow registry to the pointer: fetched once, proven, mended, taken away."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from core.errors import UntrustedArtifact
from core.frames import to_frame
from core.ledger import Ledger
from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec
from registry.versions import Registry
from serving import backends, choice, store
from serving.columns import columns_of
from serving.deploy import Deployed, sync, wait_served
from serving.interpreters import Wanted

NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, versions: Any) -> Registry:
    """A real registry with two versions of one model; the second has no reference."""
    root, spec, estimators = versions
    home = tmp_path_factory.mktemp("mlflow")
    registry = Registry(f"sqlite:///{home / 'mlflow.db'}", home / "artifacts", home / "cache")
    registry.prepare()
    inputs = pd.read_parquet(root / "1" / "reference.parquet")
    for number in ("1", "2"):
        files = {"spec.json": msgspec.json.encode(spec)}
        if number == "1":
            files["reference.parquet"] = inputs.to_parquet()
        registry.add("churn", estimators[number], spec, files=files, tags={}, metrics={}, now=NOW)
    return registry


def run(registry: Registry, ledger: Ledger, home: Path) -> Deployed | None:
    return sync(registry, ledger, home, "churn", trust_pickle=False, now=NOW)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    yield ledger
    ledger.close()


def test_the_champion_is_prepared_once_and_follows_its_alias(
    shelf: Registry, ledger: Ledger, home: Path, monkeypatch: pytest.MonkeyPatch, versions: Any
) -> None:
    _, spec, estimators = versions
    shelf.set_alias("churn", "champion", "1")
    first = run(shelf, ledger, home)
    assert first is not None
    assert (first.version, first.changed) == ("1", True)
    assert first.sha256 == shelf.get("churn", "1").sha256

    manifest, found = store.verify(store.prepared(home, first.folder))
    assert found == spec
    assert manifest.sample is not None
    ages = manifest.sample.inputs["age"]
    assert None in ages
    assert all(age is None or isinstance(age, float) for age in ages)
    frame = pd.DataFrame(manifest.sample.inputs)
    expected = estimators["1"].predict_proba(frame.astype({"age": float}))[:, 1]
    np.testing.assert_array_equal(manifest.sample.outputs["probability"], expected)

    with monkeypatch.context() as patch:
        patch.setattr(shelf, "fetch", None)  # nothing changed: nothing is fetched
        again = run(shelf, ledger, home)
    assert again is not None
    assert (again.folder, again.changed) == (first.folder, False)

    shelf.set_alias("churn", "champion", "2")
    second = run(shelf, ledger, home)
    assert second is not None
    assert (second.version, second.changed) == ("2", True)
    assert store.verify(store.prepared(home, second.folder))[0].sample is None
    pointer = json.loads((store.pointers(home) / "churn.json").read_bytes())
    assert pointer["champion"]["version"] == "2"
    assert pointer["champion"]["folder"] == second.folder
    assert pointer["champion"]["backend"] == "native"

    shelf.drop_alias("churn", "champion")
    assert run(shelf, ledger, home) is None
    assert not list(store.pointers(home).iterdir())
    assert run(shelf, ledger, home) is None
    assert sorted(os.listdir(home / "serving" / "store")) == sorted([first.folder, second.folder])


def test_served_without_a_reference_by_a_real_worker(
    shelf: Registry, room: Any, start: Any, tools: Any
) -> None:
    shelf.set_alias("churn", "champion", "2")
    with start() as server:
        assert run(shelf, room.ledger, room.home) is not None
        served = wait_served(room.ledger, "churn", "2", timeout=timedelta(seconds=30))
        assert (served.ok, served.workers, served.serving) == (True, 1, 1)
        columns = tools.rows(4)
        answer = server.client().infer(tools.request(columns))
        assert answer.body["outputs"][0]["data"] == room.expected("2", columns)


def test_waiting_ends_and_says_who_is_missing(ledger: Ledger) -> None:
    served = wait_served(ledger, "churn", "2", timeout=timedelta(seconds=0.1))
    assert (served.ok, served.workers) == (False, 0)


def test_an_artifact_changed_in_mlflow_is_not_prepared(
    shelf: Registry, ledger: Ledger, home: Path
) -> None:
    spec = msgspec.json.decode(shelf.file(shelf.get("churn", "1"), "spec.json"), type=ModelSpec)
    from sklearn.dummy import DummyClassifier

    x = pd.DataFrame({f.name: [0, 1] for f in spec.features})
    version = shelf.add(
        "churn", DummyClassifier().fit(x, [0, 1]), spec, files={}, tags={}, metrics={}, now=NOW
    )
    before = run(shelf, ledger, home)
    shelf.set_alias("churn", "champion", version.version)
    shelf.tag(version, artifact_sha256="0" * 64)
    with pytest.raises(UntrustedArtifact):
        run(shelf, ledger, home)
    after = store.read_pointer(store.pointers(home) / "churn.json").champion
    assert before is not None
    assert after.version == before.version


def test_a_lost_prepared_folder_is_made_again(shelf: Registry, ledger: Ledger, home: Path) -> None:
    import shutil

    shelf.set_alias("churn", "champion", "1")
    first = run(shelf, ledger, home)
    assert first is not None
    shutil.rmtree(home / "serving" / "store")
    again = run(shelf, ledger, home)
    assert again is not None
    assert (again.folder, again.changed) == (first.folder, True)
    store.verify(store.prepared(home, again.folder))


def test_the_interpreter_is_chosen_and_the_table_written_down(
    shelf: Registry, ledger: Ledger, home: Path, versions: Any
) -> None:
    """In the prepared folder, in MLflow and in the home folder; another setting prepares anew."""
    pytest.importorskip("onnxruntime")
    from registry.loading import predict

    _, spec, estimators = versions
    shelf.set_alias("churn", "champion", "1")

    def ask(**settings: Any) -> Deployed:
        wanted = Wanted(settings=InterpreterSettings(proof_rows=200, **settings))
        done = sync(
            shelf, ledger, home, "churn", trust_pickle=False, now=NOW, wanted=wanted
        )  # fmt: skip
        assert done is not None
        return done

    done = ask(backend="onnx")
    folder = store.prepared(home, done.folder)
    manifest, _ = store.verify(folder)
    assert manifest.backend == "onnx"
    model = backends.load("onnx", folder / "model", spec, threads=1, trust_pickle=False)
    columns = {"amount": [40.0, 70.5], "age": [None, 33.0], "visits": [1, 2],
               "member": [True, False], "country": ["NL", "FR"]}  # fmt: skip
    expected = predict(estimators["1"], spec, to_frame(spec, columns))["probability"]
    found = model.infer(columns_of(spec, columns))["probability"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    table = choice.read(home, "churn", "1")
    assert table is not None
    assert table.chosen is not None
    assert table.chosen.backend == "onnx"
    version = shelf.get("churn", "1")
    assert version.tags["shelflife.interpreter"] == table.chosen.name
    assert float(version.tags["shelflife.interpreter_p99_ms"]) > 0
    kept = msgspec.json.decode(shelf.file(version, "interpreters.json"), type=choice.Choice)
    assert kept == table
    assert not ask(backend="onnx").changed
    again = ask(backend="native")
    assert (again.changed, again.version) == (True, "1")
    assert store.verify(store.prepared(home, again.folder))[0].backend == "native"
    assert not ask(backend="native").changed
    # The first choice is still known: nothing is measured, the very same folder is served.
    assert ask(backend="onnx").folder == done.folder


def test_too_few_rows_prove_nothing(shelf: Registry, ledger: Ledger, home: Path) -> None:
    shelf.set_alias("churn", "champion", "1")
    wanted = Wanted(settings=InterpreterSettings())
    for changed in (True, False):
        done = sync(shelf, ledger, home, "churn", trust_pickle=False, now=NOW, wanted=wanted)
        assert done is not None
        assert done.changed is changed
    table = choice.read(home, "churn", "1")
    assert table is not None
    assert (table.backend, table.chosen) == ("native", None)
    assert "400 complete rows" in table.reason


def test_measuring_that_takes_too_long_keeps_nobody_from_serving(
    shelf: Registry, ledger: Ledger, home: Path
) -> None:
    shelf.set_alias("churn", "champion", "1")
    wanted = Wanted(settings=InterpreterSettings(proof_rows=200, choose_within="1ms"))
    done = sync(shelf, ledger, home, "churn", trust_pickle=False, now=NOW, wanted=wanted)
    assert done is not None
    assert store.verify(store.prepared(home, done.folder))[0].backend == "native"
    table = choice.read(home, "churn", "1")
    assert table is not None
    assert "longer than 0.001 s" in table.reason
