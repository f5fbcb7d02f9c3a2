"""Several processes that write to one database at once: each gets its turn, none gives up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from core.ledger import Ledger

WRITER = str(Path(__file__).with_name("writer.py"))


def test_writers_of_one_database_get_equal_turns(
    url: str, tmp_path: Path, start_process: Any, read: Any, long: bool
) -> None:
    Ledger(url).create().close()
    acknowledged = dict.fromkeys("abcd", 0)
    with start_process(WRITER, url, str(tmp_path)) as process:
        for name in acknowledged:
            process.stdin.write(f"write {name} {ord(name)}\n")
        process.stdin.flush()
        end = time.monotonic() + (20.0 if long else 3.0)
        pids = []
        while time.monotonic() < end or min(acknowledged.values()) < 20:
            kind, _, rest = process.stdout.readline().strip().partition(" ")
            assert kind not in {"", "failed"}, rest
            if kind == "ack":
                acknowledged[rest[0]] += 1
            elif kind == "pid":
                pids.append(int(rest))
        _end(process, pids)
    assert min(acknowledged.values()) > max(acknowledged.values()) / 4
    found = read(url, tmp_path)
    assert not found.doubled()
    assert len(found.requests()) >= sum(acknowledged.values())


def _end(process: Any, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.stdin.write("reap\n")
    process.stdin.flush()
    left = len(pids)
    while left:
        left -= process.stdout.readline().startswith("gone")
