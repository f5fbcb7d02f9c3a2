"""Labels: every distinct statement is kept, the last one by label time wins."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger, one_of
from monitor.log.hot import known
from monitor.log.records import Label, LabelReceipt

_SCAN_ABOVE = 20_000  # ids beyond which one scan of the model's labels is faster
#: Label as given and its time in microseconds, by prediction id.
Truth = dict[str, tuple[object, int]]


def insert(
    tx: sa.Connection, ledger: Ledger, labels: Sequence[Label], received: datetime
) -> LabelReceipt:
    """Keep labels; a repeat at the same label time replaces the earlier statement."""
    table = schema.labels
    total = {"new": 0, "changed": 0, "unknown": 0}
    for model in {label.model for label in labels}:
        mine = [label for label in labels if label.model == model]
        ids = sorted({label.id for label in mine})
        there, had = known(tx, model, ids), _labelled(tx, model, ids)
        total["unknown"] += sum(name not in there for name in ids)
        total["changed"] += sum(name in there and name in had for name in ids)
        total["new"] += sum(name in there and name not in had for name in ids)
    statement = ledger.insert_ignore(table)
    rows = [
        {
            "model": label.model,
            "prediction_id": label.id,
            "time": label.time,
            "value": json.dumps(label.value),
            "source": label.source,
            "received": received,
        }
        for label in labels
    ]
    tx.execute(statement, rows)
    # The same moment said twice: the later statement to arrive is the correction.
    same = (
        (table.c.model == sa.bindparam("m"))
        & (table.c.prediction_id == sa.bindparam("i"))
        & (table.c.time == sa.bindparam("t", type_=schema.UtcTime()))
        & (table.c.value != sa.bindparam("v"))
    )
    update = table.update().where(same).values(value=sa.bindparam("v"))
    tx.execute(
        update,
        [{"m": r["model"], "i": r["prediction_id"], "t": r["time"], "v": r["value"]} for r in rows],
    )
    return LabelReceipt(**total)


def _labelled(connection: sa.Connection, model: str, ids: Sequence[str]) -> set[str]:
    table = schema.labels.c
    mine = (table.model == model) & one_of(connection, table.prediction_id, ids)
    return set(connection.scalars(sa.select(table.prediction_id).where(mine)))


def learned_between(
    connection: sa.Connection, model: str, after: datetime, until: datetime | None
) -> Truth:
    """The labels in force at `until` that became known after `after`."""
    return _last(connection, _known(model, until).where(schema.labels.c.time > after))


def winning(
    connection: sa.Connection, model: str, ids: Collection[str], known_at: datetime | None
) -> Truth:
    """The label in force at `known_at` of each id that has one."""
    query = _known(model, known_at)
    if len(ids) > _SCAN_ABOVE:
        return _last(connection, query, wanted=set(ids))
    return _last(connection, query.where(one_of(connection, schema.labels.c.prediction_id, ids)))


def _known(model: str, until: datetime | None) -> sa.Select[Any]:
    table = schema.labels
    query = sa.select(
        table.c.prediction_id, table.c.value, sa.type_coerce(table.c.time, sa.BigInteger)
    ).where(table.c.model == model)
    if until is not None:
        query = query.where(table.c.time <= until)
    return query.order_by(table.c.time)


def _last(
    connection: sa.Connection, query: sa.Select[Any], wanted: set[str] | None = None
) -> Truth:
    # In order of time: the last statement of an id stays.
    rows = connection.execute(query)
    last = {row[0]: row for row in rows if wanted is None or row[0] in wanted}
    decode = msgspec.json.decode
    return {name: (decode(row[1]), row[2]) for name, row in last.items()}
