"""Interpreters of models, one file each; `load` finds the one a pointer names.

Importing this package imports no engine: ONNX Runtime, PyTorch, Triton's client and Ray are
imported by the backend that is asked for them.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import NotFound
from core.spec import ModelSpec
from serving.backend import Backend, Model

#: In the order in which they are tried.
NAMES = ("native", "onnx", "torch", "triton", "ray")


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        NotFound: this shelflife has no such backend.
    """
    if name == "native":
        from serving.backends.native import Native

        return Native()
    if name == "onnx":
        from serving.backends.onnx import Onnx

        return Onnx()
    if name == "torch":
        from serving.backends.torch import Torch

        return Torch()
    if name == "triton":
        from serving.backends.triton import Triton

        return Triton()
    if name == "ray":
        from serving.backends.ray import Ray

        return Ray()
    raise NotFound("backend", name, f"there are {list(NAMES)}")


def load(name: str, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> Model:
    """Load the prepared model in `folder` with the backend of that name; see `Backend.load`."""
    return backend(name).load(folder, spec, threads=threads, trust_pickle=trust_pickle)
