"""From hot rows to segments: the file first, then one transaction for manifest, keys and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from monitor.log import hot, segments
from monitor.log.segments import Written
from monitor.log.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

#: Most rows sealed at once: the transaction that moves them keeps appends waiting. Compaction
#: makes bigger segments of them, and moves no rows.
SEALED_AT_ONCE = 5_000
_STATEMENT = 5_000  # rows of one statement


def seal(ledger: Ledger, storage: Storage, *, before: datetime, min_rows: int) -> int:
    """See `SampleLog.seal`.

    Raises:
        StoreUnavailable: what was not sealed yet stays hot.
    """
    table, moved = schema.predictions, 0
    with ledger.read() as tx:
        query = (
            sa.select(table.c.model, sa.func.count())
            .where(table.c.received < before)
            .group_by(table.c.model)
        )
        models = [name for name, n in tx.execute(query).all() if n >= min_rows]
    for model in models:
        while count := _seal_one(ledger, storage, model, before):
            moved += count
    return moved


def _seal_one(ledger: Ledger, storage: Storage, model: str, before: datetime) -> int:
    from monitor.log import flat

    with ledger.read() as tx:
        rows = hot.settled(tx, model, before, SEALED_AT_ONCE)
    if not rows:
        return 0
    table = flat.table(rows)
    written = segments.write(storage, model, table)
    if not _swap_in(ledger, model, written, rows, before):
        storage.delete(written.path)  # another sealer was faster, or a row was forgotten
        return 0
    return len(rows)


def _swap_in(
    ledger: Ledger, model: str, written: Written, rows: Sequence[Any], before: datetime
) -> bool:
    """One transaction: the manifest row and the keys in, the hot rows out."""
    keys = [
        {"event": hot.key(row[3], row[4]), "prediction": hot.key(model, row[0])} for row in rows
    ]
    with ledger.write() as tx:
        gone = 0
        for ids in chunks([row[6] for row in rows]):
            mine = schema.predictions.c.id.in_(ids)
            gone += tx.execute(schema.predictions.delete().where(mine)).rowcount
        if gone != len(rows):
            tx.rollback()
            return False
        segment = segments.added(tx, model, written, before)
        tx.execute(schema.sealed_keys.insert(), [{**each, "segment": segment} for each in keys])
    return True


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Values in pieces that one statement can take."""
    for start in range(0, len(values), _STATEMENT):
        yield values[start : start + _STATEMENT]


def events_of(rows: pa.Table) -> list[str]:
    """The keys of a flat table's events."""
    pairs = zip(rows["source"].to_pylist(), rows["event_id"].to_pylist(), strict=True)
    return [hot.key(source, event) for source, event in pairs]
