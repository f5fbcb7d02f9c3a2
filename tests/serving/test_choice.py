"""Which interpreter is picked, and what must never be: proven on real rows, timed, written down."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from core.errors import ShelflifeError, UntrustedArtifact
from core.frames import to_frame
from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec, infer_spec
from registry.loading import save_estimator
from serving import backends
from serving.choice import Candidate, Timing, compare, pick
from serving.deploy import _sample_inputs
from serving.interpreters import Interpreted, Wanted, interpret

BINARY = ModelSpec(name="m", task="binary", target="y", features=(), metric="brier", classes=(0, 1))
THREE = msgspec.structs.replace(BINARY, task="multiclass", classes=("a", "b", "c"))
NUMBER = msgspec.structs.replace(BINARY, task="regression", classes=())


def candidate(
    name: str, p99: float, per_s: float = 1e4, difference: float = 0.0, **more: Any
) -> Candidate:
    backend, _, variant = name.partition("/")
    timings = tuple(
        Timing(rows=rows, p50_ms=p50, p99_ms=top, calls=50)
        for rows, p50, top in ((1, p99 / 2, p99), (32, p99, p99), (1024, 1024e3 / per_s, 1e3))
    )
    return Candidate(
        backend=backend, variant=variant, status="passed", timings=timings,
        difference=difference, **more,
    )  # fmt: skip


def test_latency_takes_the_lowest_p99() -> None:
    taken, reason = pick(
        [candidate("native/frame", 2.0), candidate("onnx/float64", 0.04)],
        profile="latency", budget_ms=50,
    )  # fmt: skip
    assert taken.name == "onnx/float64"
    assert "0.04 ms" in reason


def test_throughput_takes_the_most_rows() -> None:
    slow_but_wide = candidate("torch/float64@cuda", 1.0, per_s=9e6, device="cuda")
    field = [candidate("onnx/float64", 0.04, per_s=3e5), slow_but_wide]
    assert pick(field, profile="throughput", budget_ms=50)[0] is slow_but_wide
    assert pick(field, profile="latency", budget_ms=50)[0] is field[0]


def test_a_gpu_is_never_chosen_where_it_is_slower() -> None:
    """Not even where it is alike and nearer to the estimator."""
    cpu = candidate("onnx/float32", 1.0, difference=1e-7)
    gpu = candidate("torch/float64@cuda", 1.1, difference=0.0, device="cuda")
    assert pick([cpu, gpu], profile="latency", budget_ms=50)[0] is cpu


def test_of_those_alike_the_nearest_to_the_estimator_is_taken() -> None:
    field = [
        candidate("onnx/float32", 0.040, difference=2e-7),
        candidate("onnx/float64", 0.045, difference=2e-16),
        candidate("native/frame", 2.0),
    ]
    taken, reason = pick(field, profile="latency", budget_ms=50)
    assert taken is field[1]
    assert "alike with onnx/float32" in reason


def test_the_budget_is_said_where_nobody_keeps_it() -> None:
    taken, reason = pick([candidate("native/frame", 80.0)], profile="latency", budget_ms=50)
    assert taken.name == "native/frame"
    assert "none keeps the budget of 50 ms" in reason


def test_a_refused_candidate_is_not_picked() -> None:
    fast = msgspec.structs.replace(candidate("onnx/float32", 0.01), status="refused")
    field = [fast, candidate("native/frame", 2.0)]
    assert pick(field, profile="latency", budget_ms=50)[0] is field[1]


def outputs(spec: ModelSpec, rows: Any) -> dict[str, np.ndarray]:
    matrix = np.array(rows, dtype=float).reshape(len(rows), -1)
    return {name: matrix[:, i] for i, name in enumerate(spec.outputs)}


def test_a_changed_label_is_refused_however_near() -> None:
    want = outputs(BINARY, [0.5 + 1e-6, 0.2])
    verdict = compare(BINARY, want, outputs(BINARY, [0.5 - 1e-6, 0.2]), tolerance=1e-3)
    assert (verdict.changed_labels, verdict.reason) == (1, "1 of 2 labels change")
    tie = outputs(BINARY, [0.5, 0.2])
    assert not compare(BINARY, tie, outputs(BINARY, [0.5 + 1e-15, 0.2]), tolerance=1e-3).reason
    want = outputs(THREE, [[0.4, 0.3999, 0.2001]])
    have = outputs(THREE, [[0.3999, 0.4, 0.2001]])
    assert compare(THREE, want, have, tolerance=1e-3).changed_labels == 1


def test_the_tolerance_of_a_regression_is_relative_to_its_spread() -> None:
    want, have = outputs(NUMBER, [0.0, 2000.0]), outputs(NUMBER, [0.05, 2000.0])
    assert not compare(NUMBER, want, have, tolerance=1e-4).reason
    assert compare(NUMBER, want, have, tolerance=1e-5).reason.startswith("1 of 2 rows differ")


def test_nan_is_refused() -> None:
    want = outputs(BINARY, [0.1])
    assert "NaN" in compare(BINARY, want, outputs(BINARY, [np.nan]), tolerance=1).reason


# --- with real models, in the real subprocess -----------------------------------------------------


@cache
def scaled_boosting() -> tuple[ModelSpec, Any, pd.DataFrame]:
    """The model whose single-precision graph is wrong for some rows (docs/backends.md)."""
    from sklearn.datasets import make_classification
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = make_classification(20_000, 20, n_informative=12, random_state=0)
    frame = pd.DataFrame(x, columns=[f"n{i}" for i in range(20)])
    spec = infer_spec("scaled", frame, target="y", task="binary", classes=(0, 1))
    boosting = HistGradientBoostingClassifier(random_state=0)
    return spec, make_pipeline(StandardScaler(), boosting).fit(frame, y), frame


def chosen(
    home: Path, spec: ModelSpec, files: Path, frame: pd.DataFrame, trust: bool = False, **more: Any
) -> Interpreted:
    reference = frame.head(5000).add_prefix("in:")
    sample = _sample_inputs(spec, reference)
    assert sample is not None
    return interpret(
        home, files, spec, reference, sample, Wanted(settings=InterpreterSettings(**more)),
        version="7", sha256="0" * 64, trust_pickle=trust,
    )  # fmt: skip


def test_single_precision_after_a_scaler_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    spec, estimator, frame = scaled_boosting()
    files = tmp_path / "model"
    save_estimator(estimator, files / "model.skops")
    found = chosen(tmp_path, spec, files, frame)
    table = {each.name: each for each in found.choice.candidates}
    refused = table["onnx/float32"]
    assert refused.status == "refused"
    assert "rows differ by more than 0.0001" in refused.reason
    assert refused.difference is not None
    assert refused.difference > 0.01
    exact = table["onnx/float64"]
    assert exact.status == "chosen"
    assert exact.difference is not None
    assert exact.difference < 1e-12
    assert [each.rows for each in exact.timings] == [1, 32, 1024]
    assert found.choice.rows == 5000
    assert table["triton"].reason == "set serving.triton.url and serving.triton.repository"
    # What was chosen answers as the estimator does, from its files alone.
    assert found.files is not None
    name = found.choice.backend
    model = backends.load(name, found.files, spec, threads=1, trust_pickle=False)
    columns = {name: frame[name].to_numpy() for name in frame}
    answers = model.infer(columns)["probability"]
    np.testing.assert_allclose(answers, estimator.predict_proba(frame)[:, 1], atol=1e-12)
    # A second look measures nothing, and gives the same.
    again = chosen(tmp_path, spec, files, frame)
    assert not again.measured
    assert again.files == found.files


class Environment:
    """Unpickling it writes down what the process knows."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        code = (
            "import os, json, pathlib; from sklearn.dummy import DummyClassifier as D; "
            f"pathlib.Path({str(self.canary)!r}).write_text(json.dumps(dict(os.environ)))"
        )
        return eval, (f"(exec({code!r}), __import__('sklearn.dummy').dummy.DummyClassifier())[1]",)


