"""The independent reader: plain SQL, plain Parquet, none of our code."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


@dataclass
class Found:
    """What lies in a log.

    Attributes:
        events: how often each (source, event id) is there, hot or sealed.
        labels: every (prediction id, JSON value).
        sealed: rows in segments.
        wrong: files that are not what the manifest says.
    """

    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: set[tuple[str, str]] = field(default_factory=set)
    counters: dict[str, int] = field(default_factory=dict)
    sealed: int = 0
    wrong: list[str] = field(default_factory=list)

    def doubled(self) -> list[tuple[str, str]]:
        return [event for event, n in self.events.items() if n > 1]

    def requests(self) -> dict[str, tuple[int, int]]:
        """Rows found and rows sent, by request; both are in an event id of `writer.py`."""
        counts: dict[str, tuple[int, int]] = {}
        for _, event in self.events:
            name, _, size = event.split("/")
            counts[name] = (counts.get(name, (0, 0))[0] + 1, int(size))
        return counts


def query(url: str, statements: list[str]) -> list[list[Any]]:
    """The rows of each statement, in one read transaction of a driver of its own."""
    if url.startswith("sqlite:///"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("BEGIN")
    else:
        import psycopg

        connection = psycopg.connect(url.replace("+psycopg", ""))
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        return [connection.execute(statement).fetchall() for statement in statements]
    finally:
        connection.close()


def read(url: str, folder: Path) -> Found:
    """Count everything."""
    found = Found()
    hot, segments, labels, counters = query(
        url,
        [
            "SELECT source, event_id FROM predictions",
            "SELECT path, rows, sha256 FROM segments WHERE state = 'active'",
            "SELECT prediction_id, value FROM labels",
            "SELECT name, sum(value) FROM counters GROUP BY name",
        ],
    )
    found.events.update(hot)
    found.labels.update(labels)
    found.counters = {name: int(value) for name, value in counters}
    for path, rows, sha256 in segments:
        data = (folder / path).read_bytes()
        table = pq.read_table(folder / path, columns=["source", "event_id"])
        if hashlib.sha256(data).hexdigest() != sha256 or table.num_rows != rows:
            found.wrong.append(path)
        pairs = zip(*(table.column(c).to_pylist() for c in table.column_names), strict=True)
        found.events.update(pairs)
        found.sealed += rows
    return found
