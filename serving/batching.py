"""Zero-wait batching: one thread per model takes whatever waits and predicts it at once.

Nobody waits for a batch to fill: an idle model answers a single row alone, a busy one finds, when
it is done, the rows that came meanwhile. A batch that raises is tried again request by request, so
that one bad request cannot fail its neighbours.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np
from msgspec import Struct

from core.errors import InputError, NotReady
from serving.backend import Columns, Model, ModelFailed, Outputs
from serving.timings import Timings


class _Request(Struct, eq=False):
    columns: Columns
    rows: int
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Outputs]
    began: float = 0.0


_Result = tuple[_Request, Outputs | Exception]


class Batcher:
    """The one thread that uses a model.

    Args:
        model: a loaded model.
        max_batch: most rows predicted together; a request with more goes alone and whole.
        name: of the thread.
    """

    def __init__(self, model: Model, *, max_batch: int, name: str) -> None:
        self._model, self._max_batch = model, max_batch
        self._waiting: deque[_Request] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self.timings = Timings()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def infer(self, columns: Columns, rows: int) -> Outputs:
        """Predict the rows of one request; cancelling the caller leaves others untouched.

        Raises:
            NotReady: the batcher is drained.
            InputError: the model refused values that fit its spec (an unseen category, say).
            ModelFailed: the model raised anything else, or answered what is not a number.
        """
        loop = asyncio.get_running_loop()
        request = _Request(columns, rows, loop, loop.create_future(), perf_counter())
        with self._wake:
            if self._closed:
                raise NotReady("this version is being retired; ask again")
            self._waiting.append(request)
            self._wake.notify()
        return await request.answer

    def drain(self, timeout: float = 30.0) -> bool:
        """Refuse new requests, answer those that wait, end the thread; False if it is stuck."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return len(self._waiting)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if not self._waiting:
                    return
                batch = self._take()
            _deliver(self._answer(batch))
            if batch:
                now = perf_counter()
                seconds = [now - request.began for request in batch]
                self.timings.batch(seconds, sum(request.rows for request in batch))

    def _take(self) -> list[_Request]:
        """Requests, in order, as long as their rows fit together."""
        batch, rows = list[_Request](), 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= self._max_batch):
            request = self._waiting.popleft()
            if not request.answer.cancelled():
                batch.append(request)
                rows += request.rows
        return batch

    def _answer(self, batch: list[_Request]) -> list[_Result]:
        if len(batch) > 1:
            with suppress(Exception):  # whose fault it is shows when each goes alone
                return self._together(batch)
        return [self._alone(request) for request in batch]

    def _together(self, batch: list[_Request]) -> list[_Result]:
        names = list(batch[0].columns)
        columns = {name: np.concatenate([r.columns[name] for r in batch]) for name in names}
        total = sum(request.rows for request in batch)
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


def checked(outputs: Outputs, rows: int) -> Outputs:
    """The outputs, if there is one finite number per row in each.

    Raises:
        ModelFailed: there is not.
    """
    for name, array in outputs.items():
        if array.shape != (rows,):
            raise ModelFailed(f"{name}: the model answered shape {array.shape} to {rows} rows")
        if not np.isfinite(array).all():
            bad = array[~np.isfinite(array)][0]
            raise ModelFailed(f"{name}: the model answered {bad}; expected a finite number")
    return outputs


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
        if request.answer.done():  # its caller went away
            continue
        if isinstance(result, Exception):
            request.answer.set_exception(result)
        else:
            request.answer.set_result(result)
