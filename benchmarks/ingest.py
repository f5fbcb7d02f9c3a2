"""Rows per second through the HTTP ways in, beside bare SQLite with the same durability.

    python benchmarks/ingest.py [--rows 20000] [--columns 20] [--seed 0]

A real server (uvicorn, a process of its own) over a fresh SQLite ledger (WAL, synchronous=FULL)
takes the same rows as JSON, NDJSON and Arrow IPC in batches of 1, 100, 1,000 and 10,000, one
connection, one request after the other; an answer means committed. `bare` is `executemany` of the
same rows, already encoded, into one table with the same keys in the same batches, in this process.
The last column is the share of bare SQLite's rate. Ratios count, seconds belong to the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import multiprocessing
import random
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from core import schema
from core.settings import Settings
from core.spec import Feature, ModelSpec
from serving.store import Manifest, Target, write_pointer
from shelflife.service import Service

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PATH = "/api/v1/models/bench/predictions"
ARROW = "application/vnd.apache.arrow.stream"


def prepare(home: Path, columns: int) -> Settings:
    """A home with a model's spec and no model: rows come from elsewhere."""
    features = tuple(Feature(name=f"c{i}", kind="numeric") for i in range(columns))
    spec = ModelSpec(
        name="bench", task="binary", target="y", metric="brier", classes=(0, 1), features=features
    )
    data = msgspec.json.encode(spec)
    files = {"spec.json": hashlib.sha256(data).hexdigest()}
    manifest = msgspec.json.encode(
        Manifest(model="bench", backend="native", sha256="0" * 64, files=files)
    )
    folder = home / "serving" / "store" / hashlib.sha256(manifest).hexdigest()
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest)
    target = Target(version="1", folder=folder.name, backend="native", sha256="0" * 64)
    write_pointer(home, "bench", target, now=NOW)
    settings = Settings(home=str(home))
    service = Service(settings, folder=home)
    with service.ledger.write() as tx:
        tx.execute(
            schema.promotions.insert().values(
                model="bench", version="1", kind="first", at=NOW, by="benchmark", sha256="0"
            )
        )
    service.close()
    return settings


def serve(home: str, port: int) -> None:
    """The server's process."""
    import uvicorn

    from shelflife import server

    settings = Settings(home=home)
    service = Service(settings, folder=Path(home))
    uvicorn.run(server.build(service), **server.options(settings) | {"port": port})


@contextmanager
def running(home: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(str(home), port))
    process.start()
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.join()


def rows_of(count: int, columns: int, seed: int, tag: str) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "id": f"{tag}-{i}",
            "time": "2026-03-01T08:00:00Z",
            "inputs": {f"c{j}": round(chance.gauss(0, 1), 4) for j in range(columns)},
            "outputs": {"probability": round(chance.random(), 4)},
        }
        for i in range(count)
    ]


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    names = list(rows[0]["inputs"])
    table = pa.table(
        {"id": [r["id"] for r in rows], "time": [r["time"] for r in rows]}
        | {f"inputs.{n}": [r["inputs"][n] for r in rows] for n in names}
        | {"outputs.probability": [r["outputs"]["probability"] for r in rows]}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


FORMATS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = {
    "json": ("application/json", lambda rows: json.dumps({"predictions": rows}).encode()),
    "ndjson": ("application/x-ndjson", lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    "arrow": (ARROW, as_arrow),
}


def through_http(port: int, bodies: list[bytes], media: str) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    seconds = []
    for body in bodies:
        start = time.perf_counter()
        connection.request("POST", PATH, body, {"Content-Type": media})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        seconds.append(time.perf_counter() - start)
        assert answer.status == 200, told
        assert told["new"] == told["received"], told
    connection.close()
    return seconds


def bare(folder: Path, batches: list[list[dict[str, Any]]]) -> list[float]:
    """`executemany` into one table, committed per batch."""
    connection = sqlite3.connect(folder / f"bare-{random.random()}.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE p (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT, source TEXT,"
        " event_id TEXT, prediction_id TEXT, version TEXT, role TEXT, time BIGINT,"
        " received BIGINT, inputs TEXT, outputs TEXT, UNIQUE (source, event_id))"
    )
    connection.execute("CREATE INDEX by_time ON p (model, time)")
    connection.execute("CREATE INDEX by_id ON p (model, prediction_id)")
    seconds = []
    for rows in batches:
        values = [
            ("bench", "api/bench", r["id"], r["id"], "1", "champion", 0, 0,
             json.dumps(r["inputs"]), json.dumps(r["outputs"])) for r in rows
        ]  # fmt: skip
        start = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO p VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            values,
        )
        connection.execute("COMMIT")
        seconds.append(time.perf_counter() - start)
    connection.close()
    return seconds


def line(name: str, batch: int, seconds: list[float], base: float) -> float:
    rate = batch * len(seconds) / sum(seconds)
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    share = rate / base if base else 1.0
    print(f"{name:8} {batch:6} {rate:10,.0f} {p50 * 1e3:9.2f} {p99 * 1e3:9.2f} {share:7.2f}")
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{given.rows} rows of {given.columns} columns, seed {given.seed}")
    print(f"{'way':8} {'batch':>6} {'rows/s':>10} {'p50 ms':>9} {'p99 ms':>9} {'share':>7}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        prepare(home, given.columns)
        with running(home) as port:
            for batch in (1, 100, 1_000, 10_000):
                count = min(given.rows, batch * 500)
                base = 0.0
                for name in ("bare", *FORMATS):
                    rows = rows_of(count, given.columns, given.seed, f"{name}-{batch}")
                    batches = [rows[i : i + batch] for i in range(0, count, batch)]
                    if name == "bare":
                        base = line(name, batch, bare(Path(folder), batches), 0.0)
                        continue
                    media, encode = FORMATS[name]
                    bodies = [encode(each) for each in batches]
                    line(name, batch, through_http(port, bodies, media), base)


if __name__ == "__main__":
    main()
