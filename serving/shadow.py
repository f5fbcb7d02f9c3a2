"""A version that answers a copy of the requests in a process of its own, heard by nobody.

The worker that answers callers only appends to a bounded queue: where the copy cannot keep up, rows
are shed and counted. A thread sends what waits to the process and logs the answers with the role
`shadow`. A copy that fails is counted; one that hangs or dies is killed and started again after a
pause. It shares neither interpreter lock nor memory with the champion, and yields the processor to
it (`nice`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import IO, Any, NamedTuple

import msgspec
from msgspec import Struct

from core.spec import Scalar
from monitor.log.records import Prediction

_log = logging.getLogger("shelflife.serving")
_ROOM = 2_000  # rows that may wait
_BATCH = 256  # rows asked together
_PATIENCE = 10.0  # seconds for a batch
_START = 120.0  # seconds to load the model
_PAUSES = (1.0, 5.0, 30.0, 60.0)  # seconds before a process that ended is started again
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "TMPDIR", "HOME")
_HEADER = struct.Struct(">I")

Submit = Callable[[Sequence[Prediction]], object]
Count = Callable[[str, int], None]


class Start(Struct, frozen=True, kw_only=True):
    """The first message to the process: what to load."""

    folder: str
    backend: str
    threads: int
    trust_pickle: bool


class Ask(Struct, frozen=True, kw_only=True):
    """Rows to answer, column by column."""

    columns: dict[str, list[Scalar]]


class Reply(Struct, frozen=True, kw_only=True):
    """Answers by output, or why there are none. The first one says that the model is loaded."""

    outputs: dict[str, list[float]] = {}
    error: str = ""


class _Row(NamedTuple):
    row: Prediction  # as the champion answered it
    submit: Submit
    loop: asyncio.AbstractEventLoop


class Shadow:
    """The queue, the thread and the process of one version.

    Args:
        model, version: what its rows are logged as.
        start: what the process loads.
        count: adds to a counter of the model.
    """

    def __init__(self, model: str, version: str, start: Start, count: Count) -> None:
        self.model, self.version, self.error = model, version, ""
        self._start, self._count = start, count
        self._waiting: deque[_Row] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, name=f"shadow-{model}", daemon=True)
        self._thread.start()

    def offer(self, rows: Sequence[Prediction], submit: Submit) -> None:
        """Take a copy of answered rows, or shed them; call it on a running event loop.

        Args:
            submit: queues the shadow's rows for the log; called on that loop.
        """
        loop = asyncio.get_running_loop()
        with self._wake:
            room = not self._closed and len(self._waiting) + len(rows) <= _ROOM
            if room:
                self._waiting.extend(_Row(row, submit, loop) for row in rows)
                self._wake.notify()
        if not room:
            self._count("shadow_shed", len(rows))

    def close(self, timeout: float = 10.0) -> None:
        """Stop at once; what waits is shed."""
        with self._wake:
            self._closed = True
            shed = len(self._waiting)
            self._waiting.clear()
            self._wake.notify()
        if shed:
            self._count("shadow_shed", shed)
        self._kill()
        self._thread.join(timeout)

    @property
    def waiting(self) -> int:
        """Rows not yet asked."""
        return len(self._waiting)

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        attempts = 0
        while not self._closed:
            begun = monotonic()
            try:
                self._serve()
            except (OSError, EOFError, ValueError, _Refused) as error:  # ValueError: a closed pipe
                if self._closed:
                    break
                self.error = f"{type(error).__name__}: {error}"
                _log.error("shadow_ended", extra={"model": self.model, "error": self.error})
            finally:
                self._kill()
            attempts = 0 if monotonic() - begun > 2 * _START else attempts + 1
            with self._wake:
                pause = _PAUSES[min(attempts, len(_PAUSES)) - 1]
                self._wake.wait_for(lambda: self._closed, pause)
        self._kill()

    def _serve(self) -> None:
        process = self._launch()
        ready = self._exchange(process, self._start, _START)
        if ready.error:
            raise _Refused(ready.error)
        self.error = ""
        while not self._closed:
            batch = self._take()
            if batch:
                self._ask(process, batch)

    def _take(self) -> list[_Row]:
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._closed, 1.0)
            size = min(_BATCH, len(self._waiting))
            return [self._waiting.popleft() for _ in range(size)]

    def _ask(self, process: subprocess.Popen[bytes], batch: Sequence[_Row]) -> None:
        columns = {name: [each.row.inputs[name] for each in batch] for name in batch[0].row.inputs}
        try:
            reply = self._exchange(process, Ask(columns=columns), _PATIENCE)
        except (OSError, EOFError, ValueError):
            self._count("shadow_failed", len(batch))
            raise
        if not reply.error:
            self._deliver(batch, reply)
        elif len(batch) > 1:  # whose fault it is shows when each goes alone
            for each in batch:
                self._ask(process, [each])
        else:
            self._count("shadow_failed", 1)
            self.error = reply.error

    def _deliver(self, batch: Sequence[_Row], reply: Reply) -> None:
        names, values = list(reply.outputs), zip(*reply.outputs.values(), strict=True)
        by_loop: dict[tuple[Submit, asyncio.AbstractEventLoop], list[Prediction]] = {}
        for each, answers in zip(batch, values, strict=True):
            answered = msgspec.structs.replace(
                each.row,
                version=self.version,
                role="shadow",
                source=f"serving/{self.model}/shadow/{self.version}",
                outputs=dict(zip(names, answers, strict=True)),
            )
            by_loop.setdefault((each.submit, each.loop), []).append(answered)
        for (submit, loop), rows in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: the worker is going
                loop.call_soon_threadsafe(partial(submit, rows))
        self._count("shadowed", len(batch))

    def _launch(self) -> subprocess.Popen[bytes]:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        root = str(Path(__file__).resolve().parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serving.shadower", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=passed | {"PYTHONPATH": root, "OMP_NUM_THREADS": str(self._start.threads)},
        )
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], message: Struct, limit: float) -> Reply:
        """One question, one answer; a process that takes too long is killed, which ends both."""
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        watch = threading.Timer(limit, process.kill)
        watch.start()
        try:
            send(process.stdin, message)
            return msgspec.msgpack.decode(receive(process.stdout), type=Reply)
        finally:
            watch.cancel()

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


class _Refused(Exception):
    """The process cannot load the version."""


def send(pipe: IO[bytes], message: Struct) -> None:
    """Write one message: its length in four bytes, then MessagePack."""
    data = msgspec.msgpack.encode(message)
    pipe.write(_HEADER.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    head: Any = pipe.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise EOFError("the process ended")
    [size] = _HEADER.unpack(head)
    data: Any = pipe.read(size)
    if len(data) < size:
        raise EOFError("the process ended in the middle of a message")
    return bytes(data)
