"""Labels: every distinct statement is kept, the last one by label time wins.

A label may be late, repeated, corrected, come before its prediction or for one nobody logged. What
is in force depends on the statements alone, never on the order of their arrival: the greatest label
time wins; of statements about the same moment the one received last; of those received in the same
microsecond the later of its batch, or else the greater JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger, one_of
from monitor.log.hot import known
from monitor.log.records import Label, LabelActivity, LabelReceipt


def insert(
    tx: sa.Connection, ledger: Ledger, labels: Sequence[Label], received: datetime
) -> LabelReceipt:
    """Keep labels; at the same label time the one received last replaces the other."""
    total = {"new": 0, "changed": 0, "unknown": 0}
    for model in {label.model for label in labels}:
        mine = [label for label in labels if label.model == model]
        ids = sorted({label.id for label in mine})
        there, had = known(tx, model, ids), _labelled(tx, model, ids)
        total["unknown"] += sum(name not in there for name in ids)
        total["changed"] += sum(name in there and name in had for name in ids)
        total["new"] += sum(name in there and name not in had for name in ids)
    rows = {  # the last of a batch that speaks of the same moment
        (label.model, label.id, label.time): {
            "model": label.model,
            "prediction_id": label.id,
            "time": label.time,
            "value": _encode(label.value),
            "source": label.source,
            "received": received,
        }
        for label in labels
    }
    tx.execute(_upsert(ledger), list(rows.values()))
    return LabelReceipt(**total)


def _upsert(ledger: Ledger) -> Any:
    """An INSERT of statements; one about a moment already spoken of wins by receipt."""
    if ledger.sqlite:
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    table = schema.labels
    new = insert(table)
    said, binary = new.excluded, "BINARY" if ledger.sqlite else "C"
    greater = sa.collate(said.value, binary) > sa.collate(table.c.value, binary)
    later = (said.received > table.c.received) | ((said.received == table.c.received) & greater)
    return new.on_conflict_do_update(
        index_elements=[table.c.model, table.c.prediction_id, table.c.time],
        set_={"value": said.value, "source": said.source, "received": said.received},
        where=later,
    )


def _encode(value: object) -> str:
    """JSON as the standard library writes it, NaN included; quicker for bare numbers."""
    if type(value) is int:
        return str(value)
    if type(value) is float and math.isfinite(value):
        return repr(value)
    return json.dumps(value.item() if hasattr(value, "item") else value)


def activity(ledger: Ledger, model: str, *, after: datetime, until: datetime) -> LabelActivity:
    """How labels behaved that became known in (after, until]."""
    table = schema.labels.c
    mine = (table.model == model) & (table.time <= until)
    arrived = sa.select(table.prediction_id).where(mine, table.time > after)
    with ledger.read() as tx:
        rows = tx.execute(
            sa.select(table.prediction_id, sa.func.count(), sa.func.count(table.value.distinct()))
            .where(mine, table.prediction_id.in_(arrived))
            .group_by(table.prediction_id)
        ).all()
        there = known(tx, model, [row[0] for row in rows])
    return LabelActivity(
        labelled=len(rows),
        repeated=sum(row[1] > 1 for row in rows),
        corrected=sum(row[2] > 1 for row in rows),
        unknown=len(rows) - len(there),
    )


def _labelled(connection: sa.Connection, model: str, ids: Sequence[str]) -> set[str]:
    table = schema.labels.c
    mine = (table.model == model) & one_of(connection, table.prediction_id, ids)
    return set(connection.scalars(sa.select(table.prediction_id).where(mine)))
