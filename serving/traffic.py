"""From answers to the inference log, without an answer ever waiting longer than it must.

Rows go to a bounded queue; one thread commits whatever has gathered, in one transaction (a group
commit). A log that is locked, full or gone makes rows wait, then be shed and counted; it never
fails an answer, and delays one by `wait` at most, once: while a commit is overdue, answers say
`queued` at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Literal

from msgspec import Struct
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core.ledger import Ledger
from monitor.log.records import Prediction, SampleLog

Logged = Literal["committed", "queued", "shed", "unsampled"]

_log = logging.getLogger("shelflife.serving")
#: The store is locked, full or out of reach; the same rows may do later.
_UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeout, OSError)
_GROUP = 2000  # most rows of one transaction
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds before a failed commit is tried again
_COUNT_EVERY = 1.0  # seconds between writes of the counters
_LINGER = 0.005  # seconds in which rows nobody waits for may gather


class _Batch(Struct, eq=False):
    rows: Sequence[Prediction]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Logged]
    awaited: bool


class LogWriter:
    """The queue, its thread, and the counters.

    Args:
        log: where rows go.
        ledger: where counters go, keyed (model, name).
        queue_rows: rows that may wait; beyond it they are shed.
        wait: longest a strict answer waits for its commit.
        clock: wall clock, for `received`.
    """

    def __init__(
        self,
        log: SampleLog,
        ledger: Ledger,
        *,
        queue_rows: int,
        wait: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._log, self._ledger, self._clock = log, ledger, clock
        self._limit, self._wait = queue_rows, wait.total_seconds()
        self._queue: deque[_Batch] = deque()
        self._rows = 0  # in the queue and in the commit under way
        self._wake = threading.Condition()
        self._busy_since: float | None = None
        self._closing: float | None = None  # the moment to give up
        self._totals: Counter[tuple[str, str]] = Counter()
        self._unsaved: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)

    def start(self) -> None:
        """Begin to commit; rows submitted before wait in the queue."""
        self._thread.start()

    def submit(self, rows: Sequence[Prediction], *, awaited: bool) -> asyncio.Future[Logged]:
        """Queue the rows of one answer, all or none; call it on a running event loop.

        Returns a future of "committed", or of "shed" at once where there is no room.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Logged] = loop.create_future()
        with self._wake:
            room = self._closing is None and self._rows + len(rows) <= self._limit
            if room:
                self._queue.append(_Batch(rows, loop, done, awaited))
                self._rows += len(rows)
                self._wake.notify()
        if not room:
            self.count(rows[0].model, "shed", len(rows))
            done.set_result("shed")
        return done

    async def log(self, rows: Sequence[Prediction], *, strict: bool) -> Logged:
        """Queue rows and say what became of them: in strict mode after their commit, or after
        `wait`; otherwise at once."""
        if not rows:
            return "unsampled"
        done = self.submit(rows, awaited=strict)
        if done.done():
            return done.result()
        if strict and not self.overdue:
            await asyncio.wait({done}, timeout=self._wait)
        return done.result() if done.done() else "queued"

    @property
    def overdue(self) -> bool:
        """Whether the commit under way takes longer than an answer may wait."""
        since = self._busy_since
        return since is not None and monotonic() - since > self._wait

    @property
    def waiting(self) -> int:
        """Rows not yet committed."""
        return self._rows

    def count(self, model: str, name: str, by: int = 1) -> None:
        """Add to a counter; it reaches the ledger within seconds, or at `close`."""
        with self._counting:
            self._totals[model, name] += by
            self._unsaved[model, name] += by

    def totals(self) -> dict[tuple[str, str], int]:
        """Every counter since this worker started, by (model, name)."""
        with self._counting:
            return dict(self._totals)

    def close(self, timeout: float = 10.0) -> int:
        """Commit what waits and the counters; returns the rows that could not be committed."""
        with self._wake:
            self._closing = monotonic() + timeout
            self._wake.notify()
        self._thread.join(timeout + 1.0)
        if self._rows:
            _log.error("log_rows_lost", extra={"rows": self._rows})
        return self._rows

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        counted = monotonic()
        while True:
            group = self._take()
            if group:
                self._commit(group)
            ending = self._closing is not None and not self._queue
            if ending or monotonic() - counted >= _COUNT_EVERY:
                self._save_counters()
                counted = monotonic()
            if ending or self._given_up():
                return

    def _take(self) -> list[_Batch]:
        with self._wake:
            if not self._queue and self._closing is None:
                self._wake.wait(_COUNT_EVERY)
            hurry = self._closing is not None or any(batch.awaited for batch in self._queue)
        if not hurry:
            sleep(_LINGER)
        with self._wake:
            group, rows = list[_Batch](), 0
            while self._queue and (not group or rows + len(self._queue[0].rows) <= _GROUP):
                group.append(self._queue.popleft())
                rows += len(group[-1].rows)
            self._busy_since = monotonic() if group else None
            return group

    def _commit(self, group: Sequence[_Batch]) -> None:
        rows = [row for batch in group for row in batch.rows]
        try:
            committed = self._append(rows)
        except _GivenUp:
            return
        except Exception as error:
            # Not the store but a row is bad: keep the others, one answer's rows at a time.
            if len(group) > 1:
                for batch in group:
                    self._commit([batch])
                return
            _log.error("log_rows_refused", extra={"rows": len(rows), "error": str(error)})
            committed = False
        for model, n in Counter(row.model for row in rows).items():
            self.count(model, "logged" if committed else "shed", n)
        with self._wake:
            self._rows -= len(rows)
            self._busy_since = None
        _notify(group, "committed" if committed else "shed")

    def _append(self, rows: Sequence[Prediction]) -> bool:
        attempt = 0
        while True:
            try:
                self._log.append(rows, received=self._clock())
            except _UNAVAILABLE as error:
                pause = _BACKOFF[min(attempt, len(_BACKOFF) - 1)]
                _log.warning("log_unavailable", extra={"attempt": attempt, "error": str(error)})
                attempt += 1
                if self._given_up():
                    raise _GivenUp from None
                sleep(pause)
            else:
                return True

    def _given_up(self) -> bool:
        return self._closing is not None and monotonic() > self._closing

    def _save_counters(self) -> None:
        with self._counting:
            amounts = dict(self._unsaved)
        if not amounts:
            return
        try:
            with self._ledger.write() as tx:
                self._ledger.count_in(tx, amounts)
        except _UNAVAILABLE as error:
            _log.warning("counters_not_saved", extra={"error": str(error)})
            return
        with self._counting:
            self._unsaved -= Counter(amounts)  # drops what reached zero


class _GivenUp(Exception):
    """Shutdown ran out of time while the log was out of reach."""


def _notify(group: Sequence[_Batch], logged: Logged) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[Logged]]] = {}
    for batch in group:
        by_loop.setdefault(batch.loop, []).append(batch.done)
    for loop, futures in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, futures, logged)


def _settle(futures: Sequence[asyncio.Future[Logged]], logged: Logged) -> None:
    for future in futures:
        if not future.done():
            future.set_result(logged)
