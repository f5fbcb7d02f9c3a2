"""Processes to be killed: `python writer.py URL FOLDER` forks one per line that it reads.

`write NAME SEED` appends requests of 1 to 20 rows for ever, sometimes the same one again, and
labels; `seal NAME SEED` seals for ever. What is acknowledged is a line on stdout, written after the
call returned; `gone PID` follows when the process has died, after everything it said.
"""

from __future__ import annotations

import os
import random
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.ledger import Ledger
from monitor.log import flat  # noqa: F401  # imported once, before the forks
from monitor.log.log import InferenceLog
from monitor.log.records import Label, Prediction

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def say(text: str) -> None:
    """One line in one write: lines of several processes do not mix."""
    os.write(1, f"{text}\n".encode())


def request(name: str, rng: random.Random) -> list[Prediction]:
    """Rows of one request: its number and size are in the event id, for whoever counts."""
    n = rng.randint(1, 20)
    return [
        Prediction(
            model="m",
            id=f"{rng.getrandbits(64):016x}",
            event_id=f"{name}/{i}/{n}",
            version="1",
            time=T0 + timedelta(seconds=rng.random() * 1e5),
            inputs={"x": rng.random(), "c": "a" * rng.randint(0, 200)},
            outputs={"probability": 0.5},
        )
        for i in range(n)
    ]


def write(log: InferenceLog, name: str, rng: random.Random) -> None:
    """Append, and say what was acknowledged, until killed."""
    sent: list[list[Prediction]] = []
    for number in range(1_000_000):
        rows = request(f"{name}-{number}", rng)
        log.append(rows, received=datetime.now(UTC))
        say(f"ack {rows[0].event_id.split('/')[0]} {len(rows)}")
        sent = [*sent[-50:], rows]
        again = rng.choice(sent)
        if rng.random() < 0.2:  # a retry of something acknowledged, sealed perhaps
            log.append(again, received=datetime.now(UTC))
        if rng.random() < 0.2:
            label = Label(model="m", id=again[0].id, value=number, time=T0 + timedelta(days=number))
            log.append_labels([label], received=datetime.now(UTC))
            say(f"label {again[0].id} {number}")


def seal(log: InferenceLog, rng: random.Random) -> None:
    """Seal what is there, until killed."""
    while True:
        if log.seal(before=datetime.now(UTC)):
            say("sealed")
        time.sleep(rng.random() * 0.05)


def child(url: str, folder: Path, kind: str, name: str, seed: str) -> None:
    """Never returns."""
    log = InferenceLog(Ledger(url), folder)
    rng = random.Random(seed)
    try:
        if kind == "write":
            write(log, name, rng)
        else:
            seal(log, rng)
    except BaseException as error:
        say(f"failed {name} {type(error).__name__}: {str(error)[:500]!r}")
    finally:
        os._exit(1)


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    children = set[int]()
    for line in sys.stdin:
        command = line.split()
        if command[0] == "reap":
            for pid in children:
                os.waitpid(pid, 0)
                say(f"gone {pid}")
            children.clear()
            continue
        pid = os.fork()
        if pid == 0:
            child(url, folder, *command)
        children.add(pid)
        say(f"pid {pid}")


if __name__ == "__main__":
    main()
