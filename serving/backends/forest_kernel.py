"""A forest in one fused kernel, written in the Triton language (the compiler, not the server).

The tensor walk (`serving.backends.forest_torch`) writes every intermediate (rows × trees) to the
GPU's memory, once per level; here a program keeps its block of rows in registers while it walks
tree after tree, and writes one sum per row. What is left to move is the input, the answer, and the
nodes, which stay in cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from serving.backends.forest_torch import ForestTensors

_BLOCK = 128  # rows per program


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]
    matrix, feature, threshold, children, missing, value, roots, target, result,
    rows, width, first, last, outputs,
    DEPTH: tl.constexpr, STRICT: tl.constexpr, VECTOR: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    line = row.to(tl.int64) * width
    kind = tl.float64 if DOUBLE else tl.float32
    output = tl.program_id(1)  # one program per output and block of rows
    total = tl.zeros((BLOCK,), dtype=kind)
    for tree in range(first, last):
        root = tl.load(roots + tree)
        mine = VECTOR or tl.load(target + tree) == output
        if mine:
            node = tl.zeros((BLOCK,), dtype=tl.int64) + root
            for _ in range(DEPTH):
                x = tl.load(matrix + line + tl.load(feature + node), mask=inside, other=0.0)
                bound = tl.load(threshold + node)
                below = (x < bound) if STRICT else (x <= bound)
                below = tl.where(x != x, tl.load(missing + node) != 0, below)
                node = tl.load(children + 2 * node + below.to(tl.int64))
            column = output if VECTOR else 0
            total += tl.load(value + node * WIDTH + column)
    tl.store(result + row.to(tl.int64) * outputs + output, total, mask=inside)


class FusedForest:
    """The forest of some tensors, walked by the kernel."""

    def __init__(self, tensors: ForestTensors) -> None:
        self._tensors = tensors
        self._missing = tensors.missing.to(torch.int8)

    def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
        """Answers (rows, outputs) to inputs (rows, features) on the device."""
        held, forest = self._tensors, self._tensors.forest
        matrix = matrix.to(held.compared).contiguous()
        rows, outputs = len(matrix), forest.outputs
        result = torch.empty(rows, outputs, dtype=held.dtype, device=matrix.device)
        grid: Any = ((rows + _BLOCK - 1) // _BLOCK, outputs)
        _sums[grid](
            matrix, held.feature, held.threshold, held.children, self._missing, held.value,
            held.roots, held.target, result,
            rows, matrix.shape[1], 0, len(forest.roots), outputs,
            DEPTH=forest.depth, STRICT=forest.below == "<", VECTOR=bool(forest.target[0] < 0),
            WIDTH=forest.value.shape[1], BLOCK=_BLOCK, DOUBLE=held.dtype == torch.float64,
        )  # fmt: skip
        return held.linked(result)
