"""`shelflife serve`: inference and control API in one light process.

Nothing heavy is imported here (no MLflow, no Evidently): a worker starts in a second and answers
while checks and training run elsewhere.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from core.errors import SettingsError
from core.settings import Settings
from serving import app as inference
from serving.log_process import Appends, LogProcess
from serving.rest import Rest
from shelflife import workers
from shelflife.api import Api
from shelflife.log_lines import Lines
from shelflife.service import Service, wall_clock
from shelflife.web.gatekeeper import Gatekeeper, proxy_secret
from shelflife.web.predict import Predict


def build(service: Service, log: Appends | None = None) -> ASGIApp:
    """The ASGI application: Open Inference Protocol v2 at `/v2`, the control API at `/api/v1`.

    Args:
        log: where answers are logged; the service's own log when None.
    """
    settings = service.settings
    if settings.access.enabled:
        proxy_secret(settings.access)  # a mistake in it is known before the first request
        if settings.serving.grpc_port is not None:
            expected = "null while access.enabled is true: gRPC has no gatekeeper"
            raise SettingsError("serving.grpc_port", settings.serving.grpc_port, expected)
    router, rest = routed(service, log or service.log)
    app = rest.direct(router)
    return Gatekeeper(app, settings, service.ledger) if settings.access.enabled else app


def routed(service: Service, log: Appends) -> tuple[Starlette, Rest]:
    """Every route, and the one among them that `build` takes out of the router."""
    settings = service.settings
    serving = inference.build(settings, service.ledger, log, service.home, clock=wall_clock)

    def snapshot() -> dict[str, Any]:
        return {"counters": serving.metrics().counters, "waiting": api.events.pairs.waiting()}

    api = Api(settings, service.ledger, service.log, snapshot, serving.count)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        async with serving.lifespan(app):
            sweeping = asyncio.create_task(api.events.sweeping())
            yield
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping

    predict = Predict(settings, serving.answering, serving.rest)
    frames = Route("/api/v1/models/{model}/predict", predict.predict, methods=["POST"])
    router = Starlette(
        routes=[*serving.routes, frames, *api.routes()],
        lifespan=lifespan,
        exception_handlers={HTTPException: inference.http_error},
    )
    return router, serving.rest


def serve(service: Service, file: str | None = None) -> int:
    """Answer requests until SIGINT or SIGTERM; what waits to be logged is committed first.

    Args:
        file: the settings file, for workers (`serving.workers`) to read; they find the default one
            by themselves when None.

    A second signal cuts short what is being answered, never what was promised to be logged: the
    interpreter ends by itself, and the log's writer commits its queue on the way out.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    serving, listener = service.settings.serving, workers.inherited()
    if serving.workers > 1 and listener is None:
        command = [sys.executable, "-m", "shelflife.cli", "serve"]
        named = ["--settings", file] if file else []
        with workers.listen(serving.host, serving.port) as shared:
            return workers.Workers([*command, *named], shared, serving.workers).run()
    writer = None
    if serving.log_process:
        closing = () if listener is None else (listener,)
        writer = LogProcess.start(lambda: service.joined().log, closing=closing)
    # The log's writer and the models' threads need the interpreter for microseconds at a time; with
    # the default of 5 ms they wait for it longer than they work, once the event loop is busy.
    sys.setswitchinterval(0.0001)
    # Requests make next to no cycles; looking for them takes as long as answering one.
    gc.set_threshold(20_000, 50, 100)
    # uvicorn repeats the signal for the handler it found; the default one would end us on the spot.
    signal.signal(signal.SIGTERM, _leave)
    with suppress(KeyboardInterrupt):
        config = uvicorn.Config(build(service, writer), **options(service.settings))
        uvicorn.Server(config).run(sockets=None if listener is None else [listener])
    if writer is not None:
        writer.close()
    service.close()
    return 0


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def options(settings: Settings) -> dict[str, Any]:
    """How uvicorn runs."""
    return inference.SERVER_OPTIONS | {
        "host": settings.serving.host,
        "port": settings.serving.port,
        "log_config": None,
        "timeout_graceful_shutdown": 10,
    }
