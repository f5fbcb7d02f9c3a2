"""Who may pass: every request of the HTTP server is recognised, weighed and counted here first.

Mounted in front of all routes where `access.enabled` is set; without it the server takes everybody
who reaches the port. A path that this page does not know asks for the highest scope.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from core import access, tokens
from core.access import Identity
from core.errors import InputError, SettingsError
from core.ledger import Ledger
from core.settings import AccessSettings, Settings, secret

log = logging.getLogger("shelflife.access")
PROXY_HEADER = "x-shelflife-proxy"
ASSERTION_HEADER = "x-shelflife-assertion"
STATE = "shelflife_identity"
_BELIEVED = 5.0  # seconds until a token is looked up again: a revoked one works no longer
_LONGEST = 300.0  # ... or, while the ledger does not answer, this long
_REMEMBERED = 10_000  # tokens and people
_USED = 300.0  # seconds between two notes that a token is used
_BURST = 10.0  # seconds' worth of requests that may come at once
_OPEN = frozenset({"/healthz", "/v2/health/live", "/v2/health/ready"})
_HINTS = "/api/v1/hints/mlflow"
Clock = Callable[[], float]


def scope_of(method: str, path: str) -> access.Scope | None:
    """The scope that a request asks for; None: anybody may."""
    reading = method in ("GET", "HEAD")
    if (reading and path in _OPEN) or (method == "POST" and path == _HINTS):
        return None  # hints are signed by MLflow with a secret of their own
    parts = path.strip("/").split("/")
    if reading and parts[0] == "runbooks" and len(parts) == 2:
        return None  # what messages link to: general texts, the same everywhere
    if parts[0] == "v2":
        return "infer" if parts[1:2] != ["repository"] or parts[-1] == "index" else "admin"
    if parts[:2] == ["api", "v1"]:
        return "read" if reading else _written(parts[2:])
    return "read" if reading and path in ("/metrics", "/openapi.json") else "admin"


def _written(parts: list[str]) -> access.Scope:
    """The scope of a request below `/api/v1` that is no reading."""
    if parts[-1:] == ["predict"]:
        return "infer"
    if parts[-1:] in (["predictions"], ["labels"], ["cloudevents"]):
        return "ingest"
    if len(parts) == 4 and parts[2] == "actions":
        return access.needed(parts[3])
    return "operate" if parts[:1] in (["incidents"], ["silences"]) else "admin"


class Buckets:
    """Requests left to each identity: buckets that refill steadily and hold ten seconds' worth."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, per_minute: int) -> float:
        """Take one; 0.0, or the seconds until there is one again."""
        rate = per_minute / 60
        most = max(1.0, rate * _BURST)
        now = self._clock()
        level, then = self._levels.pop(key, (most, now))
        level = min(most, level + (now - then) * rate)
        wait = 0.0 if level >= 1 else (1 - level) / rate
        self._levels[key] = (level - 1 if level >= 1 else level, now)
        while len(self._levels) > _REMEMBERED:
            self._levels.popitem(last=False)
        return wait


