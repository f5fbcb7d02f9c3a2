"""Under load: queues bounded, deadlines kept, the processor shared, the sample counted exactly."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from core.errors import QueueFull, TooLate
from core.settings import ModelSettings
from monitor.log.admission import Admission, Rule
from monitor.log.log import InferenceLog
from monitor.log.sample import kept
from serving.backend import Columns, ModelStats, Outputs
from serving.batching import Batcher, Limits
from serving.cost import Cost
from serving.turns import Share, Turns


class Slow:
    """Takes the time it is told to, and only when it may."""

    blocks = False

    def __init__(self, fixed: float = 0.0, each: float = 0.0) -> None:
        self.fixed, self.each = fixed, each
        self.batches: list[tuple[int, str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, columns: Columns) -> Outputs:
        assert self.gate.wait(10)
        x = columns["x"]
        end = time.perf_counter() + self.fixed + self.each * len(x)
        while time.perf_counter() < end:
            pass
        self.batches.append((len(x), threading.current_thread().name))
        return {"probability": 2 * x}

    def stats(self) -> ModelStats:
        return ModelStats(batches=0, rows=0, seconds=0.0)

    def health(self) -> str:
        return ""

    def unload(self) -> None:
        return None


def known(fixed: float, each: float) -> Cost:
    """A cost that is known, whatever the calls of a busy machine take."""
    cost = Cost()
    for rows in (1, 100):
        cost.saw(rows, fixed + each * rows)
    cost.saw = lambda rows, seconds: None  # type: ignore[method-assign]
    return cost


def ask(batcher: Batcher, rows: int = 1, within: float | None = None) -> asyncio.Task[Outputs]:
    columns = {"x": np.arange(float(rows))}
    return asyncio.create_task(batcher.infer(columns, rows, within=within))


def test_what_a_batch_costs_is_learned() -> None:
    cost = Cost()
    assert not cost.known
    for rows in (1, 10, 100, 5, 50):
        cost.saw(rows, 0.002 + 0.0001 * rows)
    assert cost.of(200) == pytest.approx(0.022, rel=1e-6)
    assert cost.rows_within(0.012) == pytest.approx(100)
    assert cost.rows_within(0.001) == 0
    for _ in range(400):  # it became faster, and what it was fades
        cost.saw(10, 0.0011)
        cost.saw(20, 0.0012)
    assert cost.of(10) == pytest.approx(0.0011, rel=0.05)
    only_one_size = Cost()
    only_one_size.saw(4, 0.1)
    assert only_one_size.line() == (0.1, 0.0)


def test_batches_fit_half_of_the_latency_budget() -> None:
    async def sizes(cost: Cost, budget: float) -> list[int]:
        model = Slow()
        limits = Limits(max_batch=256, budget=budget, inline=0)
        batcher = Batcher(model, name="m", limits=limits, cost=cost)
        model.gate.clear()
        first = ask(batcher)
        await asyncio.sleep(0.05)
        rest = [ask(batcher) for _ in range(60)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *rest)
        assert batcher.drain(5)
        return [rows for rows, _ in model.batches]

    # 1 ms and 0.2 ms a row: half of 10 ms holds 20 rows
    assert max(asyncio.run(sizes(known(0.001, 0.0002), 0.010))) == 20
    assert max(asyncio.run(sizes(known(0.001, 0.0002), 1.0))) >= 59
    # a call that takes longer than that by itself is not made longer by going together
    assert max(asyncio.run(sizes(known(0.5, 0.01), 0.010))) == 50


def test_a_short_call_needs_no_thread_and_a_long_one_never_blocks_the_loop() -> None:
    async def run(cost: Cost, model: Slow) -> str:
        batcher = Batcher(model, name="own", limits=Limits(inline=0.002), cost=cost)
        await asyncio.gather(*(ask(batcher) for _ in range(8)))
        assert batcher.drain(5)
        return model.batches[0][1]  # whose thread asked first

    main = threading.current_thread().name
    short = Slow()
    assert asyncio.run(run(known(0.0001, 0), short)) == main
    assert [rows for rows, _ in short.batches] == [8]  # those of one moment went together
    assert asyncio.run(run(known(0.01, 0), Slow())) == "own"
    assert asyncio.run(run(Cost(), Slow())) == "own"  # nothing is known of it
    remote = Slow()
    remote.blocks = True
    assert asyncio.run(run(known(0.0001, 0), remote)) == "own"


def test_a_queue_is_bounded_and_says_when_to_come_again() -> None:
    async def run() -> None:
        model = Slow()
        limits = Limits(queue_rows=10, inline=0)
        batcher = Batcher(model, name="m", limits=limits, cost=known(1.0, 0.5))
        model.gate.clear()
        tasks = [ask(batcher)]
        await asyncio.sleep(0.05)
        tasks.append(ask(batcher, 200))  # a queue that is empty takes any request
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as full:
            await ask(batcher)
        assert full.value.retry_after > 100  # 200 rows at half a second
        with pytest.raises(QueueFull):
            batcher.refuse_if_full()
        model.gate.set()
        await asyncio.gather(*tasks)
        batcher.refuse_if_full()
        assert batcher.drain(5)

    asyncio.run(run())


def test_deadlines() -> None:
    async def run() -> None:
        model = Slow()
        limits = Limits(inline=0, budget=10)
        batcher = Batcher(model, name="m", limits=limits, cost=known(0.01, 0))
        model.gate.clear()
        first = ask(batcher, within=0.1)
        await asyncio.sleep(0.05)
        waits = ask(batcher, within=0.1)
        with pytest.raises(TooLate, match="passed"):
            await ask(batcher, within=0)
        with pytest.raises(QueueFull, match=r"too many to answer within 0\.005 s"):
            await ask(batcher, within=0.005)
        for late in (first, waits):  # the model hangs; the callers do not
            with pytest.raises(TooLate, match=r"within 0\.1 s"):
                await late
        model.gate.set()
        assert (await ask(batcher, within=5))["probability"].tolist() == [0.0]
        assert batcher.drain(5)
        assert [rows for rows, _ in model.batches] == [1, 1]  # nobody asked for the late one

    asyncio.run(run())


def test_a_deadline_holds_where_the_loop_would_have_asked_in_a_moment() -> None:
    """Two that came together wait for the event loop's next moment, when another model has the
    processor."""

    async def run() -> None:
        turns, other = Turns(1), Share()
        batcher = Batcher(Slow(), name="m", turns=turns, cost=known(1e-4, 0))
        assert turns.try_take(other)
        both = [ask(batcher, within=0.05), ask(batcher, within=5)]
        with pytest.raises(TooLate, match=r"within 0\.05 s"):
            await both[0]
        turns.give(other, 0.05)
        assert (await both[1])["probability"].tolist() == [0.0]
        assert batcher.drain(5)

    asyncio.run(run())


def test_one_alone_is_asked_at_once_and_those_that_come_together_together() -> None:
    async def run() -> list[int]:
        model = Slow()
        batcher = Batcher(model, name="m", cost=known(1e-5, 0))
        for _ in range(3):
            await ask(batcher)
        for _ in range(3):
            await asyncio.gather(*(ask(batcher) for _ in range(4)))
        assert batcher.drain(5)
        assert {where for _, where in model.batches} == {"MainThread"}
        return [rows for rows, _ in model.batches]

    # The first of the four could not know that it has company; afterwards it does.
    assert asyncio.run(run()) == [1, 1, 1, 1, 3, 4, 4]


def test_turns_go_by_weight_and_not_by_appetite() -> None:
    """Two models that always wait: one of weight 3 runs three times as long as the other, whatever
    a single call takes."""
    turns, used = Turns(1), {"big": 0.0, "small": 0.0}
    shares = {"big": Share(3.0), "small": Share(1.0)}
    lasts = {"big": 0.004, "small": 0.001}
    for _ in range(400):
        turns._waiting = list(shares.values())
        turns._admit()
        (name,) = [name for name, share in shares.items() if share in turns._running]
        turns._waiting.clear()
        used[name] += lasts[name]
        turns.give(shares[name], lasts[name])
    assert used["big"] / used["small"] == pytest.approx(3.0, rel=0.05)


def test_one_who_was_away_has_not_saved_up_turns() -> None:
    turns = Turns(1)
    busy, rare = Share(), Share()
    for _ in range(100):
        assert turns.try_take(busy)
        turns.give(busy, 0.01)
    assert turns.try_take(rare)
    turns.give(rare, 0.01)
    assert rare.time >= busy.time - 0.01
    assert turns.try_take(busy)
    assert not turns.try_take(rare)  # there is one place


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take over from each other as in `shelflife serve`: by default one that is busy for
    5 ms at a time may keep the interpreter for as long as it likes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
def test_a_greedy_model_leaves_the_others_their_share() -> None:
    """A hundred requests of 5 ms wait for one model; another's are answered among the first."""

    async def run() -> int:
        turns = Turns(1)
        greedy, modest = Slow(0.005), Slow(0.001)
        limits = Limits(inline=0, max_batch=1)
        big = Batcher(greedy, name="big", limits=limits, turns=turns)
        small = Batcher(modest, name="small", limits=limits, turns=turns)
        flood = [ask(big) for _ in range(100)]
        await asyncio.sleep(0.02)
        await asyncio.gather(*(ask(small) for _ in range(5)))
        answered = sum(task.done() for task in flood)
        await asyncio.gather(*flood)
        assert big.drain(5)
        assert small.drain(5)
        return answered

    assert asyncio.run(run()) < 60


