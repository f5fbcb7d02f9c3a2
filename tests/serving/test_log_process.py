"""The process that commits what a worker logs: what it is sent is there, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from core.ledger import Ledger
from monitor.log.log import InferenceLog
from monitor.log.records import Prediction
from serving.log_process import LogProcess
from serving.sheet import Sheet, predictions
from serving.traffic import LogWriter

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Opens = Callable[[], Any]


def sheet(*ids: str, x: Sequence[float] = (), columns: Any = None) -> Sheet:
    values = list(x) or [float(i) for i in range(2 * len(ids))]
    return Sheet(
        model="churn",
        version="1",
        role="champion",
        time=NOW,
        source="serving/churn",
        ids=list(ids),
        names=("x", "y"),
        matrix=b"" if columns else np.array(values).tobytes(),
        columns=columns,
        outputs={"probability": [0.5] * len(ids)},
    )


@pytest.fixture
def opens(room: Any) -> Opens:
    """Opens the log anew, as the other process does."""
    url, place = f"sqlite:///{room.home}/ledger.db", room.home / "segments"
    return lambda: InferenceLog(Ledger(url), place)


@pytest.fixture
def process(opens: Opens) -> Iterator[LogProcess]:
    started = LogProcess.start(opens)
    assert started is not None
    yield started
    started.close()


def test_rows_arrive_as_they_were(process: LogProcess, room: Any) -> None:
    mixed = sheet("c", columns=[[1], [None]])
    assert process.append_all([sheet("a", "b"), mixed], received=NOW) == 3
    rows = room.log.read("churn")
    assert rows.meta["id"].tolist() == ["a", "b", "c"]
    assert rows.inputs["x"].tolist() == [0.0, 2.0, 1.0]
    assert rows.inputs["y"].tolist()[:2] == [1.0, 3.0]
    assert rows.outputs["probability"].tolist() == [0.5] * 3
    assert process.append_all([sheet("a")], received=NOW) == 0  # once is enough
    left_out = {("churn", NOW, 0.5): 7}
    assert process.append(predictions([sheet("d")]), received=NOW, left_out=left_out) == 1
    assert room.log.counts("churn").seen == 12  # five offered, one of them twice, and seven not


def test_a_message_larger_than_a_socket_holds(process: LogProcess, room: Any) -> None:
    n = 20_000
    many = sheet(*(str(i) for i in range(n)), x=np.arange(2.0 * n))
    assert process.append_all([many], received=NOW) == n
    assert room.log.counts("churn").predictions == n


def test_what_the_log_says_is_said_here(opens: Opens) -> None:
    class Moody:
        def __init__(self) -> None:
            self.log, self.errors = opens(), [OperationalError("x", {}, Exception("locked")), None]

        def append(self, rows: Sequence[Prediction], **more: Any) -> int:
            error = self.errors.pop(0) if self.errors else TypeError("a row is odd")
            if error is not None:
                raise error
            return int(self.log.append(rows, **more))

    process = LogProcess.start(Moody)
    assert process is not None
    with pytest.raises(OSError, match="locked"):
        process.append_all([sheet("a")], received=NOW)
    assert process.append_all([sheet("a")], received=NOW) == 1
    with pytest.raises(ValueError, match="TypeError: a row is odd"):
        process.append_all([sheet("b")], received=NOW)
    process.close()


def test_a_process_that_is_killed_leaves_the_work_to_this_one(
    process: LogProcess, room: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert process.append_all([sheet("a")], received=NOW) == 1
    os.kill(process.pid, signal.SIGKILL)
    assert process.append_all([sheet("a"), sheet("b")], received=NOW) == 1
    assert room.log.counts("churn").predictions == 2
    assert [record.message for record in caplog.records] == ["log_process_ended"]


def test_it_ends_with_its_worker_and_not_before(process: LogProcess, room: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(process.pid, number)
    assert process.append_all([sheet("a")], received=NOW) == 1
    process.close()
    with pytest.raises(ChildProcessError):  # it is gone, and was waited for
        os.waitpid(process.pid, os.WNOHANG)


def test_a_worker_killed_in_the_middle_loses_nothing_it_sent(opens: Opens, room: Any) -> None:
    """The worker dies while the append is under way; the process finishes it."""

    class Slow:
        def append(self, rows: Sequence[Prediction], **more: Any) -> int:
            time.sleep(0.3)
            return int(opens().append(rows, **more))

    worker = os.fork()
    if not worker:
        process = LogProcess.start(Slow)
        assert process is not None
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        process.append_all([sheet("a")], received=NOW)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(worker, 0)[1])
    end = time.monotonic() + 10
    while not room.log.counts("churn").predictions and time.monotonic() < end:
        time.sleep(0.02)
    assert room.log.counts("churn").predictions == 1


def test_the_writer_hands_it_answers(process: LogProcess, room: Any) -> None:
    writer = LogWriter(
        process, room.ledger, queue_rows=1000, wait=timedelta(seconds=5), clock=lambda: NOW
    )
    writer.start()

    async def answers() -> list[str]:
        first = await writer.log(sheet("a"), strict=True)
        assert room.log.counts("churn").predictions == 1  # already there
        return [first, *(writer.accept(sheet(str(i)), timedelta(seconds=1)) for i in range(50))]

    assert asyncio.run(answers()) == ["committed", *["accepted"] * 50]
    assert writer.close() == 0
    assert room.log.counts("churn").predictions == 51
    assert room.counter("logged") == 51
