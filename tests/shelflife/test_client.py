"""The client against real HTTP servers that misbehave: callers notice nothing, every row counts."""

from __future__ import annotations

import datetime as dt
import decimal
import gc
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shelflife import Client
from shelflife.client_wire import judge

Script = Callable[["Receiver", BaseHTTPRequestHandler, bytes], None]
ROOT = Path(__file__).resolve().parents[2]


def answer(handler: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", "2")
    handler.end_headers()
    handler.wfile.write(b"{}")


class Receiver:
    """A real HTTP server; keeps what it answered 2xx to, by kind."""

    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        self.script, self.requests, self.headers = script, 0, list[dict[str, str]]()
        self.bodies: list[bytes] = []
        self.rows: dict[str, list[dict[str, Any]]] = {"predictions": [], "labels": []}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests += 1
                outer.headers.append(dict(self.headers))
                outer.bodies.append(body)
                if outer.script is None:
                    outer.take(self, body)
                else:
                    outer.script(outer, self, body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.keep(handler, body)
        answer(handler)

    def keep(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        kind = handler.path.rsplit("/", 1)[1]
        self.rows[kind] += json.loads(body)[kind]

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows["predictions"]]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[..., Receiver]]:
    running: list[Receiver] = []

    def start(script: Script | None = None, port: int = 0) -> Receiver:
        running.append(Receiver(script, port))
        return running[-1]

    yield start
    for receiver in running:
        receiver.stop()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def balanced(client: Client) -> dict[str, Any]:
    found = client.stats()
    assert found["logged"] == found["sent"] + found["shed"] + found["pending"]
    return found


def test_rows_and_labels_arrive_as_they_were_said(start: Callable[..., Receiver]) -> None:
    receiver = start()
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    with Client(receiver.url, model="churn", token="s3cret", every=0.05) as client:
        assert "s3cret" not in repr(client)
        assert client.log("churn", {"age": 41}, 0.5, id="a", time=moment, version=3) == "a"
        made_up = client.log("churn", {"age": 42}, {"probability": 0.25})
        client.label("a", True, time=moment)
        client.label(made_up, "no", model="other")
        assert client.flush()
    first, second = receiver.rows["predictions"]
    assert first == {
        "id": "a", "time": "2026-01-01T10:00:00Z", "version": "3", "inputs": {"age": 41},
        "outputs": {"prediction": 0.5}, "source": "client",
    }  # fmt: skip
    assert (second["id"], second["outputs"]) == (made_up, {"probability": 0.25})
    assert {"id": "a", "label": True, "time": "2026-01-01T10:00:00Z"} in receiver.rows["labels"]
    assert {each["Authorization"] for each in receiver.headers} == {"Bearer s3cret"}
    assert balanced(client)["sent"] == 4


def test_values_of_all_kinds_become_plain_json(start: Callable[..., Receiver]) -> None:
    receiver = start()
    given = {
        "float": np.float32(0.5), "int": np.int64(2**40), "bool": np.True_, "text": np.str_("x"),
        "nan": float("nan"), "inf": np.float64("inf"), "nat": pd.NaT, "na": pd.NA,
        "decimal": decimal.Decimal("1.25"), "bad": decimal.Decimal("NaN"),
        "stamp": pd.Timestamp("2026-01-01T00:00:00Z"), "day": dt.date(2026, 1, 2),
        "one": np.array([7.0]), np.int64(5): np.datetime64("2026-01-01"),
    }  # fmt: skip
    row = pd.Series({"a": 1, "b": "z"})
    with Client(receiver.url, every=0.05) as client:
        client.log("m", given, np.float64(0.75))
        client.log("m", row, {"prediction": np.array(1.5)})
        client.label(np.int64(12), np.float32(0.5), time=pd.Timestamp("2026-01-01"), model="m")
    first, second = receiver.rows["predictions"]
    assert first["inputs"] == {
        "float": 0.5, "int": 2**40, "bool": True, "text": "x", "nan": None, "inf": None,
        "nat": None, "na": None, "decimal": 1.25, "bad": None, "stamp": "2026-01-01T00:00:00Z",
        "day": "2026-01-02", "one": 7.0, "5": "2026-01-01",
    }  # fmt: skip
    assert (second["inputs"], second["outputs"]) == ({"a": 1, "b": "z"}, {"prediction": 1.5})
    assert receiver.rows["labels"] == [{"id": "12", "label": 0.5, "time": "2026-01-01T00:00:00Z"}]


def test_batches_in_every_shape(start: Callable[..., Receiver]) -> None:
    receiver = start()
    frame = pd.DataFrame({"x": [1.5, float("nan")], "c": ["a", "b"]})
    with Client(receiver.url, every=0.05, version="9") as client:
        assert client.log("m", frame, np.array([0.1, 0.2]), id=["f0", "f1"]) == ["f0", "f1"]
        client.log("m", [{"x": 1}, {"x": 2}], [{"p": 0.3}, {"p": 0.4}], id=("l0", "l1"))
        client.log("m", {"x": np.arange(2), "c": ["a", "b"]}, {"p": [0.5, 0.6]}, id=["c0", "c1"])
        made = client.log("m", frame, frame[["x"]])
        assert len(set(made)) == 2
        assert client.log("m", frame, [0.1]) is None  # three answers for two rows: counted
    rows = {row["id"]: row for row in receiver.rows["predictions"]}
    assert rows["f0"]["inputs"] == {"x": 1.5, "c": "a"}
    assert rows["f1"]["inputs"] == {"x": None, "c": "b"}
    assert rows["f1"]["outputs"] == {"prediction": 0.2}
    assert (rows["l1"]["inputs"], rows["l1"]["outputs"]) == ({"x": 2}, {"p": 0.4})
    assert (rows["c1"]["inputs"], rows["c1"]["outputs"]) == ({"x": 1, "c": "b"}, {"p": 0.6})
    assert rows["c0"]["version"] == "9"
    assert balanced(client)["shed_by"] == {"invalid": 2}


def test_what_cannot_be_said_is_counted_and_never_raised(start: Callable[..., Receiver]) -> None:
    class Hostile(dict):
        def values(self) -> Any:
            raise RuntimeError("boom")

    receiver = start()
    recursive: list[Any] = []
    recursive.append(recursive)
    with Client(receiver.url, every=0.05) as client:
        for bad in (Hostile(x=1), {"x": {"deep": 1}}, {"x": recursive}, {"x": "\ud800"}, object()):
            client.log("m", bad, 0.5)
        client.log("m", {"x": 1}, 0.5, time="x" * 10, id="")
        client.log("m", {"x": 1}, 0.5, time=object())
        client.label("a", 1)  # no model
        client.label("a", None, model="m")
        client.label("a", float("nan"), model="m")
        client.label("a" * 300, 1, model="m")
        client.log("m", {"x": 1}, 0.5, id="good")
    found = balanced(client)
    assert receiver.ids[-1] == "good"
    assert found["shed_by"]["invalid"] >= 10
    assert found["sent"] == len(receiver.rows["predictions"])


def test_failures_are_tried_again_with_the_same_ids(start: Callable[..., Receiver]) -> None:
    def fails_thrice(receiver: Receiver, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if receiver.requests == 1:
            answer(handler, 500)
        elif receiver.requests == 2:
            answer(handler, 429, Retry_After="0.1")
        elif receiver.requests == 3:
            receiver.keep(handler, body)  # committed, and the answer is lost
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            receiver.take(handler, body)

    receiver = start(fails_thrice)
    with Client(receiver.url, every=0.01) as client:
        wanted = [client.log("m", {"x": i}, 0.5) for i in range(5)]
        until(lambda: client.stats()["sent"] == 5)
    assert set(receiver.ids) == set(wanted)
    # The server sees a committed batch twice, byte for byte: its ids make it one.
    assert receiver.bodies[2] == receiver.bodies[3]
    found = balanced(client)
    assert (found["sent"], found["shed"]) == (5, 0)
    assert found["retries"] >= 2


def test_one_bad_row_costs_only_itself(start: Callable[..., Receiver]) -> None:
    def picky(receiver: Receiver, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if any(row["inputs"]["x"] in (3, 17) for row in json.loads(body)["predictions"]):
            answer(handler, 422)
        else:
            receiver.take(handler, body)

    receiver = start(picky)
    with Client(receiver.url, every=0.01) as client:
        for i in range(40):
            client.log("m", {"x": i}, 0.5, id=f"r{i}")
        assert client.flush(20)
    assert receiver.ids == [f"r{i}" for i in range(40) if i not in (3, 17)]
    assert balanced(client)["shed_by"] == {"refused": 2}


@pytest.mark.parametrize("status", [200, 400])
def test_rows_that_the_answer_counts_as_refused_are_shed(
    start: Callable[..., Receiver], status: int
) -> None:
    """A server may take the good rows of a batch (200), or say that all of it was bad (400)."""
    said = {"refused": 2 if status == 200 else 5, "problems": [{"field": "inputs.x"}]}

    def partly(receiver: Receiver, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        text = json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    receiver = start(partly)
    with Client(receiver.url, every=0.05) as client:
        for i in range(5):
            client.log("m", {"x": i}, 0.5)
        assert client.flush()
    found = balanced(client)
    assert found["shed_by"] == {"refused": said["refused"]}
    assert "inputs.x" in found["error"]
    assert receiver.requests == 1


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_never_finishes_costs_the_caller_nothing(
    start: Callable[..., Receiver], how: str
) -> None:
    release = threading.Event()

    def never(receiver: Receiver, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if how == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n")
            while not release.wait(0.02):
                handler.wfile.write(b"X-Slow: 1\r\n")
        release.wait()

    receiver = start(never)
    client = Client(receiver.url, every=0.01, timeout=0.3, max_rows=50)
    main = threading.current_thread()
    assert client._sender._thread is not main
    for i in range(200):
        client.log("m", {"x": i}, 0.5)
    found = balanced(client)
    assert (found["pending"], found["shed_by"]) == (50, {"full": 150})
    until(lambda: client.stats()["retries"] >= 2)  # the deadline holds although bytes keep coming
    assert "Timeout" in client.stats()["error"]
    assert client.close(0.1) is False
    assert balanced(client)["pending"] <= 50
    release.set()
    until(lambda: balanced(client)["pending"] == 0)


def test_down_then_up(start: Callable[..., Receiver]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}", every=0.01, max_rows=30)
    wanted = [client.log("m", {"x": i}, 0.5) for i in range(40)][:30]
    until(lambda: client.stats()["retries"] >= 2)
    assert "refused" in client.stats()["error"].lower()
    receiver = start(port=port)
    assert client.flush(20)
    assert receiver.ids == wanted
    assert balanced(client)["shed_by"] == {"full": 10}
    client.close()


def test_bytes_are_bounded_too(start: Callable[..., Receiver]) -> None:
    client = Client("http://127.0.0.1:9", max_bytes=10_000, every=60)
    for _ in range(10):
        client.log("m", {"x": "y" * 3_000}, 0.5)
    found = balanced(client)
    assert found["pending"] == 3
    assert found["pending_bytes"] <= 10_000
    client.close(0)
    assert balanced(client)["shed"] == 10


def test_a_model_the_server_refuses_holds_up_no_other(start: Callable[..., Receiver]) -> None:
    def knows_one(receiver: Receiver, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if "/nobody/" in handler.path:
            answer(handler, 404)
        else:
            receiver.take(handler, body)

    receiver = start(knows_one)
    client = Client(receiver.url, every=0.01)
    for i in range(10):
        client.log("nobody", {"x": i}, 0.5)
        client.log("m", {"x": i}, 0.5, id=f"m{i}")
    until(lambda: client.stats()["sent"] == 10)
    assert receiver.ids == [f"m{i}" for i in range(10)]
    assert balanced(client)["pending"] == 10
    assert client.close(0.05) is False
    until(lambda: balanced(client)["shed_by"] == {"closed": 10})
    client.log("m", {"x": 1}, 0.5)
    assert balanced(client)["shed"] == 11


def test_many_threads_lose_no_count(start: Callable[..., Receiver]) -> None:
    receiver = start()
    client = Client(receiver.url, every=0.01, batch_rows=100)

    def work(k: int) -> None:
        for i in range(500):
            client.log("m", {"x": i}, 0.5, id=f"{k}-{i}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.close(20)
    found = balanced(client)
    assert (found["logged"], found["sent"]) == (2000, 2000)
    assert len(set(receiver.ids)) == len(receiver.ids) == 2000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_workers_send_their_own_rows_and_no_others(start: Callable[..., Receiver]) -> None:
    """As gunicorn's prefork: a client made, and used, before the workers were forked."""
    receiver = start()
    code = textwrap.dedent(
        f"""
        import os
        from shelflife import Client
        client = Client({receiver.url!r}, every=30, exit_timeout=10)
        names = [client.log("m", {{"x": i}}, 0.5) for i in range(5)]
        workers = []
        for k in range(3):
            if not (pid := os.fork()):
                assert client.stats()["logged"] == 0
                for i in range(4):
                    client.log("m", {{"x": i}}, 0.5)
                ok = client.close(10)
                os._exit(0 if ok and client.stats()["sent"] == 4 else 1)
            workers.append(pid)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in workers)
        """
    )  # and the parent's rows leave at exit
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, timeout=60)
    assert len(receiver.ids) == len(set(receiver.ids)) == 5 + 3 * 4


@pytest.mark.parametrize("server", ["up", "hanging"])
def test_exit_sends_what_is_pending_in_bounded_time(
    start: Callable[..., Receiver], server: str
) -> None:
    release = threading.Event()
    receiver = start(None if server == "up" else lambda *_: release.wait() and None)
    code = textwrap.dedent(
        f"""
        from shelflife import Client
        client = Client({receiver.url!r}, every=60, timeout=60, exit_timeout=0.5)
        for i in range(10):
            client.log("m", {{"x": i}}, 0.5)
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=30)
    release.set()
    assert len(receiver.ids) == (10 if server == "up" else 0)


def test_a_client_that_is_dropped_sends_what_it_has(start: Callable[..., Receiver]) -> None:
    receiver = start()
    client = Client(receiver.url, every=60)
    sender = client._sender
    client.log("m", {"x": 1}, 0.5, id="last")
    thread = sender._thread
    del client
    gc.collect()
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
    assert receiver.ids == ["last"]


def test_trouble_is_told_once_a_minute(
    start: Callable[..., Receiver], caplog: pytest.LogCaptureFixture
) -> None:
    receiver = start(lambda _r, handler, _b: answer(handler, 503, Retry_After="0"))
    client = Client(receiver.url, every=0.01, token="s3cret")
    client.log("m", {"x": 1}, 0.5)
    until(lambda: client.stats()["retries"] >= 4)
    client.close(0)
    lines = [record for record in caplog.records if record.name == "shelflife.client"]
    assert len(lines) == 1
    assert "HTTP 503" in lines[0].getMessage()
    assert "s3cret" not in caplog.text


def test_answers_are_judged() -> None:
    assert judge(202, None, b"").outcome == "sent"
    assert judge(200, None, b'{"refused": true}').refused == 0
    assert judge(200, None, b"[1]") == judge(200, None, b"\xff") == judge(204, None, b"{}")
    assert judge(413, None, b"big").outcome == "split"
    assert judge(302, None, b"").outcome == "later"
    assert judge(503, "7", b"").wait == 7.0
    assert judge(429, "1e9", b"").wait == 300.0
    assert judge(429, "Wed, 21 Oct 2015 07:28:00 GMT", b"").wait == 0.0
    assert judge(429, "soon", b"").wait is None


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8080", "http://", ""])
def test_a_wrong_url_is_said_at_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELFLIFE_URL", url or "nonsense")
    with pytest.raises(ValueError, match="expected http"):
        Client(url or None)


def test_the_client_is_light() -> None:
    code = (
        "import sys, shelflife; shelflife.Client('http://127.0.0.1:9').close();"
        "heavy = {'pandas', 'numpy', 'mlflow', 'sqlalchemy', 'evidently', 'sklearn', 'httpx'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_model_names_and_base_paths_are_quoted(start: Callable[..., Receiver]) -> None:
    paths: list[str] = []

    def noting(receiver: Receiver, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        paths.append(handler.path)
        receiver.take(handler, body)

    receiver = start(noting)
    with Client(receiver.url + "/behind/a/path/", every=0.01) as client:
        client.log("a model/1", {"x": 1}, 0.5, id="q")
    assert receiver.ids == ["q"]
    assert paths == ["/behind/a/path/api/v1/models/a%20model%2F1/predictions"]
