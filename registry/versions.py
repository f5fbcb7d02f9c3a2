"""Model versions in MLflow: added once, found by alias, each with its files and its hash.

A registered model is ours when it bears the tag `shelflife.managed`, and a version can be served
when it bears `shelflife.artifact_sha256`. Its files (spec, baseline, reference, gate, …) lie in
the folder `shelflife/` of its MLflow run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from core.errors import InputError, NotFound, RegistryError
from core.spec import ModelSpec, valid_name
from core.times import from_micros, parse_time
from registry import artifacts
from registry.store import Store, absent, pages, translated

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
MANAGED = "shelflife.managed"
SHA256 = "shelflife.artifact_sha256"
CREATED = "shelflife.created"
IDEMPOTENCY_KEY = "shelflife.idempotency_key"
FILES_RUN = "shelflife.files_run"
BASELINE_SHA256 = "shelflife.baseline_sha256"

_ALIAS = re.compile(r"^[A-Za-z0-9_-]{1,255}$")
_RESERVED = re.compile(r"^(latest|v\d+)$", re.IGNORECASE)
_KEY = re.compile(r"^[A-Za-z0-9:._/@=-]{1,250}$")


class Version(Struct, frozen=True, kw_only=True):
    """One version of a model, as MLflow describes it at the moment of asking."""

    model: str
    version: str
    sha256: str  # of the model folder; empty: not registered by us, never loaded
    created: datetime
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str  # MLflow's run it came from
    status: str  # READY, or why not

    @property
    def files_run(self) -> str:
        """The MLflow run whose `shelflife/` folder holds this version's files."""
        return self.tags.get(FILES_RUN, self.run_id)


