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
from collections.abc import Iterable
from datetime import datetime
from typing import Any, cast

import msgspec
from msgspec import Struct

from core.errors import InputError
from core.times import iso, spell
from monitor.alert.causes import RESOLVED, cause
from monitor.alert.records import Incident
from monitor.results import Finding

LIMIT = 20_000  # bytes of a body
_TYPE = re.compile(r"^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$")
_WORD, _LINE, _TEXT = 80, 300, 2000  # characters kept of a name, of a title, of a paragraph
_COLUMNS = 20  # named in the data of a message; the rest are counted
_SHOWN = 3  # named in the text
_FINDS = ("opened", "worse", "reminder")  # events whose news is the finding itself


class MessageContext(Struct, frozen=True, kw_only=True):
    """What every message about a model says besides its finding."""

    model: str
    version: str
    owner: str = ""
    runbook: str = ""
    environment: str = ""
    receivers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name, severities it is told of
    dashboard_url: str = ""  # its root; messages link to the incident's page
    mlflow_url: str = ""
    command: str = ""  # reproduces the check
    done: str = ""  # what the service has done already
    next: str = ""  # what a person can do now, split by `;`; empty: what the cause suggests
    cost: str = ""  # what it costs

    def told(self, severity: str) -> list[str]:
        """The receivers that hear of incidents of this severity."""
        return [name for name, severities in self.receivers if severity in severities]


def clean(text: str, limit: int = _LINE) -> str:
    """One line of printable text of at most `limit` characters."""
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


def body(
    type: str,
    incident: Incident,
    finding: Finding,
    context: MessageContext,
    at: datetime,
    *,
    event: str,
    news: str = "",
) -> dict[str, Any]:
    """The body of one message, ready for `encode`.

    Args:
        type: dotted words, such as `model.decay.detected`.
        at: the moment of what it tells, not of its delivery.
        event: the kind of the timeline entry it tells of: opened, worse, reminder, resolved, …
        news: that entry's text, where it is not the finding's title.

    Raises:
        InputError: `type` has other characters than letters, digits, `_` and `.`.
    """
    if not _TYPE.match(type):
        raise InputError("message type", type, "dotted words of letters, digits and '_'")
    finding = cleaned(finding)
    base = context.dashboard_url.rstrip("/")
    links = {  # the incident's page offers its Evidently report, once there is one
        "dashboard": f"{base}/incidents?id={incident.id}" if base else "",
        "mlflow": context.mlflow_url,
        "runbook": context.runbook,
    }
    data: dict[str, Any] = {
        "incident": incident.id,
        "dedup_key": dedup_key(incident.model, incident.cause),
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
        "columns": list(finding.columns[:_COLUMNS]),
        "column_count": len(finding.columns),
        "since": iso(finding.since or incident.opened),
        "opened": iso(incident.opened),
        "seen": incident.seen,
        "cost": clean(context.cost),
        "done": clean(context.done),
        "next": [] if incident.state == "resolved" else _next(incident, context),
        "links": {name: clean(url, _TEXT) for name, url in links.items() if url},
        "command": clean(context.command),
    }
    data["message"] = text(data, at)
    return {"type": type, "timestamp": iso(at), "data": data}


def encode(content: dict[str, Any]) -> str:
    """The body as JSON of less than 20 kB; the longest strings are cut until it is."""
    raw = msgspec.json.encode(content)
    while len(raw) >= LIMIT:
        holder, key, value = max(_strings(content), key=lambda found: len(found[2]))
        holder[key] = f"{value[: len(value) // 2]}…"
        raw = msgspec.json.encode(content)
    return raw.decode()


def text(data: dict[str, Any], at: datetime) -> str:
    """What on-call reads: what it is, why, what it costs, what was and can be done, where to look.

    Args:
        data: the `data` of a body.
    """
    # Drift beside decay is a coincidence until somebody shows that it carries the loss.
    columns = "drifted meanwhile: " if data["cause"] == "decay" else "columns "
    cost = "" if data["cost"].startswith("cost") else "cost "
    lines = [
        _headline(data, at),
        _reason(data, at),
        _joined(_labelled(cost, data["cost"]), _labelled(columns, _columns(data))),
        _joined(_labelled("done: ", data["done"]), _labelled("next: ", "; ".join(data["next"]))),
        _address(data),
    ]
    return "\n  ".join(line for line in lines if line)


def _headline(data: dict[str, Any], at: datetime) -> str:
    known, model, title = cause(data["cause"]), data["model"], data["title"]
    if data["state"] == "resolved":
        return f"{RESOLVED} {model} {known.over}: {data['news'] or 'resolved'}"
    if data["event"] in _FINDS:
        since = datetime.fromisoformat(data["since"])
        tail = "" if "since" in title else f", since {_day(since, at)}"
        # A title that names the model is a sentence of its own.
        named = title.startswith((f"{model} ", f"{model}:"))
        start = "" if named else f"{model} {known.says}: "
        again = f" (found by {_checks(data['seen'])})" if data["event"] == "reminder" else ""
        return f"{known.symbol} {start}{title}{tail}{again}"
    return f"{known.symbol} {model}: {data['news']}"


def _reason(data: dict[str, Any], at: datetime) -> str:
    if data["state"] == "resolved":
        lasted = spell(at - datetime.fromisoformat(data["opened"]))
        return f"it was: {data['title']}, open for {lasted}, found by {_checks(data['seen'])}"
    if data["event"] not in _FINDS:
        return f"the incident: {data['title']}"
    return "" if data["text"] == data["title"] else str(data["text"])


def _address(data: dict[str, Any]) -> str:
    links = data["links"]
    version = f"MLflow v{data['version']}" if data["version"] else "MLflow"
    return _joined(
        f"incident {data['incident']}",
        data["severity"],
        data["environment"],
        _labelled("owner ", data["owner"]),
        _labelled("dashboard ", links.get("dashboard", "")),
        _labelled(f"{version} ", links.get("mlflow", "")),
        _labelled("runbook ", links.get("runbook", "")),
        data["command"],
    )


def _next(incident: Incident, context: MessageContext) -> list[str]:
    """Two or three things to do: the context's, or else what always helps against the cause."""
    if context.next:
        return [clean(step) for step in context.next.split(";")][:3]
    return [
        step.format(model=incident.model, incident=f"incident {incident.id}")
        for step in cause(incident.cause).next
    ]


def _columns(data: dict[str, Any]) -> str:
    named, count = data["columns"][:_SHOWN], data["column_count"]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(named) + more


def _labelled(label: str, value: str) -> str:
    return f"{label}{value}" if value else ""


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count:,} checks"


def _day(moment: datetime, at: datetime) -> str:
    day = f"{moment.day} {moment:%b}"
    return day if moment.year == at.year else f"{day} {moment.year}"


def _strings(holder: Any) -> Iterable[tuple[Any, Any, str]]:
    """Every string below a dict or list, with where it is."""
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, value in list(items):
        if isinstance(value, str):
            yield holder, key, value
        elif isinstance(value, dict | list):
            yield from _strings(cast("dict[str, Any] | list[Any]", value))