class Gatekeeper:
    """An ASGI application in front of another.

    Args:
        clock: of rates and of what is remembered.
        wall: seconds since 1970, for what expires.

    Raises:
        SettingsError: a proxy names people, and nothing proves that it is the proxy.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        ledger: Ledger,
        *,
        clock: Clock = monotonic,
        wall: Clock = time,
    ) -> None:
        self._app, self._settings, self._ledger = app, settings.access, ledger
        self._clock, self._wall = clock, wall
        self._proxy_secret = proxy_secret(settings.access)
        self._key = tokens.shared_key(Path(settings.home))
        self._known: OrderedDict[str, tuple[float, Identity | None]] = OrderedDict()
        self._used: dict[str, float] = {}
        self._nonces: OrderedDict[str, float] = OrderedDict()
        self._buckets = Buckets(clock)
        self._tasks: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None
        refusal = await self._refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, send)
        return await self._app(scope, receive, send)

    async def _refusal(self, scope: MutableMapping[str, Any]) -> Response | None:
        wanted = scope_of(scope["method"], scope["path"])
        if wanted is None:
            return None
        try:
            identity = await self._identity(scope)
        except SQLAlchemyError:
            log.warning("tokens_unreadable")
            return _answer(503, "tokens cannot be read at the moment; send it again", {
                "Retry-After": "1"
            })  # fmt: skip
        if identity is None:
            return _answer(401, _WHO, {"WWW-Authenticate": 'Bearer realm="shelflife"'})
        rate = identity.per_minute or self._settings.requests_per_minute
        wait = self._buckets.take(identity.key or identity.name, rate)
        if wait:
            text = f"more than {rate:,} requests a minute; send it again in {wait:.1f} s"
            return _answer(429, text, {"Retry-After": str(max(1, round(wait + 0.5)))})
        if not access.allows(identity, wanted):
            held = ", ".join(identity.scopes) or "none"
            return _answer(403, f"this needs the scope {wanted}; {identity.name} has {held}", {})
        scope.setdefault("state", {})[STATE] = identity
        return None

    async def _identity(self, scope: MutableMapping[str, Any]) -> Identity | None:
        headers = Headers(scope=scope)
        bearer = headers.get("authorization", "")
        if bearer[:7].lower() == "bearer ":
            return await self._token(bearer[7:].strip())
        word = headers.get(ASSERTION_HEADER)
        if word:
            return self._asserted(word, scope)
        if self._settings.proxy_user and self._proxy_secret:
            if not access.same(headers.get(PROXY_HEADER, ""), self._proxy_secret):
                return None
            name, groups = proxied(self._settings, headers)
            return access.person(self._settings, name, groups, "proxy")
        return None

    async def _token(self, token: str) -> Identity | None:
        if access.token_id(token) is None:
            return None
        key, now = access.digest(token), self._clock()
        then, identity = self._known.get(key, (-_LONGEST, None))
        if now - then < _BELIEVED:
            return identity
        try:
            found = await run_in_threadpool(tokens.recognise, self._ledger, token, now=self._now())
        except SQLAlchemyError:
            if identity is not None and now - then < _LONGEST:
                return identity  # the ledger is away: who was known a moment ago still is
            raise
        self._known[key] = (now, found)
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if found is not None and now - self._used.get(key, -_USED) >= _USED:
            self._used[key] = now
            self._aside(token)
        return found

    def _aside(self, token: str) -> None:
        """Note the use of a token; nobody waits for it."""
        task = asyncio.ensure_future(run_in_threadpool(self._touch, token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _touch(self, token: str) -> None:
        try:
            tokens.touch(self._ledger, token, now=self._now())
        except SQLAlchemyError:
            log.warning("token_use_not_noted")

    def _asserted(self, word: str, scope: MutableMapping[str, Any]) -> Identity | None:
        """Somebody the dashboard speaks for; each word is good once."""
        now = self._wall()
        said = access.believed(self._key, word, method=scope["method"], path=scope["path"], now=now)
        if said is None or said.nonce in self._nonces:
            return None
        self._nonces[said.nonce] = now
        while len(self._nonces) > _REMEMBERED:
            self._nonces.popitem(last=False)
        scope.setdefault("state", {})["shelflife_body"] = said.body
        return access.person(self._settings, said.name, said.groups, said.how)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)


def proxied(settings: AccessSettings, headers: Headers) -> tuple[str, list[str]]:
    """Whom the proxy names, and their groups."""
    name = headers.get(settings.proxy_user, "").strip()
    listed = headers.get(settings.proxy_groups, "") if settings.proxy_groups else ""
    return name, [group.strip() for group in listed.split(",") if group.strip()]


def proxy_secret(settings: AccessSettings) -> str:
    """What the proxy proves itself with; empty where none is in front.

    Raises:
        SettingsError: a proxy names people, and nothing proves that it is the proxy.
    """
    if not settings.proxy_user:
        return ""
    found = secret(settings.proxy_secret)
    if found is None or len(found.reveal()) < 16:
        expected = "env:NAME or file:/path of 16 characters or more, with proxy_user"
        raise SettingsError("access.proxy_secret", settings.proxy_secret, expected)
    return found.reveal()


_WHO = (
    "nobody here knows you; send `Authorization: Bearer TOKEN` "
    "(`shelflife tokens create` makes one)"
)


def _answer(status: int, text: str, headers: dict[str, str]) -> Response:
    body = msgspec.json.encode({"error": text})
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def caller(scope: MutableMapping[str, Any]) -> Identity | None:
    """Who the gatekeeper recognised; None where authentication is off."""
    found = scope.get("state", {}).get(STATE)
    return found if isinstance(found, Identity) else None


def assert_ours(scope: MutableMapping[str, Any]) -> None:
    """Assert that a request to act comes from no page of another site.

    Raises:
        InputError: a browser says it does, and nobody was recognised.
    """
    headers = Headers(scope=scope)
    if caller(scope) is None and cross_site(headers):
        raise InputError("Origin", headers.get("origin"), "a page of this very server")


def assert_signed(scope: MutableMapping[str, Any], raw: bytes) -> None:
    """Assert that this is the body the dashboard signed, where it signed one.

    Raises:
        InputError: it is another.
    """
    signed = scope.get("state", {}).get("shelflife_body")
    if signed is not None and hashlib.sha256(raw).hexdigest() != signed:
        raise InputError("body", f"{len(raw)} bytes", "the body that was signed")


def cross_site(headers: Headers) -> bool:
    """Whether a browser sends this from a page of another site."""
    site = headers.get("sec-fetch-site", "")
    origin = headers.get("origin", "")
    host = headers.get("host", "")
    foreign = bool(origin) and origin.partition("://")[2] != host
    return site == "cross-site" or foreign
