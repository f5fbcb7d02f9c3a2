"""The labels in force at a moment, and their join onto rows: whole columns at once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import one_of

_SCAN_ABOVE = 20_000  # ids beyond which a scan of the model's labels may be faster
_SCAN_SHARE = 4  # ... unless there are more than so many labels for each id


class Truth(Struct, frozen=True):
    """The winning label of each prediction id that has one, in any order."""

    ids: pa.Array  # string
    values: np.ndarray  # object, as given
    times: np.ndarray  # int64 µs

    def of(self, names: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Joined onto prediction ids: whether there is a label, its value, its time (µs)."""
        found = pc.fill_null(pc.index_in(names, value_set=self.ids), -1)
        place = np.asarray(found.to_numpy(), dtype=np.int64)
        has = place >= 0
        values, times = np.full(len(place), None, object), np.zeros(len(place), np.int64)
        values[has], times[has] = self.values[place[has]], self.times[place[has]]
        return has, values, times


def learned_between(
    connection: sa.Connection, model: str, after: datetime, until: datetime | None
) -> Truth:
    """The labels in force at `until` that became known after `after`."""
    return _last(connection, _known(model, until).where(schema.labels.c.time > after))


def winning(
    connection: sa.Connection, model: str, ids: pa.ChunkedArray, known_at: datetime | None
) -> Truth:
    """The label in force at `known_at` of each id that has one (and perhaps of others)."""
    query = _known(model, known_at)
    if len(ids) > _SCAN_ABOVE and _few(connection, model, _SCAN_SHARE * len(ids)):
        return _last(connection, query)
    wanted = one_of(connection, schema.labels.c.prediction_id, ids.to_pylist())
    return _last(connection, query.where(wanted))


def _few(connection: sa.Connection, model: str, limit: int) -> bool:
    """Whether the model has at most `limit` labels; counts no further."""
    table = schema.labels
    some = sa.select(sa.literal(1)).where(table.c.model == model).limit(limit + 1).subquery()
    return (connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= limit


def _known(model: str, until: datetime | None) -> sa.Select[Any]:
    table = schema.labels
    query = sa.select(
        table.c.prediction_id, table.c.value, sa.type_coerce(table.c.time, sa.BigInteger)
    ).where(table.c.model == model)
    return query if until is None else query.where(table.c.time <= until)


def _last(connection: sa.Connection, query: sa.Select[Any]) -> Truth:
    rows = connection.execute(query).all()
    names, texts, moments = zip(*rows, strict=True) if rows else ((), (), ())
    times = np.array(moments, dtype=np.int64)
    place = dict(zip(names, range(len(names)), strict=True))
    if len(place) < len(names):  # in order of time, the last statement of an id stays
        order = np.argsort(times, kind="stable").tolist()
        place = {names[i]: i for i in order}
    kept = list(place.values())
    values = np.empty(len(kept), dtype=object)
    values[:] = msgspec.json.decode("[" + ",".join([texts[i] for i in kept]) + "]")
    return Truth(pa.array(list(place), pa.string()), values, times[kept])
