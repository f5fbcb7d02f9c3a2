"""SIGKILL of the service while KServe's halves come in: no pair acknowledged whole is lost."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core import schema
from core.ledger import Ledger

MODEL = "churn"


class Logger(threading.Thread):
    """KServe's logger: halves of new pairs, shuffled; keeps which ones were acknowledged."""

    def __init__(self, port: int, name: str, bodies: dict[str, Any]) -> None:
        super().__init__(name=name, daemon=True)
        self.port, self.bodies = port, bodies
        self.taken: set[tuple[str, str]] = set()
        self.failed: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        rng = random.Random(self.name)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for number in itertools.count():
            halves = [
                (f"{self.name}-{number + i}", part) for i in range(3) for part in self.bodies
            ][:: rng.choice((1, -1))]
            rng.shuffle(halves)
            for half in halves:
                if self.stopping.is_set() or not self._send(connection, *half):
                    connection.close()
                    return

    def _send(self, connection: http.client.HTTPConnection, name: str, part: str) -> bool:
        event = {
            "specversion": "1.0",
            "id": name,
            "source": "http://localhost:9081/",
            "type": f"org.kubeflow.serving.inference.{part}",
            "inferenceservicename": MODEL,
            "endpoint": "default",
            "datacontenttype": "application/json",
            "data": self.bodies[part],
        }
        headers = {"Content-Type": "application/cloudevents+json"}
        try:
            connection.request("POST", "/api/v1/cloudevents", json.dumps(event), headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return False  # it was killed
        if response.status == 200 and json.loads(text)["refused"] == 0:
            self.taken.add((name, part))
        else:
            self.failed.append(f"{response.status} {text[:200]!r}")
        return True


def test_kill_9_loses_and_doubles_no_pair(
    any_url: str, tmp_path: Path, read: Any, start_process: Any, shop_module: Any,
    serving_tools: Any, versions: Any, long: bool,
) -> None:  # fmt: skip
    rng = random.Random(5)
    shop = shop_module.Shop(tmp_path, any_url, serving_tools, versions)
    _promoted(any_url)
    loggers: list[Logger] = []
    bodies: dict[str, Any] = {}
    for kill in range(30 if long else 1):
        with shop.run(start_process) as process:
            bodies = bodies or {"request": shop.body, "response": _answer(shop)}
            mine = [Logger(shop.port, f"k{kill}.{i}", bodies) for i in range(3)]
            for logger in mine:
                logger.start()
            time.sleep(rng.uniform(0.3, 1.0))
            process.kill()
            for logger in mine:
                logger.join(40)
            loggers += mine
    with shop.run(start_process):  # its sweep completes what was cut
        taken = {half for logger in loggers for half in logger.taken}
        whole = {name for name, part in taken if (name, "request") in taken and part == "response"}
        shop.wait_for(lambda: whole <= _pairs(read(any_url, tmp_path / "segments")))
    found = read(any_url, tmp_path / "segments")
    assert not [failed for logger in loggers for failed in logger.failed]
    assert len(whole) > 20
    assert not found.doubled()
    rows = Counter(event.rpartition(":")[0] for _, event in found.events)
    assert {rows[name] for name in whole} == {shop_module.ROWS}


def _promoted(url: str) -> None:
    """What tells the service that the model is one of its own."""
    ledger = Ledger(url)
    with ledger.write() as tx:
        moment = datetime.now(UTC)
        row = {"model": MODEL, "version": "1", "kind": "first", "at": moment, "sha256": "0"}
        tx.execute(schema.promotions.insert().values(**row, by="test"))
    ledger.close()


def _answer(shop: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", shop.port, timeout=30)
    connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps(shop.body))
    said = json.loads(connection.getresponse().read())
    connection.close()
    return {"model_name": MODEL, "outputs": said["outputs"]}


def _pairs(found: Any) -> set[str]:
    return {event.rpartition(":")[0] for _, event in found.events}
