"""Silences: what people asked not to hear of, by matchers, with who, why and until when.

Rows are never deleted: a silence that is over, or was ended early, stays as a record.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import InputError, NotFound
from monitor.alert import matchers
from monitor.alert.messages import clean
from monitor.alert.quiet import Silence

LONGEST = timedelta(days=90)  # nobody remembers a longer one
_WHO, _WHY = 80, 300  # characters kept
_MATCHERS = 20


def add(
    tx: sa.Connection,
    *,
    match: Iterable[str],
    by: str,
    reason: str,
    ends: datetime,
    at: datetime,
    starts: datetime | None = None,
    incident_id: int | None = None,
) -> Silence:
    """Ask not to hear of incidents whose labels match all of these, for a time.

    Args:
        match: matchers such as `model="churn"`; one at least.
        starts: now when not given.
        incident_id: the incident it was made on, if it was made on one.

    Raises:
        InputError: no matcher or a wrong one, nobody's name, no reason, an end before its
            beginning or later than 90 days from it.
    """
    texts = [str(matchers.parse(text, "match")) for text in match]
    begin, who, why = starts or at, clean(by, _WHO), clean(reason, _WHY)
    if not 1 <= len(texts) <= _MATCHERS:
        raise InputError("match", texts, f'1 to {_MATCHERS} matchers, such as model="churn"')
    for name, text, expected in (
        ("by", who, "who asks for the silence"),
        ("reason", why, "why; whoever wonders reads it"),
    ):
        if not text:
            raise InputError(name, text, expected)
    if not begin < ends <= begin + LONGEST or ends <= at:
        raise InputError(
            "until", ends.isoformat(), "a moment ahead, 90 days from the start at most"
        )
    row = {
        "matchers": msgspec.json.encode(texts).decode(), "by": who, "reason": why,
        "created": at, "starts": begin, "ends": ends, "incident_id": incident_id,
    }  # fmt: skip
    table = schema.silences
    identity = tx.execute(table.insert().values(**row).returning(table.c.id)).scalar_one()
    return get(tx, int(identity))


def end(tx: sa.Connection, silence_id: int, *, by: str, at: datetime) -> Silence:
    """End a silence now; one that is over stays as it was.

    Raises:
        NotFound: no such silence.
    """
    found = get(tx, silence_id)
    if at < found.ends:
        table = schema.silences
        # Never before it started: a silence of no length at all, then.
        values = {"ends": max(at, found.starts), "ended_by": clean(by, _WHO)}
        tx.execute(table.update().where(table.c.id == silence_id).values(**values))
    return get(tx, silence_id)


def get(conn: sa.Connection, silence_id: int) -> Silence:
    """One silence.

    Raises:
        NotFound: there is none of that id.
    """
    table = schema.silences
    row = conn.execute(sa.select(table).where(table.c.id == silence_id)).first()
    if row is None:
        raise NotFound("silence", silence_id, "`shelflife silences` lists them")
    return _silence(row)


def listed(conn: sa.Connection, *, at: datetime | None = None, limit: int = 200) -> list[Silence]:
    """Silences, newest first.

    Args:
        at: only those that are not over at this moment.
    """
    table = schema.silences
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if at is not None:
        query = query.where(table.c.ends > at)
    return [_silence(row) for row in conn.execute(query)]


def active(conn: sa.Connection, at: datetime) -> list[Silence]:
    """Every silence in force at this moment, oldest first."""
    table = schema.silences
    query = sa.select(table).where(table.c.starts <= at, table.c.ends > at).order_by(table.c.id)
    return [_silence(row) for row in conn.execute(query)]


def _silence(row: sa.Row[Any]) -> Silence:
    fields = dict(row._mapping)
    texts = msgspec.json.decode(fields.pop("matchers"), type=list[str])
    return Silence(matchers=matchers.parse_all(texts), **fields)
