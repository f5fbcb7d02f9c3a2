"""From MLflow's `champion` to what workers open: the preparing process's part of a swap.

`sync` is called at every poll. It fetches nothing while the champion is what the pointer says;
otherwise it makes the prepared folder (content-addressed, verified, its model loaded once to prove
that it answers) and then moves the pointer. Workers do the rest (`serving.swap`).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from core.errors import NotFound, ShelflifeError, UntrustedArtifact
from core.files import sha256_tree, sync_folder, write_atomic
from core.ledger import Ledger
from core.spec import Feature, Kind, ModelSpec, Scalar
from serving import backends, interpreters, store
from serving.backend import Model
from serving.columns import columns_of
from serving.heartbeat import Served, served_by, wall_clock
from serving.interpreters import Wanted
from serving.store import Manifest, Pointer, Sample, Target

if TYPE_CHECKING:
    import pandas as pd

    from registry.versions import Registry, Version

_SAMPLE_ROWS = 32  # of the reference, to warm workers and prove their answers
_POLL = 0.05  # seconds between looks at the workers' heartbeats


class Deployed(Struct, frozen=True, kw_only=True):
    """What a model's workers are told to serve."""

    model: str
    version: str
    sha256: str  # of the model files, as recorded at registration
    folder: str  # name of the prepared folder
    changed: bool  # whether this call moved the pointer's champion
    challenger: str = ""  # the version that runs beside it
    problem: str = ""  # why the version that should run beside it does not


class Beside(Struct, frozen=True, kw_only=True):
    """The version that is to run beside the champion."""

    version: str
    mode: Literal["shadow", "canary"]
    share: float = 0.0


def sync(
    registry: Registry,
    ledger: Ledger,
    home: Path,
    model: str,
    *,
    trust_pickle: bool,
    now: datetime,
    beside: Beside | None = None,
    wanted: Wanted | None = None,
    clock: Callable[[], datetime] = wall_clock,
) -> Deployed | None:
    """Make workers serve the champion; None (and no pointer) if the model has none.

    Idempotent, and safe to run in two processes at once: both write the same bytes. A prepared
    folder that a worker says it cannot load is looked at, and made again if it is damaged.

    Args:
        now: written into the pointer, for people.
        beside: what is to run beside the champion. One that cannot be prepared is left out and
            said so (`Deployed.problem`); the champion is served all the same.
        wanted: how the interpreter is chosen; None serves the estimator itself.
        clock: wall clock, the one of the workers' heartbeats.

    Raises:
        UntrustedArtifact: the model may not be loaded, or is not the one that was registered.
        ShelflifeError: the prepared model does not give its own answers again.
        RegistryError: MLflow did not answer.
    """
    path = store.pointers(home) / f"{model}.json"
    champion = registry.by_alias(model, "champion")
    if champion is None:
        path.unlink(missing_ok=True)
        return None
    pointer = _pointed_at(path)
    served = pointer.champion if pointer is not None else None
    target = _kept(ledger, home, model, served, champion, clock)
    if target is not None and not interpreters.as_wanted(home, model, target.version, wanted):
        target = None  # the operator changed serving.backend or the profile
    changed = target is None
    if target is None:
        target = prepare(registry, home, champion, trust_pickle=trust_pickle, wanted=wanted)
    second, problem = _second(
        registry, home, model, champion, beside, pointer, trust_pickle=trust_pickle, wanted=wanted
    )
    mode, share = (beside.mode, beside.share) if beside and second else ("shadow", 0.0)
    known = pointer is not None and (pointer.challenger, pointer.mode, pointer.share)
    if changed or known != (second, mode, share):
        store.write_pointer(home, model, target, now=now, challenger=second, mode=mode, share=share)
    done = _deployed(model, target, changed=changed)
    return msgspec.structs.replace(
        done, challenger=second.version if second else "", problem=problem
    )


def _kept(
    ledger: Ledger,
    home: Path,
    model: str,
    served: Target | None,
    champion: Version,
    clock: Callable[[], datetime],
) -> Target | None:
    """What the pointer says, where that is the champion and sound; None: prepare it."""
    wanted = (champion.version, champion.sha256)
    if served is None or (served.version, served.sha256) != wanted:
        return None
    refused = served_by(ledger, model, served.version, now=clock()).error
    return (
        served if _whole(store.prepared(home, served.folder), look_inside=bool(refused)) else None
    )


def _second(
    registry: Registry,
    home: Path,
    model: str,
    champion: Version,
    beside: Beside | None,
    pointer: Pointer | None,
    *,
    trust_pickle: bool,
    wanted: Wanted | None,
) -> tuple[Target | None, str]:
    """The prepared version that runs beside the champion, or why there is none."""
    if beside is None or beside.version == champion.version:
        return None, ""
    try:
        version = registry.get(model, beside.version)
        known = pointer.challenger if pointer is not None else None
        if (
            known is not None
            and (known.version, known.sha256) == (version.version, version.sha256)
            and _whole(store.prepared(home, known.folder), look_inside=False)
        ):
            return known, ""
        return prepare(registry, home, version, trust_pickle=trust_pickle, wanted=wanted), ""
    except ShelflifeError as error:
        return None, f"version {beside.version} cannot run beside the champion: {error}"


