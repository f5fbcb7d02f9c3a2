"""What an interpreter must do to answer for a model: the one interface of `serving.backends`.

    Backend.capabilities()            what it can run, and how
    Backend.load(folder, spec, …)     a prepared folder becomes a Model
    Model.infer(columns)              column arrays in, one float64 array per output back
    Model.stats() · health()          what it did, and whether it still can
    Model.unload()                    memory back; nothing is asked of it afterwards

Columns come as arrays because a converted model takes them as they are; only `native` builds a
frame. A model is used by one thread at a time (`serving.batching` sees to that).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec import Struct

from core.errors import ShelflifeError
from core.spec import ModelSpec

#: One array per input column, all of one length: float64 (missing: NaN) for numeric and nullable
#: integer or boolean features, int64, bool, or object (str or None) for categories.
Columns = Mapping[str, np.ndarray]
#: One float64 array of that length per name of `ModelSpec.outputs`.
Outputs = dict[str, np.ndarray]


class ModelFailed(ShelflifeError):
    """The model raised on rows that fit its spec, or answered something that is not a number."""


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a backend can do."""

    name: str
    devices: tuple[str, ...] = ("cpu",)
    tasks: tuple[str, ...] = ("binary", "multiclass", "regression")
    exact: bool = True  # answers are the estimator's own, bit for bit


class ModelStats(Struct, frozen=True, kw_only=True):
    """What a loaded model did since it was loaded."""

    batches: int
    rows: int
    seconds: float  # spent inside the model


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
        """What it can do on this machine."""
        ...

    def load(self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> Model:
        """Load the model files in `folder`, whose hashes the caller has verified.

        Raises:
            UntrustedArtifact: loading it would run code that nobody allowed.
        """
        ...
