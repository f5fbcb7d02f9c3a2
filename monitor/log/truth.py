"""The labels in force at a moment, and their join onto rows: whole columns at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
_SCAN_SHARE = 2  # ... unless there are more than so many labels for each id
_PIECE = 200_000  # ids of one look-up


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
    return _last(connection, [_known(model, until) & (schema.labels.c.time > after)])


def winning(
    connection: sa.Connection, model: str, ids: pa.ChunkedArray, known_at: datetime | None
) -> Truth:
    """The label in force at `known_at` of each id that has one (and perhaps of others)."""
    known = _known(model, known_at)
    if len(ids) > _SCAN_ABOVE and _few(connection, model, _SCAN_SHARE * len(ids)):
        return _last(connection, [known])
    names, column = ids.to_pylist(), schema.labels.c.prediction_id
    pieces = [names[i : i + _PIECE] for i in range(0, len(names), _PIECE)]
    return _last(connection, [known & one_of(connection, column, piece) for piece in pieces])


def _few(connection: sa.Connection, model: str, limit: int) -> bool:
    """Whether the model has at most `limit` labels; counts no further."""
    table = schema.labels
    some = sa.select(sa.literal(1)).where(table.c.model == model).limit(limit + 1).subquery()
    return (connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= limit


def _known(model: str, until: datetime | None) -> sa.ColumnElement[bool]:
    mine = schema.labels.c.model == model
    return mine if until is None else mine & (schema.labels.c.time <= until)


def _last(connection: sa.Connection, wanted: Sequence[sa.ColumnElement[bool]]) -> Truth:
    names, texts, times = list[str](), list[str](), list[int]()
    for condition in wanted:
        found = _columns(connection, condition)
        names, texts, times = names + found[0], texts + found[1], times + found[2]
    moments = np.array(times, dtype=np.int64)
    place = dict(zip(names, range(len(names)), strict=True))
    if len(place) < len(names):  # in order of time, the last statement of an id stays
        place = {names[i]: i for i in np.argsort(moments, kind="stable").tolist()}
    kept = list(place.values())
    values = np.empty(len(kept), dtype=object)
    values[:] = _decoded([texts[i] for i in kept])
    return Truth(pa.array(list(place), pa.string()), values, moments[kept])


def _decoded(texts: Sequence[str]) -> list[object]:
    try:
        found: list[object] = msgspec.json.decode("[" + ",".join(texts) + "]")
    except msgspec.DecodeError:
        return [_decode(text) for text in texts]
    return found


def _decode(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # NaN, Infinity: no JSON, but somebody said it
        try:
            return json.loads(text)
        except ValueError:
            return text


def _columns(
    connection: sa.Connection, wanted: sa.ColumnElement[bool]
) -> tuple[list[str], list[str], list[int]]:
    """Ids, values as JSON and times (µs) of labels. The database hands over three JSON arrays:
    several times faster than as many rows of three."""
    table = schema.labels
    columns = (table.c.prediction_id, table.c.value, sa.type_coerce(table.c.time, sa.BigInteger))
    gather: Any = sa.func.json_group_array
    if connection.dialect.name != "sqlite":
        gather = lambda column: sa.cast(sa.func.json_agg(column), sa.Text)  # noqa: E731
    row = connection.execute(sa.select(*map(gather, columns)).where(wanted)).one()
    names, texts, times = (msgspec.json.decode(each or "[]") for each in row)
    return names, texts, times
