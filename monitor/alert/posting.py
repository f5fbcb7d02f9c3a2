"""An HTTP request to somebody else's address: what a receiver with an HTTP API is made of.

One request over one connection of `dialing.Dial`. Redirects are not followed, no proxy, cookie or
`.netrc` is read, certificates are verified, and of the answer nothing but its status and headers is
read.
"""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

import certifi

from core.errors import SettingsError
from core.settings import Secret, secret
from core.times import utc
from monitor.alert import addresses
from monitor.alert.contract import Outcome
from monitor.alert.dialing import Dial, words

_THROTTLED = frozenset({429, 502, 503, 504})  # answers whose retry-after is honoured
_LONGEST_WAIT = timedelta(hours=24)
_BAD = "the connection failed: it does not speak HTTP"


class Target:
    """Where requests go: an address, which is a secret, and what may be done to reach it.

    Raises:
        SettingsError: the address is no URL of these schemes, its variable or file does not exist,
            a network is none, or the file of authorities cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        setting: str,
        allow: tuple[str, ...] = (),
        ca: str = "",
        timeout: timedelta,
        path: str = "",
    ) -> None:
        self.timeout = timeout
        self._allowed = addresses.networks(allow, f"{setting}.allow")
        named = url.startswith(("env:", "file:"))
        found = (secret(url) if named else None) or Secret(url)
        self._parts = split(found, f"{setting}.url", ("http", "https"))
        self._path = path
        self._context = tls(ca, f"{setting}.ca") if self._parts.scheme == "https" else None

    def send(
        self,
        method: Literal["GET", "POST"],
        content: bytes,
        headers: Mapping[str, str],
        *,
        at: datetime,
    ) -> Outcome:
        """Ask once, at the (real) moment `at`; never raises for what the other side does."""
        dial = Dial(self._allowed, self.timeout)
        try:
            with dial:
                return self._ask(dial, method, content, headers, at)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if dial.over or isinstance(error, TimeoutError):
                limit = self.timeout.total_seconds()
                return Outcome(error=f"no answer within {limit:g} s")
            broken = isinstance(error, http.client.HTTPException | ValueError)
            return Outcome(
                error=_BAD if broken and not isinstance(error, OSError) else words(error)
            )

    def _ask(
        self,
        dial: Dial,
        method: str,
        content: bytes,
        headers: Mapping[str, str],
        at: datetime,
    ) -> Outcome:
        parts = self._parts
        host, port = str(parts.hostname), parts.port or (443 if self._context else 80)
        sock = dial.connect(host, port, plain=self._context is None)
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=host)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            own = {"user-agent": "shelflife", "connection": "close", **_credentials(parts)}
            connection.request(method, self._target(), content or None, {**own, **headers})
            sock.settimeout(dial.left())
            with connection.getresponse() as answer:
                if dial.expired:  # headers that our own end cut short
                    raise TimeoutError
                return _outcome(answer.status, answer.headers.get("retry-after", ""), at)
        finally:
            sock.close()

    def _target(self) -> str:
        path = self._parts.path
        if self._path:
            path = path.rstrip("/") + self._path
        query = f"?{self._parts.query}" if self._parts.query else ""
        return (path or "/") + query


def split(url: Secret, setting: str, schemes: tuple[str, ...]) -> SplitResult:
    """A URL's parts.

    Raises:
        SettingsError: it is not one of these schemes with a host and a usable port.
    """
    try:
        parts = urlsplit(url.reveal())
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        str(parts.hostname).encode("idna")
        usable &= url.reveal().isascii() and url.reveal().isprintable() and " " not in url.reveal()
    except (ValueError, UnicodeError):
        usable = False
    if not usable:
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        raise SettingsError(setting, url, f"an address that begins with {wanted}")
    return parts


def tls(ca: str, setting: str) -> ssl.SSLContext:
    """Certificates are verified, by Mozilla's authorities or by those of a file.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca or certifi.where())
    except (OSError, ssl.SSLError):
        raise SettingsError(setting, ca, "a PEM file of certificate authorities") from None


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


def _outcome(status: int, asked: str, at: datetime) -> Outcome:
    if 200 <= status < 300:
        return Outcome(delivered=True, status=status)
    error, gone = f"HTTP {status}", status == http.HTTPStatus.GONE
    if gone:
        error += ": the receiver wants no more messages"
    elif 300 <= status < 400:
        error += ": a redirect, which is not followed"
    wait = retry_after(asked, at) if status in _THROTTLED else timedelta(0)
    return Outcome(status=status, error=error, gone=gone, retry_after=wait)


def _credentials(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
