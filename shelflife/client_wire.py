"""The client's one HTTP exchange: POST with a deadline for the whole of it.

A socket's timeout is per call, so a server that sends a byte a second would hold a reader for ever.
Here every read gets only what is left until the deadline. Proxies are not used, redirects are not
followed.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import socket
import ssl
import time
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

Outcome = Literal["sent", "split", "later", "refused"]
_BODY = 65_536  # most bytes of an answer that are read
_LONGEST = 300.0  # seconds a Retry-After may ask for


class Answer(NamedTuple):
    """What a server said to a batch, or why it said nothing."""

    outcome: Outcome  # split: some row in it is bad, or it is too large; later: try it again
    text: str
    wait: float | None = None  # seconds the server asked for
    refused: int = 0  # rows of the batch that the server says it did not take


class Connection:
    """A connection to one server, kept open between batches.

    Raises:
        ValueError: the URL is not http(s)://host[:port][/path].
    """

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; expected http://host:port or https://host")
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers, self._timeout = headers, timeout
        self._open: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes) -> Answer:
        """Send a batch; never raises for what a network or a server can do."""
        deadline = time.monotonic() + self._timeout
        kept = self._open is not None
        try:
            return self._post(path, body, deadline)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not kept or isinstance(error, TimeoutError):
                return Answer("later", _said(error))
        try:  # a kept connection may have been closed since: once more on a new one
            return self._post(path, body, deadline)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Answer("later", _said(error))

    def _post(self, path: str, body: bytes, deadline: float) -> Answer:
        if self._open is None:
            self._open = self._connect(deadline)
        connection = self._open
        connection.sock.deadline = deadline  # type: ignore[union-attr]
        connection.request("POST", self._prefix + path, body=body, headers=self._headers)
        answer = connection.getresponse()
        text = answer.read(_BODY)
        if answer.will_close or not answer.isclosed():
            self.close()
        return judge(answer.status, answer.headers.get("Retry-After"), text)

    def _connect(self, deadline: float) -> http.client.HTTPConnection:
        left = max(deadline - time.monotonic(), 0.001)
        connection = http.client.HTTPConnection(self._host, self._port or self._default)
        sock = socket.create_connection((self._host, self._port or self._default), left)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self._host)
        connection.sock = _Timed(sock)
        return connection

    @property
    def _default(self) -> int:
        return 80 if self._tls is None else 443

    def close(self) -> None:
        """Drop the connection; the next batch opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None


class _Timed:
    """A socket of which every call gets what is left until `deadline`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self.deadline = sock, 0.0

    def _arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        self._sock.settimeout(left)

    def sendall(self, data: Any) -> None:
        self._arm()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self))

    def recv_into(self, buffer: Any) -> int:
        self._arm()
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        self._sock.close()


class _Reading(io.RawIOBase):
    def __init__(self, sock: _Timed) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)


def judge(status: int, retry_after: str | None, body: bytes) -> Answer:
    """What an answer means for the batch.

    2xx: the rows were taken, but for those counted as `refused` in the answer. 400, 413, 415, 422
    are about the rows, too: smaller batches find the bad ones, unless the answer says that all are.
    Everything else (a wrong token or name included, which an operator can mend) is tried again
    later.
    """
    refused, problem = _refused(body)
    if 200 <= status < 300:
        return Answer("sent", problem, refused=refused)
    said = body[:300].decode("utf-8", "replace").replace("\n", " ")
    text = f"HTTP {status} {problem or said}".strip()
    if status in (400, 413, 415, 422):
        return Answer("split", text, refused=refused)
    return Answer("later", text, _seconds(retry_after))


def _refused(body: bytes) -> tuple[int, str]:
    """How many rows an answer says it refused, and the first reason."""
    try:
        said = msgspec.json.decode(body)
        count, problems = said["refused"], said.get("problems")
        return (count if type(count) is int else 0), str(problems[0]) if problems else ""
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return 0, ""  # nothing said, or not in our words


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After (RFC 9110 section 10.2.3): seconds or an HTTP date."""
    if not retry_after:
        return None
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        wait = (aware - datetime.now(UTC)).total_seconds()
    return min(max(wait, 0.0), _LONGEST) if wait == wait else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