class Registry:
    """The model registry.

    Args:
        tracking_uri: MLflow's store, `sqlite:///…`, `postgresql://…` or `http(s)://…`.
        artifact_root: where models go that are added here, a folder or a URI.
        cache: folder for fetched models (`<cache>/models/<sha256>/`) and the start-up lock.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | Path, cache: Path) -> None:
        self.cache = cache
        self.store = Store(tracking_uri, artifact_root, cache / "mlflow.lock")

    @property
    def client(self) -> Any:
        """The `MlflowClient` underneath."""
        return self.store.client

    def prepare(self) -> None:
        """Create the database and the experiment where they are missing; safe at every start.

        Raises:
            RegistryError: the store cannot be reached.
        """
        _ = self.store.experiment

    # --- finding ---------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """Names of the models shelflife manages, sorted."""
        with translated("list the registered models"):
            search = self.client.search_registered_models
            found = pages(search, filter_string=f"tags.`{MANAGED}` = 'true'")
            return sorted(model.name for model in found)

    def versions(self, model: str) -> list[Version]:
        """Every version of a model, newest first; empty if there is no such model."""
        valid_name(model)
        try:
            with translated(f"list the versions of {model}"):
                aliases = self.client.get_registered_model(model).aliases
                search = self.client.search_model_versions
                found = list(pages(search, filter_string=f"name='{model}'"))
        except RegistryError as error:
            if absent(error.__cause__):
                return []
            raise
        # Searches answer without aliases.
        named = {str(v.version): [a for a, to in aliases.items() if to == v.version] for v in found}
        versions = [_version(entity, named[str(entity.version)]) for entity in found]
        return sorted(versions, key=lambda version: -int(version.version))

    def get(self, model: str, version: str) -> Version:
        """One version.

        Raises:
            NotFound: no such model or version.
        """
        if str(version).isdigit():
            try:
                with translated(f"read version {version} of {model}"):
                    return _version(self.client.get_model_version(model, str(version)))
            except RegistryError as error:
                if not absent(error.__cause__):
                    raise
        raise NotFound(f"version of {model}", version)

    def by_alias(self, model: str, alias: str) -> Version | None:
        """The version an alias points to now; None if the alias or the model does not exist."""
        try:
            with translated(f"read the alias {alias} of {model}"):
                return _version(self.client.get_model_version_by_alias(model, alias))
        except RegistryError as error:
            if absent(error.__cause__):
                return None
            raise

    def url(self, version: Version) -> str:
        """The version's page in the MLflow UI, relative to the UI's address."""
        return f"/#/models/{quote(version.model, safe='')}/versions/{version.version}"

    # --- adding ----------------------------------------------------------------------------------

    def add(
        self,
        model: str,
        estimator: Any,
        spec: ModelSpec,
        *,
        files: Mapping[str, bytes],
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        now: datetime,
        idempotency_key: str = "",
        trust_pickle: bool = False,
    ) -> Version:
        """Register a fitted estimator with its files as a new version.

        The version appears last and whole: files, metrics and tags are there when it does. Asking
        again with the same key returns the version of the first time, even if that attempt ended
        in an error after MLflow had committed it.

        Args:
            files: kept in `shelflife/` of the run; `spec.json` is written if it is not among them.
            tags: of the version, full names (`shelflife.trigger`, …).
            metrics: of the run, shown by MLflow beside the version.

        Raises:
            UntrustedArtifact: the estimator holds types outside the allow-list.
            RegistryError: MLflow failed; asking again with the same key is safe.
        """
        from registry import adding

        extra = adding.Extra(files, tags, metrics, now, idempotency_key, trust_pickle)
        return adding.add(self, model, estimator, spec, extra)

    def adopt(
        self,
        model: str,
        mlflow_uri: str,
        spec: ModelSpec,
        *,
        files: Mapping[str, bytes],
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        now: datetime,
        idempotency_key: str = "",
        trust_pickle: bool = False,
    ) -> Version:
        """Register the model at an MLflow URI, or in a folder, with its files and its hash.

        A version of the registered model `model` becomes managed itself; anything else (another
        model's version, `runs:/…`, `models:/m-…`, a folder) becomes a new version of `model`.
        Without an idempotency key the hash serves as one: the same files are adopted once.

        Raises:
            NotFound: MLflow knows no such model, or it is no MLflow model.
            UntrustedArtifact: loading it would run what nobody allowed, or an earlier
                registration recorded other files.
        """
        from registry import adding

        extra = adding.Extra(files, tags, metrics, now, idempotency_key, trust_pickle)
        return adding.adopt(self, model, mlflow_uri, spec, extra)

    def download(self, mlflow_uri: str, folder: Path) -> Path:
        """Copy the model at an MLflow URI (or in a folder) into a new folder, unverified.

        Raises:
            NotFound: MLflow knows no such model.
        """
        source = self.store.resolve(mlflow_uri)
        folder.mkdir(parents=True, exist_ok=True)
        self.store.download(source.location, folder)
        return folder

    def by_key(self, model: str, key: str) -> Version | None:
        """The version that was added with this idempotency key, if any.

        Raises:
            InputError: the key has characters MLflow's filters cannot quote.
        """
        if not key:
            return None
        if not _KEY.match(key):
            raise InputError("idempotency_key", key, "1 to 250 letters, digits or :._/@=-")
        wanted = f"name='{valid_name(model)}' and tags.`{IDEMPOTENCY_KEY}` = '{key}'"
        with translated(f"look for a version of {model} with the key {key}"):
            found = list(pages(self.client.search_model_versions, filter_string=wanted))
        numbers = sorted(int(entity.version) for entity in found)
        return self.get(model, str(numbers[0])) if numbers else None

    # --- files, tags, aliases --------------------------------------------------------------------

    def fetch(self, version: Version) -> Path:
        """The version's model folder, verified against the recorded hash; see `artifacts.fetch`.

        Raises:
            UntrustedArtifact: no hash was recorded, or the files do not match it.
        """
        return artifacts.fetch(self.store, self.cache, version)

    def estimator(self, version: Version, *, trust_pickle: bool) -> Any:
        """The version's estimator, from its verified files.

        Raises:
            UntrustedArtifact: the files are not the recorded ones, or loading them would have to
                trust more than it may.
        """
        from registry.loading import load_estimator

        return load_estimator(self.fetch(version), trust_pickle=trust_pickle)

    def file(self, version: Version, name: str) -> bytes:
        """One of the version's files: `spec.json`, `baseline.json`, `reference.parquet`, ….

        Raises:
            NotFound: it was never attached.
            RegistryError: the baseline is not the one recorded with the version.
        """
        if not version.files_run:
            raise NotFound("file of this version", name, "the version has no MLflow run")
        data = artifacts.read(self.store, version.files_run, name)
        recorded = version.tags.get(BASELINE_SHA256, "")
        if name == "baseline.json" and recorded and sha256_bytes(data) != recorded:
            raise RegistryError(
                f"baseline.json of version {version.version} of {version.model} has sha256 "
                f"{sha256_bytes(data)}, recorded was {recorded}; register the model anew"
            )
        return data

    def attach(self, version: Version, name: str, data: bytes) -> None:
        """Add (or replace) one of the version's files."""
        if not version.files_run:
            from registry import adding

            version = self.tag(version, files_run=adding.start_run(self, version.model))
        artifacts.attach(self.store, version.files_run, name, data)
        if name == "baseline.json":
            self.tag(version, baseline_sha256=sha256_bytes(data))

    def tag(self, version: Version, **tags: str | None) -> Version:
        """Set tags of a version (None removes one); `gate="passed"` sets `shelflife.gate`."""
        with translated(f"tag version {version.version} of {version.model}"):
            for key, value in tags.items():
                name = key if "." in key else f"shelflife.{key}"
                if value is not None:
                    self.client.set_model_version_tag(version.model, version.version, name, value)
                elif name in version.tags:
                    self.client.delete_model_version_tag(version.model, version.version, name)
        return self.get(version.model, version.version)

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Point an alias at a version. `champion` is moved by `registry.promotion` only.

        Raises:
            InputError: a name MLflow reserves or does not allow.
            NotFound: no such version.
        """
        if not _ALIAS.match(alias) or _RESERVED.match(alias):
            expected = "letters, digits, '_' or '-', and neither `latest` nor `v` and a number"
            raise InputError("alias", alias, expected)
        self.get(model, version)
        with translated(f"point the alias {alias} of {model} at version {version}"):
            self.client.set_registered_model_alias(model, alias, str(version))

    def drop_alias(self, model: str, alias: str) -> None:
        """Remove an alias; nothing happens if there is none."""
        with translated(f"drop the alias {alias} of {model}"):
            self.client.delete_registered_model_alias(model, alias)


def _version(entity: Any, aliases: list[str] | None = None) -> Version:
    tags = dict(entity.tags)
    made = tags.get(CREATED)
    return Version(
        model=entity.name,
        version=str(entity.version),
        sha256=tags.get(SHA256, ""),
        created=parse_time(made) if made else from_micros(entity.creation_timestamp * 1000),
        aliases=tuple(sorted(entity.aliases if aliases is None else aliases)),
        tags=tags,
        run_id=entity.run_id or "",
        status=str(entity.status),
    )


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of a file's content as hex."""
    return hashlib.sha256(data).hexdigest()
