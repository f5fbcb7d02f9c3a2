"""An incident, its timeline, and how they are read from the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import NotFound
from monitor.alert.lifecycle import Life, State
from monitor.results import Finding

IncidentState = State
Change = Literal[
    "noticed", "opened", "updated", "worse", "reminded", "held", "clearing", "resolved", "forgotten"
]


class Incident(Struct, frozen=True, kw_only=True):
    """One trouble of one model, from its first sign to its end."""

    id: int
    model: str
    cause: str
    version: str  # the version the newest check judged
    severity: str  # page or ticket: the worst it has been, so that who was told hears the end
    state: IncidentState
    title: str
    finding: Finding  # the newest
    opened: datetime
    updated: datetime  # the last check that found it or found it clear
    resolved: datetime | None
    seen: int  # checks that found it
    clear: int  # clear checks in a row
    report: str | None  # Evidently HTML, relative to home
    report_state: str
    run_id: str | None
    found: datetime | None = None  # the last check that found it
    history: str = ""  # see `lifecycle.Life`
    relapses: int = 0
    story: int | None = None  # the incident this one is a chapter of
    acknowledged_by: str = ""
    told: datetime | None = None  # when anybody was told of it last
    escalated: datetime | None = None
    muted: str = ""  # why nobody is told at present; empty: they are
    withheld: str = ""  # the kind of message that follows when they may be told again
    hold: datetime | None = None  # then, but only if found at or after this moment
    context: str = ""  # the newest MessageContext as JSON

    @property
    def life(self) -> Life:
        """What the state machine remembers of it."""
        return Life(
            state=self.state,
            severity=self.severity,
            updated=self.updated,
            found=self.found,
            seen=self.seen,
            clear=self.clear,
            history=self.history,
            relapses=self.relapses,
        )


class IncidentEvent(Struct, frozen=True, kw_only=True):
    """One line of an incident's timeline."""

    id: int
    at: datetime
    kind: str
    text: str


class IncidentChange(Struct, frozen=True, kw_only=True):
    """What a check did to an incident."""

    incident_id: int
    cause: str
    severity: str
    change: Change
    title: str
    message_id: str = ""  # empty: nobody was told


def get(conn: sa.Connection, incident_id: int) -> Incident:
    """One incident.

    Raises:
        NotFound: there is none of that id.
    """
    row = conn.execute(_incidents().where(schema.incidents.c.id == incident_id)).first()
    if row is None:
        raise NotFound("incident", incident_id, "`shelflife incidents` lists them")
    return _incident(row)


def unresolved(
    conn: sa.Connection, model: str | None = None, *, lock: bool = False
) -> list[Incident]:
    """Incidents that are not over, the merely noticed included, oldest first; of every model when
    None.

    Args:
        lock: keep other transactions from changing them until this one ends (PostgreSQL; on
            SQLite a write transaction is alone anyway).
    """
    table = schema.incidents
    query = _incidents().where(table.c.open_key.is_not(None)).order_by(table.c.id)
    if model is not None:
        query = query.where(table.c.model == model)
    return [_incident(row) for row in conn.execute(query.with_for_update() if lock else query)]


def find(conn: sa.Connection, model: str, cause: str) -> Incident | None:
    """The unresolved incident of a model and cause, if there is one."""
    wanted = schema.incidents.c.open_key == open_key(model, cause)
    row = conn.execute(_incidents().where(wanted)).first()
    return None if row is None else _incident(row)


def latest(conn: sa.Connection, model: str, cause: str) -> Incident | None:
    """The newest incident of a model and cause, resolved or not."""
    table = schema.incidents
    past = (table.c.model == model) & (table.c.cause == cause)
    row = conn.execute(_incidents().where(past).order_by(table.c.id.desc()).limit(1)).first()
    return None if row is None else _incident(row)


def story(conn: sa.Connection, incident_id: int) -> Incident | None:
    """The incident with which the story of this one began: itself, mostly. None: there is none."""
    row = conn.execute(_incidents().where(schema.incidents.c.id == incident_id)).first()
    if row is None:
        return None
    found = _incident(row)
    return found if found.story in (None, incident_id) else story(conn, int(found.story or 0))


def timeline(conn: sa.Connection, incident_id: int) -> list[IncidentEvent]:
    """What happened to an incident, in the order it was written."""
    table = schema.incident_events
    query = sa.select(table).where(table.c.incident_id == incident_id).order_by(table.c.id)
    return [
        IncidentEvent(id=row.id, at=row.at, kind=row.kind, text=row.text)
        for row in conn.execute(query)
    ]


def open_key(model: str, cause: str) -> str:
    """What at most one unresolved incident may have."""
    return f"{model}|{cause}"


def _incidents() -> sa.Select[Any]:
    return sa.select(schema.incidents)


def _incident(row: sa.Row[Any]) -> Incident:
    fields = dict(row._mapping)
    del fields["open_key"]
    finding = msgspec.json.decode(fields.pop("finding"), type=Finding)
    return Incident(finding=finding, **fields)
