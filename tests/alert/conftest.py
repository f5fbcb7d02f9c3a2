"""A real HTTP receiver with a script of answers, and a real ledger."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.ledger import Ledger


class Endpoint:
    """Answers as `script` says, one entry a request, the last one for ever.

    An entry is a status, (status, headers), "hang", "drip" or "reset".
    """

    def __init__(self) -> None:
        self.script: list[Any] = [200]
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Event()
        self.release = threading.Event()  # ends every hanging answer
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"endpoint": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook/canary-in-the-path"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.seen]

    def next(self, headers: dict[str, str], body: bytes) -> Any:
        with self._lock:
            self.seen.append(({k.lower(): v for k, v in headers.items()}, body))
            self.arrived.set()
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a sender that gave up is what the tests want


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = self.endpoint.next(dict(self.headers), body)
        if answer == "hang":
            self.endpoint.release.wait(30)
        elif answer == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
            while not self.endpoint.release.wait(0.05):
                self.wfile.write(b"z")
        elif answer == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        else:
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    one = Endpoint()
    yield one
    one.close()


@pytest.fixture
def second() -> Iterator[Endpoint]:
    one = Endpoint()
    yield one
    one.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    one = Ledger(f"sqlite:///{tmp_path}/ledger.db").create()
    yield one
    one.close()
