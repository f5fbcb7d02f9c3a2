"""Zero-wait batches: what waits goes together, and fails alone."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from core.errors import InputError, NotReady
from serving.backend import Columns, ModelFailed, ModelStats, Outputs
from serving.batching import Batcher, Limits


class Doubler:
    """Answers 2x; refuses -1 with ValueError, breaks on -2, says NaN to -3."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, columns: Columns) -> Outputs:
        self.gate.wait(10)
        x = columns["x"]
        self.batches.append(len(x))
        if (x == -1).any():
            raise ValueError("unknown category")
        if (x == -2).any():
            raise RuntimeError("out of memory")
        return {"probability": np.where(x == -3, np.nan, 2 * x)}

    def stats(self) -> ModelStats:
        return ModelStats(batches=len(self.batches), rows=sum(self.batches), seconds=0.0)

    def health(self) -> str:
        return ""

    def unload(self) -> None:
        return None


@pytest.fixture
def model() -> Doubler:
    return Doubler()


@pytest.fixture
def batcher(model: Doubler) -> Any:
    batcher = Batcher(model, name="test", limits=Limits(max_batch=8))
    yield batcher
    model.gate.set()
    assert batcher.drain(5)


def ask(batcher: Batcher, *values: float) -> asyncio.Task[Outputs]:
    columns = {"x": np.array(values)}
    return asyncio.create_task(batcher.infer(columns, len(values)))


def test_alone_when_idle_together_when_busy(batcher: Batcher, model: Doubler) -> None:
    async def run() -> list[Outputs]:
        model.gate.clear()
        first = ask(batcher, 0.0)
        await asyncio.sleep(0.1)  # the model has taken it
        others = [ask(batcher, float(i), float(i + 0.5)) for i in range(1, 6)]
        await asyncio.sleep(0)
        model.gate.set()
        return list(await asyncio.gather(first, *others))

    answers = asyncio.run(run())
    assert [list(answer["probability"]) for answer in answers[1:]] == [
        [2.0 * i, 2.0 * i + 1] for i in range(1, 6)
    ]
    assert model.batches == [1, 8, 2]  # 4 requests of 2 rows fill a batch of 8


def test_more_rows_than_a_batch_go_alone_and_whole(batcher: Batcher, model: Doubler) -> None:
    async def run() -> Outputs:
        return await ask(batcher, *map(float, range(20)))

    assert list(asyncio.run(run())["probability"]) == [2.0 * i for i in range(20)]
    assert model.batches == [20]


def test_a_bad_request_fails_alone(batcher: Batcher, model: Doubler) -> None:
    async def run() -> list[Outputs | BaseException]:
        model.gate.clear()
        blocker = ask(batcher, 0.0)
        await asyncio.sleep(0.1)
        tasks = [ask(batcher, value) for value in (1.0, -1.0, 2.0, -2.0, -3.0)]
        await asyncio.sleep(0)
        model.gate.set()
        await blocker
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    one, refused, two, broken, nan = asyncio.run(run())
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert (one["probability"][0], two["probability"][0]) == (2.0, 4.0)
    assert isinstance(refused, InputError)
    assert "unknown category" in str(refused)
    assert isinstance(broken, ModelFailed)
    assert "RuntimeError: out of memory" in str(broken)
    assert isinstance(nan, ModelFailed)
    assert "nan" in str(nan)


def test_a_cancelled_caller_leaves_its_neighbours_alone(batcher: Batcher, model: Doubler) -> None:
    async def run() -> list[Outputs]:
        model.gate.clear()
        blocker = ask(batcher, 0.0)
        await asyncio.sleep(0.1)
        tasks = [ask(batcher, float(i)) for i in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        blocker.cancel()  # already inside the model
        await asyncio.sleep(0)
        model.gate.set()
        return list(await asyncio.gather(tasks[0], tasks[2]))

    first, last = asyncio.run(run())
    assert (first["probability"][0], last["probability"][0]) == (0.0, 4.0)
    assert model.batches == [1, 2]


def test_drain_answers_what_waits_and_refuses_what_comes(model: Doubler) -> None:
    batcher = Batcher(model, name="test", limits=Limits(max_batch=8))

    async def run() -> Outputs:
        model.gate.clear()
        task = ask(batcher, 3.0)
        await asyncio.sleep(0.05)
        drained = asyncio.create_task(asyncio.to_thread(batcher.drain, 5.0))
        await asyncio.sleep(0.05)
        with pytest.raises(NotReady):
            await batcher.infer({"x": np.array([1.0])}, 1)
        model.gate.set()
        assert await drained
        return await task

    assert asyncio.run(run())["probability"][0] == 6.0


def test_a_stuck_model_is_not_waited_for_for_ever(model: Doubler) -> None:
    batcher = Batcher(model, name="test", limits=Limits(max_batch=8))

    async def run() -> None:
        model.gate.clear()
        task = ask(batcher, 3.0)
        await asyncio.sleep(0.05)
        assert not await asyncio.to_thread(batcher.drain, 0.05)
        model.gate.set()
        await task

    asyncio.run(run())
    assert batcher.drain(5)
