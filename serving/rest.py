"""The Open Inference Protocol v2 over HTTP, with two of Triton's extensions.

    GET  /v2                                      what this server is
    GET  /v2/health/live · /v2/health/ready       the process runs · every model would answer
    GET  /v2/models/{m}[/versions/{v}]            what to send, what comes back
    GET  /v2/models/{m}[/versions/{v}]/ready      the version that the alias names is warm
    POST /v2/models/{m}[/versions/{v}]/infer      JSON, or JSON and then bytes
    POST /v2/repository/index                     what there is
    POST /v2/repository/models/{m}/load · …/unload

Errors become statuses here. A refused request is logged nowhere but in a counter,
`refused:<reason>`.

Source: Open Inference Protocol 2.0 REST, https://github.com/kserve/open-inference-protocol;
extensions: `serving.binary`, `serving.repository`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import (
    InputError,
    NotFound,
    NotReady,
    QueueFull,
    ShelflifeError,
    TooLarge,
    TooLate,
    TooSlow,
    Unsupported,
    shown,
)
from serving.answering import Answering
from serving.backend import ModelFailed
from serving.codec import answer, encode, refusal
from serving.reading import read_body, received
from serving.repository import Repository
from serving.swap import Slots

_log = logging.getLogger("shelflife.serving")
_JSON, _BYTES = "application/json", "application/octet-stream"
_JSON_HEADER = (b"content-type", b"application/json")
_SMALL = 65_536  # bytes of a body that asks for no prediction
#: How long the caller will wait, in milliseconds: by hand, and as Envoy says it.
TIMEOUTS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms")
_TIMEOUTS = tuple(name.encode() for name in TIMEOUTS)
_HEADER = "Inference-Header-Content-Length"
_HEADER_SENT = _HEADER.lower().encode()
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")

Handler = Callable[[Request], Awaitable[Response]]
Count = Callable[[str, str], None]


class _Wanted(Struct):
    """The body of the repository's requests."""

    ready: bool = False
    parameters: dict[str, Any] | None = None


