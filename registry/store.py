"""The connection to MLflow: made once under a lock, without telemetry, without global state.

MLflow's fluent functions (and `models:/` URIs deep inside it) use a process-wide tracking URI. Here
everything goes through an `MlflowClient` with explicit URIs, so that two registries can live in
one process and nobody's `mlflow.set_tracking_uri` matters.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import sqlalchemy.exc
from msgspec import Struct

from core.errors import NotFound, RegistryError

EXPERIMENT = "shelflife"
_LOGGED_MODEL = re.compile(r"^m-[0-9a-f]{32}$")
_ENVIRONMENT = {  # read by MLflow; what an operator has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it reports usage by default
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Its own patience with a server that is down is minutes; ours is the scheduler's next tick.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_NOISY = ("alembic", "mlflow.store.db.utils")  # say at INFO what every first start does


def import_mlflow() -> None:
    """Import MLflow, and with it every data frame library that is installed.

    A process with threads does so before it starts them: scikit-learn looks into the modules that
    another thread is half-way through importing (`polars` has no `Series` yet).
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in _NOISY:
        logging.getLogger(logger).setLevel(logging.WARNING)
    importlib.import_module("mlflow")


class Source(Struct, frozen=True, kw_only=True):
    """Where the files of an MLflow model lie, and what MLflow knows of it."""

    location: str  # artifact URI or local path
    run_id: str = ""
    model_id: str = ""  # the LoggedModel, "m-…"
    name: str = ""  # registered model and version, if the URI named one
    version: str = ""

    @property
    def local(self) -> bool:
        """A folder MLflow knows nothing of."""
        return not (self.run_id or self.model_id or self.version) and "://" not in self.location


class Store:
    """One MLflow tracking and registry store.

    Args:
        tracking_uri: `sqlite:///…`, `postgresql://…` or `http(s)://…`; also the registry's.
        artifact_root: where artifacts of a new experiment go, a folder or a URI.
        lock: a file that processes of this machine lock while they create the database.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | Path, lock: Path) -> None:
        self.uri = tracking_uri
        self.artifact_root = str(artifact_root)
        self._lock_file = lock
        self._guard = threading.Lock()
        self._client: Any = None
        self._experiment = ""

    @property
    def client(self) -> Any:
        """The `MlflowClient`; the first use creates or migrates the database, under the lock.

        Raises:
            RegistryError: the store cannot be reached.
        """
        if self._client is None:
            with self._guard, self._locked():
                if self._client is None:
                    self._client = self._connect()
        return self._client

    def _connect(self) -> Any:
        import_mlflow()
        from mlflow import MlflowClient

        with translated(f"open {without_password(self.uri)}"):
            self._knock()
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            client.search_registered_models(max_results=1)  # opens, so migrates, the database
        return client

    def _knock(self) -> None:
        """Connect to the database once: MLflow tries for 100 s before it says what is wrong."""
        if urlsplit(self.uri).scheme.startswith("http"):
            return
        url = sa.make_url(self.uri)
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Migrations of two processes at once fail half-way (hydraflow #245)."""
        import fcntl

        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_file.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file unlocks it
            yield

    @property
    def experiment(self) -> str:
        """The id of the experiment "shelflife", created where it is missing."""
        if not self._experiment:
            client = self.client
            with self._guard, self._locked(), translated(f"open the experiment {EXPERIMENT!r}"):
                found = client.get_experiment_by_name(EXPERIMENT)
                self._experiment = (
                    found.experiment_id
                    if found is not None
                    else client.create_experiment(EXPERIMENT, artifact_location=self._root())
                )
        return self._experiment

    def _root(self) -> str | None:
        """The artifact root as a URI; None leaves a remote server its own default."""
        if "://" in self.artifact_root:
            return self.artifact_root
        if not self.artifact_root or urlsplit(self.uri).scheme.startswith("http"):
            return None
        return Path(self.artifact_root).resolve().as_uri()

    def resolve(self, uri: str) -> Source:
        """What a model URI means: `models:/name/3`, `models:/name@alias`, `models:/m-…`,
        `runs:/run/path`, or a folder or artifact URI.

        Raises:
            NotFound: MLflow knows no such model.
        """
        scheme, _, rest = uri.partition(":/")
        if scheme not in ("models", "runs") or not rest.strip("/"):
            return Source(location=uri)
        try:
            with translated(f"resolve {uri}"):
                return self._model(rest) if scheme == "models" else self._run_model(rest)
        except RegistryError as error:
            if absent(error.__cause__):
                raise NotFound("MLflow model", uri, str(error.__cause__)) from None
            raise

    def _model(self, rest: str) -> Source:
        name, at, alias = rest.partition("@")
        if at:
            found = self.client.get_model_version_by_alias(name, alias)
        elif _LOGGED_MODEL.match(rest):
            model = self.client.get_logged_model(rest)
            return Source(
                location=model.artifact_location,
                run_id=model.source_run_id or "",
                model_id=model.model_id,
            )
        else:
            name, _, version = rest.rpartition("/")
            if not version.isdigit():
                raise NotFound("MLflow model", f"models:/{rest}", "expected models:/<name>/<n>")
            found = self.client.get_model_version(name, version)
        return Source(
            location=self.client.get_model_version_download_uri(found.name, str(found.version)),
            run_id=found.run_id or "",
            model_id=getattr(found, "model_id", None) or "",
            name=found.name,
            version=str(found.version),
        )

    def _run_model(self, rest: str) -> Source:
        run_id, _, path = rest.partition("/")
        run = self.client.get_run(run_id)
        # MLflow 3 keeps a run's models beside the run, not below it.
        for output in (run.outputs.model_outputs if run.outputs else None) or ():
            model = self.client.get_logged_model(output.model_id)
            if model.name == path:
                return Source(
                    location=model.artifact_location, run_id=run_id, model_id=model.model_id
                )
        return Source(location=f"{run.info.artifact_uri}/{path}", run_id=run_id)

    def download(self, location: str, folder: Path) -> None:
        """Copy everything at an artifact location (or in a local folder) into an empty folder.

        Raises:
            RegistryError: it is not there or cannot be read.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        _ = self.client  # quiet and connected before MLflow moves files
        with translated(f"download {without_password(location)}"):
            repository = get_artifact_repository(location, self.uri, self.uri)
            repository.download_artifacts("", str(folder))


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """MLflow's errors, and those of the network and disk below it, as `RegistryError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, sa.exc.SQLAlchemyError, OSError) as error:
        raise RegistryError(f"MLflow could not {doing}: {error}") from error


def absent(error: BaseException | None) -> bool:
    """Whether MLflow's error means that there is no such thing (an unknown alias included)."""
    code = getattr(error, "error_code", "")
    return code == "RESOURCE_DOES_NOT_EXIST" or (
        code == "INVALID_PARAMETER_VALUE" and "alias" in str(error) and "not found" in str(error)
    )


def pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """Every result of one of MLflow's searches, which answer a page at a time."""
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def without_password(uri: str) -> str:
    """The URI as a message may show it."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", uri)
