"""From answers to the inference log, without an answer ever waiting longer than it must.

Rows go to a bounded queue; one thread commits whatever has gathered, in one transaction (a group
commit). What an answer is told:

    committed   strict: its rows are on disk
    accepted    relaxed: its rows will be, within the model's `commit_within`
    queued      its rows wait for a log that is late or out of reach; no promise when
    shed        the queue is full; counted, not logged
    unsampled   not one of its rows belongs to the sample

A log that is locked, full or gone makes rows wait, then be shed and counted; it never fails an
answer, and delays one by `wait` at most, once: as soon as a commit failed or is overdue, answers
say `queued` at once, until a commit succeeds.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic
from typing import Literal

from msgspec import Struct

from core.ledger import Ledger
from monitor.log.records import LeftOut
from serving.log_process import UNAVAILABLE, Appends, LogProcess
from serving.sheet import Entry, model_of, predictions

Logged = Literal["committed", "accepted", "queued", "shed", "unsampled"]

_log = logging.getLogger("shelflife.serving")
_GROUP = 2000  # most rows of one transaction
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds before a failed commit is tried again
_COUNT_EVERY = 1.0  # seconds between writes of the counters
WITHIN = timedelta(milliseconds=10)  # in which relaxed rows are committed, unless told otherwise


class _Batch(Struct, eq=False):
    rows: Entry
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Logged] | None  # None: nobody asks
    since: float  # monotonic seconds
    start: float  # when its commit should begin: at once, or at half of its time
    due: float  # when its commit has to be over; `since` where an answer waits for it


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
        log: Appends,
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
        self._start: float | None = None  # of the batch in the queue that cannot wait longest
        self._lock = threading.Lock()  # entered directly, as a condition's own methods cost more
        self._wake = threading.Condition(self._lock)
        self._busy_since: float | None = None
        self._oldest: float | None = None  # when the first row that is not committed came
        self._failing = False  # the last try to commit failed
        self._cost = 0.002  # seconds a commit takes, smoothed
        self._closing: float | None = None  # the moment to give up
        self._totals: dict[tuple[str, str], int] = {}
        self._saved: dict[tuple[str, str], int] = {}  # of those, what the ledger has
        self._counting = threading.Lock()
        self._left_out: Counter[LeftOut] = Counter()  # not yet told to the log
        self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)

    def start(self) -> None:
        """Begin to commit; rows submitted before wait in the queue."""
        self._thread.start()
        atexit.register(self._at_exit)

    def submit(self, rows: Entry, *, within: timedelta | None = None) -> asyncio.Future[Logged]:
        """Queue the rows of one answer, all or none; call it on a running event loop.

        Args:
            rows: of one answer, at least one.
            within: how long they may gather company; None commits them as soon as can be.

        Returns a future of "committed" (or "queued", once the log is found out of reach), or of
        "shed" at once where there is no room.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Logged] = loop.create_future()
        if not self._queued(rows, 0.0 if within is None else within.total_seconds(), loop, done):
            done.set_result("shed")
        return done

    def accept(self, rows: Entry, within: timedelta) -> Logged:
        """Queue the rows of one answer that does not wait for them; they are committed `within`
        that time. Call it on a running event loop."""
        span = within.total_seconds()
        if not self._queued(rows, span, asyncio.get_running_loop(), None):
            return "shed"
        return "queued" if self._behind(span) else "accepted"

    def _queued(
        self,
        rows: Entry,
        span: float,
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[Logged] | None,
    ) -> bool:
        since, n = monotonic(), len(rows)
        start = since + span / 2
        with self._lock:
            room = self._closing is None and self._rows + n <= self._limit
            if room:
                self._queue.append(_Batch(rows, loop, done, since, start, since + span))
                self._rows += n
                if self._oldest is None:
                    self._oldest = since
                sooner = self._start is None or start < self._start
                if sooner:
                    self._start = start
                if self._rows >= _GROUP or (sooner and not span):
                    self._wake.notify()
                elif sooner:
                    # Later: a thread that woke now would want the interpreter before the answer.
                    loop.call_later(max(0.0, span / 2 - self._cost), self._nudge)
        if not room:
            self.count(model_of(rows), "shed", n)
        return room

    def _nudge(self) -> None:
        with self._lock:
            self._wake.notify()

    async def log(self, rows: Entry, *, strict: bool, within: timedelta = WITHIN) -> Logged:
        """Queue rows and say what became of them: in strict mode after their commit, or after
        `wait`; otherwise at once, and they are committed `within` that time."""
        if not rows:
            return "unsampled"
        if not strict:
            return self.accept(rows, within)
        done = self.submit(rows)
        if not done.done() and not self.overdue:
            await asyncio.wait({done}, timeout=self._wait)
        return done.result() if done.done() else "queued"

    def leave_out(self, model: str, time: datetime, rate: float, rows: int) -> None:
        """Rows outside the sample: the log counts them as seen with its next commit, within
        seconds, so that `seen` is exact for every hour of event time."""
        if rows:
            hour = time.replace(minute=0, second=0, microsecond=0)
            with self._counting:
                self._left_out[model, hour, rate] += rows
            self.count(model, "unsampled", rows)

    @property
    def overdue(self) -> bool:
        """Whether the commit under way failed, or takes longer than an answer may wait."""
        since = self._busy_since
        return self._failing or (since is not None and monotonic() - since > self._wait)

    def _behind(self, seconds: float) -> bool:
        """Whether commits fail, or some row has waited for its own longer than that."""
        oldest = self._oldest
        return self._failing or (oldest is not None and monotonic() - oldest > seconds)

    @property
    def waiting(self) -> int:
        """Rows not yet committed."""
        return self._rows

    def count(self, model: str, name: str, by: int = 1) -> None:
        """Add to a counter; it reaches the ledger within seconds, or at `close`."""
        key = (model, name)
        with self._counting:
            self._totals[key] = self._totals.get(key, 0) + by

    def _unsaved(self) -> dict[tuple[str, str], int]:
        with self._counting:
            saved = self._saved
            return {k: n - saved.get(k, 0) for k, n in self._totals.items() if n != saved.get(k, 0)}

    def totals(self) -> dict[tuple[str, str], int]:
        """Every counter since this worker started, by (model, name)."""
        with self._counting:
            return dict(self._totals)

    def close(self, timeout: float = 10.0) -> int:
        """Commit what waits and the counters; returns the rows that could not be committed."""
        with self._wake:
            if self._closing is None:
                self._closing = monotonic() + timeout
            self._wake.notify()
        self._thread.join(timeout + 1.0)
        atexit.unregister(self._at_exit)
        if self._rows:
            left = {f"{model}:{name}": n for (model, name), n in self._unsaved().items()}
            _log.error("log_rows_lost", extra={"rows": self._rows, "unsaved_counters": left})
        return self._rows

    def _at_exit(self) -> None:
        """The process ends without `close` (a second signal cut the shutdown short): what was
        accepted is committed all the same, and a third signal does not stop that."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        self.close()

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
        """What has gathered, when it is time to commit it; nothing after `_COUNT_EVERY`."""
        with self._wake:
            quiet = monotonic() + _COUNT_EVERY
            while self._closing is None and self._rows < _GROUP:
                start = quiet if self._start is None else self._start - self._cost
                pause = min(start, quiet) - monotonic()
                if pause <= 0:
                    break
                self._wake.wait(pause)
            group, rows = list[_Batch](), 0
            while self._queue and (not group or rows + len(self._queue[0].rows) <= _GROUP):
                group.append(self._queue.popleft())
                rows += len(group[-1].rows)
            self._start = min((batch.start for batch in self._queue), default=None)
            self._busy_since = monotonic() if group else None
            return group

    def _commit(self, group: Sequence[_Batch]) -> None:
        rows = Counter[str]()
        for batch in group:
            rows[model_of(batch.rows)] += len(batch.rows)
        try:
            committed = self._append(group)
        except _GivenUp:
            return
        except Exception as error:
            # Not the store but a row is bad: keep the others, one answer's rows at a time.
            if len(group) > 1:
                for batch in group:
                    self._commit([batch])
                return
            _log.error("log_rows_refused", extra={"rows": rows.total(), "error": str(error)})
            committed = False
        for model, n in rows.items():
            self.count(model, "logged" if committed else "shed", n)
        if committed:
            self._count_late(group)
        with self._wake:
            self._rows -= rows.total()
            self._busy_since = None
            self._oldest = self._queue[0].since if self._queue else None
        _notify(group, "committed" if committed else "shed")

    def _count_late(self, group: Sequence[_Batch]) -> None:
        now = monotonic()
        for batch in group:
            if batch.due > batch.since and now > batch.due:
                self.count(model_of(batch.rows), "late", len(batch.rows))

    def _append(self, group: Sequence[_Batch]) -> bool:
        attempt, rows = 0, [batch.rows for batch in group]
        while True:
            started = monotonic()
            try:
                self._append_once(rows)
            except UNAVAILABLE as error:
                self._fail(group)
                pause = _BACKOFF[min(attempt, len(_BACKOFF) - 1)]
                _log.warning("log_unavailable", extra={"attempt": attempt, "error": str(error)})
                attempt += 1
                if self._given_up():
                    raise _GivenUp from None
                with self._wake:
                    if self._closing is None:
                        self._wake.wait_for(lambda: self._closing is not None, pause)
                    else:
                        self._wake.wait(min(pause, 0.05))
            else:
                self._failing = False
                self._cost += 0.2 * (monotonic() - started - self._cost)
                return True

    def _append_once(self, rows: Sequence[Entry]) -> None:
        """One transaction: rows, and the counts of those that were left out."""
        with self._counting:
            left_out = dict(self._left_out)
        received, beside = self._clock(), {"left_out": left_out} if left_out else {}
        if isinstance(self._log, LogProcess):
            self._log.append_all(rows, received=received, **beside)
        else:
            self._log.append(predictions(rows), received=received, **beside)
        if left_out:
            with self._counting:
                self._left_out -= Counter(left_out)  # drops what reached zero

    def _fail(self, group: Sequence[_Batch]) -> None:
        """Answers need not wait for a log that is out of reach: those that do are told so."""
        with self._wake:
            self._failing = True
            waiting = [batch for batch in (*group, *self._queue) if batch.due <= batch.since]
        _notify(waiting, "queued")

    def _given_up(self) -> bool:
        return self._closing is not None and monotonic() > self._closing

    def _save_counters(self) -> None:
        amounts = self._unsaved()
        with self._counting:
            left_out = bool(self._left_out)
        if not amounts:
            return
        self._busy_since = monotonic()  # answers must not wait for this either
        try:
            if left_out:
                self._append_once([])
            with self._ledger.write() as tx:
                self._ledger.count_in(tx, amounts)
        except Exception as error:
            _log.warning("counters_not_saved", extra={"error": str(error)})
            return  # they are written with the next ones
        finally:
            self._busy_since = None
        with self._counting:
            for key, n in amounts.items():
                self._saved[key] = self._saved.get(key, 0) + n


class _GivenUp(Exception):
    """Shutdown ran out of time while the log was out of reach."""


def _notify(group: Sequence[_Batch], logged: Logged) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[Logged]]] = {}
    for batch in group:
        if batch.done is not None:
            by_loop.setdefault(batch.loop, []).append(batch.done)
    for loop, futures in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, futures, logged)


def _settle(futures: Sequence[asyncio.Future[Logged]], logged: Logged) -> None:
    for future in futures:
        if not future.done():
            future.set_result(logged)
