"""The monitor watches itself: problems become incidents, and a sign of life goes out while there
are none.

An incident of cause `monitor` (page) or `receiver` (ticket) belongs to the installation, not to a
model. Two looks in a row must agree, so that one slow minute wakes nobody. The heartbeat is for
what no incident can tell: a monitor that is dead tells nothing, so somebody else has to miss it.
"""

from __future__ import annotations

import logging
import uuid
from datetime import datetime, timedelta

import msgspec

from core.errors import SettingsError
from core.settings import Settings, span
from core.times import iso
from monitor.alert import incidents
from monitor.alert.contract import Message, Outcome, Receiver
from monitor.alert.posting import Target
from monitor.results import Finding
from shelflife.health import Problem
from shelflife.service import Service
from shelflife.tick import resolve_one_off

log = logging.getLogger("shelflife.selfwatch")
EVERY = 15.0  # seconds between looks
_TIMEOUT = timedelta(seconds=10)
_CAUSES = {"page": "monitor", "ticket": "receiver"}
_BEATEN = ("webhook", "alertmanager")  # types that a sign of life every minute does not disturb


class SelfWatch:
    """Turns what `health.judge` finds into incidents; remembers the look before."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before: dict[str, set[str]] = {cause: set() for cause in _CAUSES.values()}
        self._told: dict[str, tuple[str, ...] | None] = dict.fromkeys(_CAUSES.values())

    def look(self, problems: list[Problem], *, now: datetime) -> None:
        """Open, change or end the incidents of the installation."""
        for severity, cause in _CAUSES.items():
            mine = {one.what: one for one in problems if one.severity == severity}
            lasting = tuple(sorted(mine.keys() & self._before[cause]))
            if lasting and lasting != self._told[cause]:
                self._open(cause, [mine[what] for what in lasting], now)
                self._told[cause] = lasting
            elif not mine and not self._before[cause] and self._told[cause] != ():
                self._end(cause, now)
                self._told[cause] = ()
            self._before[cause] = set(mine)

    def _open(self, cause: str, problems: list[Problem], now: datetime) -> None:
        texts = [one.text for one in problems]
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        finding = Finding(
            cause=cause,
            severity=problems[0].severity,
            title=texts[0] + more,
            text="; ".join(texts),
            since=now,
        )
        log.error("monitor_unhealthy", extra={"cause": cause, "problems": texts})
        service = self._service
        context = service.context("", None, command="shelflife doctor")
        with service.ledger.write() as tx:
            incidents.open_incident(
                tx, service.ledger, context=context, version="", finding=finding, at=now
            )

    def _end(self, cause: str, now: datetime) -> None:
        service = self._service
        context = service.context("", None, command="shelflife doctor")
        with service.ledger.write() as tx:
            resolve_one_off(tx, context, cause, "what was wrong is over", now)


class Heartbeat:
    """Sends the sign of life.

    Raises:
        SettingsError: the address or the receiver cannot be used.
    """

    def __init__(self, settings: Settings, receivers: dict[str, Receiver]) -> None:
        chosen = settings.heartbeat
        self.every = span(chosen.every)
        self._environment = settings.environment
        self._target = self._receiver = None
        if chosen.url:
            self._target = Target(
                chosen.url,
                setting="heartbeat",
                allow=chosen.allow,
                ca=chosen.ca,
                timeout=_TIMEOUT,
            )
        if chosen.receiver:
            fit = [r.name for r in settings.receivers if r.type in _BEATEN]
            if chosen.receiver not in fit:
                wanted = f"a receiver of type {' or '.join(_BEATEN)}: one of {fit}"
                raise SettingsError("heartbeat.receiver", chosen.receiver, wanted)
            self._receiver = receivers[chosen.receiver]

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be sent one."""
        return self._target is not None or self._receiver is not None

    def beat(self, *, now: datetime) -> list[Outcome]:
        """Send one to each place; a failure is logged, not tried again: the next beat is near."""
        outcomes = []
        if self._target is not None:
            outcomes.append(self._target.send("GET", b"", {}, at=now))
        if self._receiver is not None:
            outcomes.append(self._receiver.send(message(self._environment, now), at=now))
        for outcome in outcomes:
            if not outcome.delivered:
                log.warning("heartbeat_failed", extra={"why": outcome.error})
        return outcomes


def message(environment: str, at: datetime) -> Message:
    """A heartbeat as a message: of no model, about nothing."""
    text = "shelflife watches: a sign of life, which should be missed when it stops"
    data = {
        "event": "heartbeat",
        "cause": "heartbeat",
        "severity": "note",
        "state": "open",
        "environment": environment,
        "title": text,
        "subject": text,
        "message": text,
    }
    body = {"type": "monitor.heartbeat", "timestamp": iso(at), "data": data}
    return Message(
        id=f"msg_beat_{uuid.uuid4().hex}",
        type="monitor.heartbeat",
        body=msgspec.json.encode(body).decode(),
    )