def test_refusals_over_http(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    asked = tools.request(tools.rows(2))
    with start(queue_rows=3) as server:
        client = server.client()
        model = server.serving.slots.get("churn").current.model
        gate = threading.Event()
        infer = model.infer
        server.serving.slots.get("churn").current.batcher.beside = True  # by its thread
        model.infer = lambda columns: gate.wait(20) and infer(columns)
        path = "/v2/models/churn/infer"
        answers: list[Any] = []
        others = [server.client() for _ in range(2)]
        threads = [
            threading.Thread(target=lambda c=each: answers.append(c.infer(asked)))
            for each in others
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        full = client.infer(asked)
        assert (full.status, full.headers["retry-after"]) == (429, "1")
        assert "wait for the model" in full.body["error"]
        gate.set()
        for thread in threads:
            thread.join(20)
        assert [answer.status for answer in answers] == [200, 200]
        gate.clear()

        def timed(**headers: str) -> Any:
            import json

            client._connection.request("POST", path, json.dumps(asked), headers)
            response = client._connection.getresponse()
            return response.status, json.loads(response.read())

        status, told = timed(**{"X-Request-Timeout-Ms": "80"})
        assert status == 504, told
        parameters = client.infer(asked | {"parameters": {"timeout": 80_000}})
        assert parameters.status == 504
        gate.set()
        assert timed(**{"X-Request-Timeout-Ms": "20000"})[0] == 200
        status, told = timed(**{"X-Request-Timeout-Ms": "soon"})
        assert (status, told["field"]) == (400, "x-request-timeout-ms")
        assert client.infer(asked | {"parameters": {"timeout": -1}}).status == 400
    assert room.counter("refused:queue_full") == 1
    assert room.counter("refused:too_late") == 2


def test_the_log_knows_how_many_rows_were_left_out(room: Any, start: Any, tools: Any) -> None:
    """`seen` counts every answered row by the hour it belongs to, also those serving left out."""
    room.serve("1")
    rate = 0.25
    log = InferenceLog(
        room.ledger, room.home / "segments", admission=Admission(lambda model: Rule(rate=rate))
    )
    with start(models={"churn": ModelSettings(sample_rate=rate)}, log=log) as server:
        client = server.client()
        for hour in (1, 2):
            parameters = {"event_time": f"2026-01-01T0{hour}:30:00Z"}
            for i in range(3):
                asked = tools.request(tools.rows(70), id=f"{hour}-{i}", parameters=parameters)
                assert client.infer(asked).status == 200
        alone = next(f"x{i}" for i in range(99) if not kept(f"x{i}", rate))
        assert client.infer(tools.request(tools.rows(1), id=alone)).body["parameters"] == {
            "shelflife_logged": "unsampled"
        }
    ids = [f"{hour}-{i}:{row}" for hour in (1, 2) for i in range(3) for row in range(70)]
    expected = sum(kept(each, rate) for each in ids)
    counts = log.counts("churn")
    assert (counts.seen, counts.kept, counts.predictions) == (421, expected, expected)
    by_hour = {each.hour: each.seen for each in log.sampled("churn")}
    assert [by_hour[datetime(2026, 1, 1, hour, tzinfo=UTC)] for hour in (1, 2)] == [210, 210]
