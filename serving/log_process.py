"""A process of its own that commits what this one logs.

Committing rows takes the interpreter a few microseconds at a time, and each time the thread that
answers requests waits: a third of its time at full load, and most of the slowest answers
(`benchmarks/serving.py`). Here rows go through a socket as one message; the other process opens
the log for itself, appends, and says so. What was acknowledged is committed, as without it.

It is forked before this process has threads, a database or a model, ends when the socket does,
after what it has begun, and ignores the signals that end a process group: whoever answers requests
is the last to know what there is to log. Should it be killed, rows are appended in this process.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Literal, NoReturn, Protocol

import msgspec
from msgspec import Struct
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from monitor.log.records import LeftOut, Prediction
from serving.sheet import Entry, Sheet, predictions

_log = logging.getLogger("shelflife.serving")
#: The store is locked, full or out of reach; the same rows may do later.
UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeout, OSError)
_LENGTH = 8  # bytes before each message, which say how long it is
_AT_ONCE = 65_536  # bytes that are read in one go; an answer is shorter
_WAIT = 2.0  # seconds that the process has to end once it is told


class Appends(Protocol):
    """The part of `SampleLog` that serving needs."""

    def append(
        self,
        rows: Sequence[Prediction],
        *,
        received: datetime,
        left_out: Mapping[LeftOut, int] | None = None,
    ) -> int:
        """See `SampleLog.append`."""
        ...


class Rows(Struct, array_like=True):
    """What is asked of it: an append."""

    sheets: Sequence[Sheet]
    rows: Sequence[Prediction]
    received: datetime
    left_out: Sequence[tuple[LeftOut, int]]


class Done(Struct, array_like=True):
    """What became of an append."""

    new: int = 0
    failed: Literal["", "unavailable", "refused"] = ""
    why: str = ""


class _Read(Rows):
    sheets: list[Sheet]
    rows: list[Prediction]
    left_out: list[tuple[LeftOut, int]]


_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(_Read).decode
_decode_done = msgspec.msgpack.Decoder(Done).decode


class LogProcess:
    """Appends through another process.

    Args:
        socket: to that process.
        pid: its process id.
        beside: appends here once that process is gone.
    """

    def __init__(self, socket: socket.socket, pid: int, beside: Callable[[], Appends]) -> None:
        self._socket, self.pid, self._beside = socket, pid, beside
        self._alive = True

    @classmethod
    def start(
        cls, log: Callable[[], Appends], *, closing: Sequence[socket.socket] = ()
    ) -> LogProcess | None:
        """Fork; None where the system cannot, and rows are then to be appended here.

        Call it while there is one thread and before `log` was opened.

        Args:
            log: opens the log; called in the other process, and here should that one end.
            closing: sockets that the other process must not keep open.
        """
        if sys.platform != "linux":
            return None
        ours, theirs = socket.socketpair()
        gc.freeze()  # pages that nobody writes to stay shared
        pid = os.fork()
        if not pid:
            ours.close()
            for each in closing:
                each.close()
            _work(theirs, log)
        theirs.close()
        return cls(ours, pid, log)

    def append(
        self,
        rows: Sequence[Prediction],
        *,
        received: datetime,
        left_out: Mapping[LeftOut, int] | None = None,
    ) -> int:
        """See `SampleLog.append` and `append_all`."""
        return self.append_all([rows], received=received, left_out=left_out)

    def append_all(
        self,
        entries: Sequence[Entry],
        *,
        received: datetime,
        left_out: Mapping[LeftOut, int] | None = None,
    ) -> int:
        """The rows of many answers, as `SampleLog.append`. Those of an append that the process died
        in are appended again, which changes nothing where it had committed them but the count of
        repeats.

        Raises:
            OSError: the store is locked, full or out of reach.
            ValueError: the store refused a row.
        """
        if self._alive:
            sheets = [entry for entry in entries if isinstance(entry, Sheet)]
            rows = predictions(entry for entry in entries if not isinstance(entry, Sheet))
            asked = Rows(sheets, rows, received, list((left_out or {}).items()))
            try:
                _send(self._socket, _encode(asked))
                done = _decode_done(_receive(self._socket))
            except (OSError, EOFError) as error:
                _log.error("log_process_ended", extra={"pid": self.pid, "error": str(error)})
                self._alive = False
            else:
                return _result(done)
        return self._beside().append(predictions(entries), received=received, left_out=left_out)

    def close(self) -> None:
        """Tell the process that nothing more comes, and wait a moment for its end."""
        self._socket.close()
        _reap(self.pid)


def _result(done: Done) -> int:
    if done.failed == "unavailable":
        raise OSError(done.why)
    if done.failed:
        raise ValueError(done.why)
    return done.new


def _reap(pid: int) -> None:
    from time import monotonic, sleep

    end = monotonic() + _WAIT
    while monotonic() < end:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        sleep(0.005)


# --- the other process ---------------------------------------------------------------------------


def _work(connection: socket.socket, log: Callable[[], Appends]) -> NoReturn:
    """Append what comes until nothing more can."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        opened: Appends | None = None
        while True:
            try:
                asked = _decode_rows(_receive(connection))
            except (EOFError, ConnectionError):
                break
            try:
                opened = opened or log()
                done = Done(_append(opened, asked))
            except UNAVAILABLE as error:
                done = Done(failed="unavailable", why=str(error))
            except Exception as error:
                done = Done(failed="refused", why=f"{type(error).__name__}: {error}")
            _send(connection, _encode(done))
        status = 0
    except (BrokenPipeError, ConnectionError):
        status = 0  # nobody waits for the answer any more
    finally:
        os._exit(status)  # what the parent registered for its own end is not ours to run


def _append(log: Appends, asked: Rows) -> int:
    rows = predictions([*asked.sheets, asked.rows])
    return log.append(rows, received=asked.received, left_out=dict(asked.left_out) or None)


# --- messages ------------------------------------------------------------------------------------


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(len(message).to_bytes(_LENGTH) + message)


def _receive(connection: socket.socket) -> bytes:
    """The next message; there is never more than one under way.

    Raises:
        EOFError: the other side is gone.
    """
    found = _some(connection, _AT_ONCE)
    while len(found) < _LENGTH:
        found += _some(connection, _LENGTH - len(found))
    size = _LENGTH + int.from_bytes(found[:_LENGTH])
    while len(found) < size:
        found += _some(connection, size - len(found), socket.MSG_WAITALL)
    return found[_LENGTH:]


def _some(connection: socket.socket, most: int, flags: int = 0) -> bytes:
    found = connection.recv(most, flags)
    if not found:
        raise EOFError("the connection was closed")
    return found
