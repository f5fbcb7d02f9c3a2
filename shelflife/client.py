"""`shelflife.Client`: log predictions and labels from any Python service, at no risk to it.

    client = shelflife.Client("http://shelflife:8080", model="churn")
    identity = client.log("churn", {"age": 41, "plan": "gold"}, {"probability": 0.83})
    client.label(identity, 1)

A call encodes its row and puts it on a bounded queue; a background thread sends batches. The caller
never waits for a network, a disk or a lock that is held during either, and never sees an exception:
what cannot be queued or sent is shed and counted, `stats()` tells. Always true:

    logged == sent + shed + pending

Only the standard library and msgspec are needed.
"""

from __future__ import annotations

import atexit
import itertools
import os
import time as clock
import weakref
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from shelflife import client_values as values
from shelflife.client_sender import Sender
from shelflife.client_wire import Connection

_ENOUGH = 0.05  # seconds between looks while a flush waits


class Client:
    """Logs predictions and labels to a shelflife server in the background.

    Args:
        url: the server; `$SHELFLIFE_URL`, else http://127.0.0.1:8080.
        model: the model that `label` speaks of when it is not told.
        version: the model version that `log` names when it is not told.
        token: sent as `Authorization: Bearer …`; `$SHELFLIFE_TOKEN`. Never shown.
        headers: further headers of every request.
        source: names this service; a model's ids must be unique within it.
        max_rows: most rows waiting or under way; above it new rows are shed.
        max_bytes: most bytes of them.
        batch_rows: rows that are sent at once as soon as they are there ...
        batch_bytes: ... or so many bytes ...
        every: ... or after so many seconds.
        timeout: seconds one request may take in all, however slowly the server answers.
        exit_timeout: most seconds that the interpreter's exit waits for what is pending.

    Raises:
        ValueError: a URL that is none, a bound that is not positive. Only the constructor raises.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str = "",
        version: str = "",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        source: str = "client",
        max_rows: int = 20_000,
        max_bytes: int = 32_000_000,
        batch_rows: int = 2_000,
        batch_bytes: int = 1_000_000,
        every: float = 1.0,
        timeout: float = 10.0,
        exit_timeout: float = 2.0,
    ) -> None:
        for name, bound in (
            ("max_rows", max_rows), ("max_bytes", max_bytes), ("batch_rows", batch_rows),
            ("batch_bytes", batch_bytes), ("every", every), ("timeout", timeout),
        ):  # fmt: skip
            if not bound > 0:
                raise ValueError(f"{name} is {bound!r}; expected a number above 0")
        self.url = url or os.environ.get("SHELFLIFE_URL") or "http://127.0.0.1:8080"
        self.model, self.version, self.source = model, version, source
        secret = token if token is not None else os.environ.get("SHELFLIFE_TOKEN", "")
        sent = {"Content-Type": "application/json", "User-Agent": "shelflife-client"}
        # One bad row refuses its batch, which is then split until it is found and counted.
        sent["Prefer"] = "handling=strict"
        sent |= headers or {}
        if secret:
            sent["Authorization"] = f"Bearer {secret}"
        target = self.url
        Connection(target, sent, timeout)  # a wrong URL is said here, not in the background
        self._sender = Sender(
            lambda: Connection(target, sent, timeout),
            max_rows=max_rows,
            max_bytes=max_bytes,
            batch_rows=batch_rows,
            batch_bytes=batch_bytes,
            every=every,
        )
        self._begin()
        _clients.add(self)
        _senders[self._sender] = exit_timeout
        # Nobody can log through a client that is gone: its thread sends what there is and ends.
        weakref.finalize(self, self._sender.retire).atexit = False

    def _begin(self) -> None:
        """Ids start with letters of this process's own, so that forked workers never share one."""
        self._prefix, self._count = os.urandom(8).hex(), itertools.count()

    def __repr__(self) -> str:
        return f"Client({self.url!r}, model={self.model!r})"

    def log(
        self,
        model: str,
        inputs: Any,
        outputs: Any = None,
        *,
        id: Any = None,
        time: Any = None,
        version: Any = None,
    ) -> Any:
        """Log one prediction or a batch of them; returns its id or the list of theirs.

        Args:
            model: the model's name.
            inputs: one row (a mapping of column to value, or a pandas row), or a batch (a
                DataFrame, a list of rows, a mapping of column to list or array).
            outputs: what the model answered, in the same shapes; a bare number is the output
                `prediction`. The server's names are `prediction` (regression), `probability` (of
                the positive class) or `probability:<class>`.
            id: the prediction id that a label will come with; made up when not given.
            time: when it was asked; now when not given. A naive datetime is taken to be UTC.
            version: the model version that answered.

        Never raises and never waits. Values may be numpy or pandas scalars, Decimals, datetimes;
        NaN and infinities are logged as missing. What is passed in may be changed afterwards.
        """
        batch: list[Any] | None = None
        try:
            batch = values.rows_of(inputs)
            if batch is None:
                name = id if id is not None else f"{self._prefix}-{next(self._count):x}"
                self._one(model, inputs, outputs, name, time, version)
                return name
            return self._several(model, batch, outputs, id, time, version)
        except Exception as error:  # the caller's request goes on whatever we could not do
            self._sender.shed("invalid", len(batch) if batch is not None else 1, repr(error))
            return id

    def _one(
        self, model: str, inputs: Any, outputs: Any, name: Any, time: Any, version: Any
    ) -> None:
        version = self.version if version is None else str(version)
        moment = _now() if time is None else values.iso(time)
        data = values.row(name, moment, version, inputs, outputs, self.source)
        self._sender.put("predictions", model, data)

    def _several(
        self, model: str, batch: list[Any], outputs: Any, id: Any, time: Any, version: Any
    ) -> list[Any]:
        count = len(batch)
        answers = values.each_of(outputs, count, "outputs")
        names = values.each_of(id, count, "id")
        times = values.each_of(time, count, "time")
        versions = values.each_of(version, count, "version")
        used = []
        for inputs, answer, name, moment, known in zip(
            batch, answers, names, times, versions, strict=True
        ):
            named = name if name is not None else f"{self._prefix}-{next(self._count):x}"
            used.append(named)
            try:
                self._one(model, inputs, answer, named, moment, known)
            except Exception as error:  # this row cannot be said in JSON; the others can
                self._sender.shed("invalid", 1, repr(error))
        return used

    def label(self, id: Any, value: Any, *, time: Any = None, model: str | None = None) -> None:
        """Say what turned out true for a prediction; never raises and never waits.

        Args:
            id: the prediction's id. It may not have been logged yet.
            value: the truth, in the words of the model's target. A later label corrects it.
            time: when it became known; now when not given.
            model: the prediction's model; the client's own when not given.
        """
        try:
            name = model or self.model
            if not name:
                raise ValueError("no model named: Client(model=…) or label(…, model=…)")
            moment = _now() if time is None else values.iso(time)
            self._sender.put("labels", name, values.label(id, value, moment))
        except Exception as error:
            self._sender.shed("invalid", 1, repr(error))

    def stats(self) -> dict[str, Any]:
        """What became of every row and label so far in this process.

        `logged` = `sent` + `shed` + `pending` at every moment. `shed_by` says why: `full` (the
        queue was), `invalid` (no JSON stands for it), `refused` (by the server), `closed`.
        `retries` counts requests that had to be made again, `error` is the newest reason.
        """
        return self._sender.stats()

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what is pending now; True when all of it was sent or shed within `timeout` s."""
        self._sender.hurry()
        deadline = clock.monotonic() + timeout
        while self._sender.pending and clock.monotonic() < deadline:
            clock.sleep(min(_ENOUGH, max(deadline - clock.monotonic(), 0.0)))
        return not self._sender.pending

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is pending within `timeout` seconds and stop; the rest is shed and counted.

        Safe to call twice. Returns whether everything was sent. Later calls of `log` are counted
        as shed.
        """
        return self._sender.close(timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _now() -> str:
    return datetime.now(UTC).isoformat()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_senders: weakref.WeakKeyDictionary[Sender, float] = weakref.WeakKeyDictionary()


def _close_all() -> None:
    """At exit all clients together have the longest of their times."""
    senders = dict(_senders)
    for sender in senders:
        sender.hurry()
    deadline = clock.monotonic() + max(senders.values(), default=0.0)
    for sender in senders:
        sender.close(max(deadline - clock.monotonic(), 0.0))


def _in_child() -> None:
    for client in list(_clients):
        client._begin()
    for sender in list(_senders):
        sender.forget()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
