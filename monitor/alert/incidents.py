"""Findings become incidents: opened once, told rarely, resolved when they are over for good.

One unresolved incident per model and cause (`open_key` is unique). A check's findings, the
incident's row, its timeline and the messages about it are written in the caller's transaction:
all of them or none. Whoever was told of an incident is told of its end.

`seen`, `clear` and `updated` follow the checks alone: applying a check twice, or an older one
late, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import InputError
from core.ledger import Ledger
from monitor.alert import journal, messages, outbox
from monitor.alert.journal import acknowledge, add_event, attach_run, resolve, set_report
from monitor.alert.messages import MessageContext
from monitor.alert.records import (
    Change,
    Incident,
    IncidentChange,
    IncidentEvent,
    find,
    get,
    open_key,
    timeline,
    unresolved,
)
from monitor.results import Finding

__all__ = [
    "Incident", "IncidentChange", "IncidentEvent", "acknowledge", "add_event", "apply",
    "attach_run", "find", "get", "open_incident", "resolve", "set_report", "timeline", "unresolved",
]  # fmt: skip

REPEAT = timedelta(days=7)  # of event time: how often an unresolved incident is told again
CLEARS = 2  # clear checks in a row that resolve
_RANK = {"note": 0, "ticket": 1, "page": 2}


def apply(
    tx: sa.Connection,
    ledger: Ledger,
    *,
    context: MessageContext,
    version: str,
    findings: Sequence[Finding],
    at: datetime,
    checked: frozenset[str],
    repeat: timedelta = REPEAT,
) -> list[IncidentChange]:
    """Bring the model's incidents up to what a check found.

    A finding opens an incident or is counted on it; a check that could judge a cause and did not
    find it counts as clear, and so does a mere note, which asks nobody for anything. A `clearing`
    finding (under the opening line, not yet under the resolving one) is neither: it opens nothing,
    and the clear checks have to begin again.

    Args:
        version: the version the check judged.
        at: the moment of the check, event time.
        checked: causes this check was able to judge; others stay as they are. A cause that was
            found counts as judged.
        repeat: a message is repeated when the last one is older than this and nobody has
            acknowledged.
    """
    found, held = _by_cause(findings)
    known = {incident.cause: incident for incident in unresolved(tx, context.model, lock=True)}
    changes: list[IncidentChange | None] = []
    for cause in sorted(found.keys() | known.keys() & (checked | held)):
        incident, finding = known.get(cause), found.get(cause)
        if incident is None and finding is not None:
            changes.append(_open(tx, ledger, context, version, finding, at))
        elif incident is None or at <= incident.updated:
            continue
        elif finding is not None:
            changes.append(_found(tx, context, version, incident, finding, at, repeat))
        elif cause in held:
            journal.change(tx, incident.id, clear=0, updated=at)
        else:
            changes.append(_clear(tx, ledger, context, incident, at))
    return [change for change in changes if change is not None]


def open_incident(
    tx: sa.Connection,
    ledger: Ledger,
    *,
    context: MessageContext,
    version: str,
    finding: Finding,
    at: datetime,
    repeat: timedelta = REPEAT,
) -> int:
    """Open an incident for something that happened once (retrain_failed, rollback, …).

    If one of that cause is unresolved, this occurrence is counted on it and told as `apply` would.
    It stays until `resolve` ends it. Returns the incident's id; of the one that already tells of
    this moment or a later one, if the same occurrence is reported again.

    Raises:
        InputError: the finding is a note.
    """
    finding = messages.cleaned(finding)
    if finding.severity == "note":
        raise InputError("severity", finding.severity, "page or ticket: a note opens no incident")
    incident = find(tx, context.model, finding.cause)
    if incident is None:
        change = _open(tx, ledger, context, version, finding, at)
        return (
            _latest(tx, context.model, finding.cause)[0] if change is None else change.incident_id
        )
    if at > incident.updated:
        _found(tx, context, version, incident, finding, at, repeat)
    return incident.id


def _by_cause(findings: Iterable[Finding]) -> tuple[dict[str, Finding], frozenset[str]]:
    """What each cause's incident should say, and the causes that are on their way out."""
    found: dict[str, Finding] = {}
    held = set()
    for finding in map(messages.cleaned, findings):
        if finding.clearing:
            held.add(finding.cause)
        elif finding.severity != "note":
            other = found.get(finding.cause)
            found[finding.cause] = finding if other is None else _merge(other, finding)
    return found, frozenset(held - found.keys())


