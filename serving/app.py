"""One worker's serving: the routes, and the threads behind them.

`serving.rest` speaks HTTP and `serving.rpc` gRPC; both ask `serving.answering`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct
from starlette.routing import Route

from core.ledger import Ledger
from core.settings import Settings, span
from serving.answering import Answering
from serving.backend import ModelStats
from serving.heartbeat import Heartbeat, wall_clock
from serving.log_process import Appends
from serving.repository import Repository
from serving.rest import Rest
from serving.rest import http_error as http_error
from serving.swap import Slots
from serving.traffic import LogWriter

#: Options for uvicorn. Its keep-alive of 5 s closes idle connections that clients' pools are about
#: to use again (httpx with 64 connections: a dropped request in 2 runs of 3; none with 75 s).
SERVER_OPTIONS: dict[str, Any] = {
    "timeout_keep_alive": 75,
    "access_log": False,
    "ws": "none",
    "server_header": False,
}


class ModelMetrics(Struct, frozen=True, kw_only=True):
    """One model of this worker."""

    version: str
    in_flight: int
    waiting: int  # requests that wait for the model
    stats: ModelStats | None
    error: str
    resident_bytes: int = 0  # of memory, that its versions hold


class Metrics(Struct, frozen=True, kw_only=True):
    """This worker at one moment.

    Attributes:
        counters: since the worker started, by (model, name): `answered` and `logged`, `shed`,
            `unsampled`, `late` (relaxed rows, committed after their bound) count rows, `failed`
            and `refused:<reason>` count requests; `shadowed`, `shadow_shed`, `shadow_failed` rows,
            `canary_answered`, `canary_failed` (the champion answered instead) and
            `canary_skipped` requests of a challenger; `evicted` and `loaded_on_demand` count
            models that made room and came back.
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
        log: Appends,
        home: Path,
        clock: Callable[[], datetime],
    ) -> None:
        serving = settings.serving
        self._settings = settings
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
            home, settings, clock=clock, changed=self._changed, count=self._writer.count
        )
        self.answering = Answering(settings, self.slots, self._writer, clock)
        self.repository = Repository(
            home, self.slots, within=span(serving.load_within).total_seconds()
        )
        self.rest = Rest(
            self.answering,
            self.slots,
            self.repository,
            limit=int(serving.max_body_mb * 1_000_000),
            read_within=span(settings.ingest.read_within).total_seconds(),
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
            if self._settings.serving.grpc_port is None:
                yield
            else:
                from serving.rpc import Rpc  # grpcio is an extra

                async with Rpc(self.rest, self.answering, self.repository, self._settings.serving):
                    yield
        finally:
            self.answering.draining = True
            self.slots.close()
            self._heartbeat.close()
            self._writer.close()

    @property
    def routes(self) -> list[Route]:
        """The protocol's endpoints, at the root."""
        return self.rest.routes

    def metrics(self) -> Metrics:
        """What a `/metrics` page shows."""
        models = {}
        for slot in self.slots.all():
            loaded, target = slot.current, slot.target
            models[slot.model] = ModelMetrics(
                version=target.version if target else "",
                in_flight=loaded.in_flight if loaded else 0,
                waiting=loaded.batcher.waiting if loaded else 0,
                stats=loaded.model.stats() if loaded else None,
                error=slot.error,
                resident_bytes=sum(each.size for each in slot.held()),
            )
        return Metrics(
            counters=self._writer.totals(), log_waiting=self._writer.waiting, models=models
        )

    def count(self, model: str, name: str, by: int = 1) -> None:
        """Add to a counter of `metrics`; it reaches the ledger within seconds."""
        if by:
            self._writer.count(model, name, by)


def build(
    settings: Settings,
    ledger: Ledger,
    log: Appends,
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
