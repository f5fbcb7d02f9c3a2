"""Messages on their way: written with the decision they tell of, delivered at least once.

A row per message and receiver. `deliver_due` sends what is due:

- **In order** per incident and receiver: a later message waits until the earlier one is delivered
  or failed for good.
- **Each receiver in a lane (thread) of its own.** A lane that fails stops for this pass, so a dead
  receiver costs itself one time limit and nobody else anything: lanes with nothing left to do keep
  looking for new messages while another one still waits for its answer.
- **Claimed before it is sent**: a short transaction moves `next_attempt` past the longest time an
  attempt can take, so two deliverers never send the same attempt. A deliverer that dies between
  the answer and the commit leaves the row pending; it is sent again under the same `webhook-id`.
- **Retried** on Standard Webhooks' ladder, at least as late as a `retry-after` asks for.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import InputError
from core.ledger import Ledger
from core.times import EPOCH, duration
from monitor.alert.receivers import Message, Outcome, Receiver

#: Delays after each failed attempt; the attempt after the last of them is the last one.
LADDER = tuple(map(duration, ("5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h")))
_JITTER = 0.1  # a delay is lengthened by up to this share, so that senders do not march in step
_IDLE = 0.2  # seconds between looks of a lane that has nothing to do
_SLACK = timedelta(seconds=10)  # added to a claim for the commit and a busy machine
_RNG = random.SystemRandom()


class DeliveryReport(Struct, frozen=True, kw_only=True):
    """What one pass did, in attempts."""

    delivered: int = 0
    retried: int = 0  # failed and will be tried again
    failed: int = 0  # failed for good
    unknown: tuple[str, ...] = ()  # receivers of due messages that are not in the settings


def message_id(tx: sa.Connection, incident_id: int, event_id: int) -> str:
    """The id of the message about an event of an incident: the same whenever it is computed.

    It holds a random name of this ledger, so that two installations that share a receiver never
    use the same id (which the second one's receiver would take for a repetition).
    """
    digest = hashlib.sha256(f"{_instance(tx)}|{incident_id}|{event_id}".encode())
    return f"msg_{digest.hexdigest()[:32]}"


def put(
    tx: sa.Connection,
    *,
    message_id: str,
    incident_id: int | None,
    type: str,
    body: str,
    receivers: Sequence[str],
    at: datetime,
    group: str | None = None,
) -> None:
    """Add a message to each receiver's queue in the caller's transaction, due at once.

    Args:
        group: messages of one group and receiver are delivered in order.
    """
    common = {
        "message_id": message_id, "incident_id": incident_id, "type": type, "body": body,
        "created": at, "next_attempt": EPOCH, "state": "pending", "group_key": group,
    }  # fmt: skip
    if receivers:
        tx.execute(schema.outbox.insert(), [{**common, "receiver": name} for name in receivers])


def receivers_of(tx: sa.Connection, incident_id: int) -> set[str]:
    """Receivers that were sent anything about an incident."""
    table = schema.outbox
    query = sa.select(table.c.receiver).where(table.c.incident_id == incident_id).distinct()
    return set(tx.scalars(query))


def last_created(tx: sa.Connection, incident_id: int) -> datetime | None:
    """When (event time) the last message about an incident was written."""
    table = schema.outbox
    last: datetime | None = tx.scalar(
        sa.select(table.c.created)
        .where(table.c.incident_id == incident_id)
        .order_by(table.c.id.desc())
        .limit(1)
    )
    return last


def replay(
    ledger: Ledger,
    *,
    message_id: str | None = None,
    incident_id: int | None = None,
    receiver: str | None = None,
) -> int:
    """Give messages that failed for good all their attempts again, the first at once.

    Returns how many rows that were.

    Raises:
        InputError: nothing says which messages are meant.
    """
    table = schema.outbox
    named = {"message_id": message_id, "incident_id": incident_id, "receiver": receiver}
    wanted = [table.c[column] == value for column, value in named.items() if value is not None]
    if not wanted:
        raise InputError("replay", None, "a message id, an incident id or a receiver's name")
    fresh = {"state": "pending", "attempts": 0, "next_attempt": EPOCH, "status": None, "error": ""}
    with ledger.write() as tx:
        query = table.update().where(table.c.state == "failed", *wanted)
        return int(tx.execute(query.values(**fresh)).rowcount)


def deliver_due(
    ledger: Ledger,
    receivers: Mapping[str, Receiver],
    *,
    now: datetime,
    rng: random.Random = _RNG,
    budget: timedelta = timedelta(seconds=60),
) -> DeliveryReport:
    """Send what is due; several processes may do so at the same time.

    Args:
        receivers: by the name that the rows have.
        now: the moment the pass begins. Attempts are stamped with it plus the time that has gone
            by since, so it should be the real time: receivers refuse old timestamps.
        rng: where the jitter of retries comes from.
        budget: no attempt begins later than this after `now`.
    """
    with ledger.read() as tx:
        due = set(tx.scalars(sa.select(schema.outbox.c.receiver).where(_due(now)).distinct()))
    unknown = tuple(sorted(due - receivers.keys()))
    if not due & receivers.keys():
        return DeliveryReport(unknown=unknown)
    work = _Pass(ledger, receivers, now, rng, budget)
    with ThreadPoolExecutor(len(receivers), thread_name_prefix="deliver") as pool:
        lanes = [pool.submit(work.lane, receiver, name) for name, receiver in receivers.items()]
    for lane in lanes:
        lane.result()
    counts = work.counts
    return DeliveryReport(
        delivered=counts["delivered"],
        retried=counts["retried"],
        failed=counts["failed"],
        unknown=unknown,
    )


class _Pass:
    """One pass over the outbox: a lane per receiver, all of them over before it ends."""

    def __init__(
        self,
        ledger: Ledger,
        names: Mapping[str, Receiver],
        now: datetime,
        rng: random.Random,
        budget: timedelta,
    ) -> None:
        self.counts = {"delivered": 0, "retried": 0, "failed": 0}
        self._ledger, self._rng = ledger, rng
        self._now, self._started, self._until = now, time.monotonic(), now + budget
        self._busy = set(names)  # lanes that have, or may have, something to do
        self._changed = threading.Condition()

    def lane(self, receiver: Receiver, name: str) -> None:
        """Deliver one receiver's messages until none is due and every other lane is idle too."""
        try:
            while self._time() < self._until:
                row = self._claim(receiver, name)
                if row is None:
                    if not self._rest(name):
                        return
                elif not self._attempt(receiver, row):
                    return
        finally:
            with self._changed:
                self._busy.discard(name)
                self._changed.notify_all()

    def _time(self) -> datetime:
        return self._now + timedelta(seconds=time.monotonic() - self._started)

    def _rest(self, name: str) -> bool:
        """Wait a little for new messages; False when no lane has anything to do any more."""
        with self._changed:
            self._busy.discard(name)
            if self._busy:
                self._changed.wait(_IDLE)
            return bool(self._busy)

    def _claim(self, receiver: Receiver, name: str) -> sa.Row[Any] | None:
        """The receiver's oldest message that is due and whose turn it is, made ours."""
        table, at = schema.outbox, self._time()
        until = at + 2 * receiver.longest + _SLACK
        with self._ledger.read() as tx:
            wanted = _due(at) & (table.c.receiver == name) & _first()
            row = tx.execute(sa.select(table).where(wanted).order_by(table.c.id).limit(1)).first()
        if row is None:
            return None
        with self._changed:
            self._busy.add(name)
        unchanged = (table.c.id == row.id) & (table.c.next_attempt == row.next_attempt)
        values = {"next_attempt": until, "attempts": row.attempts + 1}
        with self._ledger.write() as tx:
            claim = table.update().where(unchanged & (table.c.state == "pending")).values(**values)
            if not tx.execute(claim).rowcount:  # another deliverer was faster
                return None
            return tx.execute(sa.select(table).where(table.c.id == row.id)).one()

    def _attempt(self, receiver: Receiver, row: sa.Row[Any]) -> bool:
        """Send one claimed message and commit what came of it; False when it failed."""
        at = self._time()
        message = Message(id=row.message_id, type=row.type, body=row.body)
        try:
            outcome = receiver.send(message, at=at)
        except Exception as error:  # a receiver's bug is a failed attempt; its text may be secret
            outcome = Outcome(error=f"the receiver raised {type(error).__name__}")
        result, values = self._consequence(outcome, row.attempts)
        table = schema.outbox
        ours = (table.c.id == row.id) & (table.c.state == "pending")
        if not outcome.delivered:  # somebody may have taken over; their attempt is the newer one
            ours &= table.c.attempts == row.attempts
        with self._ledger.write() as tx:
            tx.execute(table.update().where(ours).values(**values))
        with self._changed:
            self.counts[result] += 1
        return outcome.delivered

    def _consequence(self, outcome: Outcome, attempts: int) -> tuple[str, dict[str, Any]]:
        """What is counted and what is written after an attempt."""
        at = self._time()
        values = {"status": outcome.status, "error": outcome.error}
        if outcome.delivered:
            return "delivered", {**values, "state": "delivered", "delivered": at}
        if outcome.gone or attempts > len(LADDER):
            return "failed", {**values, "state": "failed"}
        delay = LADDER[attempts - 1] * self._rng.uniform(1, 1 + _JITTER)
        return "retried", {**values, "next_attempt": at + max(delay, outcome.retry_after)}


def _due(at: datetime) -> sa.ColumnElement[bool]:
    table = schema.outbox
    return (table.c.state == "pending") & (table.c.next_attempt <= at)


def _first() -> sa.ColumnElement[bool]:
    """No earlier message of the same incident still waits for the same receiver."""
    table, earlier = schema.outbox, schema.outbox.alias()
    before = (
        (earlier.c.incident_id == table.c.incident_id)
        & (earlier.c.receiver == table.c.receiver)
        & (earlier.c.state == "pending")
        & (earlier.c.id < table.c.id)
    )
    return ~sa.exists().where(before)


def _instance(tx: sa.Connection) -> str:
    """This ledger's own random name, made when first asked for."""
    table = schema.meta
    query = sa.select(table.c.value).where(table.c.key == "instance")
    known = tx.scalar(query)
    if known is None:
        try:
            with tx.begin_nested():
                tx.execute(table.insert().values(key="instance", value=uuid.uuid4().hex))
        except sa.exc.IntegrityError:
            pass  # another process has just named it
        known = tx.scalar(query)
    return str(known)
