"""From the line of a timeline to the outbox: who is told of it, when, and together with what.

Every line that somebody should hear of becomes a row of `notices` for each receiver, in the
transaction of the decision. A group whose time has come speaks: what waits is merged into one
message and put into the outbox, in one transaction again. With the settings' defaults that is the
same transaction; with a `group_wait` or `group_interval` the scheduler's `turn` does it.

What is quiet (`monitor.alert.quiet`) is withheld, not lost: it is told when the reason for the
silence is gone, if the trouble still is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from monitor.alert import lifecycle, messages, outbox, quiet, records, routes, silences
from monitor.alert.causes import cause as cause_of
from monitor.alert.messages import MessageContext
from monitor.alert.records import Incident
from monitor.alert.routes import Target
from monitor.alert.templates import FINDS

#: Kinds that are told later when nobody may be told now, the graver first.
_WITHHELD = ("opened", "worse")
#: Of several lines about one incident, the one that speaks.
_LOUDEST = ("resolved", "opened", "worse", "escalated", "reminder")


class Desk:
    """What one transaction knows of who may be told what.

    Args:
        context: of the model at hand; its settings of alerts are everybody's.
        at: the moment of what is told.
        contexts: the context of any other model, for what concerns several.
    """

    def __init__(
        self,
        tx: sa.Connection,
        context: MessageContext,
        at: datetime,
        contexts: Callable[[str], MessageContext] | None = None,
    ) -> None:
        self.tx, self.at = tx, at
        self._context, self._contexts = context, contexts

    def context(self, incident: Incident) -> MessageContext:
        """What a message about this incident says besides its finding."""
        if incident.model == self._context.model and self._contexts is None:
            return self._context
        if self._contexts is not None:
            return self._contexts(incident.model).remembered(incident.context)
        if not incident.context:
            return MessageContext(model=incident.model, version=incident.version)
        stored = msgspec.json.decode(incident.context, type=MessageContext)
        return msgspec.structs.replace(stored, alerts=self._context.alerts)

    def announce(self, incident: Incident, *, event: int, kind: str, type: str = "") -> str:
        """Let everybody concerned hear of a line of the timeline, now or in time.

        Returns the id of the message where one was written at once, else nothing.
        """
        type = type or self._type(incident, kind)
        if kind in ("resolved", "acknowledged"):  # to whoever heard, however quiet it is by now
            wanted = self._hearers(incident, over=kind == "resolved")
        else:
            mute = self.why(incident)
            if mute is not None:
                self._withhold(incident, kind)
                return ""
            wanted = self.concerned(incident, escalated=kind == "escalated")
        groups = [
            self.note(incident, target, receiver, key, event=event, kind=kind, type=type)
            for receiver, target, key in wanted
        ]
        return self.flush(groups)

    def why(self, incident: Incident) -> quiet.Mute | None:
        """Why an incident is quiet at present; None when it is not."""
        context = self.context(incident)
        return quiet.why(
            messages.labels(incident, context),
            incident=incident.id,
            at=self.at,
            settings=context.alerts,
            silences=self._silences,
            others=self._troubles,
        )

    def heard(self, incident: Incident) -> dict[str, str]:
        """Receivers that were told of it, and the group that last told each ("" is unknown)."""
        table = schema.notices
        query = (
            sa.select(table.c.receiver, table.c.group_key)
            .where(table.c.incident_id == incident.id, table.c.state == "sent")
            .order_by(table.c.id)
        )
        told = dict.fromkeys(sorted(outbox.receivers_of(self.tx, incident.id)), "")
        return told | {row.receiver: row.group_key for row in self.tx.execute(query)}

    def last(self, key: str) -> datetime | None:
        """When a group spoke last."""
        table = schema.notices
        query = sa.select(sa.func.max(table.c.sent)).where(
            table.c.group_key == key, table.c.state == "sent"
        )
        last: datetime | None = self.tx.scalar(query)
        return last

    def first(self, incident: Incident) -> datetime | None:
        """When anybody was told of an incident first."""
        table, sent = schema.notices, schema.outbox
        ours = (table.c.incident_id == incident.id) & (table.c.state == "sent")
        first: datetime | None = self.tx.scalar(sa.select(sa.func.min(table.c.sent)).where(ours))
        if first is None:  # told before there were notices, or never
            mine = sent.c.incident_id == incident.id
            first = self.tx.scalar(sa.select(sa.func.min(sent.c.created)).where(mine))
        return first

    def told_to(self, incident: Incident, target: Target) -> list[str]:
        """The receivers of a target that hear of this incident."""
        context = self.context(incident)
        able = context.told(incident.severity)
        return [name for name in able if target.receivers is None or name in target.receivers]

    def targets(self, incident: Incident) -> list[Target]:
        """Where the routes lead with this incident's labels."""
        context = self.context(incident)
        return routes.targets(context.alerts.route, messages.labels(incident, context))

    def flush(self, groups: Iterable[str] | None = None) -> str:
        """Let groups speak whose time has come; returns the id of the first message.

        Args:
            groups: only these; every one that is due when None.
        """
        table = schema.notices
        waiting = table.c.state == "waiting"
        if groups is None:
            due = sa.select(table.c.group_key).where(waiting, table.c.due <= self.at)
            groups = list(self.tx.scalars(due.distinct().order_by(table.c.group_key)))
        first = ""
        for key in dict.fromkeys(groups):
            query = sa.select(table).where(waiting, table.c.group_key == key).order_by(table.c.id)
            rows = self.tx.execute(query.with_for_update()).all()  # two must not say the same
            if rows and min(row.due for row in rows) <= self.at:
                said = self._speak(key, rows)
                first = first or said
        return first

    @cached_property
    def _silences(self) -> list[quiet.Silence]:
        return silences.active(self.tx, self.at)

    @cached_property
    def _troubles(self) -> list[quiet.Trouble]:
        """What may keep other messages back; of this model alone where no setting looks further."""
        rules = self._context.alerts.mutes
        far = self._contexts is not None or any("model" not in rule.equal for rule in rules)
        every = records.unresolved(self.tx, None if far else self._context.model)
        return [
            quiet.Trouble(id=one.id, labels=messages.labels(one, self.context(one)))
            for one in every
            if one.state != "noticed"
        ]

    def _type(self, incident: Incident, kind: str) -> str:
        told = cause_of(incident.cause)
        if kind == "escalated":
            return "incident.escalated"
        return told.resolved if kind == "resolved" else told.detected

    def concerned(
        self, incident: Incident, *, escalated: bool = False
    ) -> list[tuple[str, Target, str]]:
        """Receivers with the target that names them first, and their group there."""
        known = {name for name, _ in self.context(incident).receivers}
        labels = messages.labels(incident, self.context(incident))
        found: dict[str, Target] = {}
        for target in self.targets(incident):
            upwards = [name for name in target.escalate_to if name in known]
            for name in upwards if escalated else self.told_to(incident, target):
                found.setdefault(name, target)
        return [(name, target, target.key(name, labels)) for name, target in found.items()]

    def _hearers(self, incident: Incident, *, over: bool) -> list[tuple[str, Target, str]]:
        """Who was told of the incident is told of its end, whatever else they are told by now.

        Args:
            over: who still waits to hear of it will not.
        """
        table = schema.notices
        heard = self.heard(incident)
        unheard = (table.c.incident_id == incident.id) & (table.c.state == "waiting")
        if heard:
            unheard &= table.c.receiver.not_in(list(heard))
        if over:
            self.tx.execute(table.update().where(unheard).values(state="dropped"))
        known = [name for name, _ in self.context(incident).receivers if name in heard]
        targets = self.targets(incident)
        labels = messages.labels(incident, self.context(incident))
        found = []
        for name in known:
            spoke = [each for each in targets if each.key(name, labels) == heard[name]]
            target = (spoke or targets or [routes.ROOT])[0]
            found.append((name, target, heard[name] or target.key(name, labels)))
        return found

    def note(
        self,
        incident: Incident,
        target: Target,
        receiver: str,
        key: str,
        *,
        event: int,
        kind: str,
        type: str = "",
    ) -> str:
        """Write down that a receiver is to hear of an event; returns its group."""
        type = type or self._type(incident, kind)
        labels = target.group(messages.labels(incident, self.context(incident)))
        alone = target.alone
        due = self.at if kind == "reminder" else routes.due(target, at=self.at, last=self.last(key))
        row = {
            "incident_id": incident.id, "event_id": event, "kind": kind, "type": type,
            "receiver": receiver, "group_key": key, "at": self.at, "due": due, "state": "waiting",
            "labels": "" if alone else msgspec.json.encode(labels).decode(),
        }  # fmt: skip
        self.tx.execute(schema.notices.insert().values(**row))
        return key

    def _withhold(self, incident: Incident, kind: str) -> None:
        if kind in _WITHHELD and incident.withheld != "opened":
            table = schema.incidents
            mine = table.c.id == incident.id
            self.tx.execute(table.update().where(mine).values(withheld=kind))

    def _speak(self, key: str, rows: Sequence[sa.Row[Any]]) -> str:
        """One message of everything that waits in a group; nothing when all of it is past."""
        receiver, alone = rows[0].receiver, not rows[-1].labels
        byid: dict[int, list[sa.Row[Any]]] = {}
        for row in rows:
            byid.setdefault(row.incident_id, []).append(row)
        told: list[tuple[Incident, sa.Row[Any]]] = []
        for identity, lines in byid.items():
            incident = records.get(self.tx, identity)
            over = incident.state == "resolved"
            if over and receiver not in self.heard(incident):
                continue  # it came and went while it waited
            loudest = min(lines, key=lambda row: (_rank(row.kind), -row.id))
            if not over and self.why(incident) is not None:
                self._withhold(incident, loudest.kind)  # silenced while it waited
                continue
            told.append((incident, loudest))
        spoken = {incident.id for incident, _ in told}
        self._mark([row.id for row in rows if row.incident_id not in spoken], state="dropped")
        ids = [row.id for row in rows if row.incident_id in spoken]
        if not told:
            return ""
        told.sort(key=lambda pair: _gravity(pair[0]))
        (incident, row), changed = told[0], [one for one, _ in told[1:]]
        changed += [] if alone else self._members(key, {one.id for one, _ in told})
        others = [(one, self.context(one)) for one in sorted(changed, key=_gravity)]
        open_ones = [one for one in (incident, *changed) if one.state != "resolved"]
        type = row.type
        if others:
            type = "incident.group" if open_ones else "incident.group.resolved"
        news = "" if row.kind in FINDS else self._news(row.event_id)
        content = messages.body(
            type, incident, incident.finding, self.context(incident), row.at,
            event=row.kind, news=news, others=others, key="" if alone else key,
        )  # fmt: skip
        message_id = outbox.message_id(self.tx, incident.id, row.event_id)
        outbox.put(
            self.tx, message_id=message_id, incident_id=incident.id, type=type,
            body=messages.encode(content), receivers=[receiver], at=self.at, group=key,
        )  # fmt: skip
        self._mark(ids, state="sent", sent=self.at, message_id=message_id)
        table, named = schema.incidents, [one.id for one in (incident, *changed)]
        self.tx.execute(table.update().where(table.c.id.in_(named)).values(told=self.at))
        return message_id

    def _members(self, key: str, but: set[int]) -> list[Incident]:
        """Unresolved incidents that a group has told of before."""
        table = schema.notices
        query = sa.select(table.c.incident_id).where(
            table.c.group_key == key, table.c.state == "sent"
        )
        ids = set(self.tx.scalars(query.distinct())) - but
        found = [records.get(self.tx, one) for one in sorted(ids)]
        return [one for one in found if one.state != "resolved"]

    def _mark(self, ids: Sequence[int], **values: Any) -> None:
        table = schema.notices
        if ids:
            self.tx.execute(table.update().where(table.c.id.in_(ids)).values(**values))

    def _news(self, event_id: int) -> str:
        table = schema.incident_events
        return str(self.tx.scalar(sa.select(table.c.text).where(table.c.id == event_id)) or "")


