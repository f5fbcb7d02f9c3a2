"""What on-call does with incidents: see, acknowledge, silence, resolve, send again; and `turn`.

The command line and the API both come here; neither needs MLflow for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import InputError, NotFound
from core.ledger import Ledger
from core.settings import Settings, span
from core.times import duration, parse_time
from monitor.alert import incidents, journal, messages, outbox, records, routes, silences, templates
from monitor.alert.causes import CAUSES
from monitor.alert.messages import MessageContext
from monitor.alert.quiet import Silence, zone
from monitor.alert.records import Incident


class Sent(Struct, frozen=True, kw_only=True):
    """A message about an incident, and how its delivery stands."""

    message_id: str
    receiver: str
    type: str
    created: datetime
    state: str  # pending, delivered or failed; waiting: for its group
    attempts: int
    error: str


class SilenceRow(Struct, frozen=True, kw_only=True):
    """A silence as it is shown."""

    id: int
    matchers: tuple[str, ...]
    by: str
    reason: str
    created: datetime
    starts: datetime
    ends: datetime
    ended_by: str
    incident_id: int | None
    active: bool


def context(
    settings: Settings, model: str, *, version: str = "", mlflow_url: str = "", command: str = ""
) -> MessageContext:
    """What every message about a model says besides its finding, as the settings are."""
    chosen, serving = settings.model(model), settings.serving
    wanted = [r for r in settings.receivers if not chosen.receivers or r.name in chosen.receivers]
    dashboard = settings.dashboard
    return MessageContext(
        model=model,
        version=version,
        owner=chosen.owner,
        runbook=chosen.runbook,
        runbooks=settings.alerts.runbooks or f"http://{serving.host}:{serving.port}/runbooks",
        environment=settings.environment,
        labels=chosen.labels,
        receivers=tuple((r.name, r.severities) for r in wanted),
        alerts=settings.alerts,
        repeat=span(chosen.repeat_every),
        rhythm=span(chosen.check_every),
        dashboard_url=dashboard.url or f"http://{dashboard.host}:{dashboard.port}",
        mlflow_url=mlflow_url,
        command=command,
    )


def check_settings(settings: Settings) -> None:
    """Refuse alert settings that could not do what they say.

    Raises:
        SettingsError: a wrong matcher, template or time zone, or a receiver that does not exist.
    """
    alerts = settings.alerts
    routes.check(alerts, (receiver.name for receiver in settings.receivers))
    templates.check(alerts.templates)
    for planned in alerts.maintenance:
        zone(planned)
        for name in ("since", "until"):
            if getattr(planned, name):
                parse_time(getattr(planned, name), field=f"alerts.maintenance.{name}")


def turn(ledger: Ledger, settings: Settings, *, now: datetime) -> dict[int, tuple[str, str]]:
    """Tell what time alone brings; see `monitor.alert.incidents.turn`."""
    with ledger.read() as tx:  # nothing is open most of the time: do not lock the ledger for it
        table, notices = schema.incidents, schema.notices
        busy = tx.scalar(sa.select(table.c.id).where(table.c.open_key.is_not(None)).limit(1))
        waits = tx.scalar(sa.select(notices.c.id).where(notices.c.state == "waiting").limit(1))
    if busy is None and waits is None:
        return {}
    with ledger.write() as tx:
        return incidents.turn(tx, now=now, contexts=lambda model: context(settings, model))


def detail(ledger: Ledger, incident_id: int) -> dict[str, Any]:
    """One incident: its row, its timeline (`events`), and its `messages` with their delivery.

    Raises:
        NotFound: no such incident.
    """
    table = schema.incidents
    with ledger.read() as tx:
        row = tx.execute(sa.select(table).where(table.c.id == incident_id)).first()
        if row is None:
            raise NotFound("incident", incident_id, "`shelflife incidents` lists them")
        return {
            **row._mapping,
            "events": [msgspec.structs.asdict(e) for e in records.timeline(tx, incident_id)],
            "messages": [msgspec.structs.asdict(sent) for sent in _messages(tx, incident_id)],
        }


def _messages(tx: sa.Connection, incident_id: int) -> list[Sent]:
    notices, sent = schema.notices, schema.outbox
    ids = sa.select(notices.c.message_id).where(
        notices.c.incident_id == incident_id, notices.c.state == "sent"
    )
    names = ("message_id", "receiver", "type", "created", "state", "attempts", "error")
    query = (
        sa.select(*(sent.c[name] for name in names))
        .where((sent.c.incident_id == incident_id) | sent.c.message_id.in_(ids))
        .order_by(sent.c.id)
    )
    found = [Sent(**row._mapping) for row in tx.execute(query)]
    waiting = sa.select(notices).where(
        notices.c.incident_id == incident_id, notices.c.state == "waiting"
    )
    for row in tx.execute(waiting.order_by(notices.c.id)):
        found.append(
            Sent(
                message_id="", receiver=row.receiver, type=row.type, created=row.at,
                state="waiting", attempts=0, error="",
            )
        )  # fmt: skip
    return found


def acknowledge(
    ledger: Ledger,
    incident_id: int,
    *,
    by: str,
    at: datetime,
    reason: str = "",
    settings: Settings | None = None,
) -> Incident:
    """Somebody looks after it: no reminders and no escalation, unless it gets worse. With settings,
    who heard of it hears of that.

    Raises:
        NotFound: no such incident.
        InputError: nobody's name.
    """
    named(by)
    with ledger.write() as tx:
        found = records.get(tx, incident_id)
        about = None
        if settings is not None:
            about = context(settings, found.model).remembered(found.context)
        incidents.acknowledge(tx, incident_id, by=by, at=at, reason=reason, context=about)
        return records.get(tx, incident_id)


def resolve(
    ledger: Ledger, settings: Settings, incident_id: int, *, by: str, reason: str, at: datetime
) -> Incident:
    """End an incident by a person's word; who heard of it hears of that. If the trouble is found
    again, a new one is opened.

    Raises:
        NotFound: no such incident.
        InputError: nobody's name, or no reason.
    """
    who, why = named(by), given("reason", reason, "why it is over; the timeline says it")
    with ledger.write() as tx:
        found = records.get(tx, incident_id)
        about = context(settings, found.model).remembered(found.context)
        text = f"resolved by {who}: {why}"
        incidents.resolve(tx, incident_id, at=at, text=text, context=about)
        return records.get(tx, incident_id)


def silence(
    ledger: Ledger, incident_id: int, *, by: str, reason: str, ends: datetime, at: datetime
) -> Silence:
    """Hear no more of this trouble of this model for a time, also if it opens anew.

    Raises:
        NotFound: no such incident.
        InputError: see `monitor.alert.silences.add`.
    """
    with ledger.write() as tx:
        found = records.get(tx, incident_id)
        added = silences.add(
            tx,
            match=(f'model="{found.model}"', f'cause="{found.cause}"'),
            by=by, reason=reason, ends=ends, at=at, incident_id=incident_id,
        )  # fmt: skip
        text = f"silence {added.id} by {added.by} until {ends:%Y-%m-%d %H:%M} UTC: {added.reason}"
        journal.write(tx, incident_id, at, "silenced", text)
        return added


def replay(ledger: Ledger, incident_id: int, *, receiver: str | None = None) -> int:
    """Send the messages about an incident that failed for good once more; returns how many.

    Raises:
        NotFound: no such incident.
    """
    with ledger.read() as tx:
        records.get(tx, incident_id)
        failed = {each.message_id for each in _messages(tx, incident_id) if each.state == "failed"}
    return sum(outbox.replay(ledger, message_id=one, receiver=receiver) for one in sorted(failed))


def shown(found: Silence, now: datetime) -> SilenceRow:
    """A silence as it is shown."""
    fields: dict[str, Any] = {
        name: getattr(found, name)
        for name in SilenceRow.__struct_fields__
        if name not in ("matchers", "active")
    }
    matchers = tuple(map(str, found.matchers))
    return SilenceRow(**fields, matchers=matchers, active=found.starts <= now < found.ends)


def silence_rows(ledger: Ledger, *, now: datetime, every: bool = False) -> list[SilenceRow]:
    """Silences that are not over, newest first; all of them if asked."""
    with ledger.read() as tx:
        return [shown(one, now) for one in silences.listed(tx, at=None if every else now)]


def until(text: str, now: datetime) -> datetime:
    """A moment from `4h`, `2d` or an ISO time.

    Raises:
        InputError: it is neither.
    """
    try:
        return now + duration(text)
    except (InputError, ValueError, OverflowError):
        return parse_time(text, field="until")


def named(by: str) -> str:
    """Who it is.

    Raises:
        InputError: nobody.
    """
    return given("by", by, "who does it; it is recorded")


def given(field: str, text: str, expected: str) -> str:
    """A text that has to be there, fit to be shown.

    Raises:
        InputError: it is empty.
    """
    clean = messages.clean(text)
    if not clean:
        raise InputError(field, text, expected)
    return clean


def runbook(cause: str) -> str:
    """The runbook of a cause, as Markdown.

    Raises:
        NotFound: there is no such cause.
    """
    here = Path(__file__).resolve().parent
    folders: Sequence[Path] = (here / "runbooks", here.parent / "docs" / "runbooks")
    for folder in folders:
        if cause in CAUSES and (folder / f"{cause}.md").is_file():
            return (folder / f"{cause}.md").read_text()
    raise NotFound("runbook", cause, f"one of {', '.join(CAUSES)}")
