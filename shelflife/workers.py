"""`shelflife serve` with several workers: processes that answer on one listening socket.

The parent binds the port and answers nothing; each worker is a whole `shelflife serve` of its own
with every model, and says itself what it answers with (`serving.heartbeat`): a promotion counts as
served when all of them do. One that dies is started again while the others answer. Connections go
to whichever worker takes them first.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

_log = logging.getLogger("shelflife.serving")
_SOCKET = "SHELFLIFE_LISTEN_FD"
_PAUSES = (0.2, 1.0, 5.0, 15.0)  # seconds before each start of a worker that keeps dying
_STEADY = 30.0  # a worker that lived this long starts again with the first pause
_GRACE = 20.0  # seconds that workers have to end: more than they give their requests
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def inherited() -> socket.socket | None:
    """The socket that a parent opened for this worker; None where there is no parent."""
    number = os.environ.pop(_SOCKET, None)
    if number is None:
        return None
    if sys.platform == "linux":  # a parent that was killed leaves no workers behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return socket.socket(fileno=int(number))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that workers may inherit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.create_server((host, port), family=family, backlog=2048)
    found.set_inheritable(True)
    return found


class Workers:
    """Starts workers and keeps them running until told to stop.

    Args:
        command: starts one worker.
    """

    def __init__(self, command: Sequence[str], listener: socket.socket, number: int) -> None:
        self._command, self._listener, self._number = list(command), listener, number
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> int:
        """Run them until SIGINT or SIGTERM."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: self._stop.set())
        threads = [
            threading.Thread(target=self._keep, args=(index,)) for index in range(self._number)
        ]
        for thread in threads:
            thread.start()
        while not self._stop.wait(1.0):
            pass
        self._end()
        for thread in threads:
            thread.join()
        return 0

    def _keep(self, index: int) -> None:
        attempt = 0
        while not self._stop.is_set():
            began = monotonic()
            process = self._start(index)
            if process is None:
                return
            code = process.wait()
            if self._stop.is_set():
                return
            attempt = 0 if monotonic() - began > _STEADY else attempt + 1
            pause = _PAUSES[min(max(0, attempt - 1), len(_PAUSES) - 1)]
            _log.error("worker_ended", extra={"worker": index, "code": code, "pause": pause})
            self._stop.wait(pause)

    def _start(self, index: int) -> subprocess.Popen[bytes] | None:
        number = self._listener.fileno()
        with self._lock:
            if self._stop.is_set():
                return None
            # PDEATHSIG follows the thread that starts it, and this one lives as long as we do.
            process = subprocess.Popen(
                self._command,
                env=os.environ | {_SOCKET: str(number)},
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the parent, which passes it on
            )
            self._running[index] = process
            return process

    def _end(self) -> None:
        with self._lock:
            running = list(self._running.values())
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        deadline = monotonic() + _GRACE
        for process in running:
            try:
                process.wait(max(0.1, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
