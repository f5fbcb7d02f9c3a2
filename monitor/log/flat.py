"""Rows of the log as Arrow tables: as hot rows become them, as segments hold them, as reads join
them.

A flat table has the columns of `META`, `time` (timestamp[us, UTC]), `seq` (int64, the order of
arrival), `in.<name>` and `out.<name>`. An input column has one Arrow type per table; values that do
not share one are kept as JSON text, marked in the field's metadata, and read back as they were.
This module needs pandas, so the appending side, which runs in serving workers, never imports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from monitor.log.hot import META
from monitor.log.values import EXACT, series

TIME = pa.timestamp("us", tz="UTC")
_MARK = {b"shelflife": b"json"}
_HEAD = (*META, "time", "seq")
_LIMIT = 2**63


def table(rows: Sequence[Any]) -> pa.Table:
    """Hot rows (see `hot.select`) as a flat table, in order of (time, arrival)."""
    count = len(META)
    fields = list(zip(*rows, strict=True)) if rows else [()] * (count + 2)
    arrays = [pa.array(fields[i], pa.string()) for i in range(count)]
    arrays += [pa.array(fields[count], pa.int64()).cast(TIME), pa.array(fields[count + 1], "int64")]
    schema = [pa.field(name, array.type) for name, array in zip(_HEAD, arrays, strict=True)]
    if len(fields) > count + 2:
        for prefix, texts in (("in.", fields[count + 2]), ("out.", fields[count + 3])):
            # One decode over one joined array is several times faster than one per row.
            decoded = msgspec.json.decode("[" + ",".join(texts) + "]")
            for name in dict.fromkeys(key for row in decoded for key in row):
                values = [row.get(name) for row in decoded]
                array, marked = column(values) if prefix == "in." else (_floats(values), False)
                arrays.append(array)
                schema.append(pa.field(prefix + name, array.type, metadata=_MARK if marked else {}))
    return in_order(pa.table(arrays, schema=pa.schema(schema)))


def column(values: Sequence[Any]) -> tuple[pa.Array, bool]:
    """Values as an Arrow array of one type, or as JSON text (and True) where they share none."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values)), False
    if kinds == {str}:
        return pa.array(values, pa.string()), False
    if kinds == {bool}:
        return pa.array(values, pa.bool_()), False
    if kinds == {float}:
        return pa.array(values, pa.float64()), False
    if kinds == {int} and all(v is None or -_LIMIT <= v < _LIMIT for v in values):
        return pa.array(values, pa.int64()), False
    if kinds == {int, float} and all(abs(v) <= EXACT for v in values if type(v) is int):
        return _floats(values), False
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.array(texts, pa.string()), True


def _floats(values: Sequence[Any]) -> pa.Array:
    numbers = [None if value is None else float(value) for value in values]
    return pa.array(numbers, pa.float64())


def in_order(rows: pa.Table) -> pa.Table:
    """The rows in order of (time, arrival)."""
    times, seq = _int64(rows["time"]), _int64(rows["seq"])
    step = np.diff(times)
    if ((step > 0) | ((step == 0) & (np.diff(seq) > 0))).all():
        return rows
    return rows.take(pa.array(np.lexsort((seq, times))))


def _int64(values: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = values.cast(pa.int64()).to_numpy()
    return found


def times_of(rows: pa.Table) -> np.ndarray:
    """Event times as int64 microseconds."""
    return _int64(rows["time"])


def below(parts: Sequence[pa.Table]) -> pa.Table:
    """Flat tables below each other, in order of (time, arrival): columns are widened, never cut.

    For writing: a column whose types differ becomes JSON text.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.column_names))
    arrays, fields = [], []
    for name in names:
        kind = _common(parts, name)
        if kind is not None:
            mark = _MARK if any(marked(part, name) for part in parts) else {}
            pieces = [piece for part in parts for piece in _as(part, name, kind)]
            arrays.append(pa.chunked_array(pieces, kind))
            fields.append(pa.field(name, kind, metadata=mark))
        else:
            array, mixed = column([v for part in parts for v in python(part, name)])
            arrays.append(pa.chunked_array([array]))
            fields.append(pa.field(name, array.type, metadata=_MARK if mixed else {}))
    return in_order(pa.table(arrays, schema=pa.schema(fields)))


def marked(rows: pa.Table, name: str) -> bool:
    """Whether the column holds JSON text."""
    index = rows.schema.get_field_index(name)
    metadata = rows.schema.field(index).metadata if index >= 0 else None
    return bool(metadata and metadata.get(b"shelflife") == b"json")


def _common(parts: Sequence[pa.Table], name: str) -> pa.DataType | None:
    """The Arrow type all parts share, nulls apart; None where they share none."""
    having = [p for p in parts if name in p.column_names and not pa.types.is_null(p[name].type)]
    kinds = {part[name].type for part in having}
    if not kinds:
        return pa.null()
    if len({marked(part, name) for part in having}) > 1:
        return None
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {pa.int64(), pa.float64()}:
        whole = [part[name] for part in having if part[name].type == pa.int64()]
        return pa.float64() if all(_exact(values) for values in whole) else None
    return None


def _exact(whole: pa.ChunkedArray) -> bool:
    """Whether whole numbers are exact as float64."""
    found = pc.min_max(whole).as_py()
    low, high = found["min"], found["max"]
    return low is None or (low >= -EXACT and high <= EXACT)


def _as(rows: pa.Table, name: str, kind: pa.DataType) -> list[pa.Array]:
    if name not in rows.column_names or pa.types.is_null(rows[name].type):
        return [pa.nulls(len(rows), kind)]
    chunks: list[pa.Array] = rows[name].cast(kind).chunks
    return chunks


def python(rows: pa.Table, name: str) -> list[Any]:
    """A column's values as they were logged, None where missing."""
    if name not in rows.column_names:
        return [None] * len(rows)
    values: list[Any] = rows[name].to_pylist()
    if marked(rows, name):
        return [None if value is None else json.loads(value) for value in values]
    return values


def frame(rows: pa.Table, prefix: str) -> pd.DataFrame:
    """The columns of a prefix as pandas columns, of the types that `log.values` tells of."""
    names = [name for name in rows.column_names if name.startswith(prefix)]
    columns: Mapping[str, pd.Series] = {n[len(prefix) :]: _series(rows, n) for n in names}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(rows)), copy=False)


def _series(rows: pa.Table, name: str) -> pd.Series:
    values = rows[name]
    gaps = values.null_count
    if marked(rows, name) or gaps == len(rows):
        return series(python(rows, name))
    if gaps and (pa.types.is_boolean(values.type) or not _fits(values)):
        return series(values.to_pylist())
    found: pd.Series = values.to_pandas()
    return found


def _fits(values: pa.ChunkedArray) -> bool:
    return not pa.types.is_integer(values.type) or _exact(values)
