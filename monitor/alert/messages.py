"""What a message says: one body for every receiver, and the words on-call reads.

The body follows Standard Webhooks 1.0.0: `{type, timestamp, data}`, under 20 kB. Column names and
categories come from data and may be hostile: everything shown is cut to length and kept on one
line, without control, bidirectional or invisible characters. Escaping for one sink (Slack's mrkdwn,
HTML) is the sink's own task.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from msgspec import Struct

from core.errors import InputError
from core.settings import AlertSettings
from core.times import iso
from monitor.alert import routes, templates
from monitor.alert.causes import CAUSES, cause
from monitor.alert.lifecycle import Rules
from monitor.alert.records import Incident
from monitor.results import Finding

LIMIT = 20_000  # bytes of a body
_TYPE = re.compile(r"^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$")
_WORD, _LINE, _TEXT = 80, 300, 2000  # characters kept of a name, of a title, of a paragraph
_COLUMNS = 20  # named in the data of a message; the rest are counted
_CROSSED = 5  # numbers over their line in the data of a message
_ENTRIES = 5  # incidents that a message about many always names


class MessageContext(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every message about a model says besides its finding, and how it is routed."""

    model: str
    version: str
    owner: str = ""
    runbook: str = ""  # the model's own page; empty: the cause's below `runbooks`
    runbooks: str = ""
    environment: str = ""
    labels: dict[str, str] = {}  # the user's own
    receivers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name, severities it is told of
    alerts: AlertSettings = AlertSettings()
    repeat: timedelta = timedelta(days=7)  # of event time: how often what lasts is told again
    rhythm: timedelta = timedelta(hours=1)  # how often the model is checked
    dashboard_url: str = ""  # its root; messages link to the incident's page
    mlflow_url: str = ""
    command: str = ""  # reproduces the check
    done: str = ""  # what the service has done already
    next: str = ""  # what a person can do now, split by `;`; empty: what the cause suggests
    cost: str = ""  # what it costs

    def told(self, severity: str) -> list[str]:
        """The receivers that hear of incidents of this severity."""
        return [name for name, severities in self.receivers if severity in severities]

    def rules(self, cause: str) -> Rules:
        """When incidents of a cause open and end."""
        opens, _, of = self.alerts.opens.get(cause, "1/1").partition("/")
        return Rules(
            opens=(min(int(opens), int(of)), int(of)),
            clears=self.alerts.clears,
            memory=self.alerts.memory,
        )

    def stored(self) -> str:
        """As JSON, without what the settings say anew at any time."""
        bare = msgspec.structs.replace(self, receivers=(), alerts=AlertSettings())
        return msgspec.json.encode(bare).decode()

    def remembered(self, stored: str) -> MessageContext:
        """This context, in the words of a stored one: what was done, what it costs, …"""
        if not stored:
            return self
        then = msgspec.json.decode(stored, type=MessageContext)
        kept = ("version", "mlflow_url", "command", "done", "next", "cost")
        return msgspec.structs.replace(self, **{name: getattr(then, name) for name in kept})


