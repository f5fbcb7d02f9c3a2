"""Rows that must go: by prediction id (`forget`) or by age (`retain`).

What is guaranteed after `forget`: no file of the store, no hot row, no label and no key holds the
ids or their values; reads, counts and later segments are without them. The lineage keeps counts and
hashes only. On SQLite deleted bytes are overwritten (`secure_delete`) and the write-ahead log is
emptied; on PostgreSQL dead rows stay in its files until VACUUM, and in its own log and backups for
as long as those are kept. Copies made elsewhere (a version's reference sample in MLflow, a bucket's
old object versions, backups) are not the log's to reach.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa

from core import schema
from core.errors import CorruptSegment
from core.ledger import Ledger, one_of
from monitor.log import hot, lineage, segments
from monitor.log.records import Forgotten
from monitor.log.sealing import chunks, events_of
from monitor.log.segments import Segment
from monitor.log.storage import Gone, Storage

_STATES = ("active", "quarantined")


def forget(
    ledger: Ledger,
    storage: Storage,
    model: str,
    ids: Collection[str],
    *,
    at: datetime,
    reason: str,
    by: str,
) -> Forgotten:
    """See `SampleLog.forget`; done again after a crash, it does the rest.

    Raises:
        StoreUnavailable: a segment could not be rewritten; ask again, for it still holds rows.
    """
    names, rows, labels, files = sorted(set(ids)), 0, 0, 0
    if not names:
        return Forgotten(rows=0, labels=0)
    while True:
        with ledger.read() as tx:
            within = hot.segments_of(tx, model, names)
            holding = segments.listed(tx, model, ids=within, states=_STATES) if within else []
        for segment in holding:
            try:
                rows += _rewrite(ledger, storage, model, segment, names, at, reason, by)
                files += 1
            except (lineage.Raced, Gone):
                continue  # compacted meanwhile: the next look finds where it lies now
        gone, said, clear = _drop(ledger, model, names)
        rows, labels = rows + gone, labels + said
        if clear:
            break  # nothing was sealed while we looked away
    lineage.bury(ledger, storage)
    ledger.scrub()
    return Forgotten(rows=rows, labels=labels, segments=files)


def _rewrite(
    ledger: Ledger,
    storage: Storage,
    model: str,
    segment: Segment,
    names: Sequence[str],
    at: datetime,
    reason: str,
    by: str,
) -> int:
    """The segment without the rows of these ids; returns the rows that went.

    A segment that cannot be read as it was sealed is deleted whole: nobody can say what is in it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kept, text = None, reason
    try:
        whole = segments.read(storage, segment, keys=True)
        kept = whole.filter(pc.invert(pc.is_in(whole["id"], value_set=pa.array(names))))
    except CorruptSegment:
        text = f"{reason} (it did not match its sha256, so all of it went)".strip()
    except Gone:
        with ledger.read() as tx:
            if not segments.listed(tx, model, ids=[segment.id], states=_STATES):
                raise
        text = f"{reason} (its file was missing)".strip()
    written = segments.write(storage, model, kept) if kept is not None and len(kept) else None
    removed = segment.rows - (written.rows if written else 0)
    try:
        with ledger.write() as tx:
            _forget_keys(tx, model, names, segment)
            lineage.replace(
                tx, model, [segment], written,
                kind="forget", at=at, removed={segment.id: removed}, reason=text, by=by,
            )  # fmt: skip
    except lineage.Raced:
        if written is not None:
            storage.delete(written.path)
        raise
    return removed


def _forget_keys(tx: sa.Connection, model: str, names: Sequence[str], segment: Segment) -> None:
    table, parts = schema.sealed_keys, schema.segment_parts
    keys = [hot.key(model, name) for name in names]
    here = sa.select(parts.c.part).where(parts.c.segment == segment.id)
    mine = (table.c.segment == segment.id) | table.c.segment.in_(here)
    tx.execute(table.delete().where(one_of(tx, table.c.prediction, keys), mine))


