"""The client's queue and the thread that empties it.

Rows wait in one lane per kind and model, so that a model the server refuses holds up no other. The
lock guards counters and queues for a few instructions and is never held while anything is sent,
encoded or written to a log. It is re-entrant: a signal handler may log, too.
"""

from __future__ import annotations

import logging
import random
import threading
import time as clock
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import quote

from shelflife.client_wire import Answer, Connection

Kind = Literal["predictions", "labels"]
_log = logging.getLogger("shelflife.client")
_FIRST, _LONGEST = 0.2, 30.0  # seconds before the second attempt, and most before any
_MOST_LANES = 1_000  # kinds x models one client may speak of
_TELL = 60.0  # seconds between log lines


class _Lane:
    """What waits for one endpoint, oldest first, and what is known about sending there."""

    def __init__(self, kind: Kind, model: str) -> None:
        self.kind, self.path = kind, f"/api/v1/models/{quote(model, safe='')}/{kind}"
        self.rows: deque[bytes] = deque()
        self.bytes = 0
        self.since = 0.0  # when the oldest row came
        self.attempts = 0  # failed ones in a row
        self.after = 0.0  # no attempt before
        self.narrow = 0  # rows a batch may have while a bad one is being looked for; 0: no limit


class Sender:
    """A bounded queue with a background thread; see `client.Client` for the arguments."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        max_rows: int,
        max_bytes: int,
        batch_rows: int,
        batch_bytes: int,
        every: float,
    ) -> None:
        self._connect = connect
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._batch_rows, self._batch_bytes, self._every = batch_rows, batch_bytes, every
        self.forget()

    def forget(self) -> None:
        """Start from nothing: at first, and in a forked child, whose parent sends what it had."""
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._lanes: dict[tuple[Kind, str], _Lane] = {}
        self._thread: threading.Thread | None = None
        self._closed = self._given_up = self._hurried = False
        self._under_way: tuple[_Lane, int] | None = None
        self._logged = self._sent = self._pending = self._bytes = 0
        self._shed: Counter[str] = Counter()
        self._batches = self._retries = 0
        self._error = ""
        self._told, self._told_shed = -_TELL, 0

    @property
    def pending(self) -> int:
        """Rows that wait or are under way."""
        return self._pending

    def put(self, kind: Kind, model: str, row: bytes) -> None:
        """Queue a row, or shed it when there is no room."""
        with self._lock:
            self._logged += 1
            lane = self._lanes.get((kind, model)) or self._lane(kind, model)
            full = self._pending >= self._max_rows or self._bytes + len(row) > self._max_bytes
            if full or self._closed or lane is None:
                self._shed["closed" if self._closed else "full"] += 1
                return
            if not lane.rows:
                lane.since = clock.monotonic()
            lane.rows.append(row)
            lane.bytes += len(row)
            self._pending += 1
            self._bytes += len(row)
            waiting = len(lane.rows)
            if waiting == 1 or waiting == self._batch_rows or lane.bytes >= self._batch_bytes:
                self._news.notify()
            if self._thread is None:
                self._start()

    def _lane(self, kind: Kind, model: str) -> _Lane | None:
        if len(self._lanes) >= _MOST_LANES:
            return None
        return self._lanes.setdefault((kind, model), _Lane(kind, model))

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="shelflife-client", daemon=True)
        self._thread.start()

    def shed(self, why: str, rows: int, error: str = "") -> None:
        """Count rows that were offered and could not even be queued."""
        with self._lock:
            self._logged += rows
            self._shed[why] += rows
            self._error = error or self._error

    def stats(self) -> dict[str, Any]:
        """See `Client.stats`."""
        with self._lock:
            return {
                "logged": self._logged,
                "sent": self._sent,
                "shed": self._shed.total(),
                "pending": self._pending,
                "shed_by": dict(self._shed),
                "pending_bytes": self._bytes,
                "batches": self._batches,
                "retries": self._retries,
                "error": self._error,
            }

    def hurry(self) -> None:
        """Send what waits without waiting for more, and without the rest of a back-off."""
        with self._lock:
            self._hurried = self._pending > 0
            for lane in self._lanes.values():
                lane.after = 0.0
            self._news.notify()

    def retire(self) -> None:
        """Take nothing more, send what there is, then end the thread."""
        with self._lock:
            self._closed = True
            self._news.notify()

    def close(self, timeout: float) -> bool:
        """See `Client.close`."""
        with self._lock:
            self._closed, thread = True, self._thread
        self.hurry()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(timeout, 0.0))
        with self._lock:
            self._given_up = True
            for lane in self._lanes.values():
                # The batch under way may have arrived: it stays pending until its answer is in.
                kept = self._under_way[1] if self._under_way and self._under_way[0] is lane else 0
                for _ in range(len(lane.rows) - kept):
                    self._settle(lane, lane.rows.pop())
                    self._shed["closed"] += 1
            return not self._pending and not self._shed["closed"]

    def _drop(self, lane: _Lane, count: int, why: str) -> None:
        """Take rows off the head of a lane as shed; the lock is held."""
        for _ in range(count):
            self._settle(lane, lane.rows.popleft())
        self._shed[why] += count

    def _settle(self, lane: _Lane, row: bytes) -> None:
        lane.bytes -= len(row)
        self._bytes -= len(row)
        self._pending -= 1

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        connection = self._connect()
        while True:
            with self._news:
                lane = self._next()
                while lane is None:
                    if self._closed and not self._pending:
                        connection.close()
                        return
                    self._news.wait(self._until())
                    lane = self._next()
                batch = self._head(lane)
                self._under_way = (lane, len(batch))
            answer = self._exchange(connection, lane, batch)
            with self._lock:
                self._learn(lane, batch, answer)
            self._tell()

    def _exchange(self, connection: Connection, lane: _Lane, batch: list[bytes]) -> Answer:
        body = b'{"%s": [%s]}' % (lane.kind.encode(), b",".join(batch))
        try:
            return connection.post(lane.path, body)
        except Exception as error:  # nothing may end this thread
            connection.close()
            return Answer("later", repr(error))

    def _next(self) -> _Lane | None:
        """The lane that has waited longest of those that are due; the lock is held."""
        now = clock.monotonic()
        due = [lane for lane in self._lanes.values() if lane.rows and now >= self._due(lane)]
        return min(due, key=lambda lane: max(lane.since, lane.after), default=None)

    def _due(self, lane: _Lane) -> float:
        ripe = len(lane.rows) >= self._batch_rows or lane.bytes >= self._batch_bytes
        if ripe or lane.attempts or lane.narrow or self._hurried or self._closed:
            return lane.after
        return max(lane.since + self._every, lane.after)

    def _until(self) -> float | None:
        moments = [self._due(lane) for lane in self._lanes.values() if lane.rows]
        if not moments:
            self._hurried = False
            return None
        return max(min(moments) - clock.monotonic(), 0.001)

    def _head(self, lane: _Lane) -> list[bytes]:
        """The next batch; it stays in its lane until the server has answered."""
        most = lane.narrow or self._batch_rows
        batch, size = list[bytes](), 0
        for row in lane.rows:
            if batch and (len(batch) >= most or size + len(row) > self._batch_bytes):
                break
            batch.append(row)
            size += len(row) + 1
        return batch

    def _learn(self, lane: _Lane, batch: list[bytes], answer: Answer) -> None:
        """What became of a batch; the lock is held."""
        self._batches += 1
        self._under_way = None
        refused = min(answer.refused, len(batch))
        if answer.outcome == "sent" or refused == len(batch):
            for _ in batch:
                self._settle(lane, lane.rows.popleft())
            self._sent += len(batch) - refused
            if refused:
                self._shed["refused"] += refused
                self._error = answer.text
            lane.attempts, lane.after, lane.since = 0, 0.0, clock.monotonic()
            lane.narrow = min(lane.narrow * 2, self._batch_rows) % self._batch_rows
            return
        self._error = answer.text
        if answer.outcome == "split":
            if len(batch) == 1:
                self._drop(lane, 1, "refused")
                lane.narrow = min(2, self._batch_rows) % self._batch_rows
            else:
                lane.narrow = len(batch) // 2
            lane.attempts = 0
            return
        if self._given_up:
            self._drop(lane, len(batch), "closed")
            return
        self._retries += 1
        lane.attempts += 1
        back_off = min(_FIRST * 2.0 ** min(lane.attempts - 1, 16), _LONGEST)
        wait = back_off * random.uniform(0.5, 1.0)  # noqa: S311 jitter, no secret
        lane.after = clock.monotonic() + max(wait, answer.wait or 0.0)

    def _tell(self) -> None:
        """One line a minute, from this thread only: a log handler may be slow or hold locks."""
        now = clock.monotonic()
        with self._lock:
            shed, failing = self._shed.total(), any(lane.attempts for lane in self._lanes.values())
            if now - self._told < _TELL or (shed == self._told_shed and not failing):
                return
            new, self._told_shed, self._told = shed - self._told_shed, shed, now
            pending, error, why = self._pending, self._error, dict(self._shed)
        _log.warning(
            "rows shed: %d since the last line, %s in all; pending: %d; newest error: %s",
            new, why, pending, error,
        )  # fmt: skip