def firing(tx: sa.Connection, receiver: str) -> list[str]:
    """The newest body of every message that a receiver was sent about what is not over yet.

    For receivers that forget (Alertmanager): whoever posts these again keeps them alive. What is
    quiet at present is left out, and so forgotten.
    """
    notices, incidents, sent = schema.notices, schema.incidents, schema.outbox
    query = (
        sa.select(sa.func.max(sent.c.id))
        .select_from(notices)
        .join(incidents, incidents.c.id == notices.c.incident_id)
        .join(
            sent,
            (sent.c.message_id == notices.c.message_id) & (sent.c.receiver == notices.c.receiver),
        )
        .where(
            notices.c.receiver == receiver,
            notices.c.state == "sent",
            incidents.c.open_key.is_not(None),
            incidents.c.muted == "",
        )
        .group_by(notices.c.group_key)
    )
    newest = list(tx.scalars(query))
    bodies = sa.select(sent.c.body).where(sent.c.id.in_(newest)).order_by(sent.c.id)
    return [str(body) for body in tx.scalars(bodies)] if newest else []


def _rank(kind: str) -> int:
    return _LOUDEST.index(kind) if kind in _LOUDEST else len(_LOUDEST)


def _gravity(incident: Incident) -> tuple[bool, int, int]:
    """What comes first in a message about several."""
    return incident.state == "resolved", -lifecycle.RANK.get(incident.severity, 0), incident.id
