"""The sender is killed again and again, in the middle of whatever it does; nothing gets lost.

5 kills by default, 100 with SHELFLIFE_CHAOS=1. `standardwebhooks`, another program, reads.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import standardwebhooks

from core import schema
from core.ledger import Ledger
from core.times import EPOCH
from monitor.alert import incidents
from monitor.alert.messages import MessageContext
from monitor.results import Finding

KILLS = 100 if os.environ.get("SHELFLIFE_CHAOS") else 5
INCIDENTS = 3 * KILLS
KEY = "whsec_" + base64.b64encode(b"k" * 32).decode()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: Forks a sender for every line it reads (imports cost a second), says its pid, waits for its end.
_SENDERS = """
import os, sys, time
from datetime import UTC, datetime
from core.ledger import Ledger
from core.settings import ReceiverSettings
from monitor.alert.delivery import deliver_due
from monitor.alert.receivers import build

def send():
    ledger = Ledger(sys.argv[1])
    receivers = build(
        ReceiverSettings(
            name=name, url=url, secret="env:HOOK_KEY", timeout="300ms", allow=("127.0.0.1",)
        )
        for name, url in (("chat", sys.argv[2]), ("dead", sys.argv[3]))
    )
    while True:
        deliver_due(ledger, receivers, now=datetime.now(UTC))
        time.sleep(0.01)

for _ in sys.stdin:
    child = os.fork()
    if not child:
        send()
    print(child, flush=True)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""
_TROUBLE = [500, 503, "reset", "hang", "drip", (429, {"retry-after": "1"}), (302, {}), 404]


def test_every_message_of_every_incident_arrives_in_order_under_one_id(
    ledger: Ledger, endpoint: Any, second: Any, monkeypatch: Any
):
    rng = random.Random(11)
    monkeypatch.setenv("HOOK_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    accepted = _listen(endpoint, rng)
    second.script = ["reset"]  # a dead receiver beside it delays nobody
    command = [sys.executable, "-c", _SENDERS, str(ledger.url), endpoint.url, second.url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as senders:
        for killed in range(KILLS):
            sender = _start(senders)
            for number in range(killed * 3, killed * 3 + 3):
                _decide(ledger, number)
            time.sleep(rng.uniform(0.01, 0.4))
            _kill(senders, sender)
            _waits_are_over(ledger)
        endpoint.trouble = False
        sender = _start(senders)
        end = time.monotonic() + 60 + 3 * KILLS
        while _pending(ledger) and time.monotonic() < end:
            time.sleep(0.2)
            _waits_are_over(ledger)
        _kill(senders, sender)
    _verify(ledger, endpoint, accepted)


def _start(senders: subprocess.Popen[str]) -> int:
    assert senders.stdin is not None
    assert senders.stdout is not None
    senders.stdin.write("one more\n")
    return int(senders.stdout.readline())


def _kill(senders: subprocess.Popen[str], sender: int) -> None:
    assert senders.stdout is not None
    os.kill(sender, signal.SIGKILL)
    assert int(senders.stdout.readline()) == signal.SIGKILL


def _listen(endpoint: Any, rng: random.Random) -> list[str]:
    """Every other answer is trouble; returns the ids that were answered with 200, as they come."""
    accepted: list[str] = []
    endpoint.trouble, endpoint.verified = True, 0

    def answer(headers: dict[str, str], body: bytes) -> Any:
        with endpoint._lock:
            low = {name.lower(): value for name, value in headers.items()}
            endpoint.seen.append((low, body))
            try:  # now: a reader takes no timestamp older than five minutes
                assert standardwebhooks.Webhook(KEY).verify(body, low) == json.loads(body)
                endpoint.verified += 1
            except Exception:  # told by the count
                return 401
            if endpoint.trouble and rng.random() < 0.5:
                return rng.choice(_TROUBLE)
            accepted.append(low["webhook-id"])
            return 200

    endpoint.next = answer
    return accepted


def _decide(ledger: Ledger, number: int) -> None:
    """An incident opens, gets a line, and is resolved."""
    context = MessageContext(
        model=f"m{number}", version="1", receivers=(("chat", ("page",)), ("dead", ("page",)))
    )
    found = [Finding(cause="decay", severity="page", title=f"incident of m{number}")]
    for hour, findings in enumerate([found, [], []]):
        with ledger.write() as tx:
            incidents.apply(
                tx, ledger, context=context, version="1", findings=findings,
                at=NOW + timedelta(hours=hour), checked=frozenset({"decay"}),
            )  # fmt: skip


def _waits_are_over(ledger: Ledger) -> None:
    """As if hours had passed, at a time that the reader of signatures accepts."""
    table = schema.outbox
    with ledger.write() as tx:
        pending = table.update().where(table.c.state == "pending", table.c.receiver == "chat")
        tx.execute(pending.values(next_attempt=EPOCH, attempts=0))


def _pending(ledger: Ledger) -> int:
    table = schema.outbox
    waiting = (table.c.state == "pending") & (table.c.receiver == "chat")
    with ledger.read() as tx:
        return int(tx.scalar(sa.select(sa.func.count()).where(waiting)) or 0)


def _verify(ledger: Ledger, endpoint: Any, accepted: list[str]) -> None:
    table = schema.outbox
    with ledger.read() as tx:
        rows = tx.execute(
            sa.select(table).where(table.c.receiver == "chat").order_by(table.c.id)
        ).all()
    assert len(rows) == 2 * INCIDENTS
    assert {row.state for row in rows} == {"delivered"}
    assert {row.message_id for row in rows} == set(accepted)
    assert endpoint.verified == len(endpoint.seen)
    bodies = defaultdict(set)
    for headers, body in endpoint.seen:  # every attempt, those that were refused as well
        bodies[headers["webhook-id"]].add(body)
    assert {row.message_id: {row.body.encode()} for row in rows} == bodies
    first = {one: accepted.index(one) for one in set(accepted)}
    attempts = [headers["webhook-id"] for headers, _ in endpoint.seen]
    for incident in {row.incident_id for row in rows}:
        opened, resolved = (row.message_id for row in rows if row.incident_id == incident)
        assert first[opened] < first[resolved]
        assert attempts.index(opened) < attempts.index(resolved)
