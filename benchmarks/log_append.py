"""Appends beside bare SQLite: the part of `benchmarks/log.py` that writes.

Bare is what a careful programmer would write by hand with `sqlite3`: WAL, `synchronous=FULL`,
`BEGIN IMMEDIATE`, one `executemany` of ready tuples (JSON already encoded, times already integers),
`COMMIT`. Twice: into a table with the same ten columns and the same unique key, without which an
event replayed would be doubled (`key`), and into one without any index (`heap`). shelflife is
given what callers have (structs, NDJSON or Arrow bytes) and does everything from there.
"""

from __future__ import annotations

import gc
import random
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import msgspec
import pyarrow as pa

from core.ledger import Ledger
from core.times import from_micros, micros
from monitor.log.append import encode
from monitor.log.log import InferenceLog
from monitor.log.records import Prediction

T0 = datetime(2026, 1, 1, tzinfo=UTC)
FORMATS = ("structs", "ndjson", "arrow")
APPENDS = {1: 400, 10: 400, 50: 400, 500: 100, 5000: 20}
_ROUNDS = 20  # the systems take turns this often
_COLUMNS = (
    "model TEXT NOT NULL, source TEXT NOT NULL, event_id TEXT NOT NULL,"
    " prediction_id TEXT NOT NULL, version TEXT NOT NULL, role TEXT NOT NULL,"
    " time BIGINT NOT NULL, inputs TEXT NOT NULL, outputs TEXT NOT NULL, received BIGINT NOT NULL"
)
_NAMES = _COLUMNS.replace(" TEXT NOT NULL", "").replace(" BIGINT NOT NULL", "")


def rows(n: int, *, ordered: bool, seed: int = 0) -> Iterator[Prediction]:
    """Rows of 18 inputs; ids are random UUIDs, or in order of time as shelflife makes them."""
    rng = random.Random(seed)
    levels = ["NL", "DE", "FR", "BE"]
    for i in range(n):
        noise = rng.getrandbits(128)
        inputs: dict[str, Any] = {f"x{j}": rng.gauss(0, 1) for j in range(15)}
        inputs |= {f"c{j}": rng.choice(levels) for j in range(3)}
        yield Prediction(
            model="m",
            id=f"{i:012x}{noise >> 48:020x}" if ordered else str(uuid.UUID(int=noise)),
            version="1",
            time=from_micros(micros(T0) + 1000 * i),
            inputs=inputs,
            outputs={"probability": rng.random()},
            source="serving/m",
        )


class Bare:
    """A table, a cursor, a commit."""

    def __init__(self, folder: Path, *, key: bool) -> None:
        self.connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.execute(f"CREATE TABLE p (id INTEGER PRIMARY KEY, {_COLUMNS})")
        if key:
            self.connection.execute("CREATE UNIQUE INDEX k ON p (source, event_id)")
        marks = ", ".join("?" * 10)
        self.insert = f"INSERT INTO p ({_NAMES}) VALUES ({marks}) ON CONFLICT DO NOTHING"

    def prepare(self, batch: list[Prediction]) -> Any:
        return encode(batch, T0)

    def append(self, ready: Any) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(self.insert, ready)
        self.connection.execute("COMMIT")

    def close(self) -> None:
        self.connection.close()


