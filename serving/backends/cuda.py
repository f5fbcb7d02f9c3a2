"""Models that share a GPU: a stream each, and small batches as CUDA graphs.

Small batches are captured once as CUDA graphs, padded to a power of two, and replayed.

A tree ensemble walks its levels in hundreds of tiny kernels; launched one by one they cost far more
than they compute. A replay is a single launch. Only for CUDA devices; nothing here runs without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

_LARGEST = 1024  # rows; larger batches keep the device busy without help
_WARM_UPS = 3  # runs before a capture, as torch asks for


class Lane:
    """A model's own stream, so that models of several threads overlap on the device.

    Args:
        urgent: its kernels go before those of other streams that wait (the `latency` profile).
    """

    def __init__(self, device: str, *, urgent: bool) -> None:
        # CUDA's lower number is the higher priority.
        self._stream: Any = (
            torch.cuda.Stream(device, priority=-1 if urgent else 0) if device != "cpu" else None
        )

    def __call__(self) -> AbstractContextManager[Any]:
        """Run a block on the stream; nothing on a processor."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class _Captured(NamedTuple):
    graph: Any
    inputs: torch.Tensor
    outputs: torch.Tensor


class Graphs:
    """A function of one tensor (rows, inputs), replayed where the batch is small.

    Args:
        function: runs on the device without waiting for the host and without shapes that depend
            on values.
        inputs: columns of its argument.
        dtype: of its argument.
    """

    def __init__(
        self, function: Callable[[torch.Tensor], torch.Tensor], *, inputs: int, dtype: torch.dtype
    ) -> None:
        self._function, self._inputs, self._dtype = function, inputs, dtype
        self._captured: dict[int, _Captured] = {}
        self._stream = torch.cuda.Stream()
        self._usable = True

    def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
        """The function's answer; the caller reads it before the next call."""
        rows = len(matrix)
        if rows > _LARGEST or not rows or not self._usable:
            return self._function(matrix)
        size = 1 << (rows - 1).bit_length()
        captured = self._captured.get(size) or self._capture(size, matrix.device)
        if captured is None:
            return self._function(matrix)
        captured.inputs[:rows].copy_(matrix)
        captured.graph.replay()
        return captured.outputs[:rows]

    def _capture(self, size: int, device: torch.device) -> _Captured | None:
        inputs = torch.zeros(size, self._inputs, dtype=self._dtype, device=device)
        graph: Any = torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    self._function(inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            # Other models' threads go on allocating meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._function(inputs)
        except RuntimeError:  # an operator that cannot be captured: launched one by one, then
            self._usable = False
            torch.cuda.synchronize()
            return None
        self._captured[size] = _Captured(graph, inputs, outputs)
        return self._captured[size]
