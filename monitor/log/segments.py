"""Sealed segments: immutable Parquet files and the manifest that vouches for them.

A segment is written whole to its store first; only then does one transaction add the manifest row
(with the file's SHA-256) and delete the hot rows. A crash in between leaves a file nobody refers
to, which `upkeep.sweep` removes, never a row that is missing or double. Readers hash what they
read; a file that does not match is quarantined and left out, and said so.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import CorruptSegment
from core.times import from_micros, micros
from monitor.log.hot import META
from monitor.log.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP = 25_000  # rows of a row group: what a reader of a short window unpacks


class Segment(Struct, frozen=True, kw_only=True):
    """One manifest row."""

    id: int
    path: str
    rows: int
    sha256: str
    min_time: datetime
    max_time: datetime
    state: str = "active"


class Written(Struct, frozen=True, kw_only=True):
    """A segment file that is in its store and not yet in the manifest."""

    path: str
    rows: int
    sha256: str
    bytes: int
    min_time: datetime
    max_time: datetime
    columns: str


def write(storage: Storage, model: str, rows: pa.Table) -> Written:
    """Write the flat rows of one model, in order of time, as a new file.

    Raises:
        StoreUnavailable: nothing was written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    # Dictionaries where values repeat; elsewhere they cost both sides and save nothing.
    texts = [f.name for f in rows.schema if pa.types.is_string(f.type)]
    repeated = [name for name in texts if name not in ("id", "event_id")]
    pq.write_table(
        rows,
        buffer,
        compression="zstd",
        row_group_size=_GROUP,
        use_dictionary=repeated or False,
        column_encoding={"time": "DELTA_BINARY_PACKED", "seq": "DELTA_BINARY_PACKED"},
    )
    data = buffer.getvalue()
    times = rows["time"].cast(pa.int64())
    first, last = from_micros(times[0].as_py()), from_micros(times[-1].as_py())
    path = f"{model}/{first:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
    storage.write(path, data)
    return Written(
        path=path,
        rows=len(rows),
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        min_time=first,
        max_time=last,
        columns=json.dumps({field.name: str(field.type) for field in rows.schema}),
    )


def added(tx: sa.Connection, model: str, written: Written, at: datetime) -> int:
    """Put a written file into the manifest; returns its id."""
    row = {name: getattr(written, name) for name in Written.__struct_fields__}
    statement = schema.segments.insert().values(model=model, state="active", created=at, **row)
    key = tx.execute(statement).inserted_primary_key
    assert key is not None  # noqa: S101  (one row was inserted)
    return int(key[0])


def verified(storage: Storage, segment: Segment) -> bytes:
    """The segment's bytes, which are those that were sealed.

    Raises:
        CorruptSegment: their hash is not the recorded one.
        Gone: the file is not there.
        StoreUnavailable: the store does not answer.
    """
    data = storage.read(segment.path)
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise CorruptSegment(f"segment {segment.path} does not match its sha256 {segment.sha256}")
    return data


def read(
    storage: Storage,
    segment: Segment,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    inputs: bool | Collection[str] = True,
    keys: bool = False,
) -> pa.Table:
    """The segment's rows with start <= time < end, after its bytes were verified.

    Args:
        inputs: False leaves inputs and outputs out; names keep only these inputs.
        keys: with the events' ids, which only rewriting needs.

    Raises:
        CorruptSegment, Gone, StoreUnavailable: see `verified`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(verified(storage, segment)))
    names = _columns(file.schema_arrow.names, inputs, keys)
    groups = _groups(file, start, end)
    if len(groups) == file.num_row_groups:
        rows = file.read(columns=names)
    else:
        rows = file.read_row_groups(groups, columns=names)
    return _cut(_modern(rows), start, end)


def _columns(every: list[str], inputs: bool | Collection[str], keys: bool) -> list[str]:
    head = [*(META if keys else [name for name in META if name != "event_id"]), "time", "seq"]
    rest = [name for name in every if name.startswith(("in.", "out."))]
    if inputs is False:
        rest = []
    elif inputs is not True:
        rest = [name for name in rest if name.startswith("out.") or name[3:] in inputs]
    return [name for name in head if name in every] + rest


def _groups(file: object, start: datetime | None, end: datetime | None) -> list[int]:
    """The row groups that may hold rows of the window, by the statistics of their times."""
    meta = file.metadata  # type: ignore[attr-defined]
    index = meta.schema.to_arrow_schema().get_field_index("time")
    found = []
    for i in range(meta.num_row_groups):
        known = meta.row_group(i).column(index).statistics
        low, high = (known.min, known.max) if known and known.has_min_max else (None, None)
        late = start is not None and high is not None and _micros(high) < micros(start)
        early = end is not None and low is not None and _micros(low) >= micros(end)
        if not late and not early:
            found.append(i)
    return found


def _micros(value: datetime | int) -> int:
    return value if isinstance(value, int) else micros(value)


def _modern(rows: pa.Table) -> pa.Table:
    """Rows of a segment written before times were timestamps and arrival was kept."""
    import pyarrow as pa

    if "seq" in rows.column_names:
        return rows
    moments = rows["time"].cast(pa.timestamp("us", tz="UTC"))
    rows = rows.set_column(rows.column_names.index("time"), "time", moments)
    return rows.append_column("seq", pa.array(range(len(rows)), pa.int64()))


def _cut(rows: pa.Table, start: datetime | None, end: datetime | None) -> pa.Table:
    """Rows are in order of time, so that a window is a slice."""
    import numpy as np

    from monitor.log.flat import times_of

    if (start is None and end is None) or not len(rows):
        return rows
    times = times_of(rows)
    low = 0 if start is None else int(np.searchsorted(times, micros(start)))
    high = len(rows) if end is None else int(np.searchsorted(times, micros(end)))
    return rows.slice(low, max(0, high - low))


def listed(
    connection: sa.Connection,
    model: str | None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    ids: Collection[int] | None = None,
    states: tuple[str, ...] = ("active",),
) -> list[Segment]:
    """Segments of a model that may hold rows with start <= time < end, oldest first."""
    table = schema.segments
    query = (
        sa.select(*(table.c[name] for name in Segment.__struct_fields__))
        .where(table.c.state.in_(states))
        .order_by(table.c.min_time, table.c.id)
    )
    if model is not None:
        query = query.where(table.c.model == model)
    if start is not None:
        query = query.where(table.c.max_time >= start)
    if end is not None:
        query = query.where(table.c.min_time < end)
    if ids is not None:
        query = query.where(table.c.id.in_(sorted(ids)))
    return [Segment(**row._mapping) for row in connection.execute(query)]
