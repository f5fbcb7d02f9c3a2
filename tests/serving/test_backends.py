"""One suite over all interpreters: each answers as the estimator does, counts, and lets go."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from core.errors import ShelflifeError, UntrustedArtifact
from core.frames import to_frame
from core.settings_interpreters import InterpreterSettings, RaySettings, TritonSettings
from core.spec import ModelSpec, infer_spec
from registry.loading import predict_array, save_estimator
from serving import backends
from serving.backend import Model, ModelFailed, NotApplicable, Subject

LONG = os.environ.get("SHELFLIFE_CHAOS") == "1"
TRITON = ["triton"]
NAMES = [
    "native",
    "onnx",
    "torch",
    *TRITON,
    pytest.param(
        "ray",
        marks=[
            pytest.mark.skipif(not LONG, reason="starts a Ray: SHELFLIFE_CHAOS=1"),
            pytest.mark.filterwarnings("ignore"),  # Ray's own imports and sockets
        ],
    ),
]


def columns_(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 90, n).astype(float)
    age[rng.random(n) < 0.2] = np.nan
    country = rng.choice(["NL", "DE", "FR"], n).astype(object)
    country[rng.random(n) < 0.1] = None
    return {
        "amount": rng.normal(50, 20, n),
        "age": age,
        "visits": rng.integers(0, 9, n),
        "member": rng.random(n) < 0.5,
        "country": country,
    }


@cache
def fitted(task: str) -> tuple[ModelSpec, Any]:
    """A pipeline of mixed columns before boosted trees, per task."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    columns = columns_(600)
    signal = columns["amount"] / 20 + columns["member"] + 0.1 * columns["visits"]
    classes: tuple[int, ...] = ()
    target = signal
    if task != "regression":
        classes = (0, 1) if task == "binary" else (0, 1, 2)
        edges = np.quantile(signal, np.linspace(0, 1, len(classes) + 1)[1:-1])
        target = np.digitize(signal, edges)
    frame = pd.DataFrame({n: pd.Series(a.tolist()) for n, a in columns.items()})
    spec = infer_spec("churn", frame, target="left", task=task, classes=classes)  # type: ignore[arg-type]
    boosting: Any = HistGradientBoostingClassifier(max_iter=15, random_state=0)
    if task == "regression":
        boosting = HistGradientBoostingRegressor(max_iter=15, random_state=0)
    numbers = ["amount", "age", "visits", "member"]
    encoder = OrdinalEncoder(handle_unknown="error", encoded_missing_value=-1)
    steps = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            ("country", encoder, ["country"]),
        ]
    )
    return spec, make_pipeline(steps, boosting).fit(to_frame(spec, columns), target)


