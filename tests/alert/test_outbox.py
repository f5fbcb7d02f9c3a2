from __future__ import annotations

import base64
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import standardwebhooks

from core import schema
from core.errors import InputError
from core.ledger import Ledger
from core.settings import ReceiverSettings
from monitor.alert import incidents, outbox
from monitor.alert.contract import Message, Outcome, Receiver
from monitor.alert.delivery import LADDER, DeliveryReport, deliver_due
from monitor.alert.messages import MessageContext
from monitor.alert.receivers import build
from monitor.results import Finding

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "whsec_" + base64.b64encode(b"canary-key-" + b"k" * 21).decode()


class Scripted:
    """A receiver that answers as told and remembers what it got."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.got: list[tuple[str, datetime]] = []

    @property
    def longest(self) -> timedelta:
        return timedelta(seconds=1)

    def send(self, message: Message, *, at: datetime) -> Outcome:
        self.got.append((message.id, at))
        return self.outcomes.pop(0) if self.outcomes else Outcome(delivered=True, status=200)

    @property
    def ids(self) -> list[str]:
        return [one for one, _ in self.got]


FAIL = Outcome(status=500, error="HTTP 500")
NEVER = Outcome(status=400, error="HTTP 400", final=True)


def put(ledger: Ledger, *ids: str, incident: int | None = 1, to: tuple[str, ...] = ("a",)) -> None:
    with ledger.write() as tx:
        for one in ids:
            outbox.put(
                tx, message_id=one, incident_id=incident, type="x.y", body="{}",
                receivers=to, at=NOW,
            )  # fmt: skip


def rows(ledger: Ledger, receiver: str = "a") -> list[Any]:
    table = schema.outbox
    with ledger.read() as tx:
        query = sa.select(table).where(table.c.receiver == receiver).order_by(table.c.id)
        return list(tx.execute(query))


def deliver(ledger: Ledger, after: float = 0, **receivers: Receiver) -> DeliveryReport:
    now = NOW + timedelta(seconds=after)
    return deliver_due(ledger, receivers, now=now, rng=random.Random(7))


def test_what_is_due_is_delivered_once_in_order(ledger: Ledger):
    put(ledger, "m1", "m2", "m3")
    one = Scripted()
    assert deliver(ledger, a=one) == DeliveryReport(delivered=3)
    assert deliver(ledger, 3600, a=one) == DeliveryReport()
    assert one.ids == ["m1", "m2", "m3"]
    assert {row.state for row in rows(ledger)} == {"delivered"}
    assert all(row.delivered >= NOW and row.status == 200 for row in rows(ledger))


def test_the_ladder_is_climbed_with_jitter_and_ends_in_failure(ledger: Ledger):
    put(ledger, "m1")
    one, now, waits = Scripted(*[FAIL] * 20), NOW, []
    for attempt in range(1, 11):
        report = deliver_due(ledger, {"a": one}, now=now, rng=random.Random(attempt))
        (row,) = rows(ledger)
        if row.state == "failed":
            break
        assert report == DeliveryReport(retried=1)
        early = deliver_due(ledger, {"a": one}, now=now + LADDER[attempt - 1] * 0.99)
        assert early == DeliveryReport()
        waits.append(row.next_attempt - now)
        now = row.next_attempt
    assert report == DeliveryReport(failed=1)
    assert (row.attempts, row.status, row.error) == (10, 500, "HTTP 500")
    assert len(one.got) == 10
    assert [str(step) for step in LADDER[:4]] == ["0:00:05", "0:05:00", "0:30:00", "2:00:00"]
    spent = timedelta(seconds=5)  # for the attempt itself
    assert all(step <= wait <= step * 1.1 + spent for step, wait in zip(LADDER, waits, strict=True))
    assert len({wait / step for step, wait in zip(LADDER, waits, strict=True)}) > 5


def test_a_later_message_waits_for_the_earlier_of_its_incident_only(ledger: Ledger):
    put(ledger, "m1", "m2", incident=1)
    put(ledger, "n1", incident=2)
    one = Scripted(FAIL)
    deliver(ledger, a=one)  # m1 fails: the lane stops
    deliver(ledger, 1, a=one)
    assert one.ids == ["m1", "n1"]
    deliver(ledger, 60, a=one)
    assert one.ids == ["m1", "n1", "m1", "m2"]


def test_a_message_that_failed_for_good_lets_the_next_one_go(ledger: Ledger):
    put(ledger, "m1", "m2")
    one = Scripted(NEVER)
    assert deliver(ledger, a=one) == DeliveryReport(failed=1)
    assert deliver(ledger, 1, a=one) == DeliveryReport(delivered=1)
    assert [row.state for row in rows(ledger)] == ["failed", "delivered"]


def test_a_receiver_that_is_gone_gets_nothing_until_it_is_enabled_and_then_everything(
    ledger: Ledger,
):
    put(ledger, "m1", "m2", to=("a", "b"))
    put(ledger, "n1", incident=2)
    one, other = Scripted(Outcome(status=410, error="HTTP 410", gone=True)), Scripted()
    deliver(ledger, a=one, b=other)
    with ledger.read() as tx:
        assert outbox.disabled(tx) == {"a": "HTTP 410"}
    for hours in (1, 24, 24 * 30):
        deliver(ledger, hours * 3600, a=one, b=other)
    assert (one.ids, other.ids) == (["m1"], ["m1", "m2"])
    assert outbox.enable(ledger, "a")
    assert not outbox.enable(ledger, "a")
    assert deliver(ledger, 1, a=one, b=other) == DeliveryReport(delivered=3)
    assert one.ids == ["m1", "m1", "m2", "n1"]
    with ledger.write() as tx:
        outbox.disable(tx, "a", reason="again", at=NOW)
        outbox.disable(tx, "a", reason="and again", at=NOW)
        assert outbox.disabled(tx) == {"a": "and again"}


def test_every_attempt_is_counted_by_receiver_and_outcome(ledger: Ledger):
    put(ledger, "m1", "m2", to=("a", "b"))
    deliver(ledger, a=Scripted(FAIL), b=Scripted(NEVER))
    deliver(ledger, 3600, a=Scripted(), b=Scripted())
    table = schema.counters
    with ledger.read() as tx:
        found = {row.name: row.value for row in tx.execute(sa.select(table))}
    assert found == {
        "delivery:retried:a": 1, "delivery:delivered:a": 2,
        "delivery:failed:b": 1, "delivery:delivered:b": 1,
    }  # fmt: skip


def test_retry_after_is_waited_for_but_never_shortens_the_ladder(ledger: Ledger):
    put(ledger, "m1")
    slow = Outcome(status=429, error="HTTP 429", retry_after=timedelta(hours=1))
    hasty = Outcome(status=503, error="HTTP 503", retry_after=timedelta(seconds=1))
    one = Scripted(slow, hasty)
    deliver(ledger, a=one)
    deliver(ledger, 3599, a=one)
    assert len(one.got) == 1
    deliver(ledger, 3700, a=one)
    deliver(ledger, 3700 + 290, a=one)
    assert len(one.got) == 2
    deliver(ledger, 3700 + 400, a=one)
    assert rows(ledger)[0].state == "delivered"


def test_a_dead_receiver_delays_nobody(ledger: Ledger):
    """While one hangs, another gets what was due and what comes up in the meantime."""
    hanging, over, done, late = (threading.Event() for _ in range(4))

    class Dead(Scripted):
        def send(self, message: Message, *, at: datetime) -> Outcome:
            hanging.set()
            assert over.wait(30)
            return Outcome(error="no answer")

    class Live(Scripted):
        def send(self, message: Message, *, at: datetime) -> Outcome:
            outcome = super().send(message, at=at)
            {"m2": done, "late": late}.get(message.id, threading.Event()).set()
            return outcome

    put(ledger, "m1", "m2", to=("dead", "live"))
    dead, live = Dead(), Live()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(deliver, ledger, dead=dead, live=live)
        try:
            assert hanging.wait(30)
            assert done.wait(30)
            time.sleep(0.5)  # the live lane has found nothing more to do
            put(ledger, "late", incident=2, to=("live",))
            assert late.wait(30)
        finally:
            over.set()
        assert work.result() == DeliveryReport(delivered=3, retried=1)
    assert live.ids == ["m1", "m2", "late"]


def test_a_receiver_with_a_bug_is_a_failed_attempt_that_tells_no_secret(ledger: Ledger):
    class Buggy(Scripted):
        def send(self, message: Message, *, at: datetime) -> Outcome:
            raise ValueError("https://canary")

    put(ledger, "m1")
    assert deliver(ledger, a=Buggy()) == DeliveryReport(retried=1)
    assert rows(ledger)[0].error == "the receiver raised ValueError"


def test_messages_of_a_receiver_that_is_not_set_up_wait_and_are_reported(ledger: Ledger):
    put(ledger, "m1", to=("a", "b"))
    assert deliver(ledger, b=Scripted()) == DeliveryReport(delivered=1, unknown=("a",))
    assert deliver(ledger, 60, a=Scripted()) == DeliveryReport(delivered=1)


def test_a_message_can_be_put_only_once(ledger: Ledger):
    put(ledger, "m1")
    with pytest.raises(sa.exc.IntegrityError):
        put(ledger, "m1")


def test_failed_messages_are_replayed_under_their_id(ledger: Ledger):
    put(ledger, "m1", incident=1)
    put(ledger, "m2", incident=2)
    one = Scripted(NEVER, NEVER)
    deliver(ledger, a=one)
    deliver(ledger, a=one)
    assert [(one.message_id, one.status) for one in outbox.failures(ledger)] == [
        ("m2", 400), ("m1", 400),
    ]  # fmt: skip
    assert outbox.failures(ledger, receiver="b") == []
    assert outbox.replay(ledger, incident_id=7) == 0
    assert outbox.replay(ledger, incident_id=1) == 1
    assert outbox.replay(ledger, message_id="m2", receiver="a") == 1
    assert deliver(ledger, a=one) == DeliveryReport(delivered=2)
    assert one.ids == ["m1", "m2", "m1", "m2"]
    assert [(row.attempts, row.error) for row in rows(ledger)] == [(1, ""), (1, "")]
    with pytest.raises(InputError, match="replay"):
        outbox.replay(ledger)


def test_no_attempt_begins_after_the_budget(ledger: Ledger):
    put(ledger, "m1")
    one = Scripted()
    assert deliver_due(ledger, {"a": one}, now=NOW, budget=timedelta(0)) == DeliveryReport()
    assert one.got == []
    assert rows(ledger)[0].attempts == 0


def test_many_deliverers_send_each_message_once(ledger: Ledger, endpoint: Any):
    expected = [f"m{incident}-{i}" for incident in range(8) for i in range(4)]
    for incident in range(8):
        put(ledger, *[f"m{incident}-{i}" for i in range(4)], incident=incident)
    settings = [ReceiverSettings(name="a", url=endpoint.url, allow=("127.0.0.1",))]
    books = [Ledger(str(ledger.url)) for _ in range(4)]

    def work(book: Ledger) -> int:
        return deliver_due(book, build(settings), now=datetime.now(UTC)).delivered

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, books)) == 32
    for book in books:
        book.close()
    assert sorted(endpoint.ids) == sorted(expected)
    for incident in range(8):
        mine = [one for one in endpoint.ids if one.startswith(f"m{incident}-")]
        assert mine == sorted(mine)


_KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from core.ledger import Ledger
from core.settings import ReceiverSettings
from monitor.alert.delivery import deliver_due
from monitor.alert.webhook import Webhook

class Dying(Webhook):
    def send(self, message, *, at):
        super().send(message, at=at)
        os.kill(os.getpid(), signal.SIGKILL)

ledger, url = Ledger(sys.argv[1]), sys.argv[2]
receiver = Dying(ReceiverSettings(name="a", url=url, timeout="20s", allow=("127.0.0.1",)))
deliver_due(ledger, {"a": receiver}, now=datetime.now(UTC))
"""


