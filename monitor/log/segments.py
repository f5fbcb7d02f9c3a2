"""Sealed segments: immutable Parquet files and the manifest that vouches for them.

A segment is written to a temporary name, synced, renamed, and its folder synced; only then does one
transaction add the manifest row (with the file's SHA-256) and delete the hot rows. A crash in
between leaves a file nobody refers to, never a row that is missing or double. Readers hash what
they read; a file that does not match is quarantined and left out, and said so.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import CorruptSegment
from core.files import write_atomic
from core.times import from_micros
from monitor.log.hot import META

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Segment(Struct, frozen=True, kw_only=True):
    """One manifest row."""

    id: int
    path: str
    rows: int
    sha256: str


class Written(Struct, frozen=True, kw_only=True):
    """A segment file that is on disk and not yet in the manifest."""

    path: str
    rows: int
    sha256: str
    min_time: datetime
    max_time: datetime
    columns: str


def write(folder: Path, model: str, frame: pd.DataFrame) -> Written:
    """Write the flat rows of one model as a new file below `folder`."""
    import pyarrow.parquet as pq

    frame = frame.sort_values("time", kind="stable")
    table = _table(frame)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    first, last = int(frame["time"].iloc[0]), int(frame["time"].iloc[-1])
    path = f"{model}/{from_micros(first):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
    write_atomic(folder / path, data)
    return Written(
        path=path,
        rows=len(frame),
        sha256=hashlib.sha256(data).hexdigest(),
        min_time=from_micros(first),
        max_time=from_micros(last),
        columns=json.dumps({field.name: str(field.type) for field in table.schema}),
    )


def _table(frame: pd.DataFrame) -> pa.Table:
    """An Arrow table; a column of mixed types is kept as JSON text rather than lost."""
    import pyarrow as pa

    arrays = {}
    for name in frame.columns:
        values = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            arrays[name] = pa.array([None if v is None else json.dumps(v) for v in values])
    return pa.table(arrays)


def read(folder: Path, segment: Segment, *, inputs: bool = True) -> pd.DataFrame:
    """The segment's rows, after its bytes were found to be those that were sealed.

    Without `inputs` only ids, roles and times are unpacked.

    Raises:
        CorruptSegment: the file is gone or its hash is not the recorded one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = (folder / segment.path).read_bytes()
    except OSError as error:
        raise CorruptSegment(f"segment {segment.path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise CorruptSegment(f"segment {segment.path} does not match its sha256 {segment.sha256}")
    columns = None if inputs else [*META, "time"]
    frame: pd.DataFrame = pq.read_table(pa.BufferReader(data), columns=columns).to_pandas()
    return frame


def listed(
    connection: sa.Connection,
    model: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    ids: set[int] | None = None,
) -> list[Segment]:
    """Active segments of a model that may hold rows with start <= time < end, oldest first."""
    table = schema.segments
    query = (
        sa.select(table.c.id, table.c.path, table.c.rows, table.c.sha256)
        .where(table.c.model == model, table.c.state == "active")
        .order_by(table.c.min_time, table.c.id)
    )
    if start is not None:
        query = query.where(table.c.max_time >= start)
    if end is not None:
        query = query.where(table.c.min_time < end)
    if ids is not None:
        query = query.where(table.c.id.in_(sorted(ids)))
    return [
        Segment(id=row.id, path=row.path, rows=row.rows, sha256=row.sha256)
        for row in connection.execute(query)
    ]