def _drop(ledger: Ledger, model: str, names: Sequence[str]) -> tuple[int, int, bool]:
    """Delete hot rows and labels of these ids; returns both counts, and whether that was all."""
    live, said, sealed = schema.predictions, schema.labels, schema.sealed_keys
    with ledger.write() as tx:
        mine = (live.c.model == model) & one_of(tx, live.c.prediction_id, names)
        rows = tx.execute(live.delete().where(mine)).rowcount
        mine = (said.c.model == model) & one_of(tx, said.c.prediction_id, names)
        labels = tx.execute(said.delete().where(mine)).rowcount
        within = hot.segments_of(tx, model, names)
        if within and segments.listed(tx, model, ids=within, states=_STATES):
            return rows, labels, False  # sealed between our look and this transaction
        keys = [hot.key(model, name) for name in names]
        tx.execute(sealed.delete().where(one_of(tx, sealed.c.prediction, keys)))
    return rows, labels, True


def retain(
    ledger: Ledger, storage: Storage, model: str, *, since: datetime, at: datetime
) -> Forgotten:
    """See `SampleLog.retain`; done again after a crash, it does the rest.

    Raises:
        StoreUnavailable: the rest is deleted next time.
    """
    rows = labels = files = 0
    with ledger.read() as tx:
        every = segments.listed(tx, model, end=since, states=_STATES)
    for segment in [each for each in every if each.max_time < since]:
        labels += _let_go(ledger, storage, model, segment)
        try:
            with ledger.write() as tx:
                lineage.replace(
                    tx, model, [segment], None,
                    kind="retain", at=at, removed={segment.id: segment.rows},
                    reason=f"all rows older than {since.isoformat()}", by="retention",
                )  # fmt: skip
        except lineage.Raced:
            continue
        rows, files = rows + segment.rows, files + 1
    gone, said = _let_go_hot(ledger, model, since)
    labels += said + _unmatched(ledger, model, since)
    lineage.bury(ledger, storage)
    return Forgotten(rows=rows + gone, labels=labels, segments=files)


def _let_go(ledger: Ledger, storage: Storage, model: str, segment: Segment) -> int:
    """Delete the keys of a segment's rows and the labels that no other row needs; in pieces, so
    that appends do not wait. The segment itself is still there: a crash loses no order."""
    sealed, parts, count = schema.sealed_keys, schema.segment_parts, 0
    try:
        rows = segments.read(storage, segment, inputs=False, keys=True)
    except (CorruptSegment, Gone):
        with ledger.write() as tx:  # its ids are not known: their labels go when they are as old
            here = sa.select(parts.c.part).where(parts.c.segment == segment.id)
            mine = (sealed.c.segment == segment.id) | sealed.c.segment.in_(here)
            tx.execute(sealed.delete().where(mine))
        return 0
    for keys in chunks(events_of(rows)):
        with ledger.write() as tx:
            tx.execute(sealed.delete().where(one_of(tx, sealed.c.event, keys)))
    for names in chunks(list(dict.fromkeys(rows["id"].to_pylist()))):
        with ledger.write() as tx:
            count += _labels_of(tx, model, names)
    return count


def _labels_of(tx: sa.Connection, model: str, names: Sequence[str]) -> int:
    """Delete the labels of ids that the log holds no row of."""
    table = schema.labels
    unknown = set(names) - hot.known(tx, model, names)
    mine = (table.c.model == model) & one_of(tx, table.c.prediction_id, unknown)
    return tx.execute(table.delete().where(mine)).rowcount if unknown else 0


def _let_go_hot(ledger: Ledger, model: str, since: datetime) -> tuple[int, int]:
    table, rows, labels = schema.predictions, 0, 0
    old = (
        sa.select(table.c.id, table.c.prediction_id)
        .where(table.c.model == model, table.c.time < since)
        .limit(5_000)
    )
    while True:
        with ledger.write() as tx:
            found = tx.execute(old).all()
            if not found:
                return rows, labels
            ids = [row[0] for row in found]
            rows += tx.execute(table.delete().where(table.c.id.in_(ids))).rowcount
            labels += _labels_of(tx, model, sorted({row[1] for row in found}))


def _unmatched(ledger: Ledger, model: str, since: datetime) -> int:
    """Delete labels older than `since` whose prediction the log does not have (any more)."""
    table, count, after = schema.labels, 0, ""
    old = sa.select(table.c.prediction_id).where(table.c.model == model, table.c.time < since)
    while True:
        with ledger.write() as tx:
            piece = old.where(table.c.prediction_id > after).distinct()
            names = list(tx.scalars(piece.order_by(table.c.prediction_id).limit(5_000)))
            if not names:
                return count
            count += _labels_of(tx, model, names)
            after = names[-1]
