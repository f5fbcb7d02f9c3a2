"""Prometheus' Alertmanager: alerts are told again until they are over, or they expire.

An alert is its label set, so no label holds a value, a version or a moment: model, cause, severity,
environment, owner. All else is an annotation, of which Alertmanager keeps the newest.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import msgspec

from core.settings import ReceiverSettings, span
from core.times import iso, parse_time
from monitor.alert.contract import Message, Outcome
from monitor.alert.slack import cut
from monitor.alert.webhook import target

#: An alert expires after so many refreshes that did not come (a restart must not resolve it).
_MISSED = 10
_LABEL = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_]*$")
_NAMED = ("model", "cause", "severity", "environment", "owner")
_BATCH = 200
_ANNOTATION = 4000


class Alertmanager:
    """Posts to `/api/v2/alerts` of one Alertmanager.

    Raises:
        SettingsError: see `Target`.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        self._target = target(settings, path="/api/v2/alerts")
        self.every = span(settings.refresh_every)

    @property
    def longest(self) -> timedelta:
        return self._target.timeout

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Tell of a message's incidents: they are there, or they are over."""
        outcome = self._post(alerts(message, at, self.every * _MISSED), at)
        if outcome.status == 400:  # Alertmanager will never take it
            return msgspec.structs.replace(outcome, final=True)
        return outcome

    def refresh(self, messages: list[Message], *, at: datetime) -> Outcome:
        """Tell again of everything that lasts."""
        last = self.every * _MISSED
        told = [one for each in messages for one in alerts(each, at, last, of=each.incident)]
        lasting = [one for one in told if one["endsAt"] > iso(at)]
        for start in range(0, len(lasting), _BATCH):
            outcome = self._post(lasting[start : start + _BATCH], at)
            if not outcome.delivered:
                return outcome
        return Outcome(delivered=True)

    def _post(self, alerts: list[dict[str, Any]], at: datetime) -> Outcome:
        content = msgspec.json.encode(alerts)
        return self._target.send("POST", content, {"content-type": "application/json"}, at=at)


def alerts(
    message: Message, at: datetime, lasts: timedelta, *, of: int | None = None
) -> list[dict[str, Any]]:
    """An alert per incident of a message; it ends now, if that is over, else after `lasts`.

    A message that says that an incident got worse also ends the alert that it was before.

    Args:
        of: only of this incident, where the message speaks of it.
    """
    data = message.data
    entries = data.get("incidents") or [data]
    entries = [one for one in entries if of is not None and one.get("incident") == of] or entries
    found = []
    for entry in entries:
        over = "resolved" in (entry.get("status"), entry.get("state"))
        found.append(_alert(message, data | entry, at, at if over else at + lasts))
        if not over and entry.get("event") == "worse":
            lesser = data | entry | {"severity": "ticket"}
            found.append(_alert(message, lesser, at, at))
    return found


def _alert(message: Message, data: dict[str, Any], at: datetime, ends: datetime) -> dict[str, Any]:
    links = data.get("links") or {}
    begins = parse_time(data["opened"], field="opened") if data.get("opened") else at
    notes = {
        "summary": data.get("title") or message.subject,
        "description": message.text,
        "incident": data.get("incident", ""),
        "version": data.get("version", ""),
        "since": data.get("since", ""),
        "command": data.get("command", ""),
        **{f"{name}_url": url for name, url in links.items()},
    }
    return {
        "labels": labels(data, message.type),
        "annotations": {
            name: cut(str(text), _ANNOTATION)
            for name, text in notes.items()
            if text and _LABEL.match(name)
        },
        "startsAt": iso(min(begins, ends)),
        "endsAt": iso(ends),
        "generatorURL": links.get("dashboard", ""),
    }


def labels(data: dict[str, Any], kind: str) -> dict[str, str]:
    """What makes the alert this alert, the same over its whole life.

    Args:
        data: one incident of a message.
        kind: the message's type, for those that have no cause.
    """
    cause = str(data.get("cause") or kind)
    name = "".join(part.capitalize() for part in re.split(r"[^a-zA-Z0-9]+", cause))
    own = {"alertname": f"Shelflife{name}", "job": "shelflife"}
    own |= {key: data.get(key, "") for key in _NAMED}
    more = data.get("labels") or {}
    given = {key: value for key, value in more.items() if _LABEL.match(key)}
    return {key: str(value) for key, value in (given | own).items() if value}
