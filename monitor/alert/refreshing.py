"""Receivers that forget: what lasts is told to them again, or they take it for over.

No row and no retry: the next refresh says the same. A receiver is refreshed with what it was last
told about every unresolved incident, so that a refresh never runs ahead of its messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from monitor.alert import outbox
from monitor.alert.contract import Message, Outcome, Receiver, Refreshed


def refresh_due(
    ledger: Ledger,
    receivers: Mapping[str, Receiver],
    last: dict[str, datetime],
    *,
    now: datetime,
) -> dict[str, Outcome]:
    """Refresh each receiver whose time has come, side by side; returns what became of it.

    Args:
        last: when each was refreshed, by name; brought up to date here.
        now: the real time.
    """
    forgetful = {
        name: receiver
        for name, receiver in receivers.items()
        if isinstance(receiver, Refreshed)
        and (name not in last or now - last[name] >= receiver.every)
    }
    if not forgetful:
        return {}
    with ledger.read() as tx:
        off = outbox.disabled(tx)
        told = {name: lasting(tx, name) for name in forgetful if name not in off}
    last.update(dict.fromkeys(forgetful, now))
    with ThreadPoolExecutor(len(forgetful), thread_name_prefix="refresh") as pool:
        work = {
            name: pool.submit(forgetful[name].refresh, messages, at=now)
            for name, messages in told.items()
            if messages
        }
        return {name: one.result() for name, one in work.items()}


def lasting(tx: sa.Connection, receiver: str) -> list[Message]:
    """The newest message that a receiver took about each unresolved incident."""
    rows, incidents = schema.outbox, schema.incidents
    newest = (
        sa.select(sa.func.max(rows.c.id))
        .join(incidents, incidents.c.id == rows.c.incident_id)
        .where(rows.c.receiver == receiver, rows.c.state == "delivered")
        .where(incidents.c.open_key.is_not(None))
        .group_by(rows.c.incident_id)
    )
    origin = outbox.origin(tx)
    return [
        Message(
            id=row.message_id,
            type=row.type,
            body=row.body,
            incident=row.incident_id,
            origin=origin,
        )
        for row in tx.execute(sa.select(rows).where(rows.c.id.in_(newest)).order_by(rows.c.id))
    ]
