"""Labels: every distinct statement is kept, the last one by label time wins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger, one_of
from monitor.log.hot import known
from monitor.log.records import Label, LabelReceipt


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
