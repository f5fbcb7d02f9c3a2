"""What a slow, locked, full or picky log does to answers: nothing; and to counts."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from monitor.log.records import Prediction
from serving.traffic import LogWriter


def prediction(identity: str, **inputs: Any) -> Prediction:
    return Prediction(
        model="churn",
        id=identity,
        version="1",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        inputs=inputs or {"x": 1.0},
        outputs={"probability": 0.5},
        source="serving/churn",
    )


def writer(room: Any, log: Any = None, *, queue_rows: int = 1000, wait: float = 5.0) -> LogWriter:
    return LogWriter(
        log or room.log,
        room.ledger,
        queue_rows=queue_rows,
        wait=timedelta(seconds=wait),
        clock=lambda: datetime.now(UTC),
    )


class GateLog:
    """The real log behind a gate: closed it blocks, or raises what a full disk raises."""

    def __init__(self, log: Any, error: Exception | None = None) -> None:
        self.log, self.error = log, error
        self.open, self.groups = threading.Event(), list[int]()

    def append(self, rows: Sequence[Prediction], *, received: datetime) -> int:
        if self.error is not None and not self.open.is_set():
            raise self.error
        self.open.wait(30)
        self.groups.append(len(rows))
        added: int = self.log.append(rows, received=received)
        return added


def test_strict_answers_after_the_commit(room: Any) -> None:
    log = writer(room)
    log.start()

    async def one() -> str:
        logged = await log.log([prediction("a")], strict=True)
        assert room.log.counts("churn").predictions == 1  # already there
        return logged

    assert asyncio.run(one()) == "committed"
    assert log.close() == 0
    assert room.counter("logged") == 1


def test_what_gathers_is_one_transaction(room: Any) -> None:
    gate = GateLog(room.log)
    log = writer(room, gate)
    log.start()

    async def many() -> list[str]:
        first = asyncio.create_task(log.log([prediction("0")], strict=True))
        await asyncio.sleep(0.1)  # the writer holds it at the gate
        others = [
            asyncio.create_task(log.log([prediction(str(i))], strict=True)) for i in range(1, 50)
        ]
        await asyncio.sleep(0)
        gate.open.set()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(many()) == ["committed"] * 50
    assert gate.groups == [1, 49]
    log.close()


def test_a_full_queue_sheds_and_counts_exactly(room: Any) -> None:
    gate = GateLog(room.log)
    log = writer(room, gate, queue_rows=10)
    log.start()

    async def flood() -> list[str]:
        rows = [[prediction(f"{i}:{j}") for j in range(3)] for i in range(8)]
        return [await log.log(part, strict=False) for part in rows]

    assert asyncio.run(flood()) == ["accepted"] * 3 + ["shed"] * 5
    assert log.waiting == 9
    gate.open.set()
    assert log.close() == 0
    assert room.log.counts("churn").predictions == 9
    assert (room.counter("logged"), room.counter("shed")) == (9, 15)


def test_an_answer_waits_once_and_then_never_while_the_commit_is_overdue(room: Any) -> None:
    gate = GateLog(room.log)
    log = writer(room, gate, wait=0.3)
    log.start()

    async def ask() -> None:
        assert await log.log([prediction("first")], strict=True) == "queued"
        assert log.overdue
        started = time.monotonic()
        for i in range(100):
            assert await log.log([prediction(str(i))], strict=True) == "queued"
        assert time.monotonic() - started < 10  # had each of them waited, 30 s
        gate.open.set()
        while log.waiting:
            await asyncio.sleep(0.01)
        assert await log.log([prediction("last")], strict=True) == "committed"

    asyncio.run(ask())
    log.close()
    assert room.log.counts("churn").predictions == 102


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("INSERT", {}, Exception("database or disk is full")),
        OSError(28, "No space left on device"),
    ],
)
def test_rows_are_tried_again_until_the_store_is_back(room: Any, error: Exception) -> None:
    gate = GateLog(room.log, error)
    log = writer(room, gate)
    log.start()
    assert asyncio.run(log.log([prediction("a")], strict=True)) == "queued"  # it need not wait
    gate.open.set()
    while log.waiting:
        time.sleep(0.01)
    assert asyncio.run(log.log([prediction("b")], strict=True)) == "committed"
    log.close()
    assert room.log.counts("churn").predictions == 2


def test_one_bad_row_costs_only_itself(room: Any) -> None:
    gate = GateLog(room.log)
    log = writer(room, gate)
    log.start()

    async def three() -> list[str]:
        bad = prediction("bad", x=object())
        parts = [prediction("first"), prediction("a"), bad, prediction("b")]
        tasks = [asyncio.create_task(log.log([row], strict=True)) for row in parts]
        await asyncio.sleep(0.1)
        gate.open.set()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(three()) == ["committed", "committed", "shed", "committed"]
    log.close()
    assert sorted(room.log.read("churn").meta["id"]) == ["a", "b", "first"]
    assert (room.counter("logged"), room.counter("shed")) == (3, 1)


def test_answers_do_not_wait_while_the_counters_cannot_be_saved(room: Any) -> None:
    log = writer(room, wait=0.3)
    lock = sqlite3.connect(room.home / "ledger.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    log.count("churn", "answered")
    log.start()

    async def ask() -> None:
        while not log.overdue:  # the thread has begun to save the counter, and waits for the lock
            await asyncio.sleep(0.01)
        started = time.monotonic()
        for i in range(60):
            assert await log.log([prediction(str(i))], strict=True) == "queued"
        assert time.monotonic() - started < 10  # had each of them waited, 18 s

    asyncio.run(ask())
    lock.execute("ROLLBACK")
    lock.close()
    assert log.close() == 0
    assert (room.counter("logged"), room.counter("answered")) == (60, 1)


async def _settled(log: LogWriter) -> None:
    while log.waiting:
        await asyncio.sleep(0.01)


def test_relaxed_rows_gather_and_late_ones_are_counted(room: Any) -> None:
    gate = GateLog(room.log)
    log = writer(room, gate)
    log.start()
    within = timedelta(seconds=0.2)

    async def ask() -> list[str]:
        said = [await log.log([prediction(f"a{i}")], strict=False, within=within) for i in range(5)]
        await asyncio.sleep(1.0)  # the gate is shut: five rows are late by now
        said.append(await log.log([prediction("b")], strict=False, within=within))
        await asyncio.sleep(0.5)
        gate.open.set()
        await _settled(log)
        said.append(await log.log([prediction("c")], strict=False, within=timedelta(hours=1)))
        said.append(await log.log([prediction("d")], strict=True))  # takes what waits along
        return said

    assert asyncio.run(ask()) == ["accepted"] * 5 + ["queued", "accepted", "committed"]
    assert room.log.counts("churn").predictions == 8
    log.close()
    assert gate.groups[-1] == 2
    assert room.counter("late") == 6


def test_shutdown_is_bounded_and_says_what_was_lost(room: Any) -> None:
    gate = GateLog(room.log, OSError(5, "Input/output error"))
    log = writer(room, gate)
    log.start()
    assert asyncio.run(log.log([prediction("a")], strict=False)) == "accepted"
    assert log.close(timeout=0.3) == 1


def test_answers_flow_while_the_log_is_locked(room: Any, start: Any, tools: Any) -> None:
    """Another process holds the database for 3 s; what does not fit the queue is shed."""
    room.serve("1")
    asked = tools.request(tools.rows(5))
    seen: list[str] = []
    with start(log_queue_rows=100, log_wait="200ms") as server:
        client = server.client()
        assert client.infer(asked).body["parameters"]["shelflife_logged"] == "committed"
        lock = sqlite3.connect(room.home / "ledger.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            answer = client.infer(asked)
            assert answer.status == 200
            seen.append(answer.body["parameters"]["shelflife_logged"])
        lock.execute("ROLLBACK")
        lock.close()
        tools.wait_for(lambda: not server.serving.metrics().log_waiting)
        assert client.infer(asked).body["parameters"]["shelflife_logged"] == "committed"
    assert set(seen) <= {"queued", "shed", "committed"}
    assert seen.count("queued") >= 15
    assert seen.count("shed") > 10  # answers kept flowing long after the queue was full
    shed = 5 * seen.count("shed")
    assert room.counter("shed") == shed
    assert room.counter("answered") == 5 * (len(seen) + 2)
    assert room.counter("logged") == room.log.counts("churn").predictions
    assert room.counter("logged") + shed == room.counter("answered")


def test_two_models_may_be_asked_under_one_id(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    with start() as server:
        asked = tools.request(tools.rows(1), id="order-1")
        server.client().infer(asked)
        again = server.client().infer(asked)  # the caller's own retry: logged once
    assert again.body["parameters"]["shelflife_logged"] == "committed"
    assert room.log.counts("churn").predictions == 1
    assert room.log.read("churn").meta["source"].tolist() == ["serving/churn"]