class Ours:
    """An inference log given one format."""

    def __init__(self, ledger: Ledger, folder: Path, form: str) -> None:
        self.ledger, self.form = ledger, form
        self.log = InferenceLog(ledger, folder / "segments")
        self.decode: Callable[[bytes], list[Prediction]] = msgspec.json.Decoder(
            Prediction
        ).decode_lines

    def prepare(self, batch: list[Prediction]) -> Any:
        if self.form == "structs":
            return batch
        if self.form == "ndjson":
            return msgspec.json.Encoder().encode_lines(batch)
        columns = {name: [row.inputs[name] for row in batch] for name in batch[0].inputs}
        table = pa.table(
            {
                "id": [row.id for row in batch],
                "time": pa.array([micros(row.time) for row in batch], pa.int64()),
                **{f"in.{name}": values for name, values in columns.items()},
                "out.probability": [row.outputs["probability"] for row in batch],
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    def append(self, ready: Any) -> None:
        if self.form == "structs":
            self.log.append(ready, received=T0)
        elif self.form == "ndjson":
            self.log.append(self.decode(ready), received=T0)
        else:
            self.log.append(_predictions(pa.ipc.open_stream(ready).read_all()), received=T0)

    def close(self) -> None:
        self.ledger.close()


def _predictions(table: pa.Table) -> list[Prediction]:
    found = {name: _values(table.column(name)) for name in table.column_names}
    inputs = {name[3:]: values for name, values in found.items() if name[:3] == "in."}
    names, values = list(inputs), zip(*inputs.values(), strict=True)
    return [
        Prediction(
            model="m",
            id=key,
            version="1",
            time=from_micros(moment),
            inputs=dict(zip(names, row, strict=True)),
            outputs={"probability": answer},
            source="serving/m",
        )
        for key, moment, row, answer in zip(
            found["id"], found["time"], values, found["out.probability"], strict=True
        )
    ]


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_string(column.type) or column.null_count:
        return column.to_pylist()
    return column.to_numpy().tolist()  # four times faster for numbers


def systems(folder: Path, postgres: Callable[[], str] | None) -> dict[str, Bare | Ours]:
    """Every system with a fresh database of its own."""
    made: dict[str, Bare | Ours] = {}

    def room(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    made["bare, no index"] = Bare(room("heap"), key=False)
    made["bare, unique key"] = Bare(room("key"), key=True)
    for form in FORMATS:
        here = room(form)
        ledger = Ledger(f"sqlite:///{here / 'ledger.db'}").create()
        made[f"shelflife, {form}"] = Ours(ledger, here, form)
    if postgres is not None:
        made["shelflife, PostgreSQL"] = Ours(Ledger(postgres()).create(), folder, "structs")
    return made


def measure(
    folder: Path, batch: int, *, ordered: bool, appends: int, postgres: Callable[[], str] | None
) -> list[dict[str, Any]]:
    """One line per system: rows per second, p50 and p99 of an append in ms, ratios to bare."""
    every = list(rows(batch * appends, ordered=ordered))
    batches = [every[i : i + batch] for i in range(0, len(every), batch)]
    found = systems(folder / f"{batch}-{ordered}", postgres)
    ready = {name: [one.prepare(part) for part in batches] for name, one in found.items()}
    took: dict[str, list[float]] = {name: [] for name in found}
    gc.collect()
    gc.freeze()  # what is ready is ours, not the systems': they should not pay for walking it
    step = max(1, appends // _ROUNDS)
    for start in range(0, appends, step):
        for name, one in found.items():
            for part in ready[name][start : start + step]:
                before = perf_counter()
                one.append(part)
                took[name].append(perf_counter() - before)
    gc.unfreeze()
    lines = []
    for name, one in found.items():
        one.close()
        times = took[name]
        cuts = quantiles(times, n=100)
        lines.append(
            {
                "batch": batch,
                "ids": "ordered" if ordered else "random",
                "system": name,
                "rows_per_s": batch * appends / sum(times),
                "p50_ms": 1000 * cuts[49],
                "p99_ms": 1000 * cuts[98],
                "to_key": sum(took["bare, unique key"]) / sum(times),
                "to_heap": sum(took["bare, no index"]) / sum(times),
            }
        )
    return lines


def flatness(folder: Path, *, appends: int, batch: int = 50) -> dict[str, list[float]]:
    """Median ms of an append in each tenth of many appends, random ids, beside bare SQLite."""
    found: dict[str, Bare | Ours] = {}
    for name in ("bare", "ours"):
        (folder / f"flat-{name}").mkdir(parents=True)
    found["bare, unique key"] = Bare(folder / "flat-bare", key=True)
    ledger = Ledger(f"sqlite:///{folder / 'flat-ours' / 'ledger.db'}").create()
    found["shelflife, structs"] = Ours(ledger, folder / "flat-ours", "structs")
    tenths: dict[str, list[float]] = {name: [] for name in found}
    times: dict[str, list[float]] = {name: [] for name in found}
    source = rows(batch * appends, ordered=False, seed=1)
    for done in range(1, appends + 1):
        part = [next(source) for _ in range(batch)]
        for name, one in found.items():
            ready = one.prepare(part)
            before = perf_counter()
            one.append(ready)
            times[name].append(perf_counter() - before)
        if done % (appends // 10) == 0:
            for name, values in times.items():
                tenths[name].append(1000 * sorted(values)[len(values) // 2])
                values.clear()
    for one in found.values():
        one.close()
    return tenths


def crowded(folder: Path, *, there: int, appends: int, batch: int = 50) -> list[dict[str, Any]]:
    """Appends to a log that holds many rows, and as many sealed keys, beside an empty one.

    Ids are random: the worst case for the index of the hot rows and the search for sealed keys.
    """
    found: dict[str, Ours] = {}
    for name, held in {"empty": 0, "hot": there, "sealed": there, "hot and sealed": there}.items():
        (folder / name).mkdir(parents=True)
        ledger = Ledger(f"sqlite:///{folder / name / 'ledger.db'}").create()
        _fill(folder / name / "ledger.db", held if "hot" in name else 0, "predictions")
        _fill(folder / name / "ledger.db", held if "sealed" in name else 0, "sealed_keys")
        found[name] = Ours(ledger, folder / name, "structs")
    times: dict[str, list[float]] = {name: [] for name in found}
    source = rows(batch * appends, ordered=False, seed=2)
    for _ in range(appends):
        part = [next(source) for _ in range(batch)]
        for name, one in found.items():
            before = perf_counter()
            one.append(part)
            times[name].append(1000 * (perf_counter() - before))
    lines = []
    for name, one in found.items():
        one.close()
        cuts = quantiles(times[name], n=100)
        empty = sorted(times["empty"])[appends // 2]
        lines.append(
            {
                "there before": f"{there:,} {name}" if name != "empty" else name,
                "p50_ms": cuts[49],
                "p99_ms": cuts[98],
                "to_empty": empty / cuts[49],
            }
        )
    return lines


def _fill(path: Path, count: int, table: str) -> None:
    """Rows with random keys, in a transaction each of 100,000 rows."""
    if not count:
        return
    rng = random.Random(3)
    plain = sqlite3.connect(path, isolation_level=None)
    plain.execute("PRAGMA cache_size=-200000")
    if table == "predictions":
        statement = (
            "INSERT INTO predictions (model, source, event_id, prediction_id, version, role, time,"
            " received, inputs, outputs) VALUES ('m', 'serving/m', ?, ?, '1', 'champion', ?, 0, ?,"
            " '{}')"
        )
    else:
        statement = "INSERT INTO sealed_keys (event, prediction, segment) VALUES (?, ?, 1)"
    for start in range(0, count, 100_000):
        keys = sorted(f"{rng.getrandbits(128):032x}" for _ in range(100_000))
        plain.execute("BEGIN")
        if table == "predictions":
            values = [(key, key, micros(T0) + start + i, "x" * 300) for i, key in enumerate(keys)]
            plain.executemany(statement, values)
        else:
            plain.executemany(statement, [(key, f"{rng.getrandbits(128):032x}") for key in keys])
        plain.execute("COMMIT")
    plain.close()
