"""Where messages go: webhooks signed to Standard Webhooks 1.0.0.

A receiver's address and its keys are secrets: no error, row or log line holds them. What is kept of
a failed attempt is the status and a few words of our own, never the words of the other side.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import logging
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from msgspec import Struct

from core.errors import SettingsError
from core.settings import ReceiverSettings, Secret, secret, span
from core.times import utc

_THROTTLED = frozenset({429, 502, 503, 504})  # answers whose retry-after is honoured
_LONGEST_WAIT = timedelta(hours=24)
_KEY_BYTES = range(24, 65)  # what Standard Webhooks asks of a key


class Message(Struct, frozen=True, kw_only=True):
    """One message to one receiver."""

    id: str  # the same over all attempts: what the receiver tells repetitions by
    type: str
    body: str  # JSON


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of one attempt."""

    delivered: bool = False
    status: int | None = None  # None: no answer
    error: str = ""  # in our words; safe to keep and to show
    retry_after: timedelta = timedelta(0)
    gone: bool = False  # the receiver wants no more messages: do not try again


class Receiver(Protocol):
    """Somebody who is told. `send` is called from one thread at a time per pass."""

    @property
    def longest(self) -> timedelta:
        """The time limit of one attempt."""
        ...

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Try once, at the (real) moment `at`. Sending the same message twice must do no harm."""
        ...


def build(settings: Iterable[ReceiverSettings]) -> dict[str, Receiver]:
    """The receivers of the settings, by name.

    Raises:
        SettingsError: see `Webhook`; or two have the same name.
    """
    receivers: dict[str, Receiver] = {}
    for one in settings:
        if one.name in receivers:
            raise SettingsError("receivers", one.name, "a name of its own for every receiver")
        receivers[one.name] = Webhook(one)
    return receivers


class Webhook:
    """A signed HTTP POST. Any answer but 2xx is a failure; redirects are not followed.

    Raises:
        SettingsError: the address is no http(s) URL, its variable or file does not exist, or a key
            is not `whsec_` and base64 of 24 to 64 bytes.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        self.name = settings.name
        self._longest = span(settings.timeout)
        self._url = _address(settings)
        key = f"receivers.{settings.name}.secret"
        value = secret(settings.secret)
        self._keys = [_key(part, key) for part in value.reveal().split()] if value else []

    @property
    def longest(self) -> timedelta:
        return self._longest

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Post the message once.

        Reads status and headers of the answer, never its body, and gives up after the time limit
        however slowly the other side drips.
        """
        content = message.body.encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "shelflife",
            **sign(self._keys, message.id, content, at),
        }
        limit = _TimeLimit(self._longest)
        timeout = self._longest.total_seconds()
        try:
            with (
                _unlogged(),
                limit,
                httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout) as client,
                client.stream(
                    "POST",
                    self._url.reveal(),
                    content=content,
                    headers=headers,
                    extensions={"trace": limit.trace},
                ) as response,
            ):
                return _outcome(response.status_code, response.headers, at)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            late = limit.expired or isinstance(error, httpx.TimeoutException)
            return Outcome(error=f"no answer within {timeout:g} s" if late else _words(error))


def sign(keys: Iterable[bytes], message_id: str, content: bytes, at: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks; a signature for every key, none without keys.

    Args:
        keys: two of them while one replaces the other.
        at: the moment of the attempt.
    """
    stamp = str(int(at.timestamp()))
    signed = f"{message_id}.{stamp}.".encode() + content
    signatures = [hmac.new(key, signed, hashlib.sha256).digest() for key in keys]
    headers = {"webhook-id": message_id, "webhook-timestamp": stamp}
    if signatures:
        encoded = (base64.b64encode(signature).decode() for signature in signatures)
        headers["webhook-signature"] = " ".join(f"v1,{signature}" for signature in encoded)
    return headers


def retry_after(value: str, at: datetime) -> timedelta:
    """The wait that a `retry-after` header asks for: seconds or an HTTP date; at most a day.

    Zero for a header that says neither.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text[:9])), _LONGEST_WAIT)
    try:
        wait = utc(parsedate_to_datetime(text)) - at
    except (ValueError, TypeError, OverflowError):
        return timedelta(0)
    return min(max(wait, timedelta(0)), _LONGEST_WAIT)


def _outcome(status: int, headers: httpx.Headers, at: datetime) -> Outcome:
    if 200 <= status < 300:
        return Outcome(delivered=True, status=status)
    error, gone = f"HTTP {status}", status == httpx.codes.GONE
    if gone:
        error += ": the receiver wants no more messages"
    elif 300 <= status < 400:
        error += ": a redirect, which is not followed"
    asked = headers.get("retry-after", "") if status in _THROTTLED else ""
    return Outcome(status=status, error=error, gone=gone, retry_after=retry_after(asked, at))


def _address(settings: ReceiverSettings) -> Secret:
    named = settings.url.startswith(("env:", "file:"))
    url = (secret(settings.url) if named else None) or Secret(settings.url)
    key = f"receivers.{settings.name}.url"
    try:
        parts = urlsplit(url.reveal())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx.URL(url.reveal())
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise SettingsError(key, url, "an http:// or https:// address")
    return url


def _key(text: str, setting: str) -> bytes:
    expected = "whsec_ and the base64 of 24 to 64 random bytes (two of them while rotating)"
    encoded = text.removeprefix("whsec_")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if encoded == text or len(key) not in _KEY_BYTES:
        raise SettingsError(setting, Secret(text), expected)
    return key


def _words(error: BaseException) -> str:
    """What went wrong, without the words of libraries, which name hosts and addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "TLS could not be set up: the certificate or protocol is not acceptable"
        if isinstance(cause, socket.gaierror):
            return "the host's name could not be resolved"
        if isinstance(cause, OSError) and (name := errno.errorcode.get(cause.errno or 0)):
            return f"the connection failed: {name}"
        cause = cause.__cause__ or cause.__context__
    return f"the connection failed: {type(error).__name__}"


class _TimeLimit:
    """Ends an attempt after a total time, by shutting its socket down from a timer.

    httpx limits each read; a server that drips a byte at a time never runs into that. `trace`
    (httpcore's extension) shows us the socket as soon as there is one.
    """

    def __init__(self, limit: timedelta) -> None:
        self.expired = False
        self._stream: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(limit.total_seconds(), self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _TimeLimit:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Called by httpcore at every step of the attempt."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._stream = info["return_value"]
        if self.expired:
            raise httpx.ReadTimeout("the attempt's time is over")

    def _expire(self) -> None:
        self.expired = True
        with self._lock:
            sock = self._stream and self._stream.get_extra_info("socket")
        if sock:
            with suppress(OSError):  # closed already
                # The plain socket's: an SSLSocket's own shutdown is not for other threads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


_sending: ContextVar[bool] = ContextVar("sending", default=False)


@contextmanager
def _unlogged() -> Iterator[None]:
    """httpx logs every URL it talks to; not those of this block."""
    token = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(token)


def _quiet(_record: logging.LogRecord) -> bool:
    return not _sending.get()


for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(_quiet)
