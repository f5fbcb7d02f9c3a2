"""Several workers on one port: all acknowledge a swap, none fails a request, a dead one returns."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serving.deploy import wait_served
from serving.heartbeat import served_by

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def serving(home: Path, workers: int) -> Iterator[tuple[int, Any]]:
    """`shelflife serve` with workers; yields the port and the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = home / "shelflife.yaml"
    settings.write_text(f"home: .\nserving: {{port: {port}, workers: {workers}}}\n")
    with (home / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shelflife.cli", "serve", "--settings", str(settings)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=log,
        )
    try:
        yield port, process
    finally:
        process.terminate()
        assert process.wait(40) == 0, (home / "serve.log").read_text()


def _serving(room: Any, version: str) -> int:
    return served_by(room.ledger, "churn", version, now=datetime.now(UTC)).serving


def test_a_swap_in_two_workers_and_the_death_of_one(room: Any, tools: Any) -> None:
    room.serve("1")
    columns = tools.rows(1, seed=9)
    asked = tools.request(columns)
    expected = {version: room.expected(version, columns)[0] for version in ("1", "2", "3")}
    wrong: list[Any] = []
    answered: list[str] = []
    over = threading.Event()

    def ask(client: Any) -> None:
        while not over.is_set():
            answer = client.infer(asked)
            if answer.status != 200:
                wrong.append(answer)
                return
            version = answer.body["model_version"]
            if answer.body["outputs"][0]["data"] != [expected[version]]:
                wrong.append(answer)
            answered.append(version)

    with serving(room.home, 2) as (port, _process):
        tools.wait_for(lambda: _serving(room, "1") == 2, 60)
        clients = [tools.Client(port) for _ in range(8)]
        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for swap, version in enumerate(("2", "1", "3", "1"), start=1):
            tools.wait_for(lambda swap=swap: len(answered) > 100 * swap or bool(wrong))
            room.serve(version)
            served = wait_served(room.ledger, "churn", version, timeout=timedelta(seconds=30))
            assert (served.ok, served.workers) == (True, 2)
        over.set()
        for thread in threads:
            thread.join(30)
        for client in clients:
            client.close()
        assert not wrong
        assert {"1", "2", "3"} <= set(answered)

        workers = _pids(room)
        assert len(workers) == 2
        os.kill(min(workers), signal.SIGKILL)
        late = tools.Client(port)
        assert late.infer(asked).status == 200  # the other one answers
        late.close()
        tools.wait_for(lambda: len(_pids(room) - workers) == 1 and _serving(room, "1") >= 2, 60)


def _pids(room: Any) -> set[int]:
    from core.schema import workers

    with room.ledger.read() as tx:
        names = tx.scalars(workers.select().with_only_columns(workers.c.worker)).all()
    return {int(re.split(":", name)[1]) for name in names}