def test_a_sender_killed_before_it_could_write_sends_again_under_the_same_id(
    ledger: Ledger, endpoint: Any
):
    put(ledger, "m1", "m2")
    command = [sys.executable, "-c", _KILLED, str(ledger.url), endpoint.url]
    killed = subprocess.run(
        command, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert endpoint.ids == ["m1"]
    settings, now = (
        [ReceiverSettings(name="a", url=endpoint.url, allow=("127.0.0.1",))],
        datetime.now(UTC),
    )
    assert deliver_due(ledger, build(settings), now=now) == DeliveryReport()  # still claimed
    later = now + timedelta(minutes=2)
    assert deliver_due(ledger, build(settings), now=later).delivered == 2
    assert endpoint.ids == ["m1", "m1", "m2"]
    assert [row.attempts for row in rows(ledger)] == [2, 1]


def test_from_finding_to_receiver_with_failures_nothing_is_lost_and_no_secret_is_kept(
    ledger: Ledger, endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every message of an incident arrives, verified, in order, one id each; no row knows a key."""
    monkeypatch.setenv("HOOK_URL", endpoint.url)
    monkeypatch.setenv("HOOK_KEY", KEY)
    settings = ReceiverSettings(
        name="chat", url="env:HOOK_URL", secret="env:HOOK_KEY", timeout="500ms",
        allow=("127.0.0.1",),
    )  # fmt: skip
    endpoint.script = [500, "hang", "reset", (429, {"retry-after": "1"}), 302, 200]
    context = MessageContext(model="m", version="1", receivers=(("chat", ("page",)),))
    decay = Finding(cause="decay", severity="page", title="Brier 0.3 (0.2)")
    for hour, findings in enumerate([[decay], [decay], [], []]):
        with ledger.write() as tx:
            incidents.apply(
                tx, ledger, context=context, version="1", findings=findings,
                at=NOW + timedelta(hours=hour), checked=frozenset({"decay"}),
            )  # fmt: skip
    hooks, now = build([settings]), datetime.now(UTC)
    reports = []
    for _ in range(12):
        reports.append(deliver_due(ledger, hooks, now=now))
        with ledger.write() as tx:  # as if the wait were over, at a time the reader accepts
            wait = schema.outbox.update().where(schema.outbox.c.state == "pending")
            tx.execute(wait.values(next_attempt=now - timedelta(seconds=1)))
    assert sum(report.retried for report in reports) == 5
    assert sum(report.delivered for report in reports) == 2
    assert len(set(endpoint.ids)) == 2
    assert endpoint.ids == [endpoint.ids[0]] * 6 + [endpoint.ids[-1]]
    read = [standardwebhooks.Webhook(KEY).verify(body, head) for head, body in endpoint.seen]
    assert [one["type"] for one in read][-2:] == ["model.decay.detected", "model.decay.resolved"]
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as raw:
        dump = "\n".join(raw.iterdump())
    everything = dump + json.dumps(read) + repr(reports) + repr(hooks["chat"])
    for canary in (KEY, KEY[6:], "canary", endpoint.url):
        assert canary not in everything
