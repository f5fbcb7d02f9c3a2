"""The hot part of the log: rows in the ledger's database, and the keys of those sealed away."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core import schema
from core.ledger import one_of

META = ("id", "version", "role", "source", "event_id")  # of a flat frame, before its time


def key(*parts: str) -> str:
    """A 128-bit key of a tuple of strings (blake2b; lengths keep `a,bc` apart from `ab,c`)."""
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def of_ids(connection: sa.Connection, model: str, ids: Collection[str]) -> sa.ColumnElement[bool]:
    """The hot rows of a model with these prediction ids.

    An event id that is the prediction id (nearly all are) is found by the unique index, any other
    by a partial one: see `core.schema.predictions`.
    """
    c = schema.predictions.c
    same = one_of(connection, c.event_id, ids) & (c.event_id == c.prediction_id)
    other = one_of(connection, c.prediction_id, ids) & (c.event_id != c.prediction_id)
    # A union of rowids, and a model that no index knows (`|| ''`): left to itself SQLite walks the
    # whole model by its time.
    unindexed = c.model.concat("") == model
    found = sa.union_all(
        sa.select(c.id).where(same, unindexed), sa.select(c.id).where(c.model == model, other)
    )
    return c.id.in_(found)


def known(connection: sa.Connection, model: str, ids: Sequence[str]) -> set[str]:
    """Those of the prediction ids that the log holds, hot or sealed."""
    live, sealed = schema.predictions.c, schema.sealed_keys.c
    mine = of_ids(connection, model, ids)
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
        query = query.where(of_ids(connection, model, ids))
    return list(connection.execute(query))
