"""The estimator itself, in process: what it was fitted as is what answers.

Variants: `frame` asks the whole pipeline with a DataFrame, as it was fitted, unless that would only
be a matrix with names to it; `columns` runs its preprocessing on the column arrays
(`serving.steps`) and asks the last step with a matrix.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

from core.frames import to_frame
from core.spec import ModelSpec
from serving import steps
from serving.backend import (
    INTERPRETER,
    Capabilities,
    Columns,
    Counting,
    Interpreter,
    NotApplicable,
    Outputs,
    Subject,
)
from serving.backends.heads import read_interpreter, write_interpreter


class Native:
    """What `registry.loading` can load: scikit-learn, XGBoost, LightGBM, PyTorch and others."""

    def capabilities(self) -> Capabilities:
        """See `Backend.capabilities`."""
        return Capabilities(name="native", variants=("frame", "columns"))

    def assess(self, subject: Subject) -> tuple[str, ...]:
        """See `Backend.assess`."""
        try:
            self._last(subject.estimator, subject.spec)
        except NotApplicable:
            return ("frame",)
        return ("frame", "columns")

    def prepare(self, subject: Subject, variant: str, folder: Path) -> None:
        """See `Backend.prepare`."""
        shutil.copytree(subject.folder, folder, dirs_exist_ok=True)
        if variant == "columns":
            self._last(subject.estimator, subject.spec)
            write_interpreter(folder, Interpreter(backend="native", variant=variant))

    def load(
        self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool
    ) -> NativeModel:
        """See `Backend.load`."""
        from registry.loading import load_estimator  # scikit-learn and pandas come with it

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Loading .*pickle", UserWarning)
            estimator = load_estimator(folder, trust_pickle=trust_pickle)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        program = None
        chosen = (folder / INTERPRETER).is_file() and read_interpreter(folder).variant == "columns"
        if chosen or _takes_a_matrix(estimator, spec):
            program, estimator = self._last(estimator, spec)
        return NativeModel(estimator, spec, threads, program, size)

    def _last(self, estimator: Any, spec: ModelSpec) -> tuple[steps.Program, Any]:
        from registry.loading import PyfuncEstimator

        if isinstance(estimator, PyfuncEstimator):
            raise NotApplicable("known only by its predict(frame)")
        program, last = steps.split(estimator, spec)
        # It was asked with names when it was fitted; scikit-learn warns at every row without them.
        if "feature_names_in_" in getattr(last, "__dict__", {}):
            import copy

            last = copy.copy(last)
            del last.feature_names_in_
        return program, last


def _takes_a_matrix(estimator: Any, spec: ModelSpec) -> bool:
    """Whether a frame is nothing to this estimator but a matrix of float64 with names.

    Then it need not be made: scikit-learn looks a frame's names and dtypes over at every call, for
    as long as a hundred trees take. An estimator inside another may choose its columns by name.
    """
    if type(estimator).__module__.partition(".")[0] not in ("sklearn", "lightgbm", "xgboost"):
        return False
    if any(feature.kind != "numeric" for feature in spec.features):
        return False
    nested = any("__" in name for name in estimator.get_params(deep=True))
    return not nested and getattr(estimator, "_preprocessor", None) is None


class NativeModel(Counting):
    """A loaded estimator."""

    def __init__(
        self,
        estimator: Any,
        spec: ModelSpec,
        threads: int,
        program: steps.Program | None = None,
        size: int = 0,
    ) -> None:
        super().__init__()
        self._estimator, self._spec, self._threads = estimator, spec, threads
        self._program, self._size = program, size
        self._capped = threading.local()

    def _infer(self, columns: Columns) -> Outputs:
        from registry.loading import answers, predict_array

        if not hasattr(self._capped, "limits"):
            self._cap()
        if self._program is None:
            matrix = predict_array(self._estimator, self._spec, to_frame(self._spec, columns))
        else:
            matrix = answers(self._estimator, self._spec, steps.run(self._program, columns))
        return {name: matrix[:, i] for i, name in enumerate(self._spec.outputs)}

    def _cap(self) -> None:
        # OpenMP keeps its number of threads per calling thread, so the cap is set from the thread
        # that predicts. Uncapped, one row of a boosted forest has a p99 of 10 ms instead of 0.55.
        from threadpoolctl import threadpool_limits

        self._capped.limits = threadpool_limits(limits=self._threads)

    def _bytes(self) -> tuple[int, int]:
        return self._size, 0

    def _release(self) -> None:
        self._estimator = None