def expected(task: str, columns: dict[str, np.ndarray]) -> np.ndarray:
    spec, estimator = fitted(task)
    return predict_array(estimator, spec, to_frame(spec, columns))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonSettings]:
    """The Triton Inference Server that the wheel nvidia-pytriton ships, without its Python side."""
    import importlib.util

    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("nvidia-pytriton is not installed: no Triton Inference Server")
    shipped = Path(next(iter(found.submodule_search_locations))) / "tritonserver"
    room = tmp_path_factory.mktemp("triton")
    shutil.copytree(shipped / "backends", room / "backends")
    stub = (
        shipped / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    ) / "triton_python_backend_stub"
    shutil.copy(stub, room / "backends" / "python")
    (room / "repository").mkdir()
    port = free_port()
    libraries = shipped.parents[1] / "nvidia_pytriton.libs"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HOME": str(room),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        str(shipped / "bin" / "tritonserver"),
        f"--model-repository={room / 'repository'}",
        f"--backend-directory={room / 'backends'}",
        "--model-control-mode=explicit",
        "--allow-http=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=3",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
    ]
    log = (room / "log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    settings = TritonSettings(url=f"127.0.0.1:{port}", repository=str(room / "repository"))
    try:
        _await_triton(server, settings.url, room / "log")
        yield settings
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _await_triton(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(url)
    try:
        for _ in range(600):
            if server.poll() is not None:
                pytest.skip(f"tritonserver does not run here: {log.read_text()[-300:]}")
            try:
                if client.is_server_ready():
                    return
            except grpc.InferenceServerException:
                pass
            time.sleep(0.1)
        pytest.fail("tritonserver did not become ready")
    finally:
        client.close()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[RaySettings]:
    """A Ray of our own, with Serve."""
    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="shelflife")
    yield RaySettings(address="local", cpus=0.1)
    serve.shutdown()
    ray.shutdown()


Settle = Callable[..., InterpreterSettings]


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settle:
    """Settings that make a backend applicable."""

    def of(name: str, **more: Any) -> InterpreterSettings:
        if name == "triton":
            more["triton"] = request.getfixturevalue("triton_server")
        elif name == "ray":
            more["ray"] = request.getfixturevalue("local_ray")
        elif name in ("onnx", "torch"):
            pytest.importorskip("onnxruntime" if name == "onnx" else "torch")
        return InterpreterSettings(**more)

    return of


@pytest.fixture
def subject_of(tmp_path: Path) -> Callable[..., Subject]:
    def of(task: str, settings: InterpreterSettings) -> Subject:
        spec, estimator = fitted(task)
        folder = tmp_path / "registered"
        save_estimator(estimator, folder / "model.skops")
        return Subject(
            spec=spec, folder=folder, estimator=estimator, trust_pickle=False, settings=settings
        )

    return of


def built(name: str, variant: str, subject: Subject, folder: Path) -> Model:
    folder.mkdir()
    backend = backends.backend(name)
    backend.prepare(subject, variant, folder)
    return backend.load(folder, subject.spec, threads=1, trust_pickle=False)


def stacked(model: Model, spec: ModelSpec, columns: dict[str, np.ndarray]) -> np.ndarray:
    outputs = model.infer(columns)
    assert list(outputs) == spec.outputs
    return np.column_stack(list(outputs.values()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_answers_are_the_estimators(
    name: str, task: str, settings: Settle, subject_of: Any, tmp_path: Path
) -> None:
    """Every variant that converts, at one row, few and many; missing values among them."""
    if name == "triton" and task != "binary" and not LONG:
        pytest.skip("each model starts a process in Triton: SHELFLIFE_CHAOS=1")
    subject = subject_of(task, settings(name))
    variants = backends.backend(name).assess(subject)
    assert set(variants) <= set(backends.backend(name).capabilities().variants)
    answered = []
    for variant in variants:
        try:
            model = built(name, variant, subject, tmp_path / variant)
        except NotApplicable:
            continue
        answered.append(variant)
        for n in (1, 2, 33, 700):
            columns = columns_(n, seed=n)
            found = stacked(model, subject.spec, columns)
            assert found.dtype == np.float64
            limit = 1e-12 if variant not in ("float32",) else 0.05
            np.testing.assert_allclose(found, expected(task, columns), atol=limit)
        stats = model.stats()
        assert (stats.batches, stats.rows) == (4, 736)
        assert stats.seconds > 0
        assert model.health() == ""
        model.unload()
        model.unload()
        assert model.health() == "unloaded"
        with pytest.raises(ModelFailed):
            model.infer(columns_(1))
    assert answered


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRITON])
def test_a_value_the_estimator_refuses_is_refused(
    name: str, settings: Settle, subject_of: Any, tmp_path: Path
) -> None:
    subject = subject_of("binary", settings(name))
    variant = {"native": "columns", "onnx": "float64", "torch": "float64"}.get(
        name, backends.backend(name).assess(subject)[0]
    )
    model = built(name, variant, subject, tmp_path / "built")
    strange = columns_(3) | {"country": np.array(["NL", "XX", None], dtype=object)}
    with pytest.raises(ValueError, match=r"(?i)unknown categor"):
        model.infer(strange)
    assert stacked(model, subject.spec, columns_(2)).shape == (2, 1)  # and it goes on
    model.unload()


@pytest.mark.parametrize("name", ["native", "onnx", "torch"])
def test_the_same_model_gives_the_same_files(
    name: str, settings: Settle, subject_of: Any, tmp_path: Path
) -> None:
    from core.files import sha256_tree

    subject, backend = subject_of("binary", settings(name)), backends.backend(name)
    for variant in backend.assess(subject):
        hashes = set()
        for attempt in ("a", "b"):
            folder = tmp_path / f"{variant}-{attempt}"
            folder.mkdir()
            try:
                backend.prepare(subject, variant, folder)
            except NotApplicable:
                break
            hashes.add(sha256_tree(folder))
        assert len(hashes) <= 1


class Bomb:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("name", NAMES)
def test_no_backend_runs_what_a_file_brings(
    name: str, settings: Settle, subject_of: Any, tmp_path: Path
) -> None:
    """A prepared folder whose every file is a bomb, under every name that a backend opens."""
    subject, canary = subject_of("binary", settings(name)), tmp_path / "canary"
    backend = backends.backend(name)
    folder = tmp_path / "built"
    folder.mkdir()
    backend.prepare(subject, backend.assess(subject)[0], folder)
    bomb = pickle.dumps(Bomb(canary))
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".json", ".pbtxt", ".py", ".txt"):
            path.unlink()
            path.write_bytes(bomb)
    if name == "native":
        (folder / "model.skops").unlink()
        (folder / "model.pkl").write_bytes(bomb)
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each library has its own
        model = backend.load(folder, subject.spec, threads=1, trust_pickle=False)
        model.infer(columns_(1))
    assert not canary.exists()
    assert name not in ("native", "torch", "triton") or isinstance(raised.value, ShelflifeError)
    assert pickle.loads(bomb) is None
    assert canary.exists()  # the bomb works