def test_a_model_is_loaded_without_secrets_and_only_as_far_as_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    spec, _, frame = scaled_boosting()
    files, canary = tmp_path / "model", tmp_path / "canary"
    files.mkdir()
    (files / "model.pkl").write_bytes(pickle.dumps(Environment(canary)))
    monkeypatch.setenv("SHELFLIFE_SECRET", "whsec_do_not_tell")
    with pytest.raises(UntrustedArtifact, match="trust_pickle"):
        chosen(tmp_path, spec, files, frame)
    assert not canary.exists()
    with pytest.raises(ShelflifeError):  # not fitted; but it ran, where there is nothing to take
        chosen(tmp_path, spec, files, frame, trust=True)
    seen = json.loads(canary.read_text())
    assert "whsec_do_not_tell" not in canary.read_text()
    assert seen["HOME"] != os.environ.get("HOME")


def test_a_pytorch_network_in_every_precision(tmp_path: Path) -> None:
    """Float32 passes, half precision and int8 only where the operator allows their error."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from registry.loading import load_estimator, predict_array
    from serving.backend import Subject

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(1500, 8)), columns=list("abcdefgh"))
    spec = infer_spec("net", frame, target="y", task="binary", classes=(0, 1))
    network = torch.nn.Sequential(
        torch.nn.Linear(8, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64), torch.nn.ReLU(),
        torch.nn.Linear(64, 2), torch.nn.Softmax(dim=1),
    )  # fmt: skip
    files = tmp_path / "model"
    _save_network(network, files)
    with pytest.raises(UntrustedArtifact):
        load_estimator(files)
    estimator = load_estimator(files, trust_pickle=True)
    columns = {name: frame[name].to_numpy() for name in frame}
    want = outputs(spec, predict_array(estimator, spec, to_frame(spec, columns)))
    settings = InterpreterSettings()
    subject = Subject(
        spec=spec, folder=files, estimator=estimator, trust_pickle=True, settings=settings
    )
    verdicts = {}
    for name, variant in (
        ("onnx", "float32"), ("onnx", "int8"), ("torch", "float32"), ("torch", "bfloat16"),
    ):  # fmt: skip
        backend = backends.backend(name)
        assert variant in backend.assess(subject)
        folder = tmp_path / f"{name}-{variant}"
        folder.mkdir()
        backend.prepare(subject, variant, folder)
        model = backend.load(folder, spec, threads=1, trust_pickle=False)
        have = model.infer(columns)
        one = model.infer({key: array[:1] for key, array in columns.items()})
        np.testing.assert_allclose(one["probability"], have["probability"][:1], atol=0.01)
        verdicts[name, variant] = compare(spec, want, have, tolerance=settings.tolerance)
        model.unload()
    assert not verdicts["onnx", "float32"].reason
    assert not verdicts["torch", "float32"].reason
    for rough in (("onnx", "int8"), ("torch", "bfloat16")):
        assert "rows differ" in verdicts[rough].reason
        assert verdicts[rough].difference < 0.05


def _save_network(network: Any, files: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pytorch

        mlflow.pytorch.save_model(
            network, str(files), pip_requirements=["torch"], serialization_format="pickle"
        )
