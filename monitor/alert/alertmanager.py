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
        """Tell of one incident: it is there, or it is over."""
        found = [alert(message, at, self.every * _MISSED)]
        if message.data.get("event") == "worse":  # another label set: the old one is over
            found += past(message, at)
        outcome = self._post(found, at)
        if outcome.status == 400:  # Alertmanager will never take it
            return msgspec.structs.replace(outcome, final=True)
        return outcome

    def refresh(self, messages: list[Message], *, at: datetime) -> Outcome:
        """Tell again of everything that lasts."""
        last = self.every * _MISSED
        for start in range(0, len(messages), _BATCH):
            batch = [alert(one, at, last) for one in messages[start : start + _BATCH]]
            outcome = self._post(batch, at)
            if not outcome.delivered:
                return outcome
        return Outcome(delivered=True)

    def _post(self, alerts: list[dict[str, Any]], at: datetime) -> Outcome:
        content = msgspec.json.encode(alerts)
        return self._target.send("POST", content, {"content-type": "application/json"}, at=at)


def alert(message: Message, at: datetime, lasts: timedelta) -> dict[str, Any]:
    """A message as an alert that ends now, if it is over, and by itself after `lasts` otherwise."""
    data = message.data
    links = data.get("links") or {}
    ends = at if message.resolved else at + lasts
    begins = parse_time(data["opened"], field="opened") if data.get("opened") else at
    notes = {
        "summary": message.subject,
        "description": message.text,
        "incident": data.get("incident", ""),
        "version": data.get("version", ""),
        "since": data.get("since", ""),
        "command": data.get("command", ""),
        **{f"{name}_url": url for name, url in links.items()},
    }
    return {
        "labels": labels(message),
        "annotations": {
            name: cut(str(text), _ANNOTATION)
            for name, text in notes.items()
            if text and _LABEL.match(name)
        },
        "startsAt": iso(min(begins, ends)),
        "endsAt": iso(ends),
        "generatorURL": links.get("dashboard", ""),
    }


def labels(message: Message) -> dict[str, str]:
    """What makes the alert this alert, the same over its whole life."""
    data = message.data
    cause = str(data.get("cause") or message.type)
    name = "".join(part.capitalize() for part in re.split(r"[^a-zA-Z0-9]+", cause))
    own = {
        "alertname": f"Shelflife{name}",
        "job": "shelflife",
        **{
            key: data.get(key, "") for key in ("model", "cause", "severity", "environment", "owner")
        },
    }
    more = data.get("labels")
    given = {key: value for key, value in more.items() if _LABEL.match(key)} if more else {}
    return {key: str(value) for key, value in (given | own).items() if value}


def past(message: Message, at: datetime) -> list[dict[str, Any]]:
    """The same alert under its lesser severity, at its end."""
    ended = alert(message, at, timedelta(0))
    ended["labels"]["severity"] = "ticket" if message.data.get("severity") == "page" else "page"
    ended["endsAt"] = iso(at)
    return [ended]
