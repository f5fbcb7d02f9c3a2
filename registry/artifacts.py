"""The files of a version: written as MLflow understands them, hashed, fetched and verified.

A version's identity is the SHA-256 over its model folder. It is recorded when the version is
registered, and a folder that does not match it is never opened.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError, NotFound, RegistryError, UntrustedArtifact
from core.files import sha256_tree, sync_folder
from core.spec import Kind, ModelSpec
from registry import loading
from registry.store import Store, translated

if TYPE_CHECKING:
    from registry.versions import Version

FOLDER = "shelflife"  # of the version's MLflow run: spec, baseline, reference, gate, …
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
# Added by some of MLflow's ways to download, so no part of what was registered.
_ADDED = ("registered_model_meta",)
_COLUMN: dict[Kind, str] = {
    "numeric": "double",
    "integer": "long",
    "categorical": "string",
    "boolean": "boolean",
}


def write_model(
    folder: Path, estimator: Any, spec: ModelSpec, *, description: Any, types: list[str] | None
) -> None:
    """Write an estimator as an MLflow model into a new folder.

    Args:
        description: the `mlflow.models.Model` that names the run and logged model it belongs to.
        types: what a skops file of it holds beyond skops's own list (only MLflow reads this, never
            our loading); None writes a cloudpickle.
    """
    loading.pyfunc()
    import mlflow.sklearn

    with translated(f"write the model {spec.name}"):
        mlflow.sklearn.save_model(
            estimator,
            str(folder),
            mlflow_model=description,
            serialization_format="cloudpickle" if types is None else "skops",
            skops_trusted_types=types,
            signature=signature(spec),
            # Without these MLflow infers them by loading the model in a new process: 7 s.
            pip_requirements=requirements(estimator, pickled=types is None),
        )


def signature(spec: ModelSpec) -> Any:
    """MLflow's signature of the model's inputs; nullable columns are optional."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    columns = [
        ColSpec(
            # An integer column with gaps reaches the model as floats (`core.frames`).
            "double" if feature.nullable and feature.kind != "categorical" else _COLUMN[kind],
            name=feature.name,
            required=not feature.nullable,
        )
        for feature in spec.features
        for kind in [feature.kind]
    ]
    return ModelSignature(inputs=Schema(columns))


def requirements(estimator: Any, *, pickled: bool) -> list[str]:
    """Pinned packages that loading the estimator takes."""
    names = {"scikit-learn", "numpy", "pandas", "scipy", "cloudpickle" if pickled else "skops"}
    root = type(estimator).__module__.partition(".")[0]
    if root != "sklearn":  # looking it up reads the metadata of every package: half a second
        names.update(importlib.metadata.packages_distributions().get(root, [])[:1])
    return [f"{name}=={importlib.metadata.version(name)}" for name in sorted(names)]


def sha256_model(folder: Path) -> str:
    """The SHA-256 of a model folder, without what MLflow adds to a downloaded one.

    Raises:
        UntrustedArtifact: it holds a symlink, which could lead anywhere.
    """
    for name in _ADDED:
        (folder / name).unlink(missing_ok=True)
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UntrustedArtifact(f"the model holds the symlink {path.name}; log it anew")
    return sha256_tree(folder)


def cached(cache: Path, sha256: str) -> Path:
    """The folder that a version with this hash has in the cache.

    Raises:
        UntrustedArtifact: not a SHA-256 (a tag is text anybody may write into MLflow).
    """
    if not _SHA256.match(sha256):
        raise UntrustedArtifact(f"recorded sha256 {sha256!r}: expected 64 hexadecimal digits")
    return cache / "models" / sha256


def fetch(store: Store, cache: Path, version: Version) -> Path:
    """The version's model folder in the cache, downloaded if it is not there, verified always.

    Raises:
        UntrustedArtifact: no hash was recorded, or the files do not match it.
        RegistryError: MLflow cannot give the files.
    """
    what = f"version {version.version} of {version.model}"
    if not version.sha256:
        raise UntrustedArtifact(
            f"{what} has no recorded sha256, so nobody vouched for its files; register it with "
            f"`shelflife register --mlflow models:/{version.model}/{version.version}`"
        )
    folder = cached(cache, version.sha256)
    if folder.is_dir():
        if sha256_model(folder) == version.sha256:
            return folder
        shutil.rmtree(folder)  # damaged on this disk; the registry has the original
    with staged(folder) as staging:
        with translated(f"find the files of {what}"):
            location = store.client.get_model_version_download_uri(version.model, version.version)
        store.download(location, staging)
        found = sha256_model(staging)
        if found != version.sha256:
            raise UntrustedArtifact(
                f"{what}: its files have sha256 {found}, recorded at registration was "
                f"{version.sha256}; they were changed since and are not loaded. Roll back, or "
                "register the changed files as a new version"
            )
    return folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A fresh folder that becomes `folder` when the block ends well, and vanishes otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}.", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        try:
            staging.rename(folder)
            sync_folder(folder.parent)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def attach(store: Store, run_id: str, name: str, data: bytes) -> None:
    """Keep a file beside the version, in `shelflife/` of its run.

    Raises:
        InputError: not a plain file name.
    """
    _check_name(name)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, name)
        path.write_bytes(data)
        with translated(f"store {FOLDER}/{name}"):
            store.client.log_artifact(run_id, str(path), FOLDER)


def read(store: Store, run_id: str, name: str) -> bytes:
    """A file kept beside the version.

    Raises:
        NotFound: there is none of this name.
    """
    _check_name(name)
    with tempfile.TemporaryDirectory() as work:
        try:
            with translated(f"read {FOLDER}/{name}"):
                found = store.client.download_artifacts(run_id, f"{FOLDER}/{name}", work)
        except RegistryError as error:
            code = getattr(error.__cause__, "error_code", "")
            if code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error.__cause__, FileNotFoundError):
                raise NotFound("file of this version", name, "it was never attached") from None
            raise
        return Path(found).read_bytes()


def _check_name(name: str) -> None:
    if not _FILE.match(name):
        raise InputError("file", name, "a plain file name: letters, digits, '.', '_' or '-'")
