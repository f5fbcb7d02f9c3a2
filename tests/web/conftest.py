"""Real servers over a prepared model, on SQLite and PostgreSQL, without MLflow."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import pandas as pd
import pytest
import uvicorn
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core import schema
from core.files import sha256_tree
from core.ledger import Ledger
from core.settings import IngestSettings, MlflowSettings, ModelSettings, Settings
from core.spec import Feature, ModelSpec
from registry.loading import save_estimator
from serving import deploy
from serving.store import pointers
from shelflife import server
from shelflife.service import Service

PROMOTED = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = ModelSpec(
    name="shop",
    task="binary",
    target="bought",
    metric="brier",
    classes=(0, 1),
    features=(
        Feature(name="age", kind="numeric"),
        Feature(name="visits", kind="integer"),
    ),
)
#: A model that has no estimator here: it is served elsewhere, its rows come from there.
KINDS = ModelSpec(
    name="elsewhere",
    task="multiclass",
    target="which",
    metric="log_loss",
    classes=("a", "b", "c"),
    features=(
        Feature(name="amount", kind="numeric", nullable=True),
        Feature(name="count", kind="integer"),
        Feature(name="member", kind="boolean"),
        Feature(name="country", kind="categorical", nullable=True),
    ),
)


class _Folder:
    """What `serving.deploy` asks of a registry, for one version in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def by_alias(self, model: str, alias: str) -> Any:
        return SimpleNamespace(version="1", sha256=sha256_tree(self.root / "model"))

    def file(self, version: Any, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def fetch(self, version: Any) -> Path:
        return self.root / "model"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose `serving` folder holds both models."""
    root, home = tmp_path_factory.mktemp("version"), tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(40, 10, 200), "visits": rng.integers(0, 9, 200)})
    estimator = make_pipeline(StandardScaler(), LogisticRegression())
    estimator.fit(frame, (frame["age"] > 40).astype(int))
    save_estimator(estimator, root / "model" / "model.skops")
    (root / "spec.json").write_bytes(msgspec.json.encode(SPEC))
    frame.add_prefix("in:").to_parquet(root / "reference.parquet")
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}").create()
    deploy.sync(_Folder(root), ledger, home, "shop", trust_pickle=False, now=PROMOTED)  # type: ignore[arg-type]
    ledger.close()
    return home


def _describe(home: Path, spec: ModelSpec) -> None:
    """A pointer and a folder with a spec and no model."""
    import hashlib

    from serving.store import Manifest, Target, write_pointer

    data = msgspec.json.encode(spec)
    files = {"spec.json": hashlib.sha256(data).hexdigest()}
    manifest = msgspec.json.encode(
        Manifest(model=spec.name, backend="native", sha256="0" * 64, files=files)
    )
    folder = hashlib.sha256(manifest).hexdigest()
    path = home / "serving" / "store" / folder
    path.mkdir(parents=True)
    (path / "spec.json").write_bytes(data)
    (path / "manifest.json").write_bytes(manifest)
    target = Target(version="1", folder=folder, backend="native", sha256="0" * 64)
    write_pointer(home, spec.name, target, now=PROMOTED)


@dataclass
class Web:
    """A running server."""

    service: Service
    client: httpx.Client
    port: int

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.client.post(path, **options)

    def wait_until_ready(self) -> None:
        while self.client.get("/v2/health/ready").status_code != 200:
            time.sleep(0.01)

    def rows(self, model: str = "shop") -> list[dict[str, Any]]:
        """The hot rows of a model, in order of arrival, read straight from the table."""
        table = schema.predictions
        query = table.select().where(table.c.model == model).order_by(table.c.id)
        with self.service.ledger.read() as tx:
            return [dict(row._mapping) for row in tx.execute(query)]

    def metric(self, line: str) -> float:
        """The value of a sample in `/metrics`; 0 where there is none."""
        text = self.client.get("/metrics").text
        found = [each for each in text.splitlines() if each.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


Run = Callable[..., Any]


@pytest.fixture(scope="session")
def run(prepared: Path) -> Run:
    """A context manager that serves a home; the home is kept when the block ends."""

    @contextmanager
    def running(home: Path, ledger: str = "", **options: Any) -> Iterator[Web]:
        if not (home / "serving").exists():
            shutil.copytree(prepared / "serving", home / "serving")
            if not options.pop("alone", False):
                _describe(home, KINDS)
        models = {"shop": ModelSettings(sample_rate=options.pop("sample_rate", 1.0))}
        mlflow = options.pop("mlflow", MlflowSettings())
        settings = Settings(
            home=str(home), ledger=ledger, models=models, mlflow=mlflow,
            ingest=IngestSettings(**options),
        )  # fmt: skip
        service = Service(settings, folder=home)
        with service.ledger.write() as tx:
            if tx.execute(schema.promotions.select()).first() is None:
                for model in sorted(path.stem for path in pointers(home).iterdir()):
                    promotion = schema.promotions.insert().values(
                        model=model, version="1", kind="first", at=PROMOTED, by="test", sha256="0"
                    )
                    tx.execute(promotion)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(server.build(service), **server.options(settings))
        process = uvicorn.Server(config)
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]})
        thread.start()
        while not process.started:
            time.sleep(0.005)
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60
            ) as client:
                yield Web(service, client, port)
        finally:
            process.should_exit = True
            thread.join(30)
            listener.close()
            service.close()

    return running


@pytest.fixture
def web(run: Run, tmp_path: Path) -> Iterator[Web]:
    """A server over an empty SQLite ledger."""
    with run(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared_web(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One server for all tests of a file that look only at answers, or at ids of their own."""
    with run(tmp_path_factory.mktemp("shared")) as found:
        yield found


@pytest.fixture
def ready_web(run: Run, tmp_path: Path) -> Iterator[Web]:
    """A server of which every model is warm: `shop` alone."""
    with run(tmp_path, alone=True) as found:
        found.wait_until_ready()
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def any_web(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Web]:
    """The same on SQLite and on PostgreSQL."""
    url = request.getfixturevalue("postgres_database") if request.param == "postgres" else ""
    with run(tmp_path, url) as found:
        yield found
