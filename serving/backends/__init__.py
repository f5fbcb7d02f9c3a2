"""Interpreters of models, one file each; `load` finds the one a pointer names."""

from __future__ import annotations

from pathlib import Path

from core.errors import NotFound
from core.spec import ModelSpec
from serving.backend import Backend, Model

NAMES = ("native",)


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        NotFound: this shelflife has no such backend.
    """
    if name == "native":
        from serving.backends.native import Native

        return Native()
    raise NotFound("backend", name, f"there are {list(NAMES)}")


def load(name: str, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> Model:
    """Load the prepared model in `folder` with the backend of that name; see `Backend.load`."""
    return backend(name).load(folder, spec, threads=threads, trust_pickle=trust_pickle)
