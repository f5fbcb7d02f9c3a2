"""The appending side of the log: rows into the hot table, each event once, as fast as SQL goes.

It talks to the driver's own cursor (`Ledger.write_raw`): SQLAlchemy's share of a small append is as
large as the commit. Nothing heavy is imported here; it runs in serving workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec

from core.ledger import Ledger
from core.times import EPOCH, micros
from monitor.log.hot import key
from monitor.log.records import Prediction

#: model, source, event id, prediction id, version, role, time (µs), inputs and outputs (JSON),
#: received (µs).
Encoded = tuple[str, str, str, str, str, str, int, str, str, int]

_COLUMNS = "model, source, event_id, prediction_id, version, role, time, inputs, outputs, received"
_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
#: Rows of one statement, where so many are left. Each statement gives the interpreter up and waits
#: for it again, which costs the thread that answers requests more than the insert itself. SQLite
#: before 3.32 takes at most 999 parameters.
_CHUNKS = (99, 24, 6, 1)


def _into(rows: int) -> str:
    values = ", ".join([_ROW] * rows)
    return f"INSERT INTO predictions ({_COLUMNS}) VALUES {values} ON CONFLICT DO NOTHING"  # noqa: S608


_INTO = {rows: _into(rows) for rows in _CHUNKS}
_POSTGRES = (
    f"INSERT INTO predictions ({_COLUMNS})"  # noqa: S608
    " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::text[], %s::bigint[], %s::text[], %s::text[], %s::bigint[]) ON CONFLICT DO NOTHING"
)
_SEALED = {
    True: "SELECT event FROM sealed_keys WHERE event IN (SELECT value FROM json_each(?))",
    False: "SELECT event FROM sealed_keys WHERE event = ANY(%s::text[])",
}
_UNDO = (
    "DELETE FROM predictions USING unnest(%s::text[], %s::text[]) AS gone(source, event_id)"
    " WHERE predictions.source = gone.source AND predictions.event_id = gone.event_id"
)
_encoder = msgspec.json.Encoder()
_json = _encoder.encode


def encode(rows: Sequence[Prediction], received: datetime) -> list[Encoded]:
    """Rows as the hot table holds them."""
    moment = micros(received)
    return [
        (
            row.model,
            row.source,
            row.event_id or row.id,
            row.id,
            row.version,
            row.role,
            _micros(row.time),
            inputs,
            outputs,
            moment,
        )
        for row, inputs, outputs in zip(
            rows,
            _lines([row.inputs for row in rows]),
            _lines([row.outputs for row in rows]),
            strict=True,
        )
    ]


def _lines(values: list[Any]) -> list[str]:
    """Each value as JSON; one call for all of them is a third faster than one each."""
    lines = _encoder.encode_lines(values).decode().split("\n")
    lines.pop()  # after the last newline
    return lines


def _micros(moment: datetime) -> int:
    if moment.tzinfo is not UTC:
        return micros(moment)
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def commit(
    ledger: Ledger,
    rows: Sequence[Encoded],
    *,
    beside: Callable[[Any], None] = lambda cursor: None,
) -> int:
    """Commit rows in one transaction; events that are hot or sealed already are skipped.

    Args:
        beside: what else the transaction writes, on the driver's own cursor.

    Returns how many were new.

    Raises:
        sqlalchemy.exc.DBAPIError: nothing was committed.
    """
    insert = _into_sqlite if ledger.sqlite else _into_postgres
    with ledger.write_raw() as cursor:
        new = insert(cursor, rows) if rows else 0
        beside(cursor)
    return new


def _into_sqlite(cursor: Any, rows: Sequence[Encoded]) -> int:
    # The write lock is ours, so nobody seals between the look and the insert.
    if cursor.execute("SELECT 1 FROM sealed_keys LIMIT 1").fetchone() is not None:
        sealed = _sealed(cursor, rows, sqlite=True)
        rows = [row for row in rows if _event(row) not in sealed] if sealed else rows
    new, start = 0, 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            cursor.execute(_INTO[size], list(chain.from_iterable(rows[start : start + size])))
            new, start = new + cursor.rowcount, start + size
    return int(new)


def _into_postgres(cursor: Any, rows: Sequence[Encoded]) -> int:
    # In order of the key: two workers with the same events must not deadlock.
    ordered = sorted(rows, key=itemgetter(2, 1))
    cursor.execute(_POSTGRES, [list(column) for column in zip(*ordered, strict=True)])
    new = int(cursor.rowcount)
    # Only now, when no row of ours can be sealed under another's hands: what was sealed before the
    # insert is visible to this statement, so that a replayed event cannot slip in between.
    sealed = _sealed(cursor, rows, sqlite=False)
    if sealed:
        gone = [row for row in rows if _event(row) in sealed]
        cursor.execute(_UNDO, ([row[1] for row in gone], [row[2] for row in gone]))
        new -= int(cursor.rowcount)
    return new


def _event(row: Encoded) -> str:
    return key(row[1], row[2])


def _sealed(cursor: Any, rows: Sequence[Encoded], *, sqlite: bool) -> Collection[str]:
    events = [_event(row) for row in rows]
    wanted = _json(events).decode() if sqlite else events
    cursor.execute(_SEALED[sqlite], (wanted,))
    return {found for (found,) in cursor.fetchall()}
