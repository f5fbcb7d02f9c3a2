"""Segments that replace others, and the record of it.

Every hash that a training set names can be traced: it is in the manifest, or an event says what
became of it, when, why, and how many of its rows went. Old files are deleted after the transaction;
their paths stay with the event until they are, so that a crash in between leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from monitor.log import segments
from monitor.log.segments import Segment, Written
from monitor.log.storage import Storage

Kind = Literal["compact", "forget", "retain", "quarantine"]


class SegmentEvent(Struct, frozen=True, kw_only=True):
    """What became of one segment."""

    at: datetime
    kind: Kind
    old: str
    new: str | None
    rows: int
    removed: int
    reason: str
    by: str


class Raced(Exception):
    """Somebody else replaced the segment first; nothing was changed."""


def replace(
    tx: sa.Connection,
    model: str,
    old: Sequence[Segment],
    new: Written | None,
    *,
    kind: Kind,
    at: datetime,
    removed: Mapping[int, int],
    reason: str = "",
    by: str = "",
) -> int | None:
    """Put one segment in the place of others, or of none; returns its id.

    Args:
        removed: rows that are gone, by the old segment's id; none of those not named.

    Raises:
        Raced: one of the old segments is not in the manifest any more.
    """
    table, parts = schema.segments, schema.segment_parts
    ids = [segment.id for segment in old]
    gone = tx.execute(table.delete().where(table.c.id.in_(ids)))
    if gone.rowcount != len(ids):
        raise Raced
    identity = None if new is None else segments.added(tx, model, new, at)
    if identity is None:
        tx.execute(parts.delete().where(parts.c.segment.in_(ids)))
    else:
        tx.execute(parts.update().where(parts.c.segment.in_(ids)).values(segment=identity))
        tx.execute(parts.insert(), [{"part": each, "segment": identity} for each in ids])
    note(
        tx, model, old, None if new is None else new.sha256,
        kind=kind, at=at, removed=removed, reason=reason, by=by, doomed=True,
    )  # fmt: skip
    return identity


def note(
    tx: sa.Connection,
    model: str,
    old: Sequence[Segment],
    new: str | None,
    *,
    kind: Kind,
    at: datetime,
    removed: Mapping[int, int],
    reason: str = "",
    by: str = "",
    doomed: bool = False,
) -> None:
    """Record what became of segments; `doomed` ones have a file that is to be deleted."""
    rows = [
        {
            "model": model,
            "at": at,
            "kind": kind,
            "old": each.sha256,
            "new": new,
            "rows": each.rows,
            "removed": removed.get(each.id, 0),
            "path": each.path if doomed else "",
            "reason": reason,
            "by": by,
        }
        for each in old
    ]
    if rows:
        tx.execute(schema.segment_events.insert(), rows)


def bury(ledger: Ledger, storage: Storage) -> int:
    """Delete the files of replaced segments; returns how many.

    Raises:
        StoreUnavailable: the rest stays to be deleted, which `sweep` does.
    """
    table, count = schema.segment_events, 0
    with ledger.read() as tx:
        doomed = tx.execute(sa.select(table.c.id, table.c.path).where(table.c.path != "")).all()
    for identity, path in doomed:
        storage.delete(path)
        with ledger.write() as tx:
            tx.execute(table.update().where(table.c.id == identity).values(path=""))
        count += 1
    return count


def events(ledger: Ledger, model: str) -> list[SegmentEvent]:
    """Everything that became of the model's segments, oldest first."""
    table = schema.segment_events
    names = SegmentEvent.__struct_fields__
    query = sa.select(*(table.c[name] for name in names)).where(table.c.model == model)
    with ledger.read() as tx:
        rows = tx.execute(query.order_by(table.c.id)).all()
    return [SegmentEvent(**row._mapping) for row in rows]


class Fate(Struct, frozen=True, kw_only=True):
    """What became of a segment that a dataset names."""

    sha256: str
    state: Literal["active", "quarantined", "replaced", "deleted", "unknown"]
    steps: tuple[SegmentEvent, ...] = ()  # from the segment to what holds its rows now

    @property
    def removed(self) -> int:
        """Rows on the way that are in no segment any more, of this and those merged with it."""
        return sum(step.removed for step in self.steps)


def trace(ledger: Ledger, names: Sequence[str]) -> list[Fate]:
    """What became of each of these segment hashes, for instance those of a training set."""
    return [_trace(ledger, name) for name in names]


def _trace(ledger: Ledger, name: str) -> Fate:
    table, manifest = schema.segment_events, schema.segments
    columns = [table.c[field] for field in SegmentEvent.__struct_fields__]
    steps, here = list[SegmentEvent](), name
    with ledger.read() as tx:
        while True:
            query = sa.select(manifest.c.state).where(manifest.c.sha256 == here)
            state = tx.scalar(query.limit(1))
            if state is not None:
                return Fate(sha256=name, state="replaced" if steps else state, steps=tuple(steps))
            moved = sa.select(*columns).where(table.c.old == here, table.c.kind != "quarantine")
            row = tx.execute(moved.order_by(table.c.id.desc()).limit(1)).first()
            if row is None:
                return Fate(sha256=name, state="unknown", steps=tuple(steps))
            steps.append(SegmentEvent(**row._mapping))
            if steps[-1].new is None:
                return Fate(sha256=name, state="deleted", steps=tuple(steps))
            here = steps[-1].new
