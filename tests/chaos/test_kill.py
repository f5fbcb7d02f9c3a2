"""SIGKILL at random moments, sealing included: what was acknowledged is there, once, whole."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from core.ledger import Ledger

WRITER = str(Path(__file__).with_name("writer.py"))
_log = logging.getLogger("chaos")
_LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}
_PARTS = range(20 if _LONG else 1)  # each with a fresh database
_KILLS = 10 if _LONG else 6


class Nursery:
    """`writer.py`, and everything its children acknowledged."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.acknowledged: dict[str, int] = {}
        self.labels: set[tuple[str, str]] = set()
        self.pids: list[int] = []

    def send(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def fork(self, kind: str, name: str, seed: int) -> None:
        self.send(f"{kind} {name} {seed}")
        wanted = len(self.pids) + 1
        while len(self.pids) < wanted:
            self.hear()

    def hear(self) -> str:
        line: str = self.process.stdout.readline()
        kind, _, rest = line.strip().partition(" ")
        assert kind not in {"", "failed"}, rest  # a writer must not fail because another was killed
        if kind == "ack":
            name, rows = rest.split()
            self.acknowledged[name] = int(rows)
        elif kind == "label":
            identity, value = rest.split()
            self.labels.add((identity, value))
        elif kind == "pid":
            self.pids.append(int(rest))
        return kind

    def kill(self, rng: random.Random) -> None:
        """All of them at about the same moment; then hear what they had said until it."""
        rng.shuffle(self.pids)
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        self.send("reap")
        left = len(self.pids)
        while left:
            left -= self.hear() == "gone"
        self.pids.clear()


def check(nursery: Nursery, found: Any) -> None:
    requests = found.requests()
    lost = {name for name, n in nursery.acknowledged.items() if requests.get(name) != (n, n)}
    assert not lost
    assert not found.doubled()
    assert not [name for name, (there, sent) in requests.items() if there != sent]  # halved
    assert nursery.labels <= found.labels
    assert not found.wrong


@pytest.mark.parametrize("part", _PARTS)
def test_kill_9_loses_doubles_and_halves_nothing(
    url: str, tmp_path: Path, read: Any, start_process: Any, part: int
) -> None:
    rng = random.Random(part)
    Ledger(url).create().close()
    folder = tmp_path / "segments"
    with start_process(WRITER, url, str(folder)) as process:
        nursery = Nursery(process)
        for kill in range(_KILLS):
            for i in range(2):
                nursery.fork("write", f"w{kill}.{i}", 100 * kill + i)
            nursery.fork("seal", f"s{kill}", kill)
            nursery.hear()
            while kill % 2 and nursery.hear() != "sealed":
                pass  # every second kill comes some time after a first segment
            time.sleep(rng.uniform(0.0, 0.4))
            nursery.kill(rng)
            check(nursery, read(url, folder))
    found = read(url, folder)
    assert found.sealed
    rows = sum(nursery.acknowledged.values())
    _log.info("%d kills, %d rows acknowledged, %d sealed", _KILLS, rows, found.sealed)
