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


def due(
    receivers: Mapping[str, Receiver], last: Mapping[str, datetime], now: datetime
) -> dict[str, Refreshed]:
    """The receivers whose time has come to be told again."""
    return {
        name: receiver
        for name, receiver in receivers.items()
        if isinstance(receiver, Refreshed)
        and (name not in last or now - last[name] >= receiver.every)
    }


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
    forgetful = due(receivers, last, now)
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
    """The newest message that a receiver took about each unresolved incident that may be told.

    Such a message may speak of other incidents as well; `incident` is the one that is meant.
    """
    rows, notices = schema.outbox, schema.notices
    by_row = sa.select(rows.c.incident_id, sa.func.max(rows.c.id)).select_from(rows)
    by_notice = (  # a group speaks of several incidents in one message
        sa.select(notices.c.incident_id, sa.func.max(rows.c.id))
        .select_from(notices)
        .join(rows, rows.c.message_id == notices.c.message_id)
        .where(notices.c.receiver == receiver)
    )
    newest: dict[int, int] = {}
    for query in (by_row, by_notice):
        incident = query.selected_columns[0]
        took = query.where(rows.c.receiver == receiver, rows.c.state == "delivered")
        for identity, row in tx.execute(took.where(incident.in_(_open())).group_by(incident)):
            newest[identity] = max(row, newest.get(identity, row))
    found = {
        row.id: row for row in tx.execute(sa.select(rows).where(rows.c.id.in_(newest.values())))
    }
    origin = outbox.origin(tx)
    return [
        Message(
            id=found[row].message_id,
            type=found[row].type,
            body=found[row].body,
            incident=identity,
            origin=origin,
        )
        for identity, row in sorted(newest.items())
    ]


def _open() -> sa.Select[tuple[int]]:
    """Incidents that are unresolved and not muted."""
    table = schema.incidents
    return sa.select(table.c.id).where(table.c.open_key.is_not(None), table.c.muted == "")
