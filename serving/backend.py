"""What an interpreter must do to answer for a model: the one interface of `serving.backends`.

    Backend.capabilities()              what it can run, and how; what is missing on this machine
    Backend.assess(subject)             the variants in which it may run a model
    Backend.prepare(subject, …)         the estimator becomes files the interpreter opens
    Backend.load(folder, spec, …)       a prepared folder becomes a Model
    Model.infer(columns)                column arrays in, one float64 array per output back
    Model.stats() · health()            what it did, and whether it still can
    Model.unload()                      memory back; nothing is asked of it afterwards

`assess` and `prepare` run in the preparing subprocess only (`serving.interpreting`), `load` in the
workers. Columns come as arrays because a converted model takes them as they are; only `native` may
build a frame. A model is used by one thread at a time (`serving.batching` sees to that).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from msgspec import Struct

from core.errors import ShelflifeError
from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec

#: One array per input column, all of one length: float64 (missing: NaN) for numeric and nullable
#: integer or boolean features, int64, bool, or object (str or None) for categories.
Columns = Mapping[str, np.ndarray]
#: One float64 array of that length per name of `ModelSpec.outputs`.
Outputs = dict[str, np.ndarray]

#: Beside the files of a prepared interpreter: which variant they are (`Interpreter`).
INTERPRETER = "interpreter.json"


class ModelFailed(ShelflifeError):
    """The model raised on rows that fit its spec, or answered something that is not a number."""


class NotApplicable(ShelflifeError):
    """This interpreter cannot run this model here; the message says why, or what to install."""


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a backend can do on this machine."""

    name: str
    devices: tuple[str, ...] = ("cpu",)
    tasks: tuple[str, ...] = ("binary", "multiclass", "regression")
    exact: bool = True  # answers are the estimator's own, bit for bit
    variants: tuple[str, ...] = ()  # all it knows; `assess` says which of them suit a model
    extra: str = ""  # of shelflife's, that brings what it needs
    missing: str = ""  # what to install or configure first; empty: it can run


class ModelStats(Struct, frozen=True, kw_only=True):
    """What a loaded model did since it was loaded, and what it holds."""

    batches: int
    rows: int
    seconds: float  # spent inside the model
    host_bytes: int = 0  # an estimate of the memory its weights take
    device_bytes: int = 0  # the same on a GPU
    device: str = "cpu"


class Interpreter(Struct, frozen=True, kw_only=True):
    """Written beside a prepared model's files: what they are for."""

    backend: str
    variant: str
    device: str = "cpu"
    more: dict[str, Any] = {}  # the backend's own


class Subject(Struct, frozen=True, kw_only=True, eq=False):
    """A model to be prepared: its files, verified, and the estimator they hold."""

    spec: ModelSpec
    folder: Path  # of the files as registered
    estimator: Any
    trust_pickle: bool
    settings: InterpreterSettings
    sha256: str = ""  # of the files
    sample: Columns | None = None  # real rows, for conversions that trace


class Model(Protocol):
    """A loaded model."""

    def infer(self, columns: Columns) -> Outputs:
        """Predict every row.

        Raises:
            Exception: whatever the estimator raises; the caller decides whose fault it is.
        """
        ...

    def stats(self) -> ModelStats:
        """Counts since loading."""
        ...

    def health(self) -> str:
        """Empty when it can answer, otherwise why it cannot."""
        ...

    def unload(self) -> None:
        """Give its memory back; safe to call twice."""
        ...


class Backend(Protocol):
    """A kind of interpreter."""

    def capabilities(self) -> Capabilities:
        """What it can do on this machine; imports none of its engine."""
        ...

    def assess(self, subject: Subject) -> tuple[str, ...]:
        """The variants worth building for this model, the most promising first.

        Raises:
            NotApplicable: none, and why; or what to install.
        """
        ...

    def prepare(self, subject: Subject, variant: str, folder: Path) -> None:
        """Write what `load` opens into an empty folder; the same model gives the same bytes.

        Raises:
            NotApplicable: the model does not convert.
        """
        ...

    def load(self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> Model:
        """Load the model files in `folder`, whose hashes the caller has verified.

        Raises:
            UntrustedArtifact: loading it would run code that nobody allowed.
            NotApplicable: what it needs is not on this machine.
        """
        ...


def checked(outputs: Outputs, rows: int) -> Outputs:
    """The outputs, if there is one finite number per row in each.

    Raises:
        ModelFailed: there is not.
    """
    for name, array in outputs.items():
        if array.shape != (rows,):
            raise ModelFailed(f"{name}: the model answered shape {array.shape} to {rows} rows")
        finite = math.isfinite(array[0]) if rows == 1 else np.isfinite(array).all()
        if not finite:
            bad = array[~np.isfinite(array)][0]
            raise ModelFailed(f"{name}: the model answered {bad}; expected a finite number")
    return outputs


class Counting:
    """The counting half of a `Model`: subclasses answer in `_infer` and let go in `_release`."""

    device = "cpu"

    def __init__(self) -> None:
        self._batches, self._rows, self._seconds = 0, 0, 0.0
        self._gone = False

    def infer(self, columns: Columns) -> Outputs:
        """See `Model.infer`."""
        if self._gone:
            raise ModelFailed("the model is unloaded")
        started = perf_counter()
        outputs = self._infer(columns)
        self._batches += 1
        self._rows += len(next(iter(outputs.values()))) if outputs else 0
        self._seconds += perf_counter() - started
        return outputs

    def stats(self) -> ModelStats:
        """See `Model.stats`."""
        host, device = (0, 0) if self._gone else self._bytes()
        return ModelStats(
            batches=self._batches,
            rows=self._rows,
            seconds=self._seconds,
            host_bytes=host,
            device_bytes=device,
            device=self.device,
        )

    def health(self) -> str:
        """See `Model.health`."""
        return "unloaded" if self._gone else self._trouble()

    def unload(self) -> None:
        """See `Model.unload`."""
        if not self._gone:
            self._gone = True
            self._release()

    def _infer(self, columns: Columns) -> Outputs:
        raise NotImplementedError

    def memory(self) -> int:
        """Bytes the model holds on the host."""
        return self.stats().host_bytes

    @property
    def blocks(self) -> bool:
        """Whether `infer` waits for another process or machine."""
        return False

    def _bytes(self) -> tuple[int, int]:
        """Estimated bytes on the host and on the device."""
        return 0, 0

    def _trouble(self) -> str:
        return ""

    def _release(self) -> None:
        """Drop every reference to what takes memory."""
