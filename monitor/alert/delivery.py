"""The outbox on its way: at least once, in order per incident, no receiver waiting for another.

`deliver_due` sends what is due:

- **In order** per incident and receiver: a later message waits until the earlier one is delivered
  or failed for good.
- **Each receiver in a lane (thread) of its own.** A lane that fails stops for this pass, so a dead
  receiver costs itself one time limit and nobody else anything: lanes with nothing left to do keep
  looking for new messages while another one still waits for its answer.
- **Claimed before it is sent**: a short transaction moves `next_attempt` past the longest time an
  attempt can take, so two deliverers never send the same attempt. A deliverer that dies between
  the answer and the commit leaves the row pending; it is sent again under the same `webhook-id`.
- **Retried** on Standard Webhooks' ladder, at least as late as a `retry-after` asks for.
- **A receiver that answers 410 is disabled** in the transaction that notes the answer. Its
  messages, that one among them, wait until somebody enables it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from core.times import duration
from monitor.alert import outbox
from monitor.alert.contract import Message, Outcome, Receiver

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
        off, origin = outbox.disabled(tx).keys(), outbox.origin(tx)
    unknown = tuple(sorted(due - receivers.keys()))
    open_ = {name: receiver for name, receiver in receivers.items() if name not in off}
    if not due & open_.keys():
        return DeliveryReport(unknown=unknown)
    work = _Pass(ledger, open_, now, rng, budget, origin)
    with ThreadPoolExecutor(len(open_), thread_name_prefix="deliver") as pool:
        lanes = [pool.submit(work.lane, receiver, name) for name, receiver in open_.items()]
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
        origin: str,
    ) -> None:
        self.counts = {"delivered": 0, "retried": 0, "failed": 0}
        self._ledger, self._rng, self._origin = ledger, rng, origin
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
        message = Message(
            id=row.message_id, type=row.type, body=row.body,
            incident=row.incident_id, origin=self._origin,
        )  # fmt: skip
        try:
            outcome = receiver.send(message, at=at)
        except Exception as error:  # a receiver's bug is a failed attempt; its text may be secret
            outcome = Outcome(error=f"the receiver raised {type(error).__name__}")
        result, values = self._consequence(outcome, row.attempts)
        table = schema.outbox
        ours = (table.c.id == row.id) & (table.c.state == "pending")
        if not outcome.delivered:  # somebody may have taken over; their attempt is the newer one
            ours &= table.c.attempts == row.attempts
        counted = {("", f"delivery:{result}:{row.receiver}"): 1}
        with self._ledger.write() as tx:
            tx.execute(table.update().where(ours).values(**values))
            self._ledger.count_in(tx, counted)
            if outcome.gone:
                outbox.disable(tx, row.receiver, reason=outcome.error, at=self._time())
        with self._changed:
            self.counts[result] += 1
        return outcome.delivered

    def _consequence(self, outcome: Outcome, attempts: int) -> tuple[str, dict[str, Any]]:
        """What is counted and what is written after an attempt."""
        at = self._time()
        values = {"status": outcome.status, "error": outcome.error}
        if outcome.delivered:
            return "delivered", {**values, "state": "delivered", "delivered": at}
        if outcome.gone:  # the row waits until somebody enables the receiver
            return "retried", {**values, "next_attempt": at}
        if outcome.final or attempts > len(LADDER):
            return "failed", {**values, "state": "failed"}
        delay = LADDER[attempts - 1] * self._rng.uniform(1, 1 + _JITTER)
        return "retried", {**values, "next_attempt": at + max(delay, outcome.retry_after)}


def _due(at: datetime) -> sa.ColumnElement[bool]:
    table = schema.outbox
    return (table.c.state == "pending") & (table.c.next_attempt <= at)


def _first() -> sa.ColumnElement[bool]:
    """No earlier message of the same incident or group still waits for the same receiver."""
    table, earlier = schema.outbox, schema.outbox.alias()
    same = [earlier.c[name] == table.c[name] for name in ("incident_id", "group_key")]
    before = (
        sa.or_(*same)
        & (earlier.c.receiver == table.c.receiver)
        & (earlier.c.state == "pending")
        & (earlier.c.id < table.c.id)
    )
    return ~sa.exists().where(before)
