"""Looking after the segments: merging small ones, removing orphans, verifying all of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import CorruptSegment, ShelflifeError
from core.ledger import Ledger
from monitor.log import lineage, segments
from monitor.log.segments import Segment
from monitor.log.storage import Gone, Storage

GRACE = timedelta(days=1)  # younger files may be a segment on its way into the manifest
_MARK = "shelflife-ledger"  # a file of the store: the id of the one ledger it belongs to


class Verdict(Struct, frozen=True, kw_only=True):
    """What a verification found of one segment."""

    model: str
    path: str
    rows: int
    state: Literal["intact", "corrupt", "missing", "restored"]


def compact(ledger: Ledger, storage: Storage, model: str, *, at: datetime, rows: int) -> int:
    """See `SampleLog.compact`.

    Raises:
        StoreUnavailable: what was merged so far stays merged.
    """
    with ledger.read() as tx:
        listed = segments.listed(tx, model)
    merged = 0
    for group in _groups(listed, rows):
        try:
            merged += _merge(ledger, storage, model, group, at)
        except (lineage.Raced, Gone):
            continue  # retention or forgetting was faster; what is left waits for the next time
        except CorruptSegment:
            continue  # the next read or `verify` quarantines it
    if merged:
        lineage.bury(ledger, storage)
    return merged


def _groups(listed: Sequence[Segment], most: int) -> Iterator[list[Segment]]:
    """Neighbours in time, at least two, that fit into one segment; half-full ones stay."""
    group, total = list[Segment](), 0
    for segment in listed:
        if segment.rows > most // 2:
            continue
        if total + segment.rows > most:
            if len(group) > 1:
                yield group
            group, total = [], 0
        group.append(segment)
        total += segment.rows
    if len(group) > 1:
        yield group


def _merge(
    ledger: Ledger, storage: Storage, model: str, group: Sequence[Segment], at: datetime
) -> int:
    from monitor.log import flat

    parts = [segments.read(storage, segment, keys=True) for segment in group]
    written = segments.write(storage, model, flat.below(parts))
    try:
        with ledger.write() as tx:
            lineage.replace(
                tx, model, group, written,
                kind="compact", at=at, removed={}, reason=f"{len(group)} segments merged",
            )  # fmt: skip
    except lineage.Raced:
        storage.delete(written.path)
        raise
    return len(group)


def quarantine(ledger: Ledger, model: str, bad: Sequence[Segment], at: datetime) -> None:
    """Take segments that do not match their hash out of every read; their files stay."""
    table = schema.segments
    with ledger.write() as tx:
        fresh = []
        for segment in bad:
            mine = (table.c.id == segment.id) & (table.c.state == "active")
            if tx.execute(table.update().where(mine).values(state="quarantined")).rowcount:
                fresh.append(segment)
        lineage.note(
            tx, model, fresh, None, kind="quarantine", at=at, removed={},
            reason="does not match its sha256",
        )  # fmt: skip


def verify(ledger: Ledger, storage: Storage, model: str, *, at: datetime) -> list[Verdict]:
    """Hash every segment of a model: corrupt ones are quarantined, quarantined ones that match
    again (restored from a copy) are read again.

    Raises:
        StoreUnavailable: nothing was concluded about the rest.
    """
    with ledger.read() as tx:
        listed = segments.listed(tx, model, states=("active", "quarantined"))
    found = []
    for segment in listed:
        state = _examined(storage, segment)
        if state == "corrupt":
            quarantine(ledger, model, [segment], at)
        if state == "restored":
            table = schema.segments
            with ledger.write() as tx:
                tx.execute(table.update().where(table.c.id == segment.id).values(state="active"))
        found.append(Verdict(model=model, path=segment.path, rows=segment.rows, state=state))
    return found


def _examined(
    storage: Storage, segment: Segment
) -> Literal["intact", "corrupt", "missing", "restored"]:
    try:
        segments.verified(storage, segment)
    except CorruptSegment:
        return "corrupt"
    except Gone:
        return "missing"
    return "intact" if segment.state == "active" else "restored"


def sweep(ledger: Ledger, storage: Storage, *, at: datetime, grace: timedelta = GRACE) -> list[str]:
    """Delete files that no manifest row names: what a crash left between a file and its
    transaction, and what a replaced segment left. Returns their names.

    Args:
        grace: files younger than this are left alone: a segment on its way into the manifest.

    Raises:
        StoreUnavailable: the store does not answer.
        ShelflifeError: the store belongs to another ledger, whose files these may be.
    """
    _claim(ledger, storage)
    lineage.bury(ledger, storage)
    # First the files, then the manifest: what was added in between is in both.
    files = [entry for entry in storage.listed() if entry.modified < at - grace]
    table, swept = schema.segments, []
    with ledger.read() as tx:
        named = set(tx.scalars(sa.select(table.c.path)))
    for entry in files:
        if entry.name not in named and entry.name.endswith((".parquet", ".tmp")):
            storage.delete(entry.name)
            swept.append(entry.name)
    return swept


def _claim(ledger: Ledger, storage: Storage) -> None:
    """Make sure that the store's files are this ledger's: two of them would sweep each other's."""
    table = schema.meta
    with ledger.write() as tx:
        fresh = ledger.insert_ignore(table).values(key="ledger_id", value=uuid.uuid4().hex)
        tx.execute(fresh)
        ours = str(tx.scalar(sa.select(table.c.value).where(table.c.key == "ledger_id")))
    try:
        found = storage.read(_MARK).decode()
    except Gone:
        storage.write(_MARK, ours.encode())
        return
    if found != ours:
        raise ShelflifeError(
            f"{storage.address} belongs to another ledger ({found}, this one is {ours}); "
            f"give each its own `segments`, or delete {_MARK} there if that ledger is gone"
        )
