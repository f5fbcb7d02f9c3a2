"""The estimator itself, in process: what it was fitted as is what answers."""

from __future__ import annotations

import threading
from pathlib import Path
from time import perf_counter
from typing import Any

from core.frames import to_frame
from core.spec import ModelSpec
from serving.backend import Capabilities, Columns, ModelStats, Outputs


class Native:
    """Scikit-learn estimators, through `registry.loading`."""

    def capabilities(self) -> Capabilities:
        """See `Backend.capabilities`."""
        return Capabilities(name="native")

    def load(
        self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool
    ) -> NativeModel:
        """See `Backend.load`."""
        from registry.loading import load_estimator  # scikit-learn and pandas come with it

        return NativeModel(load_estimator(folder, trust_pickle=trust_pickle), spec, threads)


class NativeModel:
    """A loaded estimator."""

    def __init__(self, estimator: Any, spec: ModelSpec, threads: int) -> None:
        self._estimator, self._spec, self._threads = estimator, spec, threads
        self._capped = threading.local()
        self._batches, self._rows, self._seconds = 0, 0, 0.0

    def infer(self, columns: Columns) -> Outputs:
        """See `Model.infer`."""
        from registry.loading import predict_array

        if not hasattr(self._capped, "limits"):
            self._cap()
        started = perf_counter()
        matrix = predict_array(self._estimator, self._spec, to_frame(self._spec, columns))
        outputs = {name: matrix[:, i] for i, name in enumerate(self._spec.outputs)}
        self._batches, self._rows = self._batches + 1, self._rows + len(matrix)
        self._seconds += perf_counter() - started
        return outputs

    def _cap(self) -> None:
        # OpenMP keeps its number of threads per calling thread, so the cap is set from the thread
        # that predicts. Uncapped, one row of a boosted forest has a p99 of 10 ms instead of 0.55.
        from threadpoolctl import threadpool_limits

        self._capped.limits = threadpool_limits(limits=self._threads)

    def stats(self) -> ModelStats:
        """See `Model.stats`."""
        return ModelStats(batches=self._batches, rows=self._rows, seconds=self._seconds)

    def health(self) -> str:
        """See `Model.health`."""
        return "" if self._estimator is not None else "unloaded"

    def unload(self) -> None:
        """See `Model.unload`."""
        self._estimator = None
