"""One read of the log: manifest, hot rows and labels of one moment, segments verified."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from msgspec import Struct

from core.errors import CorruptSegment
from core.ledger import Ledger
from core.times import micros
from monitor.log import flat, hot, segments, truth
from monitor.log.records import Rows
from monitor.log.segments import Segment
from monitor.log.storage import Gone, Storage

_THREADS = min(8, 2 * (os.cpu_count() or 1))  # segments that are read at once


class Query(Struct, frozen=True, kw_only=True):
    """What `SampleLog.read` was asked for."""

    model: str
    start: datetime | None = None
    end: datetime | None = None
    known_at: datetime | None = None
    known_after: datetime | None = None
    roles: Sequence[str] = ()
    version: str | None = None
    labelled: bool = False
    newest: int | None = None
    inputs: bool | Collection[str] = True


class _Part(Struct):
    """What came of one segment."""

    segment: Segment
    rows: pa.Table | None = None
    problem: str = ""
    corrupt: bool = False
    gone: bool = False


class _Again(Exception):
    """Files went away between the manifest and their turn: take a fresh manifest."""


def read(ledger: Ledger, storage: Storage, query: Query) -> tuple[Rows, list[Segment]]:
    """The rows, and the segments that were found not to match their hash.

    Raises:
        StoreUnavailable: the store does not answer; that says nothing about its files.
    """
    missing: set[int] = set()
    while True:
        try:
            return _attempt(ledger, storage, query, missing)
        except _Again:
            # Retention, forgetting or compaction was faster. A segment that the fresh manifest
            # still lists and that is still not there is a problem (`missing` grows each time).
            continue


def _attempt(
    ledger: Ledger, storage: Storage, query: Query, missing: set[int]
) -> tuple[Rows, list[Segment]]:
    with ledger.read() as tx:  # manifest, hot rows and labels of one moment
        known, wanted = None, None
        if query.known_after is not None:
            known = truth.learned_between(tx, query.model, query.known_after, query.known_at)
            wanted = known.ids
        live = _live(tx, query, wanted)
        parts = _sealed(tx, storage, query, wanted, live)
        lost = {part.segment.id for part in parts if part.gone} - missing
        if lost:
            missing |= lost
            raise _Again
        found = [part for part in parts if part.rows is not None and len(part.rows)]
        rows = flat.below([*(part.rows for part in found), live])
        late = query.labelled or known is not None
        if query.newest is not None and not late:
            rows = _tail(rows, query.newest)
        if known is None:
            known = truth.winning(tx, query.model, rows["id"], query.known_at)
    has, values, times = known.of(rows["id"])
    if late and not has.all():
        place = np.flatnonzero(has)
        rows, has, values, times = (
            rows.take(pa.array(place)),
            has[place],
            values[place],
            times[place],
        )
    if late and query.newest is not None:
        rows = _tail(rows, query.newest)
        has, values, times = (each[len(each) - len(rows) :] for each in (has, values, times))
    return _apart(rows, has, values, times, found, parts), [p.segment for p in parts if p.corrupt]


def _tail(rows: pa.Table, count: int) -> pa.Table:
    return rows.slice(max(0, len(rows) - count))


def _live(tx: sa.Connection, query: Query, wanted: pa.Array | None) -> pa.Table:
    rows = hot.select(
        tx,
        query.model,
        start=query.start,
        end=query.end,
        roles=query.roles,
        version=query.version,
        ids=None if wanted is None else wanted.to_pylist(),
        inputs=query.inputs is not False,
    )
    table = flat.table(rows)
    if isinstance(query.inputs, bool):
        return table
    names = [n for n in table.column_names if not n.startswith("in.") or n[3:] in query.inputs]
    return table.select(names)


def _sealed(
    tx: sa.Connection, storage: Storage, query: Query, wanted: pa.Array | None, live: pa.Table
) -> list[_Part]:
    within = None
    if wanted is not None:
        within = hot.segments_of(tx, query.model, wanted.to_pylist())
    listed = segments.listed(
        tx,
        query.model,
        start=query.start,
        end=query.end,
        ids=within,
        states=("active", "quarantined"),
    )
    if query.newest is not None and not query.labelled and wanted is None:
        return _newest(storage, query, listed, live, query.newest)
    if len(listed) < 2:
        return [_part(storage, query, segment, wanted) for segment in listed]
    with ThreadPoolExecutor(min(_THREADS, len(listed))) as pool:
        return list(pool.map(lambda segment: _part(storage, query, segment, wanted), listed))


def _newest(
    storage: Storage, query: Query, listed: Iterable[Segment], live: pa.Table, count: int
) -> list[_Part]:
    """Only the segments that can hold any of the newest `count` rows, the newest first."""
    parts, times = list[_Part](), [flat.times_of(live)]
    for segment in sorted(listed, key=lambda each: each.max_time, reverse=True):
        newer = np.concatenate(times)
        if (newer > micros(segment.max_time)).sum() >= count:
            break
        parts.append(_part(storage, query, segment, None))
        rows = parts[-1].rows
        if rows is not None:
            times.append(flat.times_of(rows))
    return parts[::-1]


def _part(storage: Storage, query: Query, segment: Segment, wanted: pa.Array | None) -> _Part:
    if segment.state == "quarantined":
        text = f"segment {segment.path} ({segment.rows} rows) is quarantined and left out"
        return _Part(segment, problem=text)
    try:
        rows = segments.read(
            storage, segment, start=query.start, end=query.end, inputs=query.inputs
        )
    except CorruptSegment as error:
        return _Part(segment, problem=str(error), corrupt=True)
    except Gone:
        text = f"segment {segment.path} ({segment.rows} rows) is missing from {storage.address}"
        return _Part(segment, problem=text, gone=True)
    return _Part(segment, rows=_matching(rows, query, wanted))


def _matching(rows: pa.Table, query: Query, wanted: pa.Array | None) -> pa.Table:
    keep = pc.is_in(rows["role"], value_set=pa.array(list(query.roles), pa.string()))
    if query.version is not None:
        keep = pc.and_(keep, pc.equal(rows["version"], query.version))
    if wanted is not None:
        keep = pc.and_(keep, pc.is_in(rows["id"], value_set=wanted))
    return rows if pc.all(keep).as_py() is not False else rows.filter(keep)


def _apart(
    rows: pa.Table,
    has: np.ndarray,
    values: np.ndarray,
    times: np.ndarray,
    found: Sequence[_Part],
    parts: Sequence[_Part],
) -> Rows:
    """The frames that a read returns."""
    meta = rows.select(["id", "version", "role", "source"]).to_pandas()
    meta["time"] = _moments(flat.times_of(rows))
    meta["label"] = pd.Series(values, dtype=object)
    meta["label_time"] = _moments(times, has)
    return Rows(
        meta=meta,
        inputs=flat.frame(rows, "in."),
        outputs=flat.frame(rows, "out.").astype(np.float64),
        segments=tuple(part.segment.sha256 for part in found),
        problems=tuple(part.problem for part in parts if part.problem),
    )


def _moments(counts: np.ndarray, known: np.ndarray | None = None) -> pd.DatetimeIndex:
    moments = counts.astype("datetime64[us]")
    if known is not None:
        moments[~known] = np.datetime64("NaT")
    return pd.DatetimeIndex(moments).tz_localize("UTC")
