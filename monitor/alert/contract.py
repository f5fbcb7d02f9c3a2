"""What receivers are given, and what they answer: the contract between delivery and receivers."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

Status = Literal["firing", "acknowledged", "resolved"]


class Message(Struct, frozen=True, kw_only=True, dict=True):
    """One message to one receiver."""

    id: str  # the same over all attempts: what the receiver tells repetitions by
    type: str
    body: str  # JSON: {type, timestamp, data}
    incident: int | None = None
    origin: str = ""  # the ledger's own name: incident 7 of another installation is another one

    @cached_property
    def data(self) -> dict[str, Any]:
        """The body's `data`; empty where there is none."""
        content = msgspec.json.decode(self.body)
        found = content.get("data") if isinstance(content, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def key(self) -> str:
        """What all messages of one group of incidents share, and those of no other have."""
        return f"{self.origin or 'shelflife'}-{self.data.get('dedup_key') or self.id}"

    @property
    def status(self) -> Status:
        """What has become of what it tells of."""
        said = {self.data.get("status"), self.data.get("state")}
        if "resolved" in said:
            return "resolved"
        told = self.data.get("status") or self.data.get("event")
        return "acknowledged" if told == "acknowledged" else "firing"

    @property
    def subject(self) -> str:
        """One line that says what it is."""
        given = self.data.get("subject")
        if isinstance(given, str) and given:
            return given
        word = "resolved" if self.status == "resolved" else self.data.get("severity", "note")
        model, title = self.data.get("model", ""), self.data.get("title", self.type)
        return f"[{word}] {model}: {title}" if model else f"[{word}] {title}"

    @property
    def text(self) -> str:
        """What people read."""
        given = self.data.get("message")
        return given if isinstance(given, str) and given else self.subject


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of one attempt."""

    delivered: bool = False
    status: int | None = None  # HTTP or SMTP; None: no answer
    error: str = ""  # in our words; safe to keep and to show
    retry_after: timedelta = timedelta(0)
    gone: bool = False  # the receiver wants no more messages: it is disabled until re-enabled
    final: bool = False  # this message will never be taken: do not try it again


class Receiver(Protocol):
    """Somebody who is told. `send` is called from one thread at a time per pass."""

    @property
    def longest(self) -> timedelta:
        """The time limit of one attempt."""
        ...

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Try once, at the (real) moment `at`. Sending the same message twice must do no harm."""
        ...


@runtime_checkable
class Refreshed(Protocol):
    """A receiver that forgets what is not said again."""

    @property
    def every(self) -> timedelta:
        """How often it is told again."""
        ...

    def refresh(self, messages: list[Message], *, at: datetime) -> Outcome:
        """Say all of it again: the newest message of every unresolved incident it was told of."""
        ...
