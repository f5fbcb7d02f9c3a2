"""What Triton's Python backend runs: this file lies in a model's entry as `model.py`.

It loads the estimator beside it with shelflife's own loading, which opens skops files of the
allow-list, and pickles only where the entry says that an operator trusts this model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """See Triton's Python backend."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Load the model beside this file."""
        import triton_python_backend_utils as utils

        self._utils: Any = utils
        here = Path(__file__).resolve().parent
        root = (here / "root.txt").read_text()
        if root not in sys.path:
            sys.path.append(root)
        import msgspec

        from core.spec import ModelSpec
        from serving.backends import load

        self._spec = msgspec.json.decode((here / "spec.json").read_bytes(), type=ModelSpec)
        trusted = (here / "trusted").exists()
        self._model = load("native", here / "inner", self._spec, threads=1, trust_pickle=trusted)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request; together where they fit, alone where that raises."""
        columns = [self._columns(request) for request in requests]
        sizes = [len(next(iter(each.values()))) for each in columns]
        if len(columns) > 1:
            try:
                whole = {n: np.concatenate([each[n] for each in columns]) for n in columns[0]}
                outputs = self._model.infer(whole)
                ends = np.cumsum(sizes)
                return [
                    self._response({n: a[end - size : end] for n, a in outputs.items()})
                    for size, end in zip(sizes, ends, strict=True)
                ]
            except Exception:  # noqa: S110 - whose fault it is shows when each goes alone
                pass
        return [self._alone(each) for each in columns]

    def _alone(self, columns: dict[str, np.ndarray]) -> Any:
        try:
            return self._response(self._model.infer(columns))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            return self._utils.InferenceResponse([], self._utils.TritonError(text))

    def _columns(self, request: Any) -> dict[str, np.ndarray]:
        found = {}
        for feature in self._spec.features:
            tensor = self._utils.get_input_tensor_by_name(request, feature.name)
            # By DLPack: the stub of Triton 2.51 was compiled for NumPy 1, and the arrays it makes
            # itself have no strides under NumPy 2.
            array = np.from_dlpack(tensor)
            if feature.kind == "categorical":
                found[feature.name] = np.array([_text(row) for row in array], dtype=object)
                continue
            column = array.reshape(-1)
            whole = feature.kind == "boolean" and not feature.nullable
            found[feature.name] = column.astype(np.bool_) if whole else column.copy()
        return found

    def _response(self, outputs: dict[str, np.ndarray]) -> Any:
        tensors = []
        for name, array in outputs.items():
            column = np.array(array, dtype=np.float64).reshape(-1, 1)
            tensors.append(self._utils.Tensor.from_dlpack(name, column))
        return self._utils.InferenceResponse(tensors)

    def finalize(self) -> None:
        """Give the memory back."""
        self._model.unload()


def _text(row: np.ndarray) -> str | None:
    """A category from its bytes, a 1 and zeros; one that begins with 255 is missing."""
    data = row.tobytes().rstrip(b"\0")
    return None if data[:1] == b"\xff" else data[:-1].decode()