def prepare(
    registry: Registry,
    home: Path,
    version: Version,
    *,
    trust_pickle: bool,
    wanted: Wanted | None = None,
) -> Target:
    """Make a version's prepared folder, without serving it.

    Raises: see `sync`.
    """
    fetched = registry.fetch(version)
    spec = msgspec.json.decode(registry.file(version, store.SPEC), type=ModelSpec)
    reference = _complete(spec, _reference(registry, version))
    rows = _sample_inputs(spec, reference)
    root = store.prepared(home, "x").parent
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=root) as scratch:
        folder = Path(scratch) / "prepared"
        files = folder / store.MODEL
        _copy(fetched, files)
        if sha256_tree(files) != version.sha256:
            raise UntrustedArtifact(
                f"version {version.version} of {spec.name}: the copied files do not have the "
                f"recorded sha256 {version.sha256}; something changes {fetched}"
            )
        write_atomic(folder / store.SPEC, msgspec.json.encode(spec))
        chosen = interpreters.choose(
            home, files, spec, reference, rows, wanted,
            version=version.version, sha256=version.sha256, trust_pickle=trust_pickle,
        )  # fmt: skip
        name, sample = chosen.choice.backend, chosen.sample
        if chosen.files is not None:
            shutil.rmtree(files)
            _copy(chosen.files, files)
        else:
            loaded = backends.load(name, files, spec, threads=1, trust_pickle=trust_pickle)
            sample = _answers(loaded, spec, rows)
        if wanted is not None:
            interpreters.tell(registry, home, version, chosen.choice, measured=chosen.measured)
        manifest = Manifest(
            model=spec.name,
            backend=name,
            sha256=version.sha256,
            files=store.file_hashes(folder),
            sample=sample,
        )
        data = msgspec.json.encode(manifest, order="deterministic")
        write_atomic(folder / store.MANIFEST, data)
        final = store.prepared(home, hashlib.sha256(data).hexdigest())
        _put(folder, final)
    return Target(version=version.version, folder=final.name, backend=name, sha256=version.sha256)


def wait_served(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    timeout: timedelta,
    clock: Callable[[], datetime] = wall_clock,
) -> Served:
    """Wait until every live worker answers with `version`, or one says that it cannot.

    Args:
        timeout: longest wait; the answer then says who is missing (`ok` is False).
        clock: wall clock, the one of the workers' heartbeats.
    """
    end = monotonic() + timeout.total_seconds()
    while True:
        served = served_by(ledger, model, version, now=clock())
        if served.ok or served.error or monotonic() >= end:
            return served
        sleep(_POLL)


def _pointed_at(path: Path) -> Pointer | None:
    """A pointer that is there and whole."""
    try:
        return store.read_pointer(path)
    except (FileNotFoundError, ShelflifeError):
        return None


def _whole(folder: Path, *, look_inside: bool) -> bool:
    """Whether a prepared folder is there and, where a worker complained, undamaged."""
    if not look_inside:
        return (folder / store.MANIFEST).is_file()
    try:
        store.verify(folder)
    except (ShelflifeError, OSError):
        return False
    return True


def _deployed(model: str, target: Target, *, changed: bool) -> Deployed:
    return Deployed(
        model=model,
        version=target.version,
        sha256=target.sha256,
        folder=target.folder,
        changed=changed,
    )


def _reference(registry: Registry, version: Version) -> pd.DataFrame | None:
    import pandas as pd

    try:
        data = registry.file(version, "reference.parquet")
    except NotFound:
        return None
    return pd.read_parquet(io.BytesIO(data))


def _complete(spec: ModelSpec, reference: pd.DataFrame | None) -> pd.DataFrame | None:
    """The inputs of the reference rows that a caller could send; None where columns lack."""
    wanted = [f"in:{name}" for name in spec.columns]
    if reference is None or any(name not in reference for name in wanted):
        return None
    never_null = [f"in:{f.name}" for f in spec.features if not f.nullable]
    return reference[wanted].dropna(subset=never_null)


def _sample_inputs(
    spec: ModelSpec, reference: pd.DataFrame | None
) -> Mapping[str, list[Scalar]] | None:
    if reference is None:
        return None
    head = reference.head(_SAMPLE_ROWS)
    return {f.name: _values(f, head[f"in:{f.name}"]) for f in spec.features} if len(head) else None


def _values(feature: Feature, column: pd.Series) -> list[Scalar]:
    cast = _CASTS[feature.kind]
    values = column.astype(object).where(column.notna(), None)
    return [None if value is None else cast(value) for value in values]


_CASTS: Mapping[Kind, Callable[[Any], Scalar]] = {
    "numeric": float,
    "integer": int,
    "boolean": bool,
    "categorical": str,
}


def _answers(
    loaded: Model, spec: ModelSpec, rows: Mapping[str, list[Scalar]] | None
) -> Sample | None:
    """The estimator's answers to real rows, which every worker has to give again."""
    if rows is None:
        return None
    outputs = loaded.infer(columns_of(spec, rows))
    return Sample(
        inputs=dict(rows), outputs={name: array.tolist() for name, array in outputs.items()}
    )


def _copy(source: Path, target: Path) -> None:
    """The model files, hard-linked where the file system allows it."""
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place, follow_symlinks=False)
        except OSError:
            shutil.copyfile(path, place)


def _put(folder: Path, final: Path) -> None:
    """Move a folder to its content's name; one that is there already, and sound, stays."""
    try:
        store.verify(final)
    except (ShelflifeError, OSError):
        if final.exists():
            shutil.rmtree(final)
        for path in folder.rglob("*"):
            _sync_file(path)
        folder.replace(final)
        sync_folder(final.parent)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
