"""Rows in memory: columns as arrays, in order of event time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
import numpy as np
import pandas as pd

from core.times import micros
from monitor.log.memory_labels import Statements
from monitor.log.records import Rows
from monitor.log.values import join, series

META = ("id", "version", "role", "source", "event_id")


class Chunk(msgspec.Struct):
    """Rows in order of (time, arrival)."""

    time: np.ndarray  # int64 µs
    seq: np.ndarray  # int64, order of arrival
    code: np.ndarray  # int64, the prediction id's number
    meta: pd.DataFrame  # the columns of `META`
    inputs: pd.DataFrame
    outputs: pd.DataFrame

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: slice | np.ndarray) -> Chunk:
        return Chunk(
            self.time[rows],
            self.seq[rows],
            self.code[rows],
            self.meta.iloc[rows],
            self.inputs.iloc[rows],
            self.outputs.iloc[rows],
        )


def between(chunk: Chunk, start: datetime | None, end: datetime | None) -> Chunk:
    low = 0 if start is None else int(np.searchsorted(chunk.time, micros(start)))
    high = len(chunk) if end is None else int(np.searchsorted(chunk.time, micros(end)))
    return chunk.take(slice(low, max(low, high)))


def of(chunk: Chunk, roles: Sequence[str], version: str | None) -> Chunk:
    keep = chunk.meta["role"].isin(list(roles)).to_numpy(bool)
    if version is not None:
        keep = keep & (chunk.meta["version"] == version).to_numpy(bool)
    return chunk if keep.all() else chunk.take(np.flatnonzero(keep))


def labelled_in(
    chunk: Chunk, statements: Statements, known_at: datetime | None, after: datetime | None
) -> Chunk:
    has, _, _ = statements.winning(chunk.code, known_at, after)
    return chunk if has.all() else chunk.take(np.flatnonzero(has))


def narrow(chunk: Chunk, names: Sequence[str], *, outputs: bool) -> Chunk:
    kept = [name for name in chunk.inputs.columns if name in names]
    left = chunk.outputs if outputs else chunk.outputs[[]]
    return msgspec.structs.replace(chunk, inputs=chunk.inputs[kept], outputs=left)


def merged(parts: Sequence[Chunk]) -> Chunk:
    """Several chunks as one, in order of (time, arrival)."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.zeros(0, np.int64)
        empty = pd.DataFrame(index=pd.RangeIndex(0))
        meta = pd.DataFrame({name: pd.Series(dtype="str") for name in META})
        return Chunk(none, none, none, meta, empty, empty)
    whole = Chunk(
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.seq for part in parts]),
        np.concatenate([part.code for part in parts]),
        pd.concat([part.meta for part in parts], ignore_index=True),
        join([part.inputs for part in parts]),
        join([part.outputs for part in parts]),
    )
    order = np.lexsort((whole.seq, whole.time))
    return whole if (order[1:] > order[:-1]).all() else whole.take(order)


def apart(whole: Chunk, has: np.ndarray, when: np.ndarray, value: np.ndarray) -> Rows:
    meta = whole.meta[["id", "version", "role", "source"]].reset_index(drop=True)
    meta["time"] = pd.to_datetime(whole.time, unit="us", utc=True).astype("datetime64[us, UTC]")
    meta["label"] = pd.Series(value, dtype=object)
    moments = np.where(has, when, 0).astype("datetime64[us]")
    moments[~has] = np.datetime64("NaT")
    meta["label_time"] = pd.DatetimeIndex(moments).tz_localize("UTC")
    return Rows(
        meta=meta,
        inputs=_settled(whole.inputs.reset_index(drop=True)),
        outputs=whole.outputs.reset_index(drop=True).astype(np.float64),
    )


def _settled(inputs: pd.DataFrame) -> pd.DataFrame:
    """The type of an object column is that of the rows that are left of it."""
    columns = {n: series(c) if c.dtype == "object" else c for n, c in inputs.items()}
    return pd.DataFrame(columns, index=inputs.index, copy=False)
