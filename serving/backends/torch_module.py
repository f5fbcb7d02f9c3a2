"""A PyTorch module, exported at preparation, in the precision and on the device of its variant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UntrustedArtifact
from core.spec import ModelSpec
from serving.backend import Columns, Counting, Outputs
from serving.backends.cuda import Graphs, Lane
from serving.backends.heads import Order, outputs_of

_DTYPES = {
    "float32": torch.float32,
    "compiled": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_module(
    path: Path, spec: ModelSpec, order: Order, precision: str, device: str, *, urgent: bool = False
) -> TorchModel:
    """The exported module in `path`.

    Raises:
        UntrustedArtifact: not one that torch wrote.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch.export
            module = torch.export.load(path).module()
    except Exception as error:  # a damaged archive makes torch raise anything
        raise UntrustedArtifact(f"{path.name} is no exported program: {error}") from None
    return TorchModel(module, spec, order, precision, device, urgent=urgent)


class TorchModel(Counting):
    """A module that takes the features as one matrix."""

    def __init__(
        self,
        module: Any,
        spec: ModelSpec,
        order: Order,
        precision: str,
        device: str,
        *,
        urgent: bool = False,
    ) -> None:
        super().__init__()
        self._spec, self._order, self.device = spec, order, device
        self._dtype = _DTYPES[precision]
        self._lane = Lane(device, urgent=urgent)
        self._module: Any = module.to(device=device, dtype=self._dtype)
        tensors = [*module.parameters(), *module.buffers()]
        self._held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._answer: Any = torch.compile(self._module) if precision == "compiled" else self._module
        if device != "cpu" and precision != "compiled":
            self._answer = Graphs(self._module, inputs=len(spec.features), dtype=self._dtype)

    def _infer(self, columns: Columns) -> Outputs:
        matrix = self._matrix(columns)
        with torch.inference_mode(), self._lane():
            tensor = torch.from_numpy(matrix).to(device=self.device, dtype=self._dtype)
            # A batch of one is a shape of its own to torch.export.
            alone = len(tensor) == 1
            found = self._answer(torch.cat([tensor, tensor]) if alone else tensor)
            found = (found[:1] if alone else found).to("cpu", torch.float64).numpy()
        return outputs_of(self._spec, found, self._order)

    def _matrix(self, columns: Columns) -> np.ndarray:
        whole = getattr(columns, "matrix", None)
        if whole is not None:
            return np.array(whole, dtype=np.float32)
        names = self._spec.columns
        matrix = np.empty((len(columns[names[0]]), len(names)), dtype=np.float32)
        for index, name in enumerate(names):
            matrix[:, index] = columns[name]
        return matrix

    def _bytes(self) -> tuple[int, int]:
        return (self._held, 0) if self.device == "cpu" else (0, self._held)

    def _release(self) -> None:
        self._module = self._answer = None
        if self.device != "cpu":
            torch.cuda.empty_cache()
