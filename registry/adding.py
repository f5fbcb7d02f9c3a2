"""How a version comes to be: `Registry.add` (an estimator) and `Registry.adopt` (an MLflow model).

The order makes half a version impossible: run, model files, own files, metrics; then, in one
transaction of MLflow, the version with all its tags. Whatever breaks before leaves a run without a
version, which the next attempt with the same idempotency key uses again.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from core.errors import NotFound, RegistryError, UntrustedArtifact
from core.spec import ModelSpec, valid_name
from core.times import iso
from registry import artifacts, loading
from registry.store import Source, absent, translated
from registry.versions import (
    BASELINE_SHA256,
    CREATED,
    FILES_RUN,
    IDEMPOTENCY_KEY,
    MANAGED,
    SHA256,
    Registry,
    Version,
    sha256_bytes,
)


class Extra(NamedTuple):
    """What a version is registered with, besides the model."""

    files: Mapping[str, bytes]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    now: datetime
    key: str
    trust_pickle: bool


def add(registry: Registry, model: str, estimator: Any, spec: ModelSpec, extra: Extra) -> Version:
    """See `Registry.add`."""
    valid_name(model)
    with _one_at_a_time(registry.cache, model, extra.key):
        found = _only(registry, model, extra.key)
        return found or _add(registry, model, estimator, spec, extra)


def _add(registry: Registry, model: str, estimator: Any, spec: ModelSpec, extra: Extra) -> Version:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        types = _try_out(estimator, Path(work, loading.SKOPS_FILE), extra.trust_pickle)
        run_id = start_run(registry, model, extra.key)
        logged = _logged_model(registry, model, run_id)
        artifacts.write_model(
            folder, estimator, spec, description=_description(logged, run_id), types=types
        )
        sha256 = artifacts.sha256_model(folder)
        _upload(registry, logged, folder, run_id)
        _keep(registry, folder, sha256)
    _fill_run(registry, run_id, spec, extra, logged.model_id)
    source = Source(location=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
    return _register(registry, model, source, _identity(sha256, extra))


def adopt(
    registry: Registry, model: str, mlflow_uri: str, spec: ModelSpec, extra: Extra
) -> Version:
    """See `Registry.adopt`."""
    valid_name(model)
    source = registry.store.resolve(mlflow_uri)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        folder.mkdir()
        registry.store.download(source.location, folder)
        if not (folder / "MLmodel").is_file():
            raise NotFound("MLflow model", mlflow_uri, "there is no MLmodel file at its location")
        sha256 = artifacts.sha256_model(folder)
        loading.load_estimator(folder, trust_pickle=extra.trust_pickle)
        if source.name == model:
            return _take_over(registry, registry.get(model, source.version), sha256, spec, extra)
        extra = extra._replace(key=extra.key or f"adopted:{sha256}")
        found = registry.by_key(model, extra.key)
        if found is not None:
            return found
        # The files get a run of ours: the model's own may hold several models, or be locked.
        run_id = start_run(registry, model, extra.key)
        if source.local:
            logged = _logged_model(registry, model, run_id)
            _upload(registry, logged, folder, run_id)
            source = Source(
                location=logged.artifact_location, run_id=run_id, model_id=logged.model_id
            )
        _keep(registry, folder, sha256)
    _fill_run(registry, run_id, spec, extra, "")
    return _register(registry, model, source, {**_identity(sha256, extra), FILES_RUN: run_id})


def _try_out(estimator: Any, path: Path, trust_pickle: bool) -> list[str] | None:
    """The types beyond skops's own that the estimator holds; None if it must be pickled.

    Before anything is written to MLflow, which would say neither which types nor what to do.
    """
    written = loading.save_estimator(estimator, path, trust_pickle=trust_pickle)
    return loading.types_beyond_skops(path) if written == path else None


def _take_over(
    registry: Registry, version: Version, sha256: str, spec: ModelSpec, extra: Extra
) -> Version:
    """Make a version that MLflow already has a managed one; its hash comes last."""
    if version.sha256 not in ("", sha256):
        raise UntrustedArtifact(
            f"version {version.version} of {version.model} was registered with sha256 "
            f"{version.sha256}, its files now have {sha256}; register them as a new version"
        )
    run_id = version.tags.get(FILES_RUN) or start_run(registry, version.model, extra.key)
    _fill_run(registry, run_id, spec, extra, "")
    with translated(f"manage the model {version.model}"):
        _manage(registry, version.model)
    tags = _identity(sha256, extra)
    # It has been a model since MLflow registered it, not since it became ours.
    del tags[SHA256], tags[CREATED]
    registry.tag(version, **{FILES_RUN: run_id}, **tags)
    return registry.tag(version, **{SHA256: sha256})


def start_run(registry: Registry, model: str, key: str = "") -> str:
    """A new MLflow run; with a key, the run that an earlier attempt left behind."""
    client, experiment = registry.client, registry.store.experiment
    tags = {"shelflife.model": model, **({IDEMPOTENCY_KEY: key} if key else {})}
    with translated(f"start a run for {model}"):
        if key:
            wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
            left = client.search_runs([experiment], wanted, max_results=1)
            if left:
                return str(left[0].info.run_id)
        return str(client.create_run(experiment, tags=tags, run_name=key or model).info.run_id)


def _logged_model(registry: Registry, model: str, run_id: str) -> Any:
    """A new logged model of the run; unfinished ones of an earlier attempt are removed."""
    client, experiment = registry.client, registry.store.experiment
    with translated(f"create the logged model of {model}"):
        ours = f"source_run_id = '{run_id}'"
        for left in client.search_logged_models([experiment], ours):
            client.delete_logged_model(left.model_id)
        return client.create_logged_model(experiment, name=model, source_run_id=run_id)


def _description(logged: Any, run_id: str) -> Any:
    """What the MLmodel file says the model belongs to."""
    from mlflow.models import Model

    return Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )


def _upload(registry: Registry, logged: Any, folder: Path, run_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    with translated("upload the model"):
        registry.client.log_model_artifacts(logged.model_id, str(folder))
        registry.client.finalize_logged_model(logged.model_id, "READY")
        registry.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def _keep(registry: Registry, folder: Path, sha256: str) -> None:
    """What was just hashed need not be downloaded again to be served."""
    target = artifacts.cached(registry.cache, sha256)
    if not target.is_dir():
        with artifacts.staged(target) as staging:
            shutil.copytree(folder, staging, dirs_exist_ok=True)


def _fill_run(
    registry: Registry, run_id: str, spec: ModelSpec, extra: Extra, model_id: str
) -> None:
    """Attach files and metrics to a run and end it."""
    from mlflow.entities import Metric

    for name, data in {"spec.json": msgspec.json.encode(spec), **extra.files}.items():
        artifacts.attach(registry.store, run_id, name, data)
    moment = int(extra.now.timestamp() * 1000)
    metrics = [
        Metric(name, float(value), moment, 0, model_id=model_id or None)
        for name, value in extra.metrics.items()
    ]
    with translated("log the metrics"):
        registry.client.log_batch(run_id, metrics=metrics)
        registry.client.set_terminated(run_id)


def _register(registry: Registry, model: str, source: Source, tags: Mapping[str, str]) -> Version:
    with translated(f"register a version of {model}"):
        _manage(registry, model)
        entity = registry.client.create_model_version(
            model,
            source.location,
            run_id=source.run_id or None,
            model_id=source.model_id or None,
            tags=dict(tags),
        )
    key = tags.get(IDEMPOTENCY_KEY, "")
    return _only(registry, model, key) or registry.get(model, str(entity.version))


def _only(registry: Registry, model: str, key: str) -> Version | None:
    """The first version with this key; later ones, which only an accident makes, are deleted.

    Two processes may add at once, and MLflow's own client repeats a request whose answer was an
    error although the server had carried it out. MLflow knows no unique tags, but numbers versions
    in the order in which they are committed: whoever comes second sees the first one here.
    """
    first = registry.by_key(model, key)
    if first is None:
        return None
    for other in registry.versions(model):
        if other.tags.get(IDEMPOTENCY_KEY) == key and other.version != first.version:
            try:
                with translated(f"delete version {other.version} of {model}, made twice"):
                    registry.client.delete_model_version(model, other.version)
            except RegistryError as error:
                if not absent(error.__cause__):  # otherwise the other process was faster
                    raise
    return first


@contextmanager
def _one_at_a_time(cache: Path, model: str, key: str) -> Iterator[None]:
    """Processes of this machine that add with one key wait for each other."""
    if not key:
        yield
        return
    name = hashlib.sha256(f"{model} {key}".encode()).hexdigest()[:32]
    path = cache / "adding" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file unlocks it
        yield


def _manage(registry: Registry, model: str) -> None:
    """Create the registered model if it is missing, and mark it as ours."""
    from mlflow.exceptions import MlflowException

    try:
        registry.client.create_registered_model(model, tags={MANAGED: "true"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        registry.client.set_registered_model_tag(model, MANAGED, "true")


def _identity(sha256: str, extra: Extra) -> dict[str, str]:
    """The tags of a version: what its caller says of it, and what it is."""
    tags = {**extra.tags, SHA256: sha256, CREATED: iso(extra.now)}
    if extra.key:
        tags[IDEMPOTENCY_KEY] = extra.key
    if "baseline.json" in extra.files:
        tags[BASELINE_SHA256] = sha256_bytes(extra.files["baseline.json"])
    return tags
