"""A run over the wire: a real MLflow server, and a proxy before it that loses answers or is away.

What the server does is real, and so is what its client makes of a 500; only the network is ours.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from toyworld import AT, WALL, World

from core.errors import RegistryError
from retrain import manual
from retrain import run as runs
from retrain.run import RunState

START_S = 240  # on a machine that does other things as well


class Proxy(ThreadingHTTPServer):
    """Forwards to MLflow. `fault(method, path)` says what to do with a request: "" forward it,
    "before" answer 500 instead, "after" forward it and answer 500 all the same."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.changes = upstream, 0
        self.fault: Callable[[str, str], str] = lambda method, path: ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def _forward(self) -> None:
        method = self.command
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wrong = self.server.fault(method, self.path)
        status, answer, kind = 500, b'{"error_code": "INTERNAL_ERROR", "message": "lost"}', "json"
        if wrong != "before":
            status, answer, kind = self._ask(method, body)
        if wrong == "after":
            status, answer, kind = (
                500,
                b'{"error_code": "INTERNAL_ERROR", "message": "lost"}',
                "json",
            )
        self.send_response(status)
        self.send_header("Content-Type", kind if "/" in kind else "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _ask(self, method: str, body: bytes) -> tuple[int, bytes, str]:
        headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
        request = urllib.request.Request(
            self.server.upstream + self.path, data=body or None, method=method, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                return found.status, found.read(), found.headers.get("Content-Type") or "json"
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers.get("Content-Type") or "json"

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _forward

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def served(
    gated: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, Proxy]]:
    """A home whose run waits for approval, its MLflow behind a real server and a proxy."""
    home = tmp_path_factory.mktemp("http") / "home"
    shutil.copytree(gated[0], home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--workers", "1",
        "--artifacts-destination", str(home / "mlartifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | quiet,
        start_new_session=True,
    ) as server:  # fmt: skip
        try:
            upstream = f"http://127.0.0.1:{port}"
            _wait(upstream)
            yield home, gated[1], Proxy(upstream)
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


def _wait(url: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError("the MLflow server does not answer")


def test_answers_that_are_lost_after_the_commit_and_a_server_that_is_away(
    served: tuple[Path, str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every changing request of the promotion is carried out and answered 500, once each; then
    nothing is answered at all. The run ends promoted, once, with `previous` where it was."""
    home, run_id, proxy = served
    for name in ("RETRIES", "BACKOFF_FACTOR", "BACKOFF_JITTER"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{'MAX_' if name == 'RETRIES' else ''}{name}", "0")
    here = World(home, proxy.url, mode="approve")
    try:
        manual.approve(here.ledger, run_id, by="ana", reason="", at=AT)
        lost: set[str] = set()

        def lose(method: str, path: str) -> str:
            key = f"{method} {path.split('?')[0]}"
            if method == "GET" or "/search" in path or key in lost:
                return ""
            lost.add(key)
            return "after"

        away = iter([True] * 2)
        proxy.fault = lambda method, path: "before" if next(away, False) else lose(method, path)
        done = _carry(here, run_id)
        assert done.state == "promoted", done.outcome
        assert lost, "nothing was changed over the wire"
        proxy.fault = lambda method, path: ""
        assert (here.alias("champion"), here.alias("previous")) == ("2", "1")
        assert here.alias("challenger") is None
        assert [version.version for version in here.registry.versions("toy")] == ["2", "1"]
        assert [row.run_id for row in here.promotions()] == [None, run_id]
    finally:
        here.ledger.close()


def _carry(here: World, run_id: str) -> RunState:
    """As the scheduler does: again and again, whatever MLflow answers."""
    for _ in range(60):
        try:
            state = runs.advance(here.context, run_id, at=AT, wall=WALL)
        except RegistryError:
            continue
        if state.finished:
            return state
    raise AssertionError("the run does not end")
