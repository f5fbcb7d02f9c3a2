"""A real Triton Inference Server: one model name per version, loaded, warmed, drained, unloaded.

The server runs elsewhere with `--model-control-mode=explicit` and shares its model repository with
us. `prepare` writes a repository entry; `load` puts it into the repository under a name that no
other version has, asks the server to load it and waits until it is ready; `unload` asks the server
to let it go, which ends after its last request, and removes the entry. Several workers may use one
entry: it goes with the last of them.

Inside runs Triton's Python backend with a model of ours (`serving.backends.triton_model`)
around the estimator, or its ONNX Runtime backend with the converted graph.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.files import sha256_tree, write_atomic
from core.spec import Feature, ModelSpec
from core.times import duration
from serving.backend import (
    Capabilities,
    Columns,
    Counting,
    Interpreter,
    ModelFailed,
    NotApplicable,
    Outputs,
    Subject,
)
from serving.backends.heads import outputs_of, read_interpreter, write_interpreter

ENTRY, INNER = "entry", "inner"
_USERS = ".shelflife-users"  # beside the entries: one file per process that uses an entry
_MAX_BATCH = 4096
#: Categories travel as UTF-8, a 1 and zeros; a missing one as 255: see `triton_model`.
_TYPES = {"numeric": "FP64", "integer": "INT64", "boolean": "UINT8", "categorical": "UINT8"}
_DTYPES = {"FP64": np.float64, "INT64": np.int64, "UINT8": np.uint8}
_POLL_S = 0.05


class Triton:
    """Models behind a Triton Inference Server."""

    def capabilities(self) -> Capabilities:
        """See `Backend.capabilities`."""
        there = importlib.util.find_spec("tritonclient") is not None
        return Capabilities(
            name="triton",
            devices=("cpu", "cuda"),
            variants=("python", "onnxruntime"),
            extra="triton",
            missing="" if there else "install shelflife[triton]",
        )

    def assess(self, subject: Subject) -> tuple[str, ...]:
        """See `Backend.assess`."""
        return (subject.settings.triton.backend,)

    def prepare(self, subject: Subject, variant: str, folder: Path) -> None:
        """See `Backend.prepare`."""
        settings = subject.settings.triton
        entry = folder / ENTRY
        (entry / "1").mkdir(parents=True)
        more: dict[str, Any] = {
            "url": settings.url,
            "repository": settings.repository,
            "within": duration(settings.load_within).total_seconds(),
        }
        if variant == "onnxruntime":
            more |= _graph_entry(subject, entry)
        else:
            _python_entry(subject, entry)
        write_interpreter(folder, Interpreter(backend="triton", variant=variant, more=more))

    def load(
        self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool
    ) -> TritonModel:
        """See `Backend.load`.

        Raises:
            NotApplicable: the client is not installed, or the server does not answer.
            ModelFailed: the server could not load the model.
        """
        try:
            import tritonclient.grpc  # noqa: F401
        except ImportError:
            raise NotApplicable("install shelflife[triton]") from None
        if (folder / ENTRY / "1" / INNER).is_dir() and not trust_pickle:
            _audit(folder / ENTRY / "1" / INNER)
        return TritonModel(folder, spec, read_interpreter(folder), trust_pickle)


class TritonModel(Counting):
    """One version on the server."""

    def __init__(
        self, folder: Path, spec: ModelSpec, interpreter: Interpreter, trust_pickle: bool
    ) -> None:
        import tritonclient.grpc as grpc

        super().__init__()
        self._grpc, self._spec, self._more = grpc, spec, interpreter.more
        self._graph = interpreter.variant == "onnxruntime"
        self.device = "triton"
        self._client: Any = grpc.InferenceServerClient(str(self._more["url"]))
        self._repository = Path(self._more["repository"])
        self.name = f"{spec.name}-{sha256_tree(folder)[:16]}"
        self._mark = self._repository / _USERS / f"{self.name}-{os.getpid()}-{id(self):x}"
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        try:
            self._place(folder / ENTRY, trust_pickle)
            if not self._client.is_model_ready(self.name):  # loading again would interrupt others
                self._client.load_model(self.name)
            self._await()
        except grpc.InferenceServerException as error:
            self._mark.unlink(missing_ok=True)
            raise ModelFailed(f"Triton at {self._more['url']}: {str(error)[:400]}") from None

    def _place(self, entry: Path, trust_pickle: bool) -> None:
        """The entry in the repository; one that is there already has the same content."""
        final = self._repository / self.name
        if not final.is_dir():
            staging = self._repository / f".{self.name}-{os.getpid()}"
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(entry, staging)
            text = (staging / "config.pbtxt").read_text()
            write_atomic(staging / "config.pbtxt", f'name: "{self.name}"\n{text}'.encode())
            if trust_pickle:
                (staging / "1" / "trusted").touch()
            with suppress(OSError):  # another worker was first
                staging.rename(final)
            shutil.rmtree(staging, ignore_errors=True)

    def _await(self) -> None:
        end = time.monotonic() + float(self._more["within"])
        while not self._client.is_model_ready(self.name):
            if time.monotonic() > end:
                raise ModelFailed(f"{self.name} is not ready after {self._more['within']:g} s")
            time.sleep(_POLL_S)

    @property
    def blocks(self) -> bool:
        """It waits for the server."""
        return True

    def _infer(self, columns: Columns) -> Outputs:
        total = len(next(iter(columns.values())))
        parts = [
            self._ask({n: a[start : start + _MAX_BATCH] for n, a in columns.items()})
            for start in range(0, total, _MAX_BATCH)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _ask(self, columns: Columns) -> Outputs:
        grpc = self._grpc
        inputs = self._graph_inputs(columns) if self._graph else self._column_inputs(columns)
        try:
            answer = self._client.infer(self.name, inputs)
        except grpc.InferenceServerException as error:
            text = str(error)
            if "ValueError:" in text:  # raised by the estimator, for values it has no answer to
                raise ValueError(text.split("ValueError:", 1)[1].strip()[:300]) from None
            raise ModelFailed(f"Triton: {text[:300]}") from None
        if self._graph:
            raw = answer.as_numpy(str(self._more["output"]))
            return outputs_of(self._spec, raw, self._more["order"])
        return {name: answer.as_numpy(name).reshape(-1) for name in self._spec.outputs}

    def _column_inputs(self, columns: Columns) -> list[Any]:
        inputs = []
        for feature in self._spec.features:
            array, kind = columns[feature.name], _wire(feature)
            matrix = _bytes(array) if feature.kind == "categorical" else array.reshape(-1, 1)
            tensor = self._grpc.InferInput(feature.name, list(matrix.shape), kind)
            tensor.set_data_from_numpy(matrix.astype(_DTYPES[kind], copy=False))
            inputs.append(tensor)
        return inputs

    def _graph_inputs(self, columns: Columns) -> list[Any]:
        names, kind = self._more["names"], np.dtype(self._more["dtype"])
        matrix = np.column_stack([columns[f.name] for f in self._spec.features]).astype(kind)
        wire = "FP64" if kind == np.float64 else "FP32"
        tensor = self._grpc.InferInput(names[0], list(matrix.shape), wire)
        tensor.set_data_from_numpy(matrix)
        return [tensor]

    def _trouble(self) -> str:
        try:
            ready = bool(self._client.is_model_ready(self.name))
        except self._grpc.InferenceServerException as error:
            return f"Triton at {self._more['url']}: {str(error)[:200]}"
        return "" if ready else f"Triton has not loaded {self.name}"

    def _bytes(self) -> tuple[int, int]:
        return 0, 0  # the server's memory is not ours

    def _release(self) -> None:
        self._mark.unlink(missing_ok=True)
        try:
            if not _used(self._mark.parent, self.name):
                self._client.unload_model(self.name)
                end = time.monotonic() + 30.0
                while self._client.is_model_ready(self.name) and time.monotonic() < end:
                    time.sleep(_POLL_S)
                shutil.rmtree(self._repository / self.name, ignore_errors=True)
        except self._grpc.InferenceServerException:
            pass  # the server is gone, and the model with it
        finally:
            self._client.close()


def _used(marks: Path, name: str) -> bool:
    """Whether a living process of this machine uses an entry; marks of dead ones are removed."""
    for mark in marks.glob(f"{name}-*"):
        process = int(mark.name.rsplit("-", 2)[1])
        if Path(f"/proc/{process}").exists() or not Path("/proc").exists():
            return True
        mark.unlink(missing_ok=True)
    return False


def _python_entry(subject: Subject, entry: Path) -> None:
    from serving.backends import triton_model
    from serving.backends.native import Native

    version = entry / "1"
    native = Native()
    inner = version / INNER
    inner.mkdir()
    native.prepare(subject, native.assess(subject)[-1], inner)
    (version / "spec.json").write_bytes(msgspec.json.encode(subject.spec))
    shutil.copyfile(str(triton_model.__file__), version / "model.py")
    root = Path(__file__).resolve().parents[2]
    (version / "root.txt").write_text(str(root))
    inputs = [
        (f.name, _wire(f), -1 if f.kind == "categorical" else 1) for f in subject.spec.features
    ]
    lines = ['backend: "python"', f"max_batch_size: {_MAX_BATCH}", "dynamic_batching { }"]
    lines += [_tensor("input", name, kind, width) for name, kind, width in inputs]
    lines += [_tensor("output", name, "FP64", 1) for name in subject.spec.outputs]
    lines += ["instance_group [ { count: 1 kind: KIND_CPU } ]", ""]
    (entry / "config.pbtxt").write_text("\n".join(lines))


def _graph_entry(subject: Subject, entry: Path) -> dict[str, Any]:
    """The converted graph; only for models whose graph takes the request's columns as a matrix."""
    from serving.backends import graphs

    network = graphs.module_of(subject.estimator) is not None
    data, more = graphs.from_torch(subject) if network else graphs.whole(subject)
    if len(more["names"]) != 1 or (len(subject.spec.features) > 1 and _by_column(subject, more)):
        raise NotApplicable("the graph takes columns of several types; set serving.triton.backend")
    (entry / "1" / "model.onnx").write_bytes(data)
    # The graph names its tensors itself; the server completes the rest of the configuration.
    (entry / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\nmax_batch_size: 0\n')
    return more


def _by_column(subject: Subject, more: dict[str, Any]) -> bool:
    return bool(more["names"][0] == subject.spec.features[0].name)


def _tensor(what: str, name: str, kind: str, width: int) -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'{what} [ {{ name: "{quoted}" data_type: TYPE_{kind} dims: [ {width} ] }} ]'


def _wire(feature: Feature) -> str:
    """The type a column travels as: floats where there may be missing numbers."""
    floats = feature.nullable and feature.kind != "categorical"
    return "FP64" if floats else _TYPES[feature.kind]


def _bytes(texts: np.ndarray) -> np.ndarray:
    """Categories as a matrix of bytes, as wide as the longest."""
    encoded = [b"\xff" if text is None else text.encode() + b"\1" for text in texts.tolist()]
    width = max(1, *(len(data) for data in encoded)) if encoded else 1
    padded = b"".join(data.ljust(width, b"\0") for data in encoded)
    return np.frombuffer(padded, dtype=np.uint8).reshape(len(encoded), width)


def _audit(inner: Path) -> None:
    """Refuse here what the server's own process would refuse: nothing untrusted leaves for it."""
    from registry import trusted
    from registry.loading import load_estimator

    for path in inner.rglob("*.skops"):
        trusted.audit(path)
    if not any(inner.rglob("*.skops")):
        load_estimator(inner, trust_pickle=False)  # raises for pickles