def clean(text: str, limit: int = _LINE) -> str:
    """One line of printable text of at most `limit` characters."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return " ".join(text.split())  # what almost every name is like
    head = text[: 4 * limit]  # a megabyte of category is not worth looking at
    printable = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in head)
    line = " ".join(printable.split())
    return line if len(line) <= limit and len(head) == len(text) else f"{line[: limit - 1]}…"


def cleaned(finding: Finding) -> Finding:
    """The finding with every string fit to be stored and shown."""
    columns = [clean(name, _WORD) for name in finding.columns]
    return msgspec.structs.replace(
        finding,
        title=clean(finding.title, _LINE),
        text=clean(finding.text, _TEXT),
        columns=tuple(columns),
    )


def dedup_key(model: str, name: str) -> str:
    """The same for every message of a model and cause, over all time: no value, no date in it."""
    return hashlib.sha256(f"{model}|{name}".encode()).hexdigest()


def labels(incident: Incident, context: MessageContext) -> dict[str, str]:
    """The labels of an incident, by which it is routed, grouped, silenced and muted."""
    return routes.labels_of(
        model=incident.model,
        cause=incident.cause,
        severity=incident.severity,
        owner=clean(context.owner, _WORD),
        environment=clean(context.environment, _WORD),
        own=context.labels,
    )


def links_of(incident: Incident, context: MessageContext) -> dict[str, str]:
    """Where to look and what to press; only what is known."""
    base = context.dashboard_url.rstrip("/")
    page = f"{base}/incidents?id={incident.id}" if base else ""
    book = f"{context.runbooks.rstrip('/')}/{incident.cause}" if context.runbooks else ""
    found = {  # the incident's page offers its Evidently report, once there is one
        "dashboard": page,
        "mlflow": context.mlflow_url,
        "runbook": context.runbook or (book if incident.cause in CAUSES else ""),
        "silence": f"{page}&silence=4h" if page and incident.state != "resolved" else "",
    }
    return {name: clean(url, _TEXT) for name, url in found.items() if url}


def body(
    type: str,
    incident: Incident,
    finding: Finding,
    context: MessageContext,
    at: datetime,
    *,
    event: str,
    news: str = "",
    others: Sequence[tuple[Incident, MessageContext]] = (),
    key: str = "",
) -> dict[str, Any]:
    """The body of one message, ready for `encode`.

    Args:
        type: dotted words, such as `model.decay.detected`.
        at: the moment of what it tells, not of its delivery.
        event: the kind of the timeline entry it tells of: opened, worse, reminder, resolved, …
        news: that entry's text, where it is not the finding's title.
        others: further incidents that the message speaks of, gravest first.
        key: of the group, where it may hold several incidents.

    Raises:
        InputError: `type` has other characters than letters, digits, `_` and `.`.
    """
    if not _TYPE.match(type):
        raise InputError("message type", type, "dotted words of letters, digits and '_'")
    finding = cleaned(finding)
    every = [(incident, context), *others]
    states = {one.state for one, _ in every} - {"resolved"}
    status = "firing" if states - {"acknowledged"} else "acknowledged" if states else "resolved"
    data: dict[str, Any] = {
        "incident": incident.id,
        "story": incident.story or incident.id,
        "status": status,
        "dedup_key": key or dedup_key(incident.model, incident.cause),
        "cause": incident.cause,
        "severity": incident.severity,
        "state": incident.state,
        "event": event,
        "model": incident.model,
        "version": context.version or incident.version,
        "owner": clean(context.owner, _WORD),
        "environment": clean(context.environment, _WORD),
        "title": finding.title,
        "text": finding.text,
        "news": clean(news, _TEXT),
        "crossed": [
            {**msgspec.to_builtins(one), "what": clean(one.what, _WORD), "over": one.over}
            for one in finding.crossed[:_CROSSED]
        ],
        "columns": list(finding.columns[:_COLUMNS]),
        "column_count": len(finding.columns),
        "since": iso(finding.since or incident.opened),
        "opened": iso(incident.opened),
        "seen": incident.seen,
        "cost": clean(context.cost),
        "done": clean(context.done),
        "next": [] if incident.state == "resolved" else _next(incident, context),
        "links": links_of(incident, context),
        "labels": {
            clean(name, _WORD): clean(value, _WORD)
            for name, value in labels(incident, context).items()
        },
        "command": clean(context.command),
        "incidents": [_entry(one, about, event if one is incident else "") for one, about in every],
        "incident_count": len(every),
    }
    data["message"] = templates.render(data, at, context.alerts.templates)
    return {"type": type, "timestamp": iso(at), "data": data}


def _entry(incident: Incident, context: MessageContext, event: str) -> dict[str, Any]:
    """One incident of a message, as machines need it."""
    status = {"resolved": "resolved", "acknowledged": "acknowledged"}.get(incident.state, "firing")
    return {
        "incident": incident.id,
        "dedup_key": dedup_key(incident.model, incident.cause),
        "model": incident.model,
        "version": context.version or incident.version,
        "cause": incident.cause,
        "severity": incident.severity,
        "state": incident.state,
        "status": status,
        "event": event,
        "title": clean(incident.title, 2 * _WORD),
        "opened": iso(incident.opened),
        "resolved": iso(incident.resolved) if incident.resolved else None,
        "labels": {name: clean(value, _WORD) for name, value in labels(incident, context).items()},
        "links": {
            name: url
            for name, url in links_of(incident, context).items()
            if name in ("dashboard", "runbook")
        },
    }


def encode(content: dict[str, Any]) -> str:
    """The body as JSON of less than 20 kB: incidents beyond the first few are left to their count,
    then the longest strings are cut."""
    raw = msgspec.json.encode(content)
    every = content["data"].get("incidents", [])
    while len(raw) >= LIMIT and len(every) > _ENTRIES:
        every.pop()
        raw = msgspec.json.encode(content)
    while len(raw) >= LIMIT:
        holder, key, value = max(_strings(content), key=lambda found: len(found[2]))
        holder[key] = f"{value[: len(value) // 2]}…"
        raw = msgspec.json.encode(content)
    return raw.decode()


def _next(incident: Incident, context: MessageContext) -> list[str]:
    """Two or three things to do: the context's, or else what always helps against the cause."""
    if context.next:
        return [clean(step) for step in context.next.split(";")][:3]
    return [
        step.format(model=incident.model, incident=f"incident {incident.id}")
        for step in cause(incident.cause).next
    ]


def _strings(holder: Any) -> Iterable[tuple[Any, Any, str]]:
    """Every string below a dict or list, with where it is."""
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, value in list(items):
        if isinstance(value, str):
            yield holder, key, value
        elif isinstance(value, dict | list):
            yield from _strings(cast("dict[str, Any] | list[Any]", value))
