"""A worker as a process: what it imports, and what survives its sudden death."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def worker(home: Path, tools: Any, **environment: str) -> Iterator[tuple[Any, int]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("worker.py")), str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        client = tools.Client(port)
        tools.wait_for(lambda: _ready(client))
        client.close()
        yield process, port
    finally:
        process.terminate()
        process.wait(20)
        process.stdin.close()
        process.stdout.close()


def _ready(client: Any) -> bool:
    try:
        return bool(client.ask("GET", "/v2/health/ready").status == 200)
    except ConnectionError:
        client.close()
        return False


def test_a_worker_imports_no_mlflow_and_no_evidently(room: Any, tools: Any) -> None:
    room.serve("1")
    with worker(room.home, tools, SERVING_IMPORTS="1") as (process, port):
        client = tools.Client(port)
        assert client.infer(tools.request(tools.rows(1))).status == 200
        client.close()
        process.stdin.write("?\n")
        process.stdin.flush()
        assert set(process.stdout.readline().split()) == {"pandas", "sklearn"}


def test_the_room_itself_imports_no_pandas() -> None:
    modules = "serving.app, serving.backends.native, serving.swap, serving.store, registry.loading"
    code = f"import sys, {modules}; print([m for m in ('pandas', 'sklearn', 'mlflow', 'evidently')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} if m in sys.modules])"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_row_acknowledged_as_committed_survives_kill_9(room: Any, tools: Any) -> None:
    room.serve("1")
    asked = tools.request(tools.rows(3))
    acknowledged: list[str] = []

    def ask(name: str) -> None:
        client = tools.Client(port)
        try:
            for i in range(100_000):
                answer = client.infer({**asked, "id": f"{name}-{i}"})
                if answer.body["parameters"]["shelflife_logged"] == "committed":
                    acknowledged.extend(f"{name}-{i}:{row}" for row in range(3))
        except (OSError, tools.HTTPException):
            return  # it was killed
        finally:
            client.close()

    with worker(room.home, tools) as (process, port):
        threads = [threading.Thread(target=ask, args=(f"c{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        tools.wait_for(lambda: len(acknowledged) > 600)
        process.kill()
        for thread in threads:
            thread.join(30)
    logged = room.log.read("churn").meta["id"].tolist()
    assert len(logged) == len(set(logged))
    assert set(acknowledged) <= set(logged)
    # Answers cut off by the kill may be in the log, never half of one request.
    assert len(logged) % 3 == 0
