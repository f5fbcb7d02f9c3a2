"""A fitted pipeline on mixed columns, prepared versions of it, and real servers that answer."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import uvicorn
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from core.errors import NotFound
from core.files import sha256_tree
from core.frames import to_frame
from core.ledger import Ledger
from core.settings import ServingSettings, Settings
from core.spec import ModelSpec, infer_spec
from monitor.log.log import InferenceLog
from registry.loading import predict, save_estimator
from serving import deploy
from serving.app import SERVER_OPTIONS, Serving, build, http_error

NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
DATATYPES = {
    "amount": "FP64",
    "age": "FP64",
    "visits": "INT64",
    "member": "BOOL",
    "country": "BYTES",
}


def rows(n: int, seed: int = 0) -> dict[str, list[Any]]:
    """Columns of request values; `age` has missing ones."""
    rng = np.random.default_rng(seed)
    return {
        "amount": rng.normal(50, 20, n).round(3).tolist(),
        "age": [None if u < 0.2 else float(int(60 * u)) for u in rng.random(n)],
        "visits": rng.integers(0, 9, n).tolist(),
        "member": (rng.random(n) < 0.5).tolist(),
        "country": rng.choice(["NL", "DE", "FR"], n).tolist(),
    }


def fitted(seed: int = 0) -> tuple[ModelSpec, Any, pd.DataFrame]:
    """A spec, an estimator and the inputs it was fitted on."""
    from sklearn.impute import SimpleImputer

    columns = rows(400, seed)
    frame = pd.DataFrame(columns)
    spec = infer_spec("churn", frame, target="left", task="binary", classes=(0, 1))
    inputs = to_frame(spec, columns)
    y = (frame["amount"] + 10 * frame["member"] + 5 * seed > 55).astype(int)
    numbers = ["amount", "age", "visits", "member"]
    estimator = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
                ("country", OneHotEncoder(handle_unknown="error"), ["country"]),
            ]
        ),
        LogisticRegression(C=1.0 / (1 + seed)),
    )
    return spec, estimator.fit(inputs, y), inputs


@dataclass
class FolderVersion:
    version: str
    sha256: str


class FolderRegistry:
    """Versions in plain folders: what `serving.deploy` asks of `registry.versions.Registry`, for
    tests that need many versions in little time. `test_deploy` uses the real one."""

    def __init__(self, root: Path) -> None:
        self.root, self.champion, self.fetched = root, "", 0

    def add(self, version: str, spec: ModelSpec, estimator: Any, inputs: pd.DataFrame) -> None:
        folder = self.root / version
        save_estimator(estimator, folder / "model" / "model.skops")
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        inputs.add_prefix("in:").to_parquet(folder / "reference.parquet")

    def by_alias(self, model: str, alias: str) -> FolderVersion | None:
        if not self.champion:
            return None
        return FolderVersion(self.champion, sha256_tree(self.root / self.champion / "model"))

    def get(self, model: str, version: str) -> FolderVersion:
        if not (self.root / version / "model").is_dir():
            raise NotFound(f"version of {model}", version)
        return FolderVersion(version, sha256_tree(self.root / version / "model"))

    def file(self, version: FolderVersion, name: str) -> bytes:
        return (self.root / version.version / name).read_bytes()

    def fetch(self, version: FolderVersion) -> Path:
        self.fetched += 1
        return self.root / version.version / "model"


@dataclass
class Room:
    """A home folder with a ledger, a log and versions 1 to 3 of one model."""

    home: Path
    ledger: Ledger
    log: InferenceLog
    registry: FolderRegistry
    spec: ModelSpec
    estimators: dict[str, Any]

    def serve(self, version: str, beside: deploy.Beside | None = None) -> deploy.Deployed | None:
        """Move `champion`, and what runs beside it, and tell the workers."""
        self.registry.champion = version
        return deploy.sync(
            self.registry,  # type: ignore[arg-type]
            self.ledger,
            self.home,
            "churn",
            trust_pickle=False,
            now=datetime.now(UTC),
            beside=beside,
        )

    def expected(self, version: str, columns: dict[str, list[Any]]) -> list[float]:
        """What the estimator answers in this process."""
        frame = predict(self.estimators[version], self.spec, to_frame(self.spec, columns))
        return list(frame["probability"])

    def counter(self, name: str, model: str = "churn") -> int:
        """A counter as the ledger has it."""
        from core.schema import counters

        query = counters.select().where(counters.c.model == model, counters.c.name == name)
        with self.ledger.read() as tx:
            row = tx.execute(query).first()
        return row.value if row else 0


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec, dict[str, Any]]:
    """Three fitted versions on disk."""
    root, estimators = tmp_path_factory.mktemp("versions"), {}
    registry = FolderRegistry(root)
    for seed in range(3):
        spec, estimator, inputs = fitted(seed)
        registry.add(str(seed + 1), spec, estimator, inputs)
        estimators[str(seed + 1)] = estimator
    return root, spec, estimators


@pytest.fixture
def room(tmp_path: Path, versions: tuple[Path, ModelSpec, dict[str, Any]]) -> Iterator[Room]:
    root, spec, estimators = versions
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    log = InferenceLog(ledger, tmp_path / "segments")
    yield Room(tmp_path, ledger, log, FolderRegistry(root), spec, estimators)
    ledger.close()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, json.loads(text) if text else None)

    def infer(self, body: Any, model: str = "churn", version: str = "") -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        where = f"/versions/{version}" if version else ""
        return self.ask("POST", f"/v2/models/{model}{where}/infer", data)

    def close(self) -> None:
        self._connection.close()


def request(columns: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
    """An inference request of these columns."""
    inputs = [
        {"name": name, "shape": [len(data)], "datatype": DATATYPES[name], "data": data}
        for name, data in columns.items()
    ]
    return {"inputs": inputs, **more}


@dataclass
class Server:
    serving: Serving
    port: int
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        """A connection that is closed when the server stops."""
        self.clients.append(Client(self.port))
        return self.clients[-1]


Start = Callable[..., Any]


@pytest.fixture
def start(room: Room) -> Start:
    """A context manager that runs a server in a thread until the block ends."""

    @contextmanager
    def run(ready: bool = True, log: Any = None, **options: Any) -> Iterator[Server]:
        models = options.pop("models", {})
        settings = Settings(home=str(room.home), serving=ServingSettings(**options), models=models)
        serving = build(settings, room.ledger, log or room.log, room.home)
        app = Starlette(
            routes=serving.routes,
            lifespan=serving.lifespan,
            exception_handlers={HTTPException: http_error},
        )
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", **SERVER_OPTIONS)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = Server(serving, listener.getsockname()[1])
        try:
            wait_for(lambda: server.started)
            if ready:
                wait_for(lambda: serving.slots.ready)
            yield running
        finally:
            for client in running.clients:
                client.close()
            server.should_exit = True
            thread.join(30)
            listener.close()
        assert not thread.is_alive()

    return run


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something is so; fail if it takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests that cannot import this file by name."""
    import types

    return types.SimpleNamespace(
        rows=rows,
        request=request,
        wait_for=wait_for,
        Client=Client,
        HTTPException=http.client.HTTPException,
    )
