"""What each worker answers with, told to the ledger every two seconds and at every change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.exc import SQLAlchemyError

from core import schema
from core.ledger import Ledger
from serving.swap import Slots
from serving.timings import Tally

_log = logging.getLogger("shelflife.serving")
EVERY = 2.0  # seconds
FRESH = timedelta(seconds=4 * EVERY)  # a worker not seen for longer is gone


def wall_clock() -> datetime:
    """Now, in UTC: the clock of heartbeats, whatever clock the events have."""
    return datetime.now(UTC)


class Heartbeat:
    """Writes one row of `workers` per model; a ledger out of reach delays nobody else."""

    def __init__(
        self, ledger: Ledger, slots: Slots, worker: str, *, clock: Callable[[], datetime]
    ) -> None:
        self._ledger, self._slots, self._worker, self._clock = ledger, slots, worker, clock
        self._wake = threading.Event()
        self._hours: dict[tuple[str, str, datetime], Tally] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def beat_now(self) -> None:
        """Tell of a change without waiting for the next beat."""
        self._wake.set()

    def close(self) -> None:
        """Take this worker's rows away, if the ledger answers soon."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        while not self._stopped:
            self._try(self._rows())
            self._tell_traffic()
            self._wake.wait(EVERY)
            self._wake.clear()
        self._try([])
        self._tell_traffic()

    def _rows(self) -> list[dict[str, Any]]:
        now, rows = self._clock(), []
        for slot in self._slots.all():
            if slot.closed:
                continue  # an operator unloaded it: nobody is to wait for this worker
            target = slot.target  # in memory, or proven and loaded again when it is asked
            rows.append(
                {
                    "worker": self._worker,
                    "model": slot.model,
                    "version": target.version if target else "",
                    "sha256": target.sha256 if target else "",
                    "loaded": slot.served_since or now,
                    "seen": now,
                    "error": slot.error,
                    "challenger": slot.beside.version if slot.beside else "",
                    "challenger_error": slot.challenger_error,
                }
            )
        return rows

    def _tell_traffic(self) -> None:
        """Write this hour's counts, whole: a beat that failed is made good by the next."""
        hour = self._clock().replace(minute=0, second=0, microsecond=0)
        changed = []
        for slot in self._slots.all():
            loaded = slot.current
            found = loaded.batcher.timings.take() if loaded else None
            if loaded is not None and found is not None and found.requests:
                # Of the version, and of all models together: a fleet's page reads that one row.
                for key in ((slot.model, loaded.target.version, hour), ("", "", hour)):
                    self._hours.setdefault(key, Tally(cells={})).add(found)
                    changed.append(key)
        self._hours = {key: kept for key, kept in self._hours.items() if key[2] == hour}
        if changed:
            self._save_traffic(sorted(set(changed)))

    def _save_traffic(self, keys: list[tuple[str, str, datetime]]) -> None:
        table = schema.traffic
        try:
            with self._ledger.write() as tx:
                for model, version, hour in keys:
                    tally = self._hours[model, version, hour]
                    values = {
                        "requests": tally.requests,
                        "rows": tally.rows,
                        "batches": tally.batches,
                        "cells": msgspec.json.encode(tally.cells).decode(),
                    }
                    key = {
                        "worker": self._worker, "model": model, "version": version, "hour": hour,
                    }  # fmt: skip
                    mine = [table.c[name] == value for name, value in key.items()]
                    if not tx.execute(table.update().where(*mine).values(**values)).rowcount:
                        tx.execute(table.insert().values(**key, **values))
        except SQLAlchemyError as error:
            _log.warning("traffic_not_written", extra={"error": str(error)})

    def _try(self, rows: list[dict[str, Any]]) -> None:
        table = schema.workers
        try:
            with self._ledger.write() as tx:
                tx.execute(table.delete().where(table.c.worker == self._worker))
                if rows:
                    tx.execute(table.insert(), rows)
        except SQLAlchemyError as error:
            _log.warning("heartbeat_not_written", extra={"error": str(error)})


class Served(Struct, frozen=True, kw_only=True):
    """Which workers answer with a version."""

    ok: bool  # there are workers, and every one of them does
    workers: int  # that are alive and know the model
    serving: int  # of them, with that version
    error: str = ""  # why a worker cannot load it


def served_by(ledger: Ledger, model: str, version: str, *, now: datetime) -> Served:
    """Who answers with `version` of `model` at this moment (wall clock)."""
    table = schema.workers
    query = sa.select(table.c.version, table.c.error).where(
        table.c.model == model, table.c.seen >= now - FRESH
    )
    with ledger.read() as tx:
        rows = tx.execute(query).all()
    serving = sum(row.version == version for row in rows)
    errors = [row.error for row in rows if row.error.startswith(f"version {version}:")]
    return Served(
        ok=bool(rows) and serving == len(rows),
        workers=len(rows),
        serving=serving,
        error=errors[0] if errors else "",
    )
