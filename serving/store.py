"""The folder that the preparing process writes and the workers read.

    serving/pointers/<model>.json      what to serve now; replaced atomically
    serving/pointers/<model>.unloaded  an operator wants it out of memory (repository API)
    serving/store/<sha256>/            a prepared version, never changed
        manifest.json                  sha256 of every other file; its own sha256 names the folder
        spec.json                      core.spec.ModelSpec
        model/…                        the model files

So the pointer alone vouches for every byte a worker loads.
"""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from core.errors import UntrustedArtifact
from core.files import sha256_file, write_atomic
from core.spec import ModelSpec, Scalar
from core.times import iso

MODEL, SPEC, MANIFEST = "model", "spec.json", "manifest.json"
UNLOADED = ".unloaded"


class Target(Struct, frozen=True, kw_only=True):
    """A prepared version."""

    version: str
    folder: str  # its name in the store, the sha256 of its manifest
    backend: str
    sha256: str  # of the model files, as recorded at registration


class Pointer(Struct, frozen=True, kw_only=True):
    """What workers are to serve for one model, and what runs beside it."""

    champion: Target
    written: str
    challenger: Target | None = None
    mode: Literal["shadow", "canary"] = (
        "shadow"  # a copy of the requests, or a share of the answers
    )
    share: float = 0.0  # of the callers, by a hash of the prediction id; canary only


class Sample(Struct, frozen=True, kw_only=True):
    """Rows to warm a model with, and what the preparing process got for them."""

    inputs: dict[str, list[Scalar]]
    outputs: dict[str, list[float]]


class Manifest(Struct, frozen=True, kw_only=True):
    """What a prepared folder holds."""

    model: str
    backend: str
    sha256: str
    files: dict[str, str]  # relative name -> sha256
    sample: Sample | None = None


def pointers(home: Path) -> Path:
    """Where pointers lie."""
    return home / "serving" / "pointers"


def pointer_files(folder: Path) -> tuple[dict[str, tuple[int, int, int]], set[str]]:
    """The models that have a pointer, each with its file's inode, mtime and size, and those that
    are not to be loaded."""
    found, closed = {}, set[str]()
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return {}, closed
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.name.endswith(UNLOADED):
            closed.add(entry.name.removesuffix(UNLOADED))
        elif entry.name.endswith(".json"):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            found[entry.name[:-5]] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found, closed


def set_unloaded(home: Path, model: str, *, unloaded: bool) -> None:
    """Tell every worker to keep a model out of memory, or to load it again."""
    path = pointers(home) / f"{model}{UNLOADED}"
    if unloaded:
        write_atomic(path, b"")
    else:
        path.unlink(missing_ok=True)


def prepared(home: Path, folder: str) -> Path:
    """The prepared folder of that name."""
    return home / "serving" / "store" / folder


def read_pointer(path: Path) -> Pointer:
    """A pointer file.

    Raises:
        UntrustedArtifact: it is not a pointer, or its folder is no sha256 (a path, say).
    """
    try:
        pointer = msgspec.json.decode(path.read_bytes(), type=Pointer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UntrustedArtifact(f"{path}: {error}; expected a pointer") from None
    for target in (pointer.champion, pointer.challenger):
        folder = target.folder if target is not None else "0" * 64
        if len(folder) != 64 or not set(folder) <= set("0123456789abcdef"):
            raise UntrustedArtifact(f"{path}: folder is {folder!r}; expected a sha256 in hex")
    return pointer


def write_pointer(
    home: Path,
    model: str,
    target: Target,
    *,
    now: datetime,
    challenger: Target | None = None,
    mode: Literal["shadow", "canary"] = "shadow",
    share: float = 0.0,
) -> None:
    """Point a model's workers at a prepared version, and at the one that runs beside it."""
    pointer = Pointer(
        champion=target, written=iso(now), challenger=challenger, mode=mode, share=share
    )
    write_atomic(pointers(home) / f"{model}.json", msgspec.json.encode(pointer))


def verify(folder: Path) -> tuple[Manifest, ModelSpec]:
    """Check that a prepared folder is, byte for byte, what its name says.

    Raises:
        UntrustedArtifact: a file is missing, changed, added or a link.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UntrustedArtifact(f"{folder}: no {MANIFEST}; expected a prepared version")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != folder.name:
        raise UntrustedArtifact(f"{path}: its sha256 is not the folder's name")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise UntrustedArtifact(f"{path}: {error}; prepared by another version?") from None
    found = file_hashes(folder)
    if found != manifest.files:
        names = sorted(
            n for n in {*found, *manifest.files} if found.get(n) != manifest.files.get(n)
        )
        raise UntrustedArtifact(f"{folder}: {names} are not as the manifest recorded them")
    return manifest, read_spec(folder)


def read_spec(folder: Path) -> ModelSpec:
    """What the model of a prepared folder takes and answers."""
    return msgspec.json.decode((folder / SPEC).read_bytes(), type=ModelSpec)


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a prepared folder but the manifest, by relative name.

    Raises:
        UntrustedArtifact: a symbolic link, which could lead out of the folder.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UntrustedArtifact(f"{path} is a symbolic link; expected plain files")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            found[name] = sha256_file(path)
    return found
