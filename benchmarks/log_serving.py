"""A served model's answers with the log on, off, locked, dead and on a full disk, side by side.

Every mode is a `shelflife serve` of its own (one uvicorn worker, a logistic regression of five
numbers) with a ledger of its own. All of them run for the whole time and take turns of one second,
asked by eight connections of one client process: first `paced`, together 160 times a second, then
`flood`, each as soon as it was answered. At the end each fault is lifted, the worker is stopped,
and the rows in the log and the counters are compared with what the answers said.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from core.files import sha256_tree
from core.frames import to_frame
from core.ledger import Ledger
from core.spec import ModelSpec, infer_spec
from registry.loading import save_estimator
from serving import deploy

REPOSITORY = Path(__file__).parents[1]
CONNECTIONS = 8
QUEUE = 500  # rows; small, so that shedding is reached within a turn
LOG_WAIT = "1s"
LOADS = {"paced": 0.05, "flood": 0.0}  # seconds between the requests of a connection
NAMES = [f"x{i}" for i in range(5)]
_REQUEST = "POST /v2/models/m/infer HTTP/1.1\r\nHost: b\r\nContent-Length: {}\r\n\r\n"


class _Folder:
    """One version in a folder: what `serving.deploy` asks of a registry."""

    version = "1"

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(rng.normal(size=(500, 5)), columns=NAMES)
        self.spec: ModelSpec = infer_spec("m", frame, target="y", task="binary", classes=(0, 1))
        inputs = to_frame(self.spec, frame.to_dict("list"))
        model = LogisticRegression().fit(inputs, (frame["x0"] > 0).astype(int))
        self.root = root
        save_estimator(model, root / "model" / "model.skops")
        (root / "spec.json").write_bytes(msgspec.json.encode(self.spec))
        inputs.add_prefix("in:").to_parquet(root / "reference.parquet")
        self.sha256 = sha256_tree(root / "model")

    def by_alias(self, model: str, alias: str) -> _Folder:
        return self

    def file(self, version: _Folder, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def fetch(self, version: _Folder) -> Path:
        return self.root / "model"


@dataclass
class Mode:
    """One worker and what was measured of it."""

    name: str
    database: Path
    port: int
    process: subprocess.Popen[bytes]
    times: dict[str, list[float]] = field(default_factory=lambda: {load: [] for load in LOADS})
    words: Counter[str] = field(default_factory=Counter)
    exact: bool = False


async def _connection(mode: Mode, body: bytes, load: str, first: float, until: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", mode.port)
    request = _REQUEST.format(len(body)).encode() + body
    due = time.monotonic() + first
    while time.monotonic() < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()) if LOADS[load] else 0)
        due += LOADS[load]
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        text = await reader.readexactly(size)
        mode.times[load].append(time.perf_counter() - started)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{mode.name}: {text!r}")
        mode.words[json.loads(text)["parameters"]["shelflife_logged"]] += 1
    writer.close()


async def _turn(mode: Mode, body: bytes, load: str, seconds: float) -> None:
    until, apart = time.monotonic() + seconds, LOADS[load] / CONNECTIONS
    await asyncio.gather(
        *(_connection(mode, body, load, i * apart, until) for i in range(CONNECTIONS))
    )


def _start(registry: _Folder, home: Path, name: str, database: Path, **model: Any) -> Mode:
    url = f"sqlite:///{database}"
    ledger = Ledger(url).create()
    deploy.sync(
        registry,  # type: ignore[arg-type]
        ledger,
        home,
        "m",
        trust_pickle=False,
        now=datetime.now(UTC),
    )
    ledger.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = home / "shelflife.yaml"
    serving = {"port": port, "log_queue_rows": QUEUE, "log_wait": LOG_WAIT}
    content = {"home": str(home), "ledger": url, "serving": serving, "models": {"m": model}}
    settings.write_text(json.dumps(content))
    code = "import sys; from shelflife.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--settings", str(settings)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stderr=(home / "stderr").open("wb"),
    )
    return Mode(name, database, port, process)


def _wait(mode: Mode, body: bytes) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            asyncio.run(_turn(mode, body, "flood", 0.2))
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            if mode.process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            mode.times["flood"].clear()
            return


@contextmanager
def _small_disk(place: Path) -> Iterator[bool]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and not subprocess.run(command, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


def _stop(mode: Mode) -> None:
    """Stop the worker; every row must be where the answers said."""
    mode.process.send_signal(signal.SIGTERM)
    mode.process.wait(60)
    with sqlite3.connect(mode.database) as plain:
        rows = plain.execute("SELECT count(*), count(DISTINCT event_id) FROM predictions")
        there, distinct = rows.fetchone()
        counted = dict(plain.execute("SELECT name, value FROM counters WHERE model = 'm'"))
    plain.close()
    said = mode.words
    kept = said["committed"] + said["accepted"] + said["queued"]
    mode.exact = (
        there == distinct == kept == counted.get("logged", 0)
        and counted.get("shed", 0) == said["shed"]
        and counted.get("unsampled", 0) == said["unsampled"]
        and counted["answered"] == said.total()
    )


def measure(folder: Path, *, rounds: int = 15) -> list[dict[str, Any]]:
    """One line per mode: answers, p50, p99 and worst in ms, what became of the rows."""
    registry = _Folder(folder / "version")
    columns = [{"name": n, "shape": [1], "datatype": "FP64", "data": [0.5]} for n in NAMES]
    body = json.dumps({"inputs": columns}).encode()
    modes: dict[str, Mode] = {}

    def start(name: str, place: Path | None = None, **model: Any) -> None:
        home = folder / name.replace(" ", "-").replace(",", "")
        home.mkdir()
        database = (place or home) / "ledger.db"
        modes[name] = _start(registry, home, name, database, **model)

    with ExitStack() as stack:
        small = folder / "small"
        mounted = stack.enter_context(_small_disk(small))
        stack.callback(lambda: [mode.process.kill() for mode in modes.values()])
        start("off", sample_rate=0.0001)  # 1 row in 10,000: as good as none
        start("strict")
        start("relaxed", durability="relaxed")
        start("locked")
        start("dead")
        if mounted:
            start("full disk", small)
        for mode in modes.values():
            _wait(mode, body)
        lock = sqlite3.connect(modes["locked"].database, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        dead = modes["dead"].process.pid
        limits = resource.prlimit(dead, resource.RLIMIT_FSIZE)
        resource.prlimit(dead, resource.RLIMIT_FSIZE, (0, limits[1]))
        filler = _fill(small) if mounted else None
        for load in LOADS:
            for _ in range(rounds):
                for mode in modes.values():
                    asyncio.run(_turn(mode, body, load, 1.0))
        lock.close()
        resource.prlimit(dead, resource.RLIMIT_FSIZE, limits)
        if filler:
            filler.unlink()
        time.sleep(3)
        for mode in modes.values():
            _stop(mode)
    return [_line(mode, load, rounds) for load in LOADS for mode in modes.values()]


def _line(mode: Mode, load: str, seconds: int) -> dict[str, Any]:
    times = mode.times[load]
    cuts = quantiles(times, n=1000)
    return {
        "load": load,
        "log": mode.name,
        "answers": len(times),
        "per_s": len(times) / seconds,
        "p50_ms": 1000 * cuts[499],
        "p99_ms": 1000 * cuts[989],
        "p999_ms": 1000 * cuts[998],
        "max_ms": 1000 * max(times),
        "rows of both loads": dict(mode.words),
        "exact": mode.exact,
    }