class Rest:
    """The protocol's handlers.

    Args:
        limit: bytes of the largest body.
        read_within: seconds that a body may take to come.
        count: adds one to a counter of a model.
    """

    def __init__(
        self,
        answering: Answering,
        slots: Slots,
        repository: Repository,
        *,
        limit: int,
        read_within: float,
        count: Count,
    ) -> None:
        self._answering, self._slots, self._repository = answering, slots, repository
        self._limit, self._read_within, self._count_one = limit, read_within, count

    @property
    def routes(self) -> list[Route]:
        """The protocol's endpoints, the one that matters for speed first."""
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        get: dict[str, Callable[[Request], Response]] = {
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
        }
        for model in models:
            get |= {f"{model}/ready": self._model_ready, model: self._model_metadata}
        post = {
            "/v2/repository/index": self._index,
            "/v2/repository/models/{model}/load": self._load,
            "/v2/repository/models/{model}/unload": self._unload,
        }
        return [
            *(Route(f"{model}/infer", _Infer(self), methods=["POST"]) for model in models),
            *(Route(path, self.guarded(_later(h)), methods=["GET"]) for path, h in get.items()),
            *(Route(path, self.guarded(h), methods=["POST"]) for path, h in post.items()),
        ]

    # --- the data path ---------------------------------------------------------------------------

    def direct(self, app: ASGIApp) -> ASGIApp:
        """The application, with `POST …/infer` taken out before any router or middleware sees it:
        those cost as much as everything that is done for one row (`benchmarks/serving.py`)."""

        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
                found = _asked_for(scope["path"])
                if found is not None:
                    await self.infer(scope, receive, send, *found)
                    return
            await app(scope, receive, send)

        return dispatch

    async def infer(
        self, scope: Scope, receive: Receive, send: Send, model: str, version: str | None
    ) -> None:
        """`POST …/infer`, as an ASGI application."""
        try:
            content, json_length = await self._infer(scope, receive, model, version)
        except ClientDisconnect:
            self.count(model, "refused:disconnected")
            return  # nobody reads an answer
        except Exception as error:
            await self.refuse(error, model)(scope, receive, send)
            return
        headers = [_JSON_HEADER, (b"content-length", b"%d" % len(content))]
        if json_length is not None:
            headers[0] = (b"content-type", _BYTES.encode())
            headers.append((_HEADER_SENT, b"%d" % json_length))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _infer(
        self, scope: Scope, receive: Receive, model: str, version: str | None
    ) -> tuple[bytes, int | None]:
        begun = monotonic()
        headers = dict(scope["headers"])
        within, header = _milliseconds(headers), _json_length(headers)
        slot = self._answering.slot(model)  # refused, if it is to be, before its body is read
        body = await received(headers, receive, self._limit, self._read_within)
        found = await self._answering.answer(
            slot,
            lambda codec: codec.decode(body, header=header),
            version=version,
            within=within,
            since=begun,
        )
        return answer(
            found.asked, found.outputs, model=model, version=found.version, logged=found.logged
        )

    def refuse(self, error: Exception, model: str) -> Response:
        """An error of the data path as an answer, counted."""
        if not isinstance(error, ShelflifeError):
            _log.exception("request_failed", exc_info=error)
            error = ShelflifeError(f"internal error: {type(error).__name__}")
        elif isinstance(error, ModelFailed):
            _log.error("model_failed", extra={"model": model, "error": str(error)})
        status, reason = status_of(error)
        self.count(model, reason if status == 500 else f"refused:{reason}")
        return refused(status, error)

    def count(self, model: str, name: str) -> None:
        """Count what happened to a request. A counter's name must not be the caller's to choose."""
        known = any(slot.model == model for slot in self._slots.all())
        self._count_one(model if known else "", name)

    # --- the rest --------------------------------------------------------------------------------

    def guarded(self, handler: Handler) -> Handler:
        """A handler whose errors become answers."""

        async def guard(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=400)
            except ShelflifeError as error:
                return refused(status_of(error)[0], error)
            except Exception as error:  # a disk that is full, say
                return self.refuse(error, "")

        return guard

    def _server(self, request: Request) -> Response:
        body = {"name": "shelflife", "version": release(), "extensions": EXTENSIONS}
        return Response(encode(body), media_type=_JSON)

    def _live(self, request: Request) -> Response:
        return Response(encode({"live": True}), media_type=_JSON)

    def _ready(self, request: Request) -> Response:
        self.check_ready()
        return Response(encode({"ready": True}), media_type=_JSON)

    def check_ready(self) -> None:
        """Raise `NotReady` unless every model would answer."""
        if self._answering.draining or not self._slots.ready:
            waiting = [s.model for s in self._slots.all() if s.current is None and not s.evicted]
            raise NotReady(f"models that are not warm yet: {waiting or 'not known yet'}")

    def _model_ready(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version")
        self.check_model_ready(model, version)
        return Response(encode({"name": model, "ready": True}), media_type=_JSON)

    def check_model_ready(self, model: str, version: str | None) -> None:
        """Raise `NotReady` unless the version that the alias names is warm and healthy."""
        slot = self._slots.get(model)
        slot.check(version)
        if slot.evicted:
            raise NotReady(f"{model} made room for other models; it is loaded when it is asked")
        with slot.use(version) as loaded:
            why = loaded.model.health()
        if self._answering.draining:
            why = "shutting down"
        elif not why and not slot.warm and slot.wanted is not None:
            answering = loaded.target.version
            why = f"version {answering} answers until version {slot.wanted.version} is warm"
        if why:
            raise NotReady(f"{model}: {why}")

    def _model_metadata(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version")
        return Response(encode(self.metadata(model, version)), media_type=_JSON)

    def metadata(self, model: str, version: str | None) -> dict[str, Any]:
        """A model's metadata, also while it is not in memory."""
        slot = self._slots.get(model)
        slot.check(version)
        codec, target = self._slots.described(slot)
        return codec.metadata(target.version, f"shelflife-{target.backend}")

    # --- the repository --------------------------------------------------------------------------

    async def _index(self, request: Request) -> Response:
        wanted = await self._wanted(request)
        entries = self._repository.index(ready=wanted.ready)
        return Response(encode(entries), media_type=_JSON)

    async def _load(self, request: Request) -> Response:
        wanted = await self._wanted(request)
        await self._repository.load(request.path_params["model"], wanted.parameters)
        return Response(b"{}", media_type=_JSON)

    async def _unload(self, request: Request) -> Response:
        await self._wanted(request)
        await self._repository.unload(request.path_params["model"])
        return Response(b"{}", media_type=_JSON)

    async def _wanted(self, request: Request) -> _Wanted:
        body = await read_body(request, min(self._limit, _SMALL), self._read_within)
        if not body.strip():
            return _Wanted()
        try:
            return msgspec.json.decode(body, type=_Wanted)
        except (ValueError, RecursionError) as error:
            raise InputError("body", shown(body[:40]), f"a JSON object ({error})") from None


def _later(handler: Callable[[Request], Response]) -> Handler:
    async def run(request: Request) -> Response:
        return handler(request)

    return run


async def http_error(request: Request, error: Exception) -> Response:
    """What the router refuses (no such path, wrong method), in the protocol's error body."""
    status = getattr(error, "status_code", 500)
    detail = getattr(error, "detail", type(error).__name__)
    path = shown(request.url.path)
    found = refused(status, ShelflifeError(f"{request.method} {path}: {detail}"))
    found.headers.update(getattr(error, "headers", None) or {})  # Allow, which a 405 must have
    return found


class _Infer:
    """`POST …/infer` behind Starlette's router, for whoever mounts the routes elsewhere."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = scope["path_params"]
        await self._rest.infer(scope, receive, send, named["model"], named.get("version"))


def _asked_for(path: str) -> tuple[str, str | None] | None:
    """Model and version of `/v2/models/{m}[/versions/{v}]/infer`; None for any other path."""
    if not path.startswith("/v2/models/") or not path.endswith("/infer"):
        return None
    parts = path.split("/")
    if len(parts) == 5 and parts[3]:
        return parts[3], None
    if len(parts) == 7 and parts[3] and parts[4] == "versions" and parts[5]:
        return parts[3], parts[5]
    return None


def deadline(request: Request) -> float | None:
    """Seconds the caller gives in a header; None where it gives none.

    Raises:
        InputError: not a number of milliseconds.
    """
    return _milliseconds(dict(request.scope["headers"]))


def _milliseconds(headers: Mapping[bytes, bytes]) -> float | None:
    for name, sent in zip(TIMEOUTS, _TIMEOUTS, strict=True):
        given = headers.get(sent)
        if given is not None:
            if not given.isdigit() or len(given) > 12:
                raise InputError(name, given.decode("latin-1"), "whole milliseconds")
            return int(given) / 1000
    return None


def _json_length(headers: Mapping[bytes, bytes]) -> int | None:
    given = headers.get(_HEADER_SENT)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12:
        expected = "the number of bytes of JSON before the tensors' own"
        raise InputError(_HEADER, given.decode("latin-1"), expected)
    return int(given)


_STATUS: tuple[tuple[type[ShelflifeError], int, str], ...] = (
    (TooLarge, 413, "too_large"),
    (TooSlow, 408, "too_slow"),
    (Unsupported, 415, "unsupported"),
    (InputError, 400, "bad_input"),
    (QueueFull, 429, "queue_full"),
    (NotReady, 503, "not_ready"),
    (TooLate, 504, "too_late"),
)


def status_of(error: ShelflifeError) -> tuple[int, str]:
    """The status that tells of an error, and the counter that counts it."""
    if isinstance(error, NotFound):
        return 404, f"unknown_{error.kind}"
    for kind, status, reason in _STATUS:
        if isinstance(error, kind):
            return status, reason
    return 500, "failed"


def refused(status: int, error: ShelflifeError) -> Response:
    """An error in the protocol's body."""
    headers = {}
    if status in (429, 503):
        seconds = error.retry_after if isinstance(error, QueueFull) else 1.0
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return Response(refusal(error), status_code=status, headers=headers, media_type=_JSON)


def release() -> str:
    """This shelflife's version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shelflife")
    except PackageNotFoundError:
        return "0"