def test_a_forest_with_stray_nodes_is_refused(subject_of: Any, tmp_path: Path) -> None:
    pytest.importorskip("treelite")
    from serving.backends import forest

    subject = subject_of("binary", InterpreterSettings())
    sound = forest.forest_of(subject.estimator[-1])
    path = tmp_path / "forest.npz"
    forest.save(sound, path)
    again = forest.load(path)
    x = np.random.default_rng(0).normal(size=(50, 5))
    np.testing.assert_array_equal(forest.walk(again, x), forest.walk(sound, x))
    for field, value in (("children", len(sound.feature)), ("feature", 99), ("roots", -1)):
        array = getattr(sound, field).copy()
        array.ravel()[3] = value
        forest.save(msgspec.structs.replace(sound, **{field: array}), path)
        with pytest.raises(UntrustedArtifact):
            forest.load(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UntrustedArtifact):
        forest.load(path)


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_boosters_of_other_libraries_convert(library: str, classes: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = pytest.importorskip(library)
    kind = "Classifier" if classes else "Regressor"
    make = getattr(module, f"{'XGB' if library == 'xgboost' else 'LGBM'}{kind}")
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(500, 6)), columns=list("abcdef"))
    frame.loc[::9, "b"] = np.nan
    score = frame["a"] + frame["c"]
    y = np.digitize(score, [-0.6, 0.6][: max(classes - 1, 1)]) if classes else score
    quiet = {"verbose": -1} if library == "lightgbm" else {}
    estimator = make(n_estimators=12, n_jobs=1, **quiet).fit(frame, y)
    task: Any = {0: "regression", 2: "binary", 3: "multiclass"}[classes]
    spec = infer_spec("m", frame, target="y", task=task, classes=tuple(range(classes)))
    subject = Subject(
        spec=spec, folder=tmp_path, estimator=estimator, trust_pickle=False,
        settings=InterpreterSettings(),
    )  # fmt: skip
    model = built("onnx", "float64", subject, tmp_path / "built")
    columns = {name: frame[name].to_numpy() for name in frame}
    found = stacked(model, spec, columns)
    np.testing.assert_allclose(found, predict_array(estimator, spec, frame), atol=1e-5)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    gone = {"onnxruntime", "torch", "tritonclient", "ray"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a)
    )
    for name in ("onnx", "torch", "triton", "ray"):
        assert backends.backend(name).capabilities().missing == f"install shelflife[{name}]"
    assert backends.backend("native").capabilities().missing == ""


def test_serving_imports_no_engine() -> None:
    code = (
        "import sys, serving.app, serving.deploy, serving.interpreters, serving.backends.torch, "
        "serving.backends.onnx, serving.backends.triton, serving.backends.ray;"
        "print([n for n in ('torch','onnxruntime','onnx','ray','tritonclient','treelite',"
        "'sklearn','mlflow') if n in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_triton_versions_come_and_go(settings: Settle, subject_of: Any, tmp_path: Path) -> None:
    """Two workers share an entry; it goes with the last of them, and its memory with it."""
    subject = subject_of("binary", settings("triton"))
    strange = columns_(3) | {"country": np.array(["NL", "XX", None], dtype=object)}
    one = built("triton", "python", subject, tmp_path / "one")
    backend = backends.backend("triton")
    two = backend.load(tmp_path / "one", subject.spec, threads=1, trust_pickle=False)
    repository = Path(subject.settings.triton.repository)
    name: str = one.name  # type: ignore[attr-defined]
    assert (repository / name / "config.pbtxt").is_file()
    with pytest.raises(ValueError, match=r"(?i)unknown categor"):
        one.infer(strange)
    one.unload()
    assert two.health() == ""
    assert two.infer(columns_(1))["probability"].shape == (1,)
    two.unload()
    assert not (repository / name).exists()
    if LONG:
        back = backend.load(tmp_path / "one", subject.spec, threads=1, trust_pickle=False)
        assert back.health() == ""  # loaded again, under its own name
        back.unload()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not LONG, reason="starts a Ray: SHELFLIFE_CHAOS=1")
def test_ray_multiplexes(settings: Settle, subject_of: Any, tmp_path: Path) -> None:
    """Three models, replicas that hold two: the third displaces one, and every answer is right."""
    base = settings("ray")
    shared = msgspec.structs.replace(base, ray=msgspec.structs.replace(base.ray, multiplex=2))
    models = {}
    for task in ("binary", "multiclass", "regression"):
        subject = subject_of(task, shared)
        models[task] = built("ray", "multiplexed", subject, tmp_path / task)
    for _ in range(2):
        for task, model in models.items():
            columns = columns_(5)
            found = stacked(model, fitted(task)[0], columns)
            np.testing.assert_allclose(found, expected(task, columns))
    for model in models.values():
        model.unload()
