"""The hot part of the log: rows in the ledger's database, and the keys of those sealed away."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger, one_of
from monitor.log.records import Prediction

META = ("id", "version", "role", "source", "event_id")  # of a flat frame, before its time
_encode = msgspec.json.Encoder().encode


def key(*parts: str) -> str:
    """A 128-bit key of a tuple of strings (blake2b; lengths keep `a,bc` apart from `ab,c`)."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def insert(
    tx: sa.Connection, ledger: Ledger, rows: Sequence[Prediction], received: datetime
) -> int:
    """Insert rows that are neither hot nor sealed yet; returns how many were new."""
    sealed = _sealed(tx, map(_event, rows))
    fresh = [row for row in rows if _event(row) not in sealed] if sealed else rows
    if not fresh:
        return 0
    values = [
        {
            "model": row.model,
            "source": row.source,
            "event_id": row.event_id or row.id,
            "prediction_id": row.id,
            "version": row.version,
            "role": row.role,
            "time": row.time,
            "received": received,
            "inputs": _encode(row.inputs).decode(),
            "outputs": _encode(row.outputs).decode(),
        }
        for row in fresh
    ]
    statement = ledger.insert_ignore(schema.predictions)
    if ledger.sqlite:
        return tx.execute(statement, values).rowcount
    # psycopg does not count the rows of a batch; RETURNING lists those that were inserted.
    return len(tx.execute(statement.returning(schema.predictions.c.id), values).all())


def _event(row: Prediction) -> str:
    return key(row.source, row.event_id or row.id)


def _sealed(tx: sa.Connection, events: Iterable[str]) -> set[str]:
    column = schema.sealed_keys.c.event
    if tx.execute(sa.select(column).limit(1)).first() is None:
        return set()
    return set(tx.scalars(sa.select(column).where(one_of(tx, column, events))))


def known(connection: sa.Connection, model: str, ids: Sequence[str]) -> set[str]:
    """Those of the prediction ids that the log holds, hot or sealed."""
    live, sealed = schema.predictions.c, schema.sealed_keys.c
    mine = (live.model == model) & one_of(connection, live.prediction_id, ids)
    keys = {key(model, name): name for name in ids}
    query = sa.select(sealed.prediction).where(one_of(connection, sealed.prediction, keys))
    found = set(connection.scalars(sa.select(live.prediction_id).where(mine)))
    return found | {keys[value] for value in connection.scalars(query)}


def segments_of(connection: sa.Connection, model: str, ids: Iterable[str]) -> set[int]:
    """The segments that hold any of these prediction ids."""
    table, parts = schema.sealed_keys, schema.segment_parts
    keys = [key(model, name) for name in ids]
    here = sa.func.coalesce(parts.c.segment, table.c.segment)
    moved = table.outerjoin(parts, parts.c.part == table.c.segment)
    query = sa.select(here).select_from(moved).where(one_of(connection, table.c.prediction, keys))
    return set(connection.scalars(query.distinct()))


def settled(connection: sa.Connection, model: str, before: datetime, limit: int) -> list[Any]:
    """The first hot rows received before a moment, as `select` gives them."""
    table = schema.predictions
    query = (
        sa.select(
            table.c.prediction_id,
            table.c.version,
            table.c.role,
            table.c.source,
            table.c.event_id,
            sa.type_coerce(table.c.time, sa.BigInteger),
            table.c.id,
            table.c.inputs,
            table.c.outputs,
        )
        .where(table.c.model == model, table.c.received < before)
        .order_by(table.c.id)
        .limit(limit)
    )
    return list(connection.execute(query))


def select(
    connection: sa.Connection,
    model: str,
    *,
    start: datetime | None,
    end: datetime | None,
    roles: Sequence[str],
    version: str | None,
    ids: Collection[str] | None,
    inputs: bool = True,
) -> list[Any]:
    """Hot rows as tuples: the columns of `META`, time (µs), the number of their arrival and, with
    `inputs`, inputs and outputs as JSON."""
    table = schema.predictions
    query = sa.select(
        table.c.prediction_id.label("id"),
        table.c.version,
        table.c.role,
        table.c.source,
        table.c.event_id,
        sa.type_coerce(table.c.time, sa.BigInteger).label("time"),
        table.c.id.label("seq"),
        *([table.c.inputs, table.c.outputs] if inputs else []),
    ).where(table.c.model == model, table.c.role.in_(roles))
    if start is not None:
        query = query.where(table.c.time >= start)
    if end is not None:
        query = query.where(table.c.time < end)
    if version is not None:
        query = query.where(table.c.version == version)
    if ids is not None:
        query = query.where(one_of(connection, table.c.prediction_id, ids))
    return list(connection.execute(query))
