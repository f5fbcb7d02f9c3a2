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
from monitor.alert import lifecycle, messages
from monitor.alert.causes import ACKNOWLEDGED
from monitor.alert.dispatch import Desk
from monitor.alert.messages import MessageContext
from monitor.alert.records import get

_TEXT = 2000  # characters of a line of the timeline
_WHO = 80  # of a person's name


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
        Desk(tx, context, at).announce(incident, event=event, kind=kind, type=message_type)
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


def acknowledge(
    tx: sa.Connection,
    incident_id: int,
    *,
    by: str,
    at: datetime,
    reason: str = "",
    context: MessageContext | None = None,
) -> bool:
    """Somebody looks after it: no more reminders, unless it gets worse. With a context, those who
    heard of it hear of that: a pager stops ringing.

    Returns False when it was acknowledged or resolved before, or is only a first sign.

    Raises:
        NotFound: no such incident.
    """
    life = get(tx, incident_id).life
    if lifecycle.acknowledge(life) == life:
        return False
    who = messages.clean(by, _WHO)
    change(tx, incident_id, state="acknowledged", acknowledged_by=who, withheld="")
    why = f": {messages.clean(reason, _TEXT)}" if reason else ""
    event = write(tx, incident_id, at, "acknowledged", f"acknowledged by {who}{why}")
    if context is not None:
        desk = Desk(tx, context, at)
        desk.announce(get(tx, incident_id), event=event, kind="acknowledged", type=ACKNOWLEDGED)
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
    event = end(tx, incident_id, at, text)
    if context is None:
        return ""
    return Desk(tx, context, at).announce(get(tx, incident_id), event=event, kind="resolved")


def end(tx: sa.Connection, incident_id: int, at: datetime, text: str) -> int:
    """Write the end of an incident down; returns the line's id."""
    change(
        tx, incident_id, state="resolved", resolved=at, open_key=None, muted="", withheld=""
    )  # fmt: skip
    return write(tx, incident_id, at, "resolved", text)


def forget(tx: sa.Connection, incident_id: int, at: datetime) -> None:
    """Take back what was only a first sign and came to nothing; nobody was told of it.

    One that a retraining run answers stays, since the run names it.
    """
    if get(tx, incident_id).run_id is not None:
        end(tx, incident_id, at, "the first sign came to nothing")
        return
    events, table = schema.incident_events, schema.incidents
    tx.execute(events.delete().where(events.c.incident_id == incident_id))
    tx.execute(table.delete().where(table.c.id == incident_id, table.c.state == "noticed"))


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
