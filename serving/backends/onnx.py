"""ONNX Runtime: a graph in place of the estimator, on the CPU, or through CUDA and TensorRT.

Variants, each with `@cuda` or `@tensorrt` behind it where it runs there:

    float32   the whole pipeline as skl2onnx converts it; a PyTorch module as torch exports it
    float64   preprocessing by `serving.steps`, the last step in double precision: trees as one
              `TreeEnsemble` node (ai.onnx.ml 5) with the library's own thresholds, other
              estimators by skl2onnx
    int8      float32 with dynamically quantised weights, for neural networks

ONNX Runtime's GPU providers hold no kernels for trees, which would fall back to the CPU: only
neural networks are offered there.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.spec import ModelSpec
from serving import steps
from serving.backend import (
    Capabilities,
    Columns,
    Counting,
    Interpreter,
    NotApplicable,
    Outputs,
    Subject,
)
from serving.backends import graphs
from serving.backends.heads import (
    Order,
    order_of,
    outputs_of,
    read_interpreter,
    write_interpreter,
)

GRAPH, STEPS = "model.onnx", "steps.json"
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class Onnx:
    """Graphs for ONNX Runtime."""

    def capabilities(self) -> Capabilities:
        """See `Backend.capabilities`."""
        installed = importlib.util.find_spec("onnxruntime") is not None
        return Capabilities(
            name="onnx",
            devices=("cpu", *_PROVIDERS),
            exact=False,
            variants=("float64", "float32", "int8"),
            extra="onnx",
            missing="" if installed else "install shelflife[onnx]",
        )

    def assess(self, subject: Subject) -> tuple[str, ...]:
        """See `Backend.assess`."""
        _require()
        network = graphs.module_of(subject.estimator)
        if network is not None:
            return _with_devices(("float32", "int8"), subject.settings.device)
        order_of(subject.estimator, subject.spec)  # a classifier without probabilities ends here
        if type(graphs.last_step(subject.estimator)).__name__.startswith("MLP"):
            return _with_devices(("float32", "float64", "int8"), subject.settings.device)
        return ("float64", "float32")

    def prepare(self, subject: Subject, variant: str, folder: Path) -> None:
        """See `Backend.prepare`."""
        _require()
        precision, _, device = variant.partition("@")
        more: dict[str, Any]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converters' deprecations are not the user's
            if graphs.module_of(subject.estimator) is not None:
                data, more = graphs.from_torch(subject)
            elif precision == "float64":
                data, more, program = graphs.in_double(subject)
                if program is not None:
                    (folder / STEPS).write_bytes(msgspec.json.encode(program))
            else:
                data, more = graphs.whole(subject)
            if precision == "int8":
                data = graphs.quantised(data)
        (folder / GRAPH).write_bytes(data)
        interpreter = Interpreter(
            backend="onnx", variant=variant, device=device or "cpu", more=more
        )
        write_interpreter(folder, interpreter)

    def load(self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> OnnxModel:
        """See `Backend.load`; a graph holds no code, whatever `trust_pickle` says."""
        interpreter = read_interpreter(folder)
        program = None
        if (folder / STEPS).is_file():
            program = msgspec.json.decode((folder / STEPS).read_bytes(), type=steps.Program)
        return OnnxModel(_session(folder, interpreter.device, threads), spec, interpreter, program)


class OnnxModel(Counting):
    """A graph in a session."""

    def __init__(
        self,
        session: Any,
        spec: ModelSpec,
        interpreter: Interpreter,
        program: steps.Program | None,
    ) -> None:
        super().__init__()
        self._session, self._spec, self._program = session, spec, program
        self.device = interpreter.device
        more = interpreter.more
        self._order: Order = more["order"]
        self._output = [str(more["output"])]
        self._names: list[str] = more["names"]  # of the graph's inputs: one, or one per column
        self._dtype = np.dtype(more["dtype"])
        self._size = int(more["bytes"])

    def _infer(self, columns: Columns) -> Outputs:
        return outputs_of(
            self._spec, self._session.run(self._output, self._feed(columns))[0], self._order
        )

    def _feed(self, columns: Columns) -> dict[str, np.ndarray]:
        if self._program is not None:
            matrix = steps.run(self._program, columns)
            return {self._names[0]: matrix.astype(self._dtype, copy=False)}
        if len(self._names) == 1 and len(self._spec.features) > 1:
            return {self._names[0]: _matrix(self._spec, columns, self._dtype)}
        return {
            name: _column(columns[feature.name], feature.kind, self._dtype)
            for name, feature in zip(self._names, self._spec.features, strict=True)
        }

    def _bytes(self) -> tuple[int, int]:
        return (self._size, 0) if self.device == "cpu" else (0, self._size)

    def _release(self) -> None:
        self._session = None


def _matrix(spec: ModelSpec, columns: Columns, dtype: np.dtype[Any]) -> np.ndarray:
    whole = getattr(columns, "matrix", None)
    if whole is not None:
        return np.asarray(whole.astype(dtype, copy=False))
    first = columns[spec.features[0].name]
    matrix = np.empty((len(first), len(spec.features)), dtype=dtype)
    for index, feature in enumerate(spec.features):
        matrix[:, index] = columns[feature.name]
    return matrix


def _column(values: np.ndarray, kind: str, dtype: np.dtype[Any]) -> np.ndarray:
    if kind != "categorical":
        return values.astype(dtype, copy=False).reshape(-1, 1)
    texts = ["" if value is None else value for value in values.tolist()]
    return np.array(texts, dtype=object).reshape(-1, 1)


def _session(folder: Path, device: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise NotApplicable("install shelflife[onnx]") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that spins while it waits for the next request takes a processor from everyone.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        wanted = _PROVIDERS[device]
        if wanted not in onnxruntime.get_available_providers():
            raise NotApplicable(f"this ONNX Runtime has no {wanted}; install onnxruntime-gpu")
        providers.insert(0, wanted)
    return onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=providers)


def _require() -> None:
    missing = [
        name
        for name in ("onnxruntime", "onnx", "skl2onnx")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise NotApplicable(f"install shelflife[onnx]: {', '.join(missing)} is not here")


def _with_devices(precisions: tuple[str, ...], device: str) -> tuple[str, ...]:
    import onnxruntime

    found = onnxruntime.get_available_providers()
    there = [name for name, provider in _PROVIDERS.items() if provider in found]
    gpu = [f"float32@{name}" for name in there if device != "cpu"]
    return (*(() if device == "cuda" and gpu else precisions), *gpu)
