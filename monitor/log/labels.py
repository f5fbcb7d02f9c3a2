"""Labels: every distinct statement is kept, the last one by label time wins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from monitor.log.hot import chunks, known
from monitor.log.records import Label, LabelReceipt

_SCAN_ABOVE = 5_000  # ids beyond which one scan of the model's labels beats many IN lists


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
    table, found = schema.labels, set[str]()
    for part in chunks(ids):
        query = sa.select(table.c.prediction_id).where(
            table.c.model == model, table.c.prediction_id.in_(part)
        )
        found.update(connection.scalars(query))
    return found


def learned_between(
    connection: sa.Connection, model: str, after: datetime, until: datetime | None
) -> list[str]:
    """Prediction ids that got a label in (after, until]."""
    table = schema.labels
    query = sa.select(table.c.prediction_id).where(table.c.model == model, table.c.time > after)
    if until is not None:
        query = query.where(table.c.time <= until)
    return sorted(set(connection.scalars(query)))


def winning(
    connection: sa.Connection, model: str, ids: Sequence[str], known_at: datetime | None
) -> dict[str, tuple[object, int]]:
    """The label in force at `known_at`, with its time in microseconds, of each id that has one."""
    table = schema.labels
    query = sa.select(
        table.c.prediction_id,
        table.c.value,
        sa.type_coerce(table.c.time, sa.BigInteger),
    ).where(table.c.model == model)
    if known_at is not None:
        query = query.where(table.c.time <= known_at)
    query = query.order_by(table.c.time)
    last: dict[str, tuple[str, int]] = {}  # in order of time: the last one stays
    if len(ids) > _SCAN_ABOVE:
        wanted = set(ids)
        last = {row[0]: (row[1], row[2]) for row in connection.execute(query) if row[0] in wanted}
    else:
        for part in chunks(ids):
            some = connection.execute(query.where(table.c.prediction_id.in_(part)))
            last.update((row[0], (row[1], row[2])) for row in some)
    decode = msgspec.json.decode
    return {name: (decode(value), time) for name, (value, time) in last.items()}
