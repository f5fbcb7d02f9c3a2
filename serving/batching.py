"""Zero-wait batching: whatever waits for a model is predicted at once, by one call at a time.

Nobody waits for a batch to fill: an idle model answers a single row alone, a busy one finds, when
it is done, the rows that came meanwhile. Under load a batch is as large as half the model's latency
budget allows (`serving.cost` knows what rows cost): a request then waits for the batch under way
and its own, and both together fit the budget.

A model whose call is short is asked by the event loop itself, once every request that came in the
same moment has been read: handing one row to a thread and back costs more than a converted tree
ensemble takes. Where the call as such costs next to nothing and requests come one at a time, there
is nothing to gain from company, and a request that finds the model idle asks it at once. Other
models are asked by a thread of their own, when it is their turn (`serving.turns`).

The queue is bounded; beyond it requests are refused at once. A request with a deadline is dropped
when that passes, and refused at once where it could not be met. A batch that raises is tried again
request by request, so that one bad request cannot fail its neighbours.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, perf_counter, thread_time

from msgspec import Struct

from core.errors import InputError, NotReady, QueueFull, TooLate
from serving.backend import Columns, Model, ModelFailed, Outputs, checked
from serving.columns import stacked
from serving.cost import Cost
from serving.timings import Timings
from serving.turns import Share, Turns

_NOTHING = 60e-6  # seconds a call may cost before its rows do: what queueing a request takes


class Limits(Struct, frozen=True, kw_only=True):
    """What a model's queue keeps to.

    Attributes:
        max_batch: most rows predicted together; a request with more goes alone and whole.
        queue_rows: rows that may wait; one request may always wait alone.
        budget: seconds that waiting for a batch and being predicted should take at most.
        inline: longest call, in seconds, that the event loop makes itself; 0: none.
        weight: the model's share of the processor, relative to other models'.
    """

    max_batch: int = 256
    queue_rows: int = 10_000
    budget: float = 0.05
    inline: float = 0.002
    weight: float = 1.0


class _Request(Struct, eq=False):
    columns: Columns
    rows: int
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Outputs] | None  # None: it never waits
    began: float
    within: float | None = None
    timer: asyncio.TimerHandle | None = None


_Result = tuple[_Request, Outputs | Exception]


class Batcher:
    """The queue of one model, and the only one who asks it.

    Args:
        model: a loaded model.
        name: of its thread, which starts when it is first needed.
        turns: shared with the other models of the process.
        cost: what is known of its speed, from warming it up.
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        limits: Limits | None = None,
        turns: Turns | None = None,
        cost: Cost | None = None,
    ) -> None:
        self._model, self._name = model, name
        self._limits = limits or Limits()
        self._turns, self._cost = turns or Turns(1), cost or Cost()
        self._share = Share(self._limits.weight)
        self._blocks = bool(getattr(model, "blocks", False))
        self.beside = False  # a challenger's calls never hold up the event loop
        self._waiting: deque[_Request] = deque()
        self._rows = 0  # that wait
        self._lock = threading.Lock()  # entered directly, as a condition's own methods cost more
        self._wake = threading.Condition(self._lock)
        self._busy = False  # the model is being asked
        self._scheduled: asyncio.AbstractEventLoop | None = None  # will ask it in a moment
        self._crowded = False  # requests came together the last time
        self._just_asked = False  # in this turn of the event loop
        self._closed = False
        self.timings = Timings()
        self._thread: threading.Thread | None = None

    async def infer(self, columns: Columns, rows: int, *, within: float | None = None) -> Outputs:
        """Predict the rows of one request; cancelling the caller leaves others untouched.

        Args:
            within: seconds after which the caller wants no answer any more.

        Raises:
            NotReady: the batcher is drained.
            QueueFull: too many rows wait, or too many to answer in time.
            TooLate: the time passed before there was an answer.
            InputError: the model refused values that fit its spec (an unseen category, say).
            ModelFailed: the model raised anything else, or answered what is not a number.
        """
        loop, began = asyncio.get_running_loop(), perf_counter()
        with self._lock:
            if self._closed:
                raise NotReady("this version is being retired; ask again")
            self._admit(rows, within)
            request = _Request(columns, rows, loop, None, began, within)
            if self._at_once(rows):
                self._busy = True
            else:
                request.answer = loop.create_future()
                self._waiting.append(request)
                self._rows += rows
                if not self._busy and not self._scheduled:
                    self._begin(loop)
                if self._scheduled is not loop:
                    self._limit(request)
        if request.answer is None:
            return self._ask_at_once(request, loop)
        try:
            return await request.answer
        finally:
            if request.timer is not None:
                request.timer.cancel()

    def refuse_if_full(self) -> None:
        """Raise `QueueFull` already before a request has been read."""
        if self._rows >= self._limits.queue_rows:
            raise self._full(self._rows)

    def drain(self, timeout: float = 30.0) -> bool:
        """Refuse new requests, answer those that wait, end the thread; False if it is stuck."""
        end = monotonic() + timeout
        with self._wake:
            self._closed, self._scheduled = True, None
            if self._waiting:
                self._start_thread()
            self._wake.notify_all()
            idle = self._wake.wait_for(lambda: not (self._waiting or self._busy), timeout)
        if self._thread is not None:
            self._thread.join(max(0.0, end - monotonic()))
            return idle and not self._thread.is_alive()
        return idle

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return len(self._waiting)

    # --- who may wait ----------------------------------------------------------------------------

    def _admit(self, rows: int, within: float | None) -> None:
        if within is not None and within <= 0:
            raise TooLate("the time for an answer had passed before the request was read")
        if not self._rows:
            return
        if self._rows + rows > self._limits.queue_rows:
            raise self._full(self._rows + rows)
        if within is not None and self._seconds(self._rows + rows) > within:
            raise QueueFull(
                f"{self._rows} rows wait, too many to answer within {within:g} s",
                retry_after=self._seconds(self._rows),
            )

    def _limit(self, request: _Request) -> None:
        """Give up on a request in time. One that the event loop will ask about in a moment needs
        no timer for that."""
        if request.within is not None:
            left = request.within - (perf_counter() - request.began)
            request.timer = request.loop.call_later(max(0.0, left), self._expire, request)

    def _expire(self, request: _Request) -> None:
        """The caller's time is over: the request gives up its place."""
        answer = request.answer
        if answer is None or answer.done():
            return
        answer.set_exception(TooLate(f"there was no answer within {request.within:g} s"))
        with self._wake, suppress(ValueError):  # the model has it already
            self._waiting.remove(request)
            self._rows -= request.rows

    def _full(self, rows: int) -> QueueFull:
        text = f"{self._rows} rows wait for the model, {self._limits.queue_rows} may; send it later"
        return QueueFull(text, retry_after=self._seconds(rows))

    def _seconds(self, rows: int) -> float:
        """How long so many waiting rows should take."""
        fixed, each = self._cost.line()
        return each * rows + fixed * -(-rows // self._most())

    def _most(self) -> int:
        """Rows of the largest batch that fits the latency budget. A model whose bare call does not
        is asked for as many as double it: smaller batches would only make everybody wait longer."""
        fixed, _ = self._cost.line()
        fitting = self._cost.rows_within(max(self._limits.budget / 2, 2 * fixed))
        return int(min(self._limits.max_batch, max(1.0, fitting)))

    # --- who asks the model ----------------------------------------------------------------------

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._closed and self._short(self._rows):
            self._scheduled = loop
            loop.call_soon(self._ask_inline, loop)
        else:
            self._hand_over(loop)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the thread ask about those that wait."""
        for request in self._waiting:
            if request.timer is None and request.loop is loop:
                self._limit(request)
        self._start_thread()
        self._wake.notify_all()

    def _short(self, rows: int) -> bool:
        limit = 0.0 if self._blocks or self.beside else self._limits.inline
        if not limit or not self._cost.known:
            return False
        return self._cost.of(rows) <= limit or self._cost.of(min(rows, self._most())) <= limit

    def _at_once(self, rows: int) -> bool:
        """Whether nobody is before this request, and waiting for company could save nothing; if so
        it has its turn."""
        if self._busy or self._scheduled or self._waiting or not self._short(rows):
            return False
        if self._crowded or self._just_asked:
            return False
        fixed, _ = self._cost.line()
        return fixed <= _NOTHING and self._turns.try_take(self._share)

    def _ask_at_once(self, request: _Request, loop: asyncio.AbstractEventLoop) -> Outputs:
        self._just_asked = True
        loop.call_soon(self._forget)
        _, result = self._alone(request)
        ended = perf_counter()
        seconds = ended - request.began
        self._cost.saw(request.rows, seconds)
        self.timings.batch((seconds,), request.rows)
        self._turns.give(self._share, seconds)
        with self._lock:
            self._busy = False
            if self._waiting:  # from other event loops
                self._begin(loop)
            elif self._closed:
                self._wake.notify_all()
        if isinstance(result, Exception):
            raise result
        return result

    def _forget(self) -> None:
        self._just_asked = False

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()

    def _ask_inline(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask from the event loop, if the batch is short and it is the model's turn."""
        with self._wake:
            self._scheduled = None
            if self._busy or not self._waiting:
                return
            mine = self._short(self._rows) and self._turns.try_take(self._share)
            if not mine:
                self._hand_over(loop)
                return
            batch = self._take()
            self._crowded = len(batch) > 1
            self._busy = True
        results, seconds = self._timed(batch)
        self._turns.give(self._share, seconds)
        _resolve([result for result in results if result[0].loop is loop])
        _deliver([result for result in results if result[0].loop is not loop])
        with self._wake:
            self._busy = False
            if self._waiting:
                self._begin(loop)
            elif self._closed:
                self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                while self._busy or self._scheduled or not (self._waiting or self._closed):
                    self._wake.wait()
                if not self._waiting:
                    return
            if not self._blocks:
                self._turns.take(self._share)  # more may come meanwhile
            with self._wake:
                batch = [] if self._busy else self._take()
                self._busy = self._busy or bool(batch)
            results, seconds = self._timed(batch)
            if not self._blocks:
                self._turns.give(self._share, seconds)
            _deliver(results)
            if batch:
                with self._wake:
                    self._busy = False
                    self._wake.notify_all()

    def _take(self) -> list[_Request]:
        """Requests, in order, as long as their rows fit together."""
        batch, rows, most = list[_Request](), 0, self._most()
        while self._waiting and (not batch or rows + self._waiting[0].rows <= most):
            request = self._waiting.popleft()
            self._rows -= request.rows
            if request.answer is not None and not request.answer.done():  # nor out of time
                batch.append(request)
                rows += request.rows
        return batch

    # --- asking it -------------------------------------------------------------------------------

    def _timed(self, batch: list[_Request]) -> tuple[list[_Result], float]:
        if not batch:
            return [], 0.0
        started, worked = perf_counter(), thread_time()
        results = self._answer(batch)
        ended, rows = perf_counter(), sum(request.rows for request in batch)
        seconds, worked = ended - started, thread_time() - worked
        # A thread that shares the interpreter with a busy event loop waits for it half of the time,
        # which is not the model's doing: asked by the event loop itself it takes what it works.
        self._cost.saw(rows, worked if worked > seconds / 2 else seconds)
        self.timings.batch([ended - request.began for request in batch], rows)
        return results, seconds

    def _answer(self, batch: list[_Request]) -> list[_Result]:
        if len(batch) > 1:
            with suppress(Exception):  # whose fault it is shows when each goes alone
                return self._together(batch)
        return [self._alone(request) for request in batch]

    def _together(self, batch: list[_Request]) -> list[_Result]:
        total = sum(request.rows for request in batch)
        columns = stacked([request.columns for request in batch])
        outputs = checked(self._model.infer(columns), total)
        results, start = list[_Result](), 0
        for request in batch:
            part = slice(start, start + request.rows)
            results.append((request, {name: array[part] for name, array in outputs.items()}))
            start += request.rows
        return results

    def _alone(self, request: _Request) -> _Result:
        try:
            return request, checked(self._model.infer(request.columns), request.rows)
        except ModelFailed as error:
            return request, error
        except ValueError as error:
            # Scikit-learn raises ValueError for values a fitted step has no answer to.
            return request, InputError("inputs", str(error), "values the model accepts")
        except Exception as error:
            return request, ModelFailed(f"the model raised {type(error).__name__}: {error}")


def _deliver(results: Sequence[_Result]) -> None:
    """Hand answers to their event loops: one wake-up per loop, not one per request."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Result]] = {}
    for result in results:
        by_loop.setdefault(result[0].loop, []).append(result)
    for loop, part in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, part)


def _resolve(results: Sequence[_Result]) -> None:
    for request, result in results:
        answer = request.answer
        if answer is None or answer.done():  # its caller went away
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
