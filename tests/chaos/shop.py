"""A served model as a process of its own (`shelflife serve`), asked without pause."""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.ledger import Ledger
from serving import deploy

_log = logging.getLogger("chaos")
ROWS = 3  # of each request
LOG_WAIT = 1.0  # seconds


class Caller(threading.Thread):
    """Asks one request after another; keeps what each answer said of its rows, and when."""

    def __init__(self, port: int, name: str, body: dict[str, Any]) -> None:
        super().__init__(name=name, daemon=True)
        self.port, self.body = port, body
        self.said: dict[str, tuple[str, float]] = {}
        self.failed: list[str] = []
        self.slow = 0  # answers that took longer than LOG_WAIT
        self.stopping = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for number in itertools.count():
            if self.stopping.is_set():
                break
            identity = f"{self.name}-{number}"
            body = json.dumps({**self.body, "id": identity}).encode()
            started = time.monotonic()
            try:
                connection.request("POST", "/v2/models/churn/infer", body)
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException):
                break  # it was killed or stopped
            if response.status != 200:
                self.failed.append(f"{response.status} {text[:200]!r}")
                continue
            word = json.loads(text)["parameters"]["shelflife_logged"]
            now = time.monotonic()
            self.said[identity] = (word, now)
            self.slow += now - started > LOG_WAIT + 0.5
        connection.close()


class Shop:
    """One `shelflife serve` over a database; `callers` ask while it runs."""

    def __init__(self, home: Path, url: str, serving: Any, versions: Any) -> None:
        self.home, self.url, self._serving = home, url, serving
        root, _, _ = versions
        ledger = Ledger(url).create()
        registry = serving.FolderRegistry(root)
        registry.champion = "1"
        deploy.sync(registry, ledger, home, "churn", trust_pickle=False, now=datetime.now(UTC))
        ledger.close()
        self.body = serving.request(serving.rows(ROWS))
        self.callers: list[Caller] = []

    def settings(self, **model: str) -> Path:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        path = self.home / "shelflife.yaml"
        content = {
            "home": str(self.home),
            "ledger": self.url,
            "serving": {"port": self.port, "log_queue_rows": 300, "log_wait": f"{LOG_WAIT}s"},
            "models": {"churn": model},
        }
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    @contextmanager
    def run(self, process: Any, **model: str) -> Iterator[Any]:
        """The process, ready to answer."""
        code = "import sys; from shelflife.cli import main; sys.exit(main())"
        command = ["-c", code, "serve", "--settings", str(self.settings(**model))]
        with process(*command) as running:
            client = self._serving.Client(self.port)
            self._serving.wait_for(lambda: self._ready(client), 120.0)
            client.close()
            try:
                yield running
            finally:
                self.close()

    def _ready(self, client: Any) -> bool:
        try:
            return bool(client.ask("GET", "/v2/health/ready").status == 200)
        except OSError:
            client.close()
            return False

    def call(self, n: int = 2) -> None:
        """Start to ask."""
        for _ in range(n):
            self.callers.append(Caller(self.port, f"c{len(self.callers)}", self.body))
            self.callers[-1].start()

    def close(self) -> None:
        """Stop asking."""
        for caller in self.callers:
            caller.stopping.set()
        for caller in self.callers:
            caller.join(40)

    @property
    def said(self) -> dict[str, tuple[str, float]]:
        """What every answer said, by request id."""
        return {name: value for caller in self.callers for name, value in dict(caller.said).items()}

    def words(self) -> Counter[str]:
        return Counter(word for word, _ in self.said.values())

    def wait_for(self, condition: Any, seconds: float = 60.0) -> None:
        self._serving.wait_for(condition, seconds)

    def stop(self, process: Any) -> None:
        """SIGTERM; it must end by itself, cleanly."""
        self.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0

    def check(self, found: Any) -> None:
        """Everything promised is there once, everything shed is not, and the counts are exact."""
        assert not [failed for caller in self.callers for failed in caller.failed]
        there = Counter(event.rpartition(":")[0] for _, event in found.events)
        assert not found.doubled()
        said = self.said
        _log.info("answers: %s", dict(self.words()))
        kept = {name for name, (word, _) in said.items() if word in KEPT}
        shed = {name for name, (word, _) in said.items() if word == "shed"}
        assert {name for name in kept if there[name] != ROWS} == set()
        assert {name for name in shed if there[name]} == set()
        assert len(kept) + len(shed) == len(said)
        assert found.counters["answered"] == ROWS * len(said)
        assert found.counters["logged"] == ROWS * len(kept)
        assert found.counters.get("shed", 0) == ROWS * len(shed)


KEPT = {"committed", "accepted", "queued"}
