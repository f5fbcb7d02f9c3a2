"""A webhook receiver such as an on-call tool has, reduced to keeping what it was told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OnCall:
    """An HTTP server on loopback that verifies each message's signature and keeps it.

    Args:
        secret: the `whsec_…` key that messages are signed with (Standard Webhooks 1.0).
    """

    def __init__(self, secret: str) -> None:
        self.messages: list[dict[str, Any]] = []
        self.refused = 0
        self._seen: set[str] = set()
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where messages go."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/on-call"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, headers: Any, body: bytes) -> bool:
        identity = headers.get("webhook-id", "")
        signed = f"{identity}.{headers.get('webhook-timestamp', '')}.".encode() + body
        digest = hmac.new(self._key, signed, hashlib.sha256).digest()
        wanted = "v1," + base64.b64encode(digest).decode()
        genuine = any(
            hmac.compare_digest(wanted, each)
            for each in headers.get("webhook-signature", "").split()
        )
        with self._lock:
            if not genuine:
                self.refused += 1
            elif identity not in self._seen:  # delivered at least once: the id tells repeats
                self._seen.add(identity)
                self.messages.append(json.loads(body))
        return genuine

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        on_call = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(204 if on_call._take(self.headers, body) else 401)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: what matters is shown by the demo."""

        return Handler
