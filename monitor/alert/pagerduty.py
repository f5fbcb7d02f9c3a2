"""PagerDuty's Events API v2: an incident here is an alert there, under one `dedup_key`."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

import msgspec

from core.errors import SettingsError
from core.settings import ReceiverSettings, secret
from monitor.alert.contract import Message, Outcome
from monitor.alert.slack import cut
from monitor.alert.webhook import target

URL = "https://events.pagerduty.com/v2/enqueue"
_SUMMARY, _KEY, _EVENT, _TEXT = 1024, 255, 512_000, 20_000
_ACTIONS = {"firing": "trigger", "acknowledged": "acknowledge", "resolved": "resolve"}
_SEVERITY = {"page": "critical", "ticket": "warning"}


class PagerDuty:
    """Triggers, acknowledges and resolves. `secret` is the routing key of an integration.

    Raises:
        SettingsError: see `Target`; or there is no routing key.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        self._target = target(settings, default=URL)
        key = secret(settings.secret)
        if key is None:
            wanted = "env:NAME or file:/path of the routing key"
            raise SettingsError(f"receivers.{settings.name}.secret", None, wanted)
        self._key = key

    @property
    def longest(self) -> timedelta:
        return self._target.timeout

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Enqueue the event once; PagerDuty takes repetitions of a `dedup_key` as one alert."""
        content = msgspec.json.encode({"routing_key": self._key.reveal(), **event(message)})
        outcome = self._target.send("POST", content, {"content-type": "application/json"}, at=at)
        if outcome.status == 400:  # only 429 and 5xx are worth another attempt
            return msgspec.structs.replace(outcome, final=True)
        return outcome


def event(message: Message) -> dict[str, Any]:
    """The event of a message, but for its routing key."""
    data, what = message.data, _ACTIONS[message.status]
    key = message.key
    if len(key) > _KEY:
        key = hashlib.sha256(key.encode()).hexdigest()
    found: dict[str, Any] = {"event_action": what, "dedup_key": key}
    if what != "trigger":
        return found
    links = data.get("links") or {}
    found["payload"] = {
        "summary": cut(message.subject, _SUMMARY),
        "source": data.get("environment") or "shelflife",
        "severity": _SEVERITY.get(str(data.get("severity")), "info"),
        "timestamp": data.get("since") or data.get("opened"),
        "component": data.get("model", ""),
        "group": data.get("owner", ""),
        "class": data.get("cause", message.type),
        "custom_details": {**data, "webhook_id": message.id},
    }
    found["client"] = "shelflife"
    found["client_url"] = links.get("dashboard", "")
    found["links"] = [{"href": url, "text": name} for name, url in links.items()]
    if len(msgspec.json.encode(found)) > _EVENT - 1000:
        found["payload"]["custom_details"] = {"message": cut(message.text, _TEXT)}
    return found