def _merge(first: Finding, second: Finding) -> Finding:
    """Two findings of one cause as one: the graver speaks, the columns are those of both."""
    graver = max((first, second), key=lambda finding: _RANK[finding.severity])
    since = min((f.since for f in (first, second) if f.since is not None), default=None)
    columns = tuple(dict.fromkeys(first.columns + second.columns))
    return msgspec.structs.replace(graver, columns=columns, since=since)


def _open(
    tx: sa.Connection,
    ledger: Ledger,
    context: MessageContext,
    version: str,
    finding: Finding,
    at: datetime,
) -> IncidentChange | None:
    """Open an incident; None when a later check has already judged this cause."""
    model, cause = context.model, finding.cause
    judged = _latest(tx, model, cause)[1]
    if judged is not None and at <= judged:
        return None
    row: dict[str, Any] = {
        "model": model, "cause": cause, "version": version, "severity": finding.severity,
        "state": "open", "title": finding.title, "finding": _json(finding), "opened": at,
        "updated": at, "open_key": open_key(model, cause),
    }  # fmt: skip
    table = schema.incidents
    incident_id = int(tx.execute(table.insert().values(**row).returning(table.c.id)).scalar_one())
    ledger.count_in(tx, {(model, "incidents_opened"): 1})
    event = journal.write(tx, incident_id, at, "opened", finding.title)
    incident = get(tx, incident_id)
    message = journal.tell(tx, incident, context, at, event=event, kind="opened")
    return _change(incident, "opened", message)


def _latest(tx: sa.Connection, model: str, cause: str) -> tuple[int, datetime | None]:
    """The newest incident of a model and cause, and the last check that judged it."""
    table = schema.incidents
    past = (table.c.model == model) & (table.c.cause == cause)
    query = sa.select(table.c.id, table.c.updated).where(past).order_by(table.c.id.desc())
    row = tx.execute(query.limit(1)).first()
    return (0, None) if row is None else (row.id, row.updated)


def _found(
    tx: sa.Connection,
    context: MessageContext,
    version: str,
    incident: Incident,
    finding: Finding,
    at: datetime,
    repeat: timedelta,
) -> IncidentChange:
    """Count a finding on its incident; tell it when it is worse or has not been told for long."""
    worse = _RANK[finding.severity] > _RANK[incident.severity]
    values: dict[str, Any] = {
        "seen": incident.seen + 1, "clear": 0, "updated": at, "version": version,
        "title": finding.title, "finding": _json(finding),
    }  # fmt: skip
    if worse:  # an acknowledgement was given to the lesser trouble
        values |= {"severity": finding.severity, "state": "open"}
    journal.change(tx, incident.id, **values)
    now = get(tx, incident.id)
    if worse:
        text = f"{incident.severity} becomes {now.severity}: {now.title}"
        event = journal.write(tx, now.id, at, "worse", text)
        message = journal.tell(tx, now, context, at, event=event, kind="worse")
        return _change(now, "worse", message)
    told = max(incident.opened, outbox.last_created(tx, incident.id) or incident.opened)
    if now.state == "open" and at - told > repeat and context.told(now.severity):
        event = journal.write(tx, now.id, at, "reminder", now.title)
        message = journal.tell(tx, now, context, at, event=event, kind="reminder")
        return _change(now, "reminded", message)
    return _change(now, "updated")


def _clear(
    tx: sa.Connection, ledger: Ledger, context: MessageContext, incident: Incident, at: datetime
) -> IncidentChange:
    """Count a clear check; enough of them in a row resolve."""
    clear = incident.clear + 1
    journal.change(tx, incident.id, clear=clear, updated=at)
    if clear < CLEARS:
        return _change(incident, "clearing")
    message = journal.close(tx, incident.id, at, f"clear in {clear} checks in a row", context)
    ledger.count_in(tx, {(incident.model, "incidents_resolved"): 1})
    return _change(get(tx, incident.id), "resolved", message)


def _change(incident: Incident, change: Change, message_id: str = "") -> IncidentChange:
    return IncidentChange(
        incident_id=incident.id,
        cause=incident.cause,
        severity=incident.severity,
        change=change,
        title=incident.title,
        message_id=message_id,
    )


def _json(finding: Finding) -> str:
    return msgspec.json.encode(finding).decode()
