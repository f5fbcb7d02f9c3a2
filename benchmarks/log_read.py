"""Reads of the inference log beside DuckDB on the very same Parquet files.

    python benchmarks/log_read.py [--rows 1000000] [--repeat 7]

A log of sealed rows (12 floats, 4 whole numbers, 3 categories, one output) is read as a window of
100,000 rows and whole, by `InferenceLog.read` and by DuckDB into pandas: the same columns of the
same files with the same filters, in the same order. The log verifies each file's SHA-256 and looks
for hot rows and labels besides. Both are compared value by value before anything is timed; the two
take turns, and the median of their times counts. `run` is what `benchmarks/log.py` calls.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from msgspec import Struct

from core.ledger import Ledger
from core.times import micros
from monitor.log import flat, segments
from monitor.log.log import InferenceLog
from monitor.log.records import Label, Rows

SEED = 20260101
START = datetime(2026, 1, 1, tzinfo=UTC)
ROLES = ("champion", "challenger")
PIECE = 100_000  # rows of a segment, after compaction


class Measured(Struct, frozen=True):
    """One kind of read: median milliseconds of both, and how often as fast the log is."""

    what: str
    rows: int
    log_ms: float
    duckdb_ms: float

    @property
    def ratio(self) -> float:
        return self.duckdb_ms / self.log_ms


def fill(log: InferenceLog, rows: int, *, labels: bool = False) -> None:
    """Sealed segments of `rows` rows, a second apart; labels a day after each where wanted."""
    rng = np.random.default_rng(SEED)
    for first in range(0, rows, PIECE):
        count = min(PIECE, rows - first)
        written = segments.write(log.storage, "m", _table(rng, first, count))
        with log.ledger.write() as tx:
            segments.added(tx, "m", written, START)
        if labels:
            said = [
                Label(
                    model="m", id=f"request-{i:09}", value=int(i % 3 == 0),
                    time=START + timedelta(days=1, seconds=i),
                )
                for i in range(first, first + count)
            ]  # fmt: skip
            log.append_labels(said, received=START)


def _table(rng: np.random.Generator, first: int, count: int) -> pa.Table:
    number = np.arange(first, first + count)
    columns = {
        "id": pa.array([f"request-{i:09}" for i in number]),
        "version": pa.array(["7"] * count),
        "role": pa.array(["champion"] * count),
        "source": pa.array(["serving/m"] * count),
        "event_id": pa.array([f"request-{i:09}" for i in number]),
        "time": pa.array(micros(START) + number * 1_000_000).cast(flat.TIME),
        "seq": pa.array(number),
    }
    for i in range(12):
        columns[f"in.x{i}"] = pa.array(rng.normal(size=count))
    for i in range(4):
        columns[f"in.k{i}"] = pa.array(rng.integers(0, 1000, count))
    for i in range(3):
        levels = np.array([f"level {j}" for j in range(20)], dtype=object)
        columns[f"in.c{i}"] = pa.array(levels[rng.integers(0, 20, count)])
    columns["out.probability"] = pa.array(rng.random(count))
    return pa.table(columns)


def by_duckdb(log: InferenceLog, start: datetime | None, end: datetime | None) -> pd.DataFrame:
    """What `log.read` returns, as DuckDB reads it from the same files."""
    with log.ledger.read() as tx:  # it is told which files hold the window, too
        listed = segments.listed(tx, "m", start=start, end=end)
    files = [str(log.storage.root / segment.path) for segment in listed]  # type: ignore[attr-defined]
    where = "role IN ('champion', 'challenger')"
    where += "" if start is None else f" AND time >= make_timestamptz({micros(start)})"
    where += "" if end is None else f" AND time < make_timestamptz({micros(end)})"
    query = (
        f"SELECT * EXCLUDE (event_id, seq) FROM read_parquet(?) WHERE {where} ORDER BY time, seq"
    )
    return duckdb.execute(query, [files]).df()


def same(rows: Rows, frame: pd.DataFrame) -> None:
    """Raise unless both read the same values in the same order."""
    assert len(rows) == len(frame)
    assert rows.meta["id"].tolist() == frame["id"].tolist()
    assert (rows.meta["time"].to_numpy() == frame["time"].dt.as_unit("us").to_numpy()).all()
    for name in rows.inputs.columns:
        assert rows.inputs[name].tolist() == frame[f"in.{name}"].tolist(), name
    assert (rows.outputs["probability"] == frame["out.probability"]).all()


def run(rows: int = 1_000_000, *, repeat: int = 7, labels: bool = False) -> list[Measured]:
    """Both reads of a window of 100,000 rows, and of all rows."""
    with tempfile.TemporaryDirectory(prefix="shelflife-bench-") as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db").create()
        log = InferenceLog(ledger, Path(folder) / "segments")
        fill(log, rows, labels=labels)
        duckdb.execute("SET TimeZone = 'UTC'")
        middle = START + timedelta(seconds=rows // 2 - 150_000 if rows > 300_000 else 0)
        windows: list[tuple[str, datetime | None, datetime | None]] = [
            ("window of 100,000 rows", middle, middle + timedelta(seconds=min(rows, 100_000))),
            ("all rows", None, None),
        ]
        found = [_beside(log, *window, repeat=repeat) for window in windows]
        ledger.close()
    return found


def _beside(
    log: InferenceLog, what: str, start: datetime | None, end: datetime | None, *, repeat: int
) -> Measured:
    def ours() -> Rows:
        return log.read("m", start=start, end=end)

    def theirs() -> pd.DataFrame:
        return by_duckdb(log, start, end)

    rows, frame = ours(), theirs()
    same(rows, frame)
    times: dict[str, list[float]] = {"log": [], "duckdb": []}
    for _ in range(repeat):
        times["log"].append(_timed(ours))
        times["duckdb"].append(_timed(theirs))
    middle = {name: statistics.median(each) for name, each in times.items()}
    return Measured(what, len(rows), middle["log"], middle["duckdb"])


def _timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    print(f"seed {SEED}; median of {given.repeat}, milliseconds")
    print(f"{'':38}{'rows':>10}{'log':>9}{'DuckDB':>9}{'ratio':>8}")
    for labels in (False, True):
        for each in run(given.rows, repeat=given.repeat, labels=labels):
            what = each.what + (", every row labelled" if labels else "")
            print(
                f"{what:38}{each.rows:10,}{each.log_ms:9.0f}{each.duckdb_ms:9.0f}{each.ratio:8.2f}"
            )


if __name__ == "__main__":
    main()
