"""`shelflife receivers`: who is told, whether that works, and what never arrived."""

from __future__ import annotations

import argparse
import sys
import uuid
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import InputError, NotFound
from core.ledger import Ledger
from core.settings import ReceiverSettings
from core.times import iso, spell
from monitor.alert import outbox, receivers
from monitor.alert.contract import Message, Outcome
from monitor.alert.outbox import Failure
from shelflife.cli import FAILED, OK
from shelflife.service import Service, wall_clock


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver and how its messages fare."""

    name: str
    type: str
    state: str  # enabled, disabled, or unknown: it has messages and is not in the settings
    why: str
    pending: int
    failed: int
    delivered: int
    oldest: float | None  # seconds that the oldest pending message has waited; event time
    last_error: str


def do_receivers(given: argparse.Namespace) -> int:
    """Carry out one of the verbs."""
    service = Service.open(given.settings)
    if given.verb == "list":
        return _listing(given, service)
    if given.verb == "failed":
        found = outbox.failures(service.ledger, receiver=given.name)
        return _say(given, found, _failures(found))
    if given.name is None:
        raise InputError(f"receivers {given.verb}", None, "a receiver's name")
    if given.verb == "test":
        return _test(given, service)
    if given.verb == "enable":
        done = outbox.enable(service.ledger, given.name)
        words = "is enabled; what waited is sent now" if done else "was not disabled"
        return _say(given, {"name": given.name, "enabled": done}, f"{given.name} {words}")
    count = outbox.replay(service.ledger, receiver=given.name)
    words = f"{count} failed messages of {given.name} have all their attempts again"
    return _say(given, {"name": given.name, "replayed": count}, words)


def listing(ledger: Ledger, known: tuple[ReceiverSettings, ...], now: datetime) -> list[Listed]:
    """Every receiver that is set up or has messages."""
    table = schema.outbox
    count = sa.func.count()
    with ledger.read() as tx:
        off = outbox.disabled(tx)
        grouped = sa.select(table.c.receiver, table.c.state, count, sa.func.min(table.c.created))
        rows = tx.execute(grouped.group_by(table.c.receiver, table.c.state)).all()
        errors = {
            row.receiver: row.error
            for row in tx.execute(
                sa.select(table.c.receiver, table.c.error)
                .where(table.c.error != "", table.c.state != "delivered")
                .order_by(table.c.id)
            )
        }
    counts = {(row[0], row[1]): (row[2], row[3]) for row in rows}
    types = {one.name: one.type for one in known}
    found = []
    for name in sorted(types.keys() | {row[0] for row in rows}):
        pending, oldest = counts.get((name, "pending"), (0, None))
        state = "unknown" if name not in types else "disabled" if name in off else "enabled"
        found.append(
            Listed(
                name=name,
                type=types.get(name, ""),
                state=state,
                why=off.get(name, ""),
                pending=pending,
                failed=counts.get((name, "failed"), (0, None))[0],
                delivered=counts.get((name, "delivered"), (0, None))[0],
                oldest=None if oldest is None else (now - oldest).total_seconds(),
                last_error=errors.get(name, ""),
            )
        )
    return found


def _listing(given: argparse.Namespace, service: Service) -> int:
    found = listing(service.ledger, service.settings.receivers, wall_clock())
    lines = [
        f"{one.name:20} {one.type:12} {one.state:9} {one.pending:7} {one.failed:6} "
        f"{one.delivered:9}  {one.why or one.last_error}".rstrip()
        for one in found
    ]
    head = f"{'name':20} {'type':12} {'state':9} pending failed delivered"
    return _say(given, found, "\n".join([head, *lines]) if found else "no receivers are set up")


def _test(given: argparse.Namespace, service: Service) -> int:
    """Send one real message now, past the outbox, and say what became of it."""
    known = {one.name: one for one in service.settings.receivers}
    if given.name not in known:
        raise NotFound("receiver", given.name, f"the settings know {sorted(known) or 'none'}")
    receiver = receivers.build([known[given.name]])[given.name]
    now = wall_clock()
    outcome = receiver.send(message(service, given.name, now), at=now)
    _say(given, {"name": given.name, "outcome": outcome}, _outcome(given.name, outcome))
    return OK if outcome.delivered else FAILED


def message(service: Service, name: str, at: datetime) -> Message:
    """The message of a test: it asks nobody for anything."""
    text = f"A test of the receiver {name}: if you can read this, messages of shelflife arrive."
    content: dict[str, Any] = {
        "type": "shelflife.test",
        "timestamp": iso(at),
        "data": {
            "event": "test",
            "severity": "note",
            "cause": "test",
            "environment": service.settings.environment,
            "title": text,
            "subject": f"[test] {text}",
            "message": text,
        },
    }
    body = msgspec.json.encode(content).decode()
    return Message(id=f"msg_test_{uuid.uuid4().hex}", type="shelflife.test", body=body)


def _outcome(name: str, outcome: Outcome) -> str:
    if outcome.delivered:
        return f"{name} took it" + (f" ({outcome.status})" if outcome.status else "")
    return f"{name} did not take it: {outcome.error}"


def _failures(found: list[Failure]) -> str:
    if not found:
        return "nothing failed for good"
    now = wall_clock()
    return "\n".join(
        f"{one.message_id}  {one.receiver}  incident {one.incident_id or '–'}  {one.type}  "
        f"{spell(now - one.created)} ago  {one.attempts} attempts  {one.error}"
        for one in found
    )


def _say(given: argparse.Namespace, value: object, text: str) -> int:
    data = msgspec.json.format(msgspec.json.encode(value)).decode() if given.json else text
    sys.stdout.write(data + "\n")
    return OK
