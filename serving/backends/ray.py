"""Ray Serve: replicas on a cluster, fractional GPUs, and many models multiplexed on few replicas.

Each version is an application of its own (`serve.run`), started, warmed, asked through its handle,
deleted. With `serving.ray.multiplex` the versions share one application, whose replicas hold so
many of them and fetch the others when they are asked. The files travel through Ray's object store,
so that a cluster needs shelflife installed and no shared disk.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import UntrustedArtifact
from core.spec import ModelSpec
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
from serving.backends.heads import read_interpreter, write_interpreter

INNER = "inner"
_SHARED = "shelflife-models"  # the application that multiplexed versions share
_PATIENCE_S = 60.0

Files = dict[str, bytes]


class Ray:
    """Models on Ray Serve."""

    def capabilities(self) -> Capabilities:
        """See `Backend.capabilities`."""
        there = importlib.util.find_spec("ray") is not None
        return Capabilities(
            name="ray",
            devices=("cpu", "cuda"),
            variants=("replicas", "multiplexed"),
            extra="ray",
            missing="" if there else "install shelflife[ray]",
        )

    def assess(self, subject: Subject) -> tuple[str, ...]:
        """See `Backend.assess`."""
        return ("multiplexed" if subject.settings.ray.multiplex else "replicas",)

    def prepare(self, subject: Subject, variant: str, folder: Path) -> None:
        """See `Backend.prepare`."""
        from serving.backends.native import Native

        settings, native = subject.settings.ray, Native()
        inner = folder / INNER
        inner.mkdir()
        native.prepare(subject, native.assess(subject)[-1], inner)
        more = msgspec.to_builtins(settings)
        write_interpreter(folder, Interpreter(backend="ray", variant=variant, more=more))

    def load(self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> RayModel:
        """See `Backend.load`.

        Raises:
            NotApplicable: Ray is not installed, or no cluster answers.
            UntrustedArtifact: the replica would run code that nobody allowed.
        """
        if importlib.util.find_spec("ray") is None:
            raise NotApplicable("install shelflife[ray]")
        interpreter = read_interpreter(folder)
        _connect(str(interpreter.more["address"]))
        inner = folder / INNER
        files = {
            path.relative_to(inner).as_posix(): path.read_bytes()
            for path in sorted(inner.rglob("*"))
            if path.is_file()
        }
        return RayModel(files, spec, interpreter, threads, trust_pickle)


class Replica:
    """What runs on the cluster: one model, or the last few that were asked for."""

    def __init__(self, multiplex: int) -> None:
        self._multiplex = max(1, multiplex)
        self._models: dict[str, tuple[Any, Any]] = {}  # the oldest first

    def ask(self, key: str, start: Any, columns: dict[str, Any]) -> Any:
        """Outputs of a model; it is loaded from `start` if it is not here.

        Args:
            start: a list with one reference to (files, spec, threads, trust_pickle).
        """
        model = self._model(key, start)
        try:
            return {name: np.asarray(array) for name, array in model.infer(columns).items()}
        except ValueError as error:
            return str(error)  # values the model has no answer to: the caller's to hear

    def forget(self, key: str) -> bool:
        """Unload a model, if it is here."""
        held = self._models.pop(key, None)
        if held is not None:
            held[0].unload()
            held[1].cleanup()
        return held is not None

    def _model(self, key: str, start: Any) -> Any:
        held = self._models.pop(key, None)
        if held is None:
            while len(self._models) >= self._multiplex:
                self.forget(next(iter(self._models)))
            held = _materialised(start)
        self._models[key] = held
        return held[0]


def _materialised(start: Any) -> tuple[Any, Any]:
    import ray

    from serving.backends import load

    files, spec, threads, trust = ray.get(start[0])
    folder = tempfile.TemporaryDirectory(prefix="shelflife-ray-")
    for name, data in files.items():
        path = Path(folder.name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    decoded = msgspec.json.decode(spec, type=ModelSpec)
    model = load("native", Path(folder.name), decoded, threads=threads, trust_pickle=trust)
    return model, folder


class RayModel(Counting):
    """One version on the cluster."""

    def __init__(
        self,
        files: Files,
        spec: ModelSpec,
        interpreter: Interpreter,
        threads: int,
        trust_pickle: bool,
    ) -> None:
        import ray
        from ray import serve

        super().__init__()
        self._spec, self.device = spec, "ray"
        self._key = _key(files, spec)
        self._shared = interpreter.variant == "multiplexed"
        self.name = _SHARED if self._shared else f"{spec.name}-{self._key}"
        start = (files, msgspec.json.encode(spec), threads, trust_pickle)
        # Inside a list, so that Ray hands the reference on and each replica fetches it once.
        self._start: Any = [ray.put(start)]
        more = interpreter.more
        serve.start(proxy_location="Disabled")  # asked through handles; where it runs, it stays
        running = serve.status().applications
        if self._shared and self.name in running:
            self._handle: Any = serve.get_app_handle(self.name)
        else:
            deployment = serve.deployment(
                Replica,
                name="model",
                num_replicas=int(more["replicas"]),
                max_ongoing_requests=1,  # a model answers one caller at a time
                ray_actor_options={"num_cpus": more["cpus"], "num_gpus": more["gpus"]},
            )
            application = deployment.bind(int(more["multiplex"]))
            self._handle = serve.run(application, name=self.name, route_prefix=None)

    @property
    def blocks(self) -> bool:
        """It waits for the cluster."""
        return True

    def _infer(self, columns: Columns) -> Outputs:
        handle = self._handle
        if self._shared:  # asks the replica that has the model, where one has
            handle = handle.options(multiplexed_model_id=self._key)
        plain = {name: np.asarray(array) for name, array in columns.items()}
        try:
            response = handle.ask.remote(self._key, self._start, plain)
            found = response.result(timeout_s=_PATIENCE_S)
        except Exception as error:  # Ray wraps what the replica raised
            cause = getattr(error, "cause", None)
            if isinstance(cause, UntrustedArtifact) or "UntrustedArtifact" in str(error):
                raise UntrustedArtifact(_last_line(error)) from None
            raise ModelFailed(f"Ray: {_last_line(error)}") from None
        if isinstance(found, str):
            raise ValueError(found)
        return {name: np.asarray(found[name], dtype=np.float64) for name in self._spec.outputs}

    def _trouble(self) -> str:
        from ray import serve

        found = serve.status().applications.get(self.name)
        if found is None:
            return f"Ray Serve has no application {self.name}"
        return (
            "" if str(found.status.value) == "RUNNING" else f"{self.name} is {found.status.value}"
        )

    def _release(self) -> None:
        from ray import serve

        try:
            if self._shared:
                # One replica hears of it; another that holds the model evicts it in its turn.
                handle = self._handle.options(multiplexed_model_id=self._key)
                handle.forget.remote(self._key).result(timeout_s=_PATIENCE_S)
            else:
                serve.delete(self.name)
        except Exception:
            logging.getLogger("shelflife.serving").info("ray_gone", extra={"model": self.name})
        self._start = self._handle = None


def _connect(address: str) -> None:
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            ray.init(include_dashboard=False, namespace="shelflife", **options)
        else:
            ray.init(address=address, namespace="shelflife", **options)
    except (ConnectionError, RuntimeError) as error:
        raise NotApplicable(f"no Ray cluster at {address}: {error}") from None


def _key(files: Files, spec: ModelSpec) -> str:
    digest = hashlib.sha256(msgspec.json.encode(spec))
    for name, data in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__
