"""Slack's incoming webhooks: a header, the message's text, and buttons for its links.

Slack allows 50 blocks, 150 characters of a header and 3,000 of a section, and takes 13,200 in all
(the last is not documented; slackapi/bolt-js 2509). `&`, `<` and `>` are escaped in `mrkdwn`, which
is also what keeps a column named `<!channel>` from waking one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from core.settings import ReceiverSettings
from monitor.alert.contract import Message, Outcome
from monitor.alert.webhook import target

_HEADER, _SECTION, _BUTTONS, _URL = 150, 3000, 4, 3000
_NAMES = {"dashboard": "Dashboard", "mlflow": "MLflow", "runbook": "Runbook", "silence": "Silence"}


class Slack:
    """Messages as blocks, posted to the (secret) address of an incoming webhook.

    Raises:
        SettingsError: see `Target`.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        self._target = target(settings)

    @property
    def longest(self) -> timedelta:
        return self._target.timeout

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Post the message once. Slack knows no ids: a repetition is a second line there."""
        content = msgspec.json.encode(blocks(message))
        headers = {"content-type": "application/json; charset=utf-8"}
        outcome = self._target.send("POST", content, headers, at=at)
        if outcome.status == 400:  # Slack's word for a payload it will never take
            return msgspec.structs.replace(outcome, final=True)
        return outcome


def blocks(message: Message) -> dict[str, Any]:
    """The message as Slack's blocks."""
    head = {"type": "plain_text", "text": cut(message.subject, _HEADER), "emoji": False}
    body = {"type": "mrkdwn", "text": cut(escaped(message.text), _SECTION), "verbatim": True}
    found: list[dict[str, Any]] = [
        {"type": "header", "text": head},
        {"type": "section", "text": body},
    ]
    links = message.data.get("links") or {}
    buttons = [
        {
            "type": "button",
            "text": {"type": "plain_text", "text": _NAMES.get(name, cut(str(name), 75))},
            "url": url,
            "action_id": f"open_{index}",
        }
        for index, (name, url) in enumerate(links.items())
        if isinstance(url, str) and url.startswith(("http://", "https://")) and len(url) <= _URL
    ]
    if buttons:
        found.append({"type": "actions", "elements": buttons[:_BUTTONS]})
    return {"text": cut(escaped(message.subject), _SECTION), "blocks": found}


def escaped(text: str) -> str:
    """Text that Slack shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cut(text: str, limit: int) -> str:
    """At most so many characters; never half of an escape."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    start = head.rfind("&", max(0, len(head) - 4))
    if start >= 0 and ";" not in head[start:]:
        head = head[:start]
    return head + "…"
