"""Every implementation of the inference log, and a server that speaks S3's protocol."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.ledger import Ledger
from monitor.log.log import InferenceLog
from monitor.log.memory import MemoryLog
from monitor.log.records import SampleLog
from monitor.log.storage import Remote, Storage, open_storage


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a running S3 server."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A fresh bucket's prefix; credentials come from the environment, as in production."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"b{uuid.uuid4().hex[:12]}"
    store = open_storage(f"s3://{bucket}/log", {"endpoint_url": s3_server})
    assert isinstance(store, Remote)
    store._fs()[0].mkdir(bucket)
    return store


@pytest.fixture(
    params=[
        "sqlite+folder",
        pytest.param("postgres+folder", marks=pytest.mark.postgres),
        "sqlite+s3",
        "memory",
    ]
)
def any_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SampleLog]:
    """An empty log, once of each kind."""
    if request.param == "memory":
        yield MemoryLog()
        return
    database, place = request.param.split("+")
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if database == "postgres":
        url = request.getfixturevalue("postgres_database")
    store = tmp_path / "segments" if place == "folder" else request.getfixturevalue("s3")
    ledger = Ledger(url).create()
    yield InferenceLog(ledger, store)
    ledger.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[InferenceLog]:
    """The ordinary one: SQLite and a folder."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    yield InferenceLog(ledger, tmp_path / "segments")
    ledger.close()
