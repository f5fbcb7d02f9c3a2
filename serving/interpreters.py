"""Choosing a model's interpreter, seen from the preparing process: a subprocess, and a cache.

A choice is measured once per model file, spec, settings and set of library versions. What it found
stays in `serving/converted/<key>/` of the home folder: a lost prepared folder is made again from
it, byte for byte, without measuring anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from core.errors import ShelflifeError, UntrustedArtifact
from core.files import write_atomic
from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec, Scalar
from core.times import duration
from serving.choice import Choice, read, write
from serving.interpreting import Job, Result
from serving.store import Sample

if TYPE_CHECKING:
    import pandas as pd

    from registry.versions import Registry, Version

_log = logging.getLogger("shelflife.serving")
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_LIBRARIES = (
    "scikit-learn", "numpy", "onnxruntime", "skl2onnx", "torch", "treelite", "xgboost",
    "xgboost-cpu", "lightgbm", "tritonclient", "ray",
)  # fmt: skip
_FORMAT = 1  # of what is cached; a change makes every choice anew


class Wanted(Struct, frozen=True, kw_only=True):
    """How interpreters are chosen for one model."""

    settings: InterpreterSettings
    threads: int = 1
    budget_ms: float = 50.0


class Interpreted(Struct, frozen=True, kw_only=True):
    """The outcome for one version."""

    choice: Choice
    files: Path | None = None  # what the interpreter opens; None: the registered files themselves
    sample: Sample | None = None  # with `files`
    measured: bool = False  # now, not at an earlier preparation


def choose(
    home: Path,
    model: Path,
    spec: ModelSpec,
    reference: pd.DataFrame | None,
    sample: Mapping[str, list[Scalar]] | None,
    wanted: Wanted | None,
    *,
    version: str,
    sha256: str,
    trust_pickle: bool,
) -> Interpreted:
    """The interpreter of a version; the estimator itself where nothing can or need be measured.

    Measuring that fails or takes too long does not keep a version from being served: then its
    estimator serves it, and the choice says why. A model whose pickles are trusted goes to the
    subprocess wherever there are rows to ask it, because there its code finds nothing to take.

    Args:
        model: its files, verified.
        reference: the complete real rows, columns `in:<name>`, if there are any.
        sample: rows of them that every worker will have to answer alike.
        wanted: None asks for the estimator itself.

    Raises:
        UntrustedArtifact: loading the model would run what nobody allowed.
        ShelflifeError: a trusted pickle cannot be loaded or measured.
    """
    rows = 0 if reference is None else len(reference)
    if wanted is None:
        return _itself(spec, version, Wanted(settings=InterpreterSettings()), "")
    proof = wanted.settings.proof_rows
    if reference is None or sample is None or not rows:
        return _itself(spec, version, wanted, "the baseline has no complete row")
    if not trust_pickle and wanted.settings.backend == "native":
        return _itself(spec, version, wanted, "the estimator itself was asked for")
    if not trust_pickle and rows < proof:
        reason = (
            f"{rows} complete rows in the baseline, {proof} would prove another interpreter "
            "(serving.proof_rows)"
        )
        return _itself(spec, version, wanted, reason)
    try:
        return interpret(
            home, model, spec, reference, sample, wanted,
            version=version, sha256=sha256, trust_pickle=trust_pickle,
        )  # fmt: skip
    except UntrustedArtifact:
        raise
    except ShelflifeError as error:
        if trust_pickle:
            raise
        _log.warning("interpreter_not_chosen", extra={"model": spec.name, "error": str(error)})
        return _itself(spec, version, wanted, f"nothing was measured: {error}")


def _itself(spec: ModelSpec, version: str, wanted: Wanted, reason: str) -> Interpreted:
    settings = wanted.settings
    return Interpreted(
        choice=Choice(
            model=spec.name,
            version=version,
            backend="native",
            variant="frame",
            reason=reason,
            profile=settings.profile,
            asked=settings.backend,
            budget_ms=wanted.budget_ms,
            tolerance=settings.tolerance,
            rows=0,
            candidates=(),
        )
    )


def interpret(
    home: Path,
    model: Path,
    spec: ModelSpec,
    reference: pd.DataFrame,
    sample: Mapping[str, list[Scalar]],
    wanted: Wanted,
    *,
    version: str,
    sha256: str,
    trust_pickle: bool,
) -> Interpreted:
    """Measure a version, or find what was measured for the same files and settings; see `choose`.

    Raises:
        UntrustedArtifact: loading the model would run what nobody allowed.
        ShelflifeError: it cannot be loaded or measured.
    """
    settings = wanted.settings
    if len(reference) < settings.proof_rows:
        settings = msgspec.structs.replace(settings, backend="native")
    job = Job(
        model=spec.name,
        version=version,
        sha256=sha256,
        spec=spec,
        settings=settings,
        trust_pickle=trust_pickle,
        threads=wanted.threads,
        budget_ms=wanted.budget_ms,
        sample=dict(sample),
    )
    root = home / "serving" / "converted"
    root.mkdir(parents=True, exist_ok=True)
    final = root / _key(job)
    known = _kept(final)
    if known is None:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=root) as scratch:
            _measure(Path(scratch), model, reference, job, duration(settings.choose_within))
            known = _keep(Path(scratch), final)
            measured = True
    else:
        measured = False
    assert known.choice is not None  # noqa: S101 - `_measure` refuses a result without one
    assert known.sample is not None  # noqa: S101
    choice = msgspec.structs.replace(known.choice, version=version, asked=wanted.settings.backend)
    return Interpreted(
        files=final / "model",
        sample=known.sample,
        choice=choice,
        measured=measured,
    )


def as_wanted(home: Path, model: str, version: str, wanted: Wanted | None) -> bool:
    """Whether what a version was prepared with is what the settings ask for now."""
    table = read(home, model, version)
    if wanted is None or table is None:
        return True
    settings = wanted.settings
    return (table.asked, table.profile) == (settings.backend, settings.profile)


def tell(
    registry: Registry, home: Path, version: Version, choice: Choice, *, measured: bool
) -> None:
    """Keep the table of a version, here and in MLflow; serving does not depend on the latter."""
    write(home, choice)
    taken = choice.chosen
    if taken is None or (not measured and "shelflife.interpreter" in version.tags):
        return
    p99 = f"{taken.timings[0].p99_ms:.4g}" if taken.timings else None
    try:
        registry.attach(version, "interpreters.json", msgspec.json.encode(choice))
        registry.tag(version, interpreter=taken.name, interpreter_p99_ms=p99)
    except ShelflifeError as error:
        _log.warning(
            "interpreters_not_recorded", extra={"model": version.model, "error": str(error)}
        )


def _measure(scratch: Path, model: Path, reference: pd.DataFrame, job: Job, within: object) -> None:
    """Run the subprocess in a scratch folder."""
    shutil.copytree(model, scratch / "model")
    reference.to_parquet(scratch / "rows.parquet", index=False)
    (scratch / "job.json").write_bytes(msgspec.json.encode(job))
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    threads = str(job.threads)
    environment = passed | {
        "PYTHONPATH": paths,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": threads,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-P", "-m", "serving.interpreting", str(scratch), str(os.getpid())]
    seconds = within.total_seconds()  # type: ignore[attr-defined]
    with (scratch / "log").open("wb") as log:
        try:
            subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=seconds, check=False, cwd=scratch,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ShelflifeError(
                f"choosing an interpreter took longer than {seconds:g} s "
                "(serving.choose_within); raise it, or set serving.backend"
            ) from None
    path = scratch / "result.json"
    if not path.is_file():
        tail = (scratch / "log").read_text(errors="replace").strip()[-400:]
        raise ShelflifeError(f"the preparing process ended without a result: {tail}")
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    if result.untrusted:
        raise UntrustedArtifact(result.error)
    if result.choice is None:
        raise ShelflifeError(result.error)


def _keep(scratch: Path, final: Path) -> Result:
    result = msgspec.json.decode((scratch / "result.json").read_bytes(), type=Result)
    staging = scratch / "keep"
    staging.mkdir()
    (scratch / "built" / result.built).rename(staging / "model")
    write_atomic(staging / "result.json", msgspec.json.encode(result))
    try:
        staging.rename(final)
    except OSError:  # another process was first: one of the two choices holds, for both
        kept = _kept(final)
        if kept is None:
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
            return result
        return kept
    return result


def _kept(final: Path) -> Result | None:
    try:
        result = msgspec.json.decode((final / "result.json").read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError):
        return None
    return result if result.choice is not None and (final / "model").is_dir() else None


def _key(job: Job) -> str:
    """What a choice depends on, as a name."""
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    parts = [
        _FORMAT,
        msgspec.structs.replace(job, version=""),
        versions,
        [platform.machine(), os.cpu_count(), sys.version, Path("/dev/nvidiactl").exists()],
    ]
    data = msgspec.json.encode(parts, order="deterministic")
    return hashlib.sha256(data).hexdigest()
