"""Messages on their way: written with the decision they tell of, one row per message and receiver.

`monitor.alert.delivery` sends them. A row is `pending` until it is `delivered`, or `failed` for
good after its last attempt; failures are listed here and given their attempts again (`replay`).
A receiver that wants no more messages (`disable`) keeps its rows until somebody enables it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import InputError
from core.ledger import Ledger
from core.times import EPOCH

_LISTED = 200  # failures of a listing


class Failure(Struct, frozen=True, kw_only=True):
    """A message that failed for good."""

    message_id: str
    incident_id: int | None
    receiver: str
    type: str
    created: datetime  # event time
    attempts: int
    status: int | None
    error: str


def message_id(tx: sa.Connection, incident_id: int, event_id: int) -> str:
    """The id of the message about an event of an incident: the same whenever it is computed.

    It holds a random name of this ledger, so that two installations that share a receiver never
    use the same id (which the second one's receiver would take for a repetition).
    """
    digest = hashlib.sha256(f"{_instance(tx)}|{incident_id}|{event_id}".encode())
    return f"msg_{digest.hexdigest()[:32]}"


def put(
    tx: sa.Connection,
    *,
    message_id: str,
    incident_id: int | None,
    type: str,
    body: str,
    receivers: Sequence[str],
    at: datetime,
    group: str | None = None,
) -> None:
    """Add a message to each receiver's queue in the caller's transaction, due at once.

    Args:
        group: messages of one group and receiver are delivered in order.
    """
    common = {
        "message_id": message_id, "incident_id": incident_id, "type": type, "body": body,
        "created": at, "next_attempt": EPOCH, "state": "pending", "group_key": group,
    }  # fmt: skip
    if receivers:
        tx.execute(schema.outbox.insert(), [{**common, "receiver": name} for name in receivers])


def receivers_of(tx: sa.Connection, incident_id: int) -> set[str]:
    """Receivers that were sent anything about an incident."""
    table = schema.outbox
    query = sa.select(table.c.receiver).where(table.c.incident_id == incident_id).distinct()
    return set(tx.scalars(query))


def last_created(tx: sa.Connection, incident_id: int) -> datetime | None:
    """When (event time) the last message about an incident was written."""
    table = schema.outbox
    last: datetime | None = tx.scalar(
        sa.select(table.c.created)
        .where(table.c.incident_id == incident_id)
        .order_by(table.c.id.desc())
        .limit(1)
    )
    return last


def replay(
    ledger: Ledger,
    *,
    message_id: str | None = None,
    incident_id: int | None = None,
    receiver: str | None = None,
) -> int:
    """Give messages that failed for good all their attempts again, the first at once.

    Returns how many rows that were.

    Raises:
        InputError: nothing says which messages are meant.
    """
    table = schema.outbox
    named = {"message_id": message_id, "incident_id": incident_id, "receiver": receiver}
    wanted = [table.c[column] == value for column, value in named.items() if value is not None]
    if not wanted:
        raise InputError("replay", None, "a message id, an incident id or a receiver's name")
    fresh = {"state": "pending", "attempts": 0, "next_attempt": EPOCH, "status": None, "error": ""}
    with ledger.write() as tx:
        query = table.update().where(table.c.state == "failed", *wanted)
        return int(tx.execute(query.values(**fresh)).rowcount)


def failures(ledger: Ledger, *, receiver: str | None = None) -> list[Failure]:
    """Messages that failed for good, newest first; of every receiver when None."""
    table = schema.outbox
    columns = [table.c[name] for name in Failure.__struct_fields__]
    query = sa.select(*columns).where(table.c.state == "failed").order_by(table.c.id.desc())
    if receiver is not None:
        query = query.where(table.c.receiver == receiver)
    with ledger.read() as tx:
        return [Failure(**row._mapping) for row in tx.execute(query.limit(_LISTED))]


def disabled(tx: sa.Connection) -> dict[str, str]:
    """Receivers that are sent nothing until somebody enables them, with the reason."""
    table = schema.receivers
    query = sa.select(table.c.name, table.c.reason).where(table.c.disabled.is_not(None))
    return {row.name: row.reason for row in tx.execute(query)}


def disable(tx: sa.Connection, receiver: str, *, reason: str, at: datetime) -> None:
    """Send a receiver nothing more; what is written for it waits."""
    table = schema.receivers
    values = {"disabled": at, "reason": reason}
    if not tx.execute(table.update().where(table.c.name == receiver).values(**values)).rowcount:
        tx.execute(table.insert().values(name=receiver, **values))


def enable(ledger: Ledger, receiver: str) -> bool:
    """Send to a receiver again, what waits for it at once; False when it was not disabled."""
    table, rows = schema.receivers, schema.outbox
    waiting = (rows.c.receiver == receiver) & (rows.c.state == "pending")
    with ledger.write() as tx:
        off = (table.c.name == receiver) & table.c.disabled.is_not(None)
        found = tx.execute(table.update().where(off).values(disabled=None, reason=""))
        if found.rowcount:
            tx.execute(rows.update().where(waiting).values(attempts=0, next_attempt=EPOCH))
        return bool(found.rowcount)


def origin(tx: sa.Connection) -> str:
    """This ledger's own name; empty while it has none, and then no message either."""
    table = schema.meta
    return str(tx.scalar(sa.select(table.c.value).where(table.c.key == "instance")) or "")


def _instance(tx: sa.Connection) -> str:
    """This ledger's own random name, made when first asked for."""
    table = schema.meta
    query = sa.select(table.c.value).where(table.c.key == "instance")
    known = tx.scalar(query)
    if known is None:
        try:
            with tx.begin_nested():
                tx.execute(table.insert().values(key="instance", value=uuid.uuid4().hex))
        except sa.exc.IntegrityError:
            pass  # another process has just named it
        known = tx.scalar(query)
    return str(known)
