"""The Open Inference Protocol v2 over HTTP.

    GET  /v2                                      what this server is
    GET  /v2/health/live · /v2/health/ready       the process runs · every model is warm
    GET  /v2/models/{m}[/versions/{v}]            what to send, what comes back
    GET  /v2/models/{m}[/versions/{v}]/ready
    POST /v2/models/{m}[/versions/{v}]/infer

Errors become statuses here and nowhere else. A refused request is logged nowhere but in a counter,
`refused:<reason>`.

Source: Open Inference Protocol 2.0 REST, https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import InputError, NotFound, NotReady, ShelflifeError, TooLarge, TooSlow, shown
from core.ledger import Ledger
from core.settings import Settings, span
from core.times import plausible
from monitor.log.records import Prediction, Role, SampleLog
from monitor.log.sample import kept
from serving.backend import ModelFailed, ModelStats, Outputs
from serving.canary import Canary
from serving.codec import Asked, answer, encode, refusal
from serving.heartbeat import Heartbeat, wall_clock
from serving.reading import read_body
from serving.swap import Slot, Slots
from serving.traffic import Logged, LogWriter

_log = logging.getLogger("shelflife.serving")
_JSON = "application/json"
_RETRY_AFTER = "1"  # seconds
_COPIES_WITHIN = timedelta(milliseconds=200)  # nobody waits for a shadow's rows

#: Options for uvicorn. Its keep-alive of 5 s closes idle connections that clients' pools are about
#: to use again (httpx with 64 connections: a dropped request in 2 runs of 3; none with 75 s).
SERVER_OPTIONS: dict[str, Any] = {
    "timeout_keep_alive": 75,
    "access_log": False,
    "ws": "none",
    "server_header": False,
}

Handler = Callable[[Request], Response]


class ModelMetrics(Struct, frozen=True, kw_only=True):
    """One model of this worker."""

    version: str
    in_flight: int
    waiting: int  # requests that wait for the model
    stats: ModelStats | None
    error: str


class Metrics(Struct, frozen=True, kw_only=True):
    """This worker at one moment.

    Attributes:
        counters: since the worker started, by (model, name): `answered` and `logged`, `shed`,
            `unsampled`, `late` (relaxed rows, committed after their bound) count rows, `failed`
            and `refused:<reason>` count requests; `shadowed`, `shadow_shed`, `shadow_failed` rows,
            `canary_answered`, `canary_failed` (the champion answered instead) and
            `canary_skipped` requests of a challenger.
        log_waiting: rows not yet committed.
    """

    counters: dict[tuple[str, str], int]
    log_waiting: int
    models: dict[str, ModelMetrics]


class Serving:
    """Routes, and the threads behind them; made by `build`."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        log: SampleLog,
        home: Path,
        clock: Callable[[], datetime],
    ) -> None:
        serving = settings.serving
        self._settings, self._clock = settings, clock
        self._limit = int(serving.max_body_mb * 1_000_000)
        self._read_within = span(settings.ingest.read_within).total_seconds()
        self._ahead = span(settings.ingest.future)
        self._draining = False
        self._writer = LogWriter(
            log,
            ledger,
            queue_rows=serving.log_queue_rows,
            wait=span(serving.log_wait),
            clock=clock,
        )
        # Containers may share host names and process ids; the row of a worker is its own.
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"
        self.slots = Slots(
            home,
            max_batch=serving.max_batch,
            threads=serving.threads,
            trust_pickle=lambda model: settings.model(model).trust_pickle,
            clock=clock,
            changed=self._changed,
            count=self._writer.count,
        )
        self._heartbeat = Heartbeat(ledger, self.slots, self.worker, clock=clock)

    def _changed(self) -> None:
        self._heartbeat.beat_now()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Starts the threads; at the end commits what waits, and unloads."""
        self._writer.start()
        self.slots.start()
        self._heartbeat.start()
        try:
            yield
        finally:
            self._draining = True
            self.slots.close()
            self._heartbeat.close()
            self._writer.close()

    @property
    def routes(self) -> list[Route]:
        """The protocol's endpoints, at the root."""
        routes = []
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(f"{model}/infer", self.infer, methods=["POST"]),
                Route(f"{model}/ready", self._guarded(self._model_ready), methods=["GET"]),
                Route(model, self._guarded(self._model_metadata), methods=["GET"]),
            ]
        return [
            *routes,
            Route("/v2", self._guarded(self._server), methods=["GET"]),
            Route("/v2/health/live", self._guarded(self._live), methods=["GET"]),
            Route("/v2/health/ready", self._guarded(self._ready), methods=["GET"]),
        ]

    def metrics(self) -> Metrics:
        """What a `/metrics` page shows."""
        models = {}
        for slot in self.slots.all():
            loaded = slot.current
            models[slot.model] = ModelMetrics(
                version=loaded.target.version if loaded else "",
                in_flight=loaded.in_flight if loaded else 0,
                waiting=loaded.batcher.waiting if loaded else 0,
                stats=loaded.model.stats() if loaded else None,
                error=slot.error,
            )
        return Metrics(
            counters=self._writer.totals(), log_waiting=self._writer.waiting, models=models
        )

    def count(self, model: str, name: str, by: int = 1) -> None:
        """Add to a counter of `metrics`; it reaches the ledger within seconds."""
        if by:
            self._writer.count(model, name, by)

    # --- the data path -----------------------------------------------------------------------

    async def infer(self, request: Request) -> Response:
        """`POST …/infer`."""
        model = request.path_params["model"]
        try:
            return Response(await self._infer(request, model), media_type=_JSON)
        except ClientDisconnect:
            self._count(model, "refused:disconnected")
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            return self._refuse(error, model)

    async def _infer(self, request: Request, model: str) -> bytes:
        if self._draining:
            raise NotReady("this worker is shutting down; ask another")
        slot = self.slots.get(model)  # an unknown model is refused before its body is read
        body = await read_body(request, self._limit, self._read_within)
        pinned = request.path_params.get("version")
        with slot.use(pinned) as loaded:
            asked = loaded.codec.decode(body)
            if asked.time is not None:
                field = "parameters.event_time"
                plausible(asked.time, now=self._clock(), ahead=self._ahead, field=field)
            canary, version, outputs = slot.canary, loaded.target.version, None
            if canary is not None and pinned is None:
                outputs = await self._canary(canary, model, asked)
            if outputs is None:
                role: Role = "champion"
                outputs = await loaded.batcher.infer(asked.columns, asked.rows)
            elif canary is not None:
                role, version = "challenger", canary.version
        logged = await self._record(slot, version, role, asked, outputs)
        return answer(asked, outputs, model=model, version=version, logged=logged)

    async def _canary(self, canary: Canary, model: str, asked: Asked) -> Outputs | None:
        """The challenger's answer, if this request is one of its share and it has one."""
        if not canary.chosen(asked.id):
            return None
        if canary.resting:
            self._writer.count(model, "canary_skipped")
            return None
        outputs = await canary.infer(asked.columns, asked.rows)
        self._writer.count(model, "canary_failed" if outputs is None else "canary_answered")
        return outputs

    async def _record(
        self, slot: Slot, version: str, role: Role, asked: Asked, outputs: Outputs
    ) -> Logged:
        model, count = slot.model, self._writer.count
        settings = self._settings.model(model)
        rows = _predictions(model, version, role, asked, outputs, asked.time or self._clock())
        rate = settings.sample_rate
        sample = rows if rate >= 1 else [row for row in rows if kept(row.id, rate)]
        count(model, "answered", len(rows))
        if len(sample) < len(rows):
            count(model, "unsampled", len(rows) - len(sample))
        shadow = slot.shadow
        if shadow is not None and sample:
            shadow.offer(sample, self._submit_shadow)
        return await self._writer.log(
            sample,
            strict=settings.durability == "strict",
            within=span(settings.commit_within),
        )

    def _submit_shadow(self, rows: Sequence[Prediction]) -> None:
        self._writer.submit(rows, within=_COPIES_WITHIN)

    def _refuse(self, error: Exception, model: str) -> Response:
        if not isinstance(error, ShelflifeError):
            _log.exception("request_failed", exc_info=error)
            error = ShelflifeError(f"internal error: {type(error).__name__}")
        elif isinstance(error, ModelFailed):
            _log.error("model_failed", extra={"model": model, "error": str(error)})
        status, reason = _status(error)
        self._count(model, reason if status == 500 else f"refused:{reason}")
        return _error(status, error)

    def _count(self, model: str, name: str) -> None:
        # A counter's name must not be the caller's to choose.
        known = any(slot.model == model for slot in self.slots.all())
        self._writer.count(model if known else "", name)

    # --- the rest ------------------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Callable[[Request], object]:
        async def guarded(request: Request) -> Response:
            try:
                return handler(request)
            except ShelflifeError as error:
                return _error(_status(error)[0], error)

        return guarded

    def _server(self, request: Request) -> Response:
        body = {"name": "shelflife", "version": _release(), "extensions": []}
        return Response(encode(body), media_type=_JSON)

    def _live(self, request: Request) -> Response:
        return Response(encode({"live": True}), media_type=_JSON)

    def _ready(self, request: Request) -> Response:
        if self._draining or not self.slots.ready:
            waiting = [slot.model for slot in self.slots.all() if slot.current is None]
            raise NotReady(f"models that are not warm yet: {waiting or 'not known yet'}")
        return Response(encode({"ready": True}), media_type=_JSON)

    def _model_ready(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version")
        with self.slots.get(model).use(version) as loaded:
            why = loaded.model.health()
        if why or self._draining:
            raise NotReady(f"{model}: {why or 'shutting down'}")
        return Response(encode({"name": model, "ready": True}), media_type=_JSON)

    def _model_metadata(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version")
        with self.slots.get(model).use(version) as loaded:
            target = loaded.target
            body = loaded.codec.metadata(target.version, f"shelflife-{target.backend}")
        return Response(encode(body), media_type=_JSON)


async def http_error(request: Request, error: Exception) -> Response:
    """What the router refuses (no such path, wrong method), in the protocol's error body."""
    status = getattr(error, "status_code", 500)
    detail = getattr(error, "detail", type(error).__name__)
    path = shown(request.url.path)
    found = _error(status, ShelflifeError(f"{request.method} {path}: {detail}"))
    found.headers.update(getattr(error, "headers", None) or {})  # Allow, which a 405 must have
    return found


def build(
    settings: Settings,
    ledger: Ledger,
    log: SampleLog,
    home: Path,
    *,
    clock: Callable[[], datetime] = wall_clock,
) -> Serving:
    """One worker's serving: mount `.routes`, enter `.lifespan`.

    Args:
        home: the home folder; pointers and prepared versions lie below it.
        clock: wall clock, for event times that the caller does not give, and for heartbeats.
    """
    return Serving(settings, ledger, log, home, clock)


def _predictions(
    model: str, version: str, role: Role, asked: Asked, outputs: Outputs, time: datetime
) -> list[Prediction]:
    names = list(outputs)
    answers = zip(*(outputs[name].tolist() for name in names), strict=True)
    return [
        Prediction(
            model=model,
            id=identity,
            version=version,
            role=role,
            time=time,
            inputs=inputs,
            outputs=dict(zip(names, values, strict=True)),
            # Callers number requests per model; two models may well be asked under one id.
            source=f"serving/{model}",
        )
        for identity, inputs, values in zip(asked.ids, asked.records(), answers, strict=True)
    ]


def _status(error: ShelflifeError) -> tuple[int, str]:
    if isinstance(error, TooLarge):
        return 413, "too_large"
    if isinstance(error, TooSlow):
        return 408, "too_slow"
    if isinstance(error, InputError):
        return 400, "bad_input"
    if isinstance(error, NotFound):
        return 404, f"unknown_{error.kind}"
    if isinstance(error, NotReady):
        return 503, "not_ready"
    return 500, "failed"


def _error(status: int, error: ShelflifeError) -> Response:
    headers = {"Retry-After": _RETRY_AFTER} if status == 503 else {}
    return Response(refusal(error), status_code=status, headers=headers, media_type=_JSON)


def _release() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shelflife")
    except PackageNotFoundError:
        return "0"
