"""What is written about an incident: its state, its timeline, and the messages of both.

Everything here writes in the caller's transaction and decides nothing about findings; see
`monitor.alert.incidents` for the rules.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core import schema
from core.errors import InputError, NotFound
from monitor.alert import messages, outbox
from monitor.alert.causes import cause as cause_of
from monitor.alert.messages import MessageContext
from monitor.alert.records import Incident, get

_TEXT = 2000  # characters of a line of the timeline


def add_event(
    tx: sa.Connection,
    incident_id: int,
    *,
    at: datetime,
    kind: str,
    text: str,
    context: MessageContext | None = None,
    message_type: str | None = None,
) -> int:
    """Add a line to the timeline (`run 8f3 started`, `promoted v2`); tell it if it has a type.

    The same line of the same moment is written and told once, so that a resumed run may repeat
    itself. Returns the id of the event.

    Raises:
        NotFound: no such incident.
        InputError: a message type without a context, or with other characters than it may have.
    """
    if message_type is not None and context is None:
        raise InputError("context", None, f"a MessageContext, since {message_type} is to be sent")
    text = messages.clean(text, _TEXT)
    incident, table = get(tx, incident_id), schema.incident_events
    same = (table.c.at == at) & (table.c.kind == kind) & (table.c.text == text)
    there = tx.scalar(sa.select(table.c.id).where(same & (table.c.incident_id == incident_id)))
    if there is not None:
        return int(there)
    event = write(tx, incident_id, at, kind, text)
    if message_type is not None and context is not None:
        tell(tx, incident, context, at, event=event, kind=kind, type=message_type, news=text)
    return event


def attach_run(tx: sa.Connection, incident_id: int, run_id: str) -> None:
    """Note the retraining run that answers an incident.

    Raises:
        NotFound: no such incident.
    """
    change(tx, incident_id, run_id=run_id)


def set_report(tx: sa.Connection, incident_id: int, path: str | None, state: str) -> None:
    """Note the Evidently report (relative to home) and its state: wanted, ready, failed, …

    Raises:
        NotFound: no such incident.
    """
    change(tx, incident_id, report=path, report_state=state)


def acknowledge(tx: sa.Connection, incident_id: int, *, by: str, at: datetime) -> bool:
    """Somebody looks after it: no more reminders, unless it gets worse.

    Returns False when it was acknowledged or resolved before.

    Raises:
        NotFound: no such incident.
    """
    if get(tx, incident_id).state != "open":
        return False
    change(tx, incident_id, state="acknowledged")
    write(tx, incident_id, at, "acknowledged", f"acknowledged by {messages.clean(by, 80)}")
    return True


def resolve(
    tx: sa.Connection,
    incident_id: int,
    *,
    at: datetime,
    text: str,
    context: MessageContext | None = None,
) -> bool:
    """End an incident by decision; with a context, those who were told of it are told.

    Returns False when it was resolved before.

    Raises:
        NotFound: no such incident.
    """
    if get(tx, incident_id).state == "resolved":
        return False
    close(tx, incident_id, at, messages.clean(text, _TEXT), context)
    return True


def close(
    tx: sa.Connection, incident_id: int, at: datetime, text: str, context: MessageContext | None
) -> str:
    """End an incident and tell those who heard of it; returns the message's id."""
    change(tx, incident_id, state="resolved", resolved=at, open_key=None)
    event = write(tx, incident_id, at, "resolved", text)
    if context is None:
        return ""
    incident = get(tx, incident_id)
    return tell(tx, incident, context, at, event=event, kind="resolved", news=text)


def tell(
    tx: sa.Connection,
    incident: Incident,
    context: MessageContext,
    at: datetime,
    *,
    event: int,
    kind: str,
    type: str = "",
    news: str = "",
) -> str:
    """Put the message of an event into the outbox; returns its id, empty when nobody is told."""
    receivers = context.told(incident.severity)
    if kind == "resolved":  # to those who heard of it, whatever they are told of by now
        heard = outbox.receivers_of(tx, incident.id)
        receivers = [name for name, _ in context.receivers if name in heard]
    if not receivers:
        return ""
    if not type:
        told = cause_of(incident.cause)
        type = told.resolved if kind == "resolved" else told.detected
    content = messages.body(type, incident, incident.finding, context, at, event=kind, news=news)
    message_id = outbox.message_id(tx, incident.id, event)
    outbox.put(
        tx,
        message_id=message_id,
        incident_id=incident.id,
        type=type,
        body=messages.encode(content),
        receivers=receivers,
        at=at,
    )
    return message_id


def write(tx: sa.Connection, incident_id: int, at: datetime, kind: str, text: str) -> int:
    """Add a line to the timeline; returns its id."""
    row = {"incident_id": incident_id, "at": at, "kind": kind, "text": text}
    table = schema.incident_events
    return int(tx.execute(table.insert().values(**row).returning(table.c.id)).scalar_one())


def change(tx: sa.Connection, incident_id: int, **values: Any) -> None:
    """Change columns of an incident.

    Raises:
        NotFound: no such incident.
    """
    table = schema.incidents
    changed = tx.execute(table.update().where(table.c.id == incident_id).values(**values))
    if not changed.rowcount:
        raise NotFound("incident", incident_id, "`shelflife incidents` lists them")
