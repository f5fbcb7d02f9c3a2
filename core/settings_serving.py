"""How models are served: the `serving` section of the settings."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from core.settings_interpreters import InterpreterSettings
from core.settings_retrain import Duration, Positive

Port = Annotated[int, Meta(ge=0, le=65535)]


class ServingSettings(InterpreterSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    """Address the server listens at; this machine alone by default."""
    port: Port = 8080
    """Where it listens; 0 takes any free port."""
    max_body_mb: Positive = 8.0
    """Largest inference request in megabytes, before and after decompression."""
    log_queue_rows: Annotated[int, Meta(ge=1)] = 20_000
    """Rows waiting to be logged; above it they are shed and counted."""
    log_wait: Duration = "1s"
    """Longest a strict answer waits for its row to be committed."""
    max_batch: Annotated[int, Meta(ge=1)] = 256
    """Most rows predicted together; a request with more goes alone."""
    threads: Annotated[int, Meta(ge=1)] = 1
    """Threads a model may use for one prediction."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that answer on the one port, each with every model."""
    grpc_port: Port | None = None
    """Port of the gRPC service, which needs `shelflife[grpc]`; none when not set."""
    queue_rows: Annotated[int, Meta(ge=1)] = 10_000
    """Rows that may wait for one model; beyond it requests are refused (429)."""
    answer_within: Duration = "30s"
    """Longest a request may take, unless it says so itself; then it is given up (504)."""
    load_within: Duration = "10s"
    """Longest a request waits for its model to be loaded again."""
    memory_mb: Annotated[float, Meta(ge=0)] = 0.0
    """What models may hold of each worker's memory; those unused longest make room, and are loaded
    again when they are asked. 0: no limit."""
    inline: Duration = "2ms"
    """A prediction that takes no longer is made by the event loop itself, without a thread."""
    log_process: bool = True
    """Each worker has a process of its own that commits its rows (Linux): half as many more rows a
    second where many come at once, for 22 MB of memory."""
