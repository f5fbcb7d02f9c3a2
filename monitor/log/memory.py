"""An inference log in memory, for `backtest`, notebooks and as the oracle of the log's own tests.

Rows lie in chunks sorted by event time, columns as arrays, so that a window of a million rows is
two binary searches and a slice. Nothing survives the process. `extend` takes whole frames;
`append` takes rows, as every `records.SampleLog` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from core.times import from_micros, micros
from monitor.log.memory_chunks import META, Chunk, apart, between, labelled_in, merged, narrow, of
from monitor.log.memory_labels import Statements
from monitor.log.records import (
    Forgotten,
    Label,
    LabelReceipt,
    LeftOut,
    LogCounts,
    Prediction,
    Role,
    Rows,
)
from monitor.log.values import clean, series, to_micros


class _Model(msgspec.Struct):
    statements: Statements
    chunks: list[Chunk]
    held: np.ndarray  # rows of each prediction id's number: how often the log holds it


class MemoryLog:
    """`records.SampleLog` without a disk. One thread at a time."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._events: dict[str, set[str]] = {}  # by source
        self._arrived = 0

    # --- writing ---------------------------------------------------------------------------------

    def append(
        self,
        rows: Sequence[Prediction],
        *,
        received: datetime,
        left_out: Mapping[LeftOut, int] | None = None,
    ) -> int:
        """See `SampleLog.append`; nothing is sampled here, so nothing is counted."""
        by_model: dict[str, list[Prediction]] = {}
        for row in rows:
            by_model.setdefault(row.model, []).append(row)
        return sum(self._append(model, mine) for model, mine in by_model.items())

    def _append(self, model: str, rows: Sequence[Prediction]) -> int:
        names = {"inputs": dict[str, None](), "outputs": dict[str, None]()}
        for row in rows:
            names["inputs"].update(dict.fromkeys(row.inputs))
            names["outputs"].update(dict.fromkeys(row.outputs))
        index = pd.RangeIndex(len(rows))
        return self.extend(
            model,
            ids=[row.id for row in rows],
            times=[row.time for row in rows],
            inputs=pd.DataFrame(
                {name: series([row.inputs.get(name) for row in rows]) for name in names["inputs"]},
                index=index,
            ),
            outputs=pd.DataFrame(
                {name: [row.outputs.get(name) for row in rows] for name in names["outputs"]},
                index=index,
            ),
            version=[row.version for row in rows],
            role=[row.role for row in rows],
            source=[row.source for row in rows],
            event_ids=[row.event_id or row.id for row in rows],
        )

    def extend(
        self,
        model: str,
        *,
        ids: Sequence[str],
        times: Any,
        inputs: pd.DataFrame,
        outputs: pd.DataFrame,
        version: str | Sequence[str] = "1",
        role: str | Sequence[str] = "champion",
        source: str | Sequence[str] = "memory",
        event_ids: Sequence[str] | None = None,
        labels: Sequence[object] | None = None,
        label_times: Any = None,
    ) -> int:
        """Append a whole frame at once; returns how many rows were new.

        Args:
            ids: prediction ids, n of them.
            times: event times: datetimes (naive ones are UTC), datetime64 or a DatetimeIndex.
            inputs: n rows, one column per input, as the model takes them.
            outputs: n rows, one float64 column per output.
            version: of all rows, or of each; `role` and `source` likewise.
            event_ids: with `source` the key of a row; the prediction ids when not given.
            labels: n values as given; None where a row has none (yet).
            label_times: when each label became known; as `times`.
        """
        count = len(ids)
        names = pd.Series(list(ids), dtype="str")
        events = names if event_ids is None else pd.Series(list(event_ids), dtype="str")
        given = (names, version, role, source, events)
        meta = pd.DataFrame(dict(zip(META, given, strict=True)), index=pd.RangeIndex(count)).astype(
            "str"
        )
        held = self._model(model)
        code = held.statements.codes(names.tolist())
        fresh = self._fresh(meta["source"], meta["event_id"])
        stored = Chunk(
            time=to_micros(times),
            seq=np.arange(self._arrived, self._arrived + count, dtype=np.int64),
            code=code,
            meta=meta,
            inputs=clean(inputs),
            outputs=clean(outputs.astype(np.float64)),
        )
        self._arrived += count
        order = np.argsort(stored.time, kind="stable")
        order = order[fresh[order]]
        self._insert(held, stored.take(order))
        if labels is not None:
            known = [i for i, value in enumerate(labels) if value is not None]
            moments = to_micros(label_times)
            held.statements.say(
                code[known],
                [labels[i] for i in known],
                moments[np.array(known, dtype=np.int64)],
                0,
            )
        return len(order)

    def _model(self, model: str) -> _Model:
        if model not in self._models:
            self._models[model] = _Model(Statements(), [], np.zeros(0, np.int64))
        return self._models[model]

    def _fresh(self, source: pd.Series, events: pd.Series) -> np.ndarray:
        fresh = np.ones(len(source), dtype=bool)
        sources = source.unique()
        for i, (each, event) in enumerate(
            zip(source if len(sources) > 1 else [*sources] * len(source), events, strict=True)
        ):
            known = self._events.setdefault(each, set())
            if event in known:
                fresh[i] = False
            known.add(event)
        return fresh

    def _insert(self, held: _Model, chunk: Chunk) -> None:
        if not len(chunk):
            return
        held.held = _grown(held.held, int(chunk.code.max()) + 1)
        np.add.at(held.held, chunk.code, 1)
        held.chunks.append(chunk)
        # Neighbours of similar size merge: as many chunks as the logarithm of the rows.
        while len(held.chunks) > 1 and len(held.chunks[-2]) < 2 * len(held.chunks[-1]):
            last = held.chunks.pop()
            held.chunks[-1] = merged([held.chunks[-1], last])

    def append_labels(self, labels: Sequence[Label], *, received: datetime) -> LabelReceipt:
        """See `SampleLog.append_labels`."""
        total = {"new": 0, "changed": 0, "unknown": 0}
        for model in {label.model for label in labels}:
            mine, held = [label for label in labels if label.model == model], self._model(model)
            code = held.statements.codes([label.id for label in mine])
            held.held = _grown(held.held, len(held.statements))
            once = np.unique(code)
            there, had = held.held[once] > 0, held.statements.has(once)
            total["unknown"] += int((~there).sum())
            total["changed"] += int((there & had).sum())
            total["new"] += int((there & ~had).sum())
            moments = np.array([micros(label.time) for label in mine], dtype=np.int64)
            held.statements.say(code, [label.value for label in mine], moments, micros(received))
        return LabelReceipt(**total)

    # --- reading ---------------------------------------------------------------------------------

    def read(
        self,
        model: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        known_at: datetime | None = None,
        known_after: datetime | None = None,
        roles: Sequence[Role] = ("champion", "challenger"),
        version: str | None = None,
        labelled: bool = False,
        newest: int | None = None,
        inputs: bool | Collection[str] = True,
    ) -> Rows:
        """See `SampleLog.read`."""
        held = self._models.get(model)
        window = [] if held is None else [between(c, start, end) for c in held.chunks]
        parts = [part for c in window if len(part := of(c, roles, version))]
        if held is None or not parts:
            return apart(merged([]), np.zeros(0, bool), np.zeros(0, np.int64), np.empty(0, object))
        if newest is not None and not labelled and known_after is None:
            # Each part is in order of time: the newest of all are among the newest of each.
            parts = [part.take(slice(max(0, len(part) - newest), None)) for part in parts]
        if inputs is not True:
            wanted = [] if inputs is False else list(inputs)
            parts = [narrow(part, wanted, outputs=inputs is not False) for part in parts]
        if labelled or known_after is not None:
            parts = [labelled_in(part, held.statements, known_at, known_after) for part in parts]
        whole = merged([part for part in parts if len(part)] or parts[:1])
        if newest is not None:
            whole = whole.take(slice(max(0, len(whole) - newest), None))
        return apart(whole, *held.statements.winning(whole.code, known_at, known_after))

    def counts(self, model: str) -> LogCounts:
        """See `SampleLog.counts`; every row counts as hot."""
        held = self._model(model)
        rows = sum(map(len, held.chunks))
        held.held = _grown(held.held, len(held.statements))
        said = held.statements.has(np.arange(len(held.statements)))
        times = [(int(c.time[0]), int(c.time[-1])) for c in held.chunks]
        return LogCounts(
            predictions=rows,
            hot=rows,
            segments=0,
            quarantined=0,
            labels=int(said.sum()),
            unknown_labels=int((said & (held.held[: len(said)] == 0)).sum()),
            oldest=from_micros(min(t[0] for t in times)) if times else None,
            newest=from_micros(max(t[1] for t in times)) if times else None,
        )

    # --- upkeep ----------------------------------------------------------------------------------

    def seal(self, *, before: datetime, min_rows: int = 1) -> int:
        """Nothing to do: there are no segments. Returns 0."""
        return 0

    def compact(self, model: str, *, at: datetime, rows: int = 0) -> int:
        """Nothing to do: there are no segments. Returns 0."""
        return 0

    def segments(self, model: str) -> list[str]:
        """No segments."""
        return []

    def forget(
        self, model: str, ids: Collection[str], *, at: datetime, reason: str = "", by: str = ""
    ) -> Forgotten:
        """See `SampleLog.forget`."""
        held = self._model(model)
        known = [i for i in ids if held.statements.known(i)]
        code = held.statements.codes(known)
        rows = self._drop(held, lambda chunk: np.isin(chunk.code, code))
        return Forgotten(rows=rows, labels=held.statements.drop(code))

    def retain(self, model: str, *, since: datetime, at: datetime) -> Forgotten:
        """See `SampleLog.retain`: here exactly the rows older than `since` go."""
        held = self._model(model)
        line = micros(since)
        gone = [chunk.code[chunk.time < line] for chunk in held.chunks]
        rows = self._drop(held, lambda chunk: chunk.time < line)
        code = np.unique(np.concatenate(gone)) if gone else np.zeros(0, np.int64)
        return Forgotten(rows=rows, labels=held.statements.drop(code[held.held[code] == 0]))

    def _drop(self, held: _Model, which: Any) -> int:
        """Take rows out, and their events: the same event again is a new row."""
        count = 0
        for i, chunk in enumerate(held.chunks):
            out = which(chunk)
            if out.any():
                np.subtract.at(held.held, chunk.code[out], 1)
                gone = chunk.meta[out]
                for source, event in zip(gone["source"], gone["event_id"], strict=True):
                    self._events[source].discard(event)
                held.chunks[i] = chunk.take(np.flatnonzero(~out))
                count += int(out.sum())
        held.chunks = [chunk for chunk in held.chunks if len(chunk)]
        return count


def _grown(counts: np.ndarray, size: int) -> np.ndarray:
    if size <= len(counts):
        return counts
    grown = np.zeros(max(size, 2 * len(counts)), dtype=counts.dtype)
    grown[: len(counts)] = counts
    return grown
