"""A forest as tensors: all rows walk all trees, one level at a time, on any torch device.

A walk of `depth` gathers costs the same for every row, whatever leaf it ends in; what does not fit
the memory budget at once goes in chunks. On a GPU small batches are replayed as CUDA graphs, and
the variant `kernel` replaces the walk by one fused kernel (`serving.backends.forest_kernel`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from core.spec import ModelSpec
from serving import steps
from serving.backend import Columns, Counting, Outputs
from serving.backends.cuda import Graphs, Lane
from serving.backends.forest import Forest
from serving.backends.heads import Order, outputs_of

_AT_ONCE = 1 << 22  # rows × trees walked together: about 100 MB of intermediate tensors


class ForestTensors:
    """The arrays of a forest on a device, and the walk over them.

    Args:
        dtype: of thresholds, inputs and sums. In the precision of the library's own thresholds the
            walk ends in the library's own leaves.
    """

    def __init__(self, forest: Forest, dtype: torch.dtype, device: str) -> None:
        self.forest, self.dtype, self.device = forest, dtype, torch.device(device)
        single = forest.threshold.dtype == np.float32  # the library compares in single precision
        self.compared = torch.float32 if single else dtype
        self.feature = self._put(forest.feature, torch.int64)
        self.threshold = self._put(forest.threshold, self.compared)
        self.children = self._put(forest.children.ravel(), torch.int64)
        self.missing = self._put(forest.missing_below, torch.bool)
        self.value = self._put(forest.value, dtype)
        self.roots = self._put(forest.roots, torch.int64)
        self.target = self._put(np.maximum(forest.target, 0), torch.int64)
        self.base = self._put(forest.base, dtype)

    def _put(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        held = (self.feature, self.threshold, self.children, self.missing, self.value, self.roots)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
        """Answers (rows, outputs) to inputs (rows, features) on the device."""
        rows = max(1, _AT_ONCE // len(self.forest.roots))
        if len(matrix) <= rows:
            return self._answer(matrix)
        return torch.cat([self._answer(part) for part in matrix.split(rows)])

    def _answer(self, matrix: torch.Tensor) -> torch.Tensor:
        leaves = self.value[self._walk(matrix.to(self.compared))]  # rows, trees, width
        return self.linked(self._sums(leaves))

    def _walk(self, matrix: torch.Tensor) -> torch.Tensor:
        node = self.roots.expand(len(matrix), -1)
        for _ in range(self.forest.depth):
            x = matrix.gather(1, self.feature[node])
            threshold = self.threshold[node]
            below = x < threshold if self.forest.below == "<" else x <= threshold
            below = torch.where(torch.isnan(x), self.missing[node], below)
            node = self.children[2 * node + below]
        return node

    def _sums(self, leaves: torch.Tensor) -> torch.Tensor:
        if self.forest.outputs == 1 or self.forest.target[0] < 0:
            return leaves.sum(dim=1)
        zeros = torch.zeros(len(leaves), self.forest.outputs, dtype=self.dtype, device=self.device)
        return zeros.index_add_(1, self.target, leaves[:, :, 0])

    def linked(self, total: torch.Tensor) -> torch.Tensor:
        """Sums over trees to answers."""
        if self.forest.average:
            total = total / len(self.forest.roots)
        total = total + self.base
        if self.forest.link == "sigmoid":
            return torch.sigmoid(total)
        if self.forest.link == "softmax":
            return torch.softmax(total, dim=1)
        return torch.exp(total) if self.forest.link == "exponential" else total


class ForestModel(Counting):
    """Preprocessing by a program, trees by tensors."""

    def __init__(
        self,
        forest: Forest,
        program: steps.Program,
        spec: ModelSpec,
        order: Order,
        variant: str,
        device: str,
        *,
        urgent: bool = False,
    ) -> None:
        super().__init__()
        self._spec, self._program, self._order, self.device = spec, program, order, device
        dtype = torch.float32 if variant == "float32" else torch.float64
        self._tensors: ForestTensors | None = ForestTensors(forest, dtype, device)
        answer: Any = self._tensors
        if variant == "kernel":
            from serving.backends.forest_kernel import FusedForest

            answer = FusedForest(self._tensors)
        self._answer: Any = answer
        if device != "cpu":
            width = max(1, len(program.columns))
            self._answer = Graphs(answer, inputs=forest.inputs or width, dtype=torch.float64)
        self._held = self._tensors.nbytes
        self._lane = Lane(device, urgent=urgent)

    def _infer(self, columns: Columns) -> Outputs:
        matrix = np.ascontiguousarray(steps.run(self._program, columns))
        if not matrix.flags.writeable:
            matrix = matrix.copy()
        with torch.inference_mode(), self._lane():
            found = self._answer(torch.from_numpy(matrix).to(self.device)).cpu().numpy()
        return outputs_of(self._spec, found, self._order)

    def _bytes(self) -> tuple[int, int]:
        return (self._held, 0) if self.device == "cpu" else (0, self._held)

    def _release(self) -> None:
        self._tensors = self._answer = None
        if self.device != "cpu":
            torch.cuda.empty_cache()
