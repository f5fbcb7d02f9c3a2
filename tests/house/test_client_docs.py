"""The examples in docs/client.md run as they stand, against a receiver in place of a server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)


class Stub:
    """Takes every batch and keeps its rows by path."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for rows in body.values():
                    stub.rows.setdefault(self.path, []).extend(rows)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    stub = Stub()
    monkeypatch.setenv("SHELFLIFE_URL", stub.url)
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


def block(word: str) -> str:
    [found] = [text for text in BLOCKS if word in text]
    return found


def test_every_example_compiles() -> None:
    assert len(BLOCKS) >= 4
    for text in BLOCKS:
        compile(text, "docs/client.md", "exec")


def test_the_accounting_example_holds() -> None:
    exec(compile(block("127.0.0.1:9"), "docs/client.md", "exec"), {})


def test_the_first_example_logs_and_labels(stub: Stub) -> None:
    space: dict[str, Any] = {}
    text = block('"http://shelflife:8080"').replace("http://shelflife:8080", stub.url)
    exec(compile(text, "docs/client.md", "exec"), space)
    assert space["client"].close(10)
    [row] = stub.rows["/api/v1/models/churn/predictions"]
    assert row["outputs"] == {"probability": 0.83}
    assert stub.rows["/api/v1/models/churn/labels"][0]["id"] == row["id"]


def test_the_fastapi_example_serves(stub: Stub) -> None:
    pytest.importorskip("fastapi")
    space: dict[str, Any] = {"__name__": "example"}
    # Annotations are resolved in the module's own namespace, as in a file.
    exec(compile(block("FastAPI("), "docs/client.md", "exec", dont_inherit=True), space)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(space["app"], port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as caller:
        said = caller.post("/predict", json={"age": 41, "plan": "tin"}).json()
        assert said["probability"] == 0.8
        caller.post("/outcome", json={"id": said["id"], "left": True}).raise_for_status()
    server.should_exit = True
    thread.join()
    [row] = stub.rows["/api/v1/models/churn/predictions"]
    assert (row["id"], row["version"], row["inputs"]) == (
        said["id"], "3", {"age": 41, "plan": "tin"},
    )  # fmt: skip
    [label] = stub.rows["/api/v1/models/churn/labels"]
    assert (label["id"], label["label"]) == (said["id"], 1)


def test_the_flask_example_serves(stub: Stub) -> None:
    pytest.importorskip("flask")
    space: dict[str, Any] = {"__name__": "example"}
    exec(compile(block("Flask("), "docs/client.md", "exec", dont_inherit=True), space)
    said = space["app"].test_client().post("/predict", json={"age": 41, "plan": "gold"}).json
    assert space["client"].close(10)
    [row] = stub.rows["/api/v1/models/churn/predictions"]
    assert (row["id"], row["outputs"]) == (said["id"], {"probability": 0.2})
