"""The one way out: a connection that is made only where it may go, and ends when its time is over.

A host's name is resolved once, every address it has is judged (`addresses.refusal`), and the socket
goes to one that passed: what another look at the name would say does not matter. After connecting,
and before a byte is sent, the peer's own address is judged again. Nothing here reads proxies or
anything else from the environment.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

from monitor.alert import addresses
from monitor.alert.addresses import Network

_CLOSE = 0.05  # seconds: as good as over
Resolve = Callable[..., list[tuple[Any, ...]]]


class Refused(OSError):
    """The address is one that messages may not go to."""


class Unresolved(OSError):
    """The host's name has no address, or none in time."""


class Dial:
    """One attempt: `connect`, use the socket, leave the block. The whole of it has a time limit.

    A socket's timeout starts anew with every byte; a peer that drips never runs into it. So a
    timer shuts the connection down when the time is over, whatever is being waited for.
    """

    def __init__(
        self, allowed: Sequence[Network], limit: timedelta, *, resolve: Resolve | None = None
    ) -> None:
        self.expired = False
        self._allowed, self._limit = tuple(allowed), limit.total_seconds()
        self._resolve: Resolve = resolve or socket.getaddrinfo
        self._guard: socket.socket | None = None  # a second handle: TLS takes the first one over
        self._lock = threading.Lock()
        self._timer = threading.Timer(self._limit, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Dial:
        self._until = time.monotonic() + self._limit
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            if self._guard is not None:
                self._guard.close()
                self._guard = None

    def connect(self, host: str, port: int, *, plain: bool) -> socket.socket:
        """A connected socket; its timeout is what is left of the attempt's time.

        Args:
            plain: what is sent will not be encrypted: only to networks the settings name.

        Raises:
            Refused: all addresses of the host are such that messages may not go there.
            Unresolved: the host has none.
            OSError: nobody answers.
        """
        reasons: list[str] = []
        failed: OSError | None = None
        for family, kind, number, _, address in self._addresses(host, port):
            reason = self._judge(str(address[0]), plain=plain)
            if reason:
                reasons.append(reason)
                continue
            try:
                return self._open(family, kind, number, address, plain=plain)
            except Refused:
                raise
            except OSError as error:
                failed = error
        raise failed or Refused(reasons[0] if reasons else "no address")

    @property
    def over(self) -> bool:
        """Whether what went wrong is that the time is over: a socket's own timeout may be first."""
        return self.expired or time.monotonic() > self._until - _CLOSE

    def left(self) -> float:
        """Seconds left, never quite none: zero would make a socket non-blocking."""
        return max(self._until - time.monotonic(), 0.001)

    def _judge(self, address: str, *, plain: bool) -> str:
        reason = addresses.refusal(address, self._allowed)
        if reason:
            return f"its address is {reason}; `allow` in the settings names inner networks"
        if plain and not addresses.inside(address, self._allowed):
            return "without TLS, messages go only to networks that `allow` names"
        return ""

    def _open(
        self, family: int, kind: int, number: int, address: Any, *, plain: bool
    ) -> socket.socket:
        sock = socket.socket(family, kind, number)
        try:
            sock.settimeout(self.left())
            with self._lock:
                if self.expired:
                    raise TimeoutError
                self._guard, old = sock.dup(), self._guard
            if old is not None:
                old.close()
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reason = self._judge(str(sock.getpeername()[0]), plain=plain)
            if reason:
                raise Refused(reason)
        except BaseException:
            sock.close()
            raise
        return sock

    def _addresses(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """The host's addresses, looked up in a thread: the system's resolver knows no limit."""
        found: list[list[tuple[Any, ...]]] = []

        def look() -> None:
            with suppress(OSError, UnicodeError, ValueError):
                found.append(self._resolve(host, port, 0, socket.SOCK_STREAM))

        thread = threading.Thread(target=look, name="resolve", daemon=True)
        thread.start()
        thread.join(self.left())
        if thread.is_alive():
            raise TimeoutError
        if not found or not found[0]:
            raise Unresolved
        return found[0]

    def _expire(self) -> None:
        self.expired = True
        with self._lock:
            if self._guard is not None:
                with suppress(OSError):  # not connected yet, or closed by the peer
                    self._guard.shutdown(socket.SHUT_RDWR)


def words(error: BaseException) -> str:
    """What went wrong, without the words of libraries, which name hosts and addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Refused):
            return f"refused: {cause}"
        if isinstance(cause, ssl.SSLError):
            return "TLS could not be set up: the certificate or protocol is not acceptable"
        if isinstance(cause, Unresolved | socket.gaierror):
            return "the host's name could not be resolved"
        if isinstance(cause, OSError) and (name := errno.errorcode.get(cause.errno or 0)):
            return f"the connection failed: {name}"
        cause = cause.__cause__ or cause.__context__
    return f"the connection failed: {type(error).__name__}"
