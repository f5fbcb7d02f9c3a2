"""A caller of the service: invoices as inference requests, labels when they become known.

Plain `http.client` over a few kept-alive connections: the client shares two cores with the server
it drives, so it should be cheap.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import pandas as pd

from core.times import iso
from shelflife.demo.story import CATEGORIES, INPUTS, MODEL, TARGET

_LANES = 128  # a prediction takes a model as long for 64 rows as for one: concurrency pays
# While a check is at work callers go on as before; if it turns into a retraining run they slow
# down, because a run of seconds would otherwise last weeks of the replay's time.
_BURST, _BURST_PAUSE, _BURSTS = 48, 0.04, 25
_SLOW_PAUSE = 0.05
_DATATYPE = {"f": "FP64", "i": "INT64"}


class Tally:
    """What the client saw: counted on its side, compared with the log's at the end."""

    def __init__(self) -> None:
        self.sent = self.failed = self.acknowledged = 0
        self.versions: dict[str, int] = {}
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def note(self, status: int, body: bytes) -> None:
        """Count one answer."""
        answer = msgspec.json.decode(body) if status == 200 else {}
        logged = answer.get("parameters", {}).get("shelflife_logged")
        with self._lock:
            self.sent += 1
            if status != 200:
                self.failed += 1
                self.errors.append(f"{status}: {body[:200]!r}")
                return
            self.acknowledged += logged == "committed"
            version = str(answer.get("model_version"))
            self.versions[version] = self.versions.get(version, 0) + 1


class Caller:
    """Sends rows of the stream to the inference endpoint and labels to the API."""

    def __init__(self, frame: pd.DataFrame, host: str, port: int) -> None:
        self.host, self.port, self.tally = host, port, Tally()
        self._bodies = _Bodies(frame)
        self._queue: queue.Queue[int | None] = queue.Queue()
        self._lanes = [threading.Thread(target=self._lane, daemon=True) for _ in range(_LANES)]
        for lane in self._lanes:
            lane.start()

    def send(self, rows: Sequence[int]) -> None:
        """Send rows as fast as the service answers; returns when all are answered."""
        for row in rows:
            self._queue.put(row)
        self._queue.join()

    def trickle(self, rows: Sequence[int], until: threading.Event) -> int:
        """Send rows until the event, first in bursts, then one by one; returns how many."""
        sent = turn = 0
        while sent < len(rows):
            early = turn < _BURSTS
            if until.wait(_BURST_PAUSE if early else _SLOW_PAUSE):
                return sent
            part = rows[sent : sent + (_BURST if early else 1)]
            self.send(part)
            sent, turn = sent + len(part), turn + 1
        until.wait()
        return sent

    def label(self, frame: pd.DataFrame) -> int:
        """Post labels; returns how many the service says it has committed."""
        if frame.empty:
            return 0
        labels = [
            {"id": name, "label": int(value), "time": iso(moment)}
            for name, value, moment in zip(
                frame["invoice"], frame[TARGET], frame["label_time"], strict=True
            )
        ]
        body = msgspec.json.encode({"labels": labels})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request("POST", f"/api/v1/models/{MODEL}/labels", body, _HEADERS)
        response = connection.getresponse()
        raw = response.read()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"labels were refused: {response.status} {raw[:500]!r}")
        return int(json.loads(raw)["received"])

    def close(self) -> None:
        """Let the connections go."""
        for _ in self._lanes:
            self._queue.put(None)
        for lane in self._lanes:
            lane.join()

    def _lane(self) -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        path = f"/v2/models/{MODEL}/infer"
        while (row := self._queue.get()) is not None:
            try:
                connection.request("POST", path, self._bodies.of(row), _HEADERS)
                response = connection.getresponse()
                self.tally.note(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # a fresh connection for the next request
                self.tally.note(0, repr(error).encode())
            finally:
                self._queue.task_done()
        connection.close()


_HEADERS = {"Content-Type": "application/json"}


class _Bodies:
    """Request bodies: one tensor per column, the invoice number as the prediction id."""

    def __init__(self, frame: pd.DataFrame) -> None:
        values = frame[INPUTS].astype(object).where(frame[INPUTS].notna(), None)
        self._rows: list[tuple[Any, ...]] = list(values.itertuples(index=False, name=None))
        self._ids = frame["invoice"].tolist()
        self._times: list[datetime] = frame["invoice_time"].tolist()
        self._types = [
            "BYTES" if name in CATEGORIES else _DATATYPE[frame[name].dtype.kind] for name in INPUTS
        ]

    def of(self, row: int) -> bytes:
        tensors = [
            {"name": name, "shape": [1], "datatype": kind, "data": [value]}
            for name, kind, value in zip(INPUTS, self._types, self._rows[row], strict=True)
        ]
        return msgspec.json.encode(
            {
                "id": self._ids[row],
                "parameters": {"event_time": iso(self._times[row])},
                "inputs": tensors,
            }
        )


def wait_ready(host: str, port: int, *, timeout: float, alive: Any) -> None:
    """Wait until the service answers that the model is ready.

    Raises:
        RuntimeError: it ended, or did not get ready in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if alive() is not None:
            raise RuntimeError("the serving process ended; see its log")
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", f"/v2/models/{MODEL}/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the service was not ready within {timeout:g} s; see its log")
