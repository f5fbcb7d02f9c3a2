"""Past windows scored again when labels landed since: what changed, the new scores, their table.

`rescore` reads (the log and what was scored before), `record` writes in the caller's transaction,
`listed` is for everybody. A tick calls the first two; repeating them changes nothing. Only windows
that something happened to are read: a row or label received since, a label whose time has come, a
segment that was sealed. A writer may commit after the moment it stamped; the receipts of the hour
before the last look are counted and summed, and looked at again when that is another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger, one_of
from core.settings import ModelSettings, span
from core.spec import Metric, ModelSpec
from core.times import from_micros, micros
from monitor.log import hot
from monitor.log.records import SampleLog
from monitor.measure import windows
from monitor.outcome import score_width as width_of
from monitor.results import WindowScore

HORIZON = 10  # check windows, and once the label delay, that scores reach back
_STALL = timedelta(hours=1)  # longest between a writer's stamp and its commit
_FIELDS = [name for name in WindowScore.__struct_fields__]


class Rescored(Struct, frozen=True, kw_only=True):
    """What `rescore` found, for `record`."""

    model: str
    at: datetime
    width: timedelta
    metric: Metric
    since: datetime  # scores before it are dropped
    starts: tuple[datetime, ...]  # windows that were read again
    scores: tuple[WindowScore, ...]  # all there is of them
    changed: tuple[WindowScore, ...]  # those that differ from what was known
    received: datetime | None
    recent: str
    segment: int
    anew: bool  # the width or the metric changed: nothing known holds


def rescore(
    ledger: Ledger,
    log: SampleLog,
    spec: ModelSpec,
    metric: Metric,
    settings: ModelSettings,
    *,
    at: datetime,
    late: timedelta | None = None,
) -> Rescored | None:
    """Score the windows again that something happened to since the newest tick before `at`.

    Args:
        late: how late labels are, when the settings do not say; the horizon is longer by it.

    Returns None when a later moment was scored already: the past is not written twice.
    """
    model, width = spec.name, width_of(settings)
    delay = span(settings.label_delay) if settings.label_delay else late or timedelta()
    since = windows.floor(at - HORIZON * span(settings.window) - delay, width)
    with ledger.read() as tx:
        mark = tx.execute(
            sa.select(schema.score_marks).where(schema.score_marks.c.model == model)
        ).first()
        if mark is not None and mark.at > at:
            return None
        anew = mark is None or mark.width != _step(width) or mark.metric != metric
        received, recent, segment = _marks(tx, model)
        if anew:
            starts = _between(since, at, width)
        else:
            starts = {s for s in _touched(tx, model, mark, width, at) if since <= s < at}
        known = {} if anew else {(s.start, s.version): s for s in _stored(tx, model, since)}
    scores: list[WindowScore] = []
    for first, last in windows.merged(starts, width):
        rows = log.read(model, start=first, end=min(last, at), known_at=at)
        scores += windows.score(spec, metric, rows, width)
    return Rescored(
        model=model,
        at=at,
        width=width,
        metric=metric,
        since=since,
        starts=tuple(sorted(starts)),
        scores=tuple(scores),
        changed=tuple(s for s in scores if known.get((s.start, s.version)) != s),
        received=received,
        recent=recent,
        segment=segment,
        anew=anew,
    )


def record(tx: sa.Connection, ledger: Ledger, found: Rescored) -> None:
    """Keep new scores and how far they reach; a later moment's are never overwritten."""
    table, marks = schema.window_scores, schema.score_marks
    tx.execute(
        ledger.insert_ignore(marks).values(
            model=found.model, at=found.at, segment=0, width=0, metric=""
        )
    )
    moved = tx.execute(
        marks.update()
        .where(marks.c.model == found.model, marks.c.at <= found.at)
        .values(
            at=found.at,
            received=found.received,
            recent=found.recent,
            segment=found.segment,
            width=_step(found.width),
            metric=found.metric,
        )
    )
    if not moved.rowcount:
        return
    mine = table.c.model == found.model
    tx.execute(table.delete().where(mine, table.c.start < found.since))
    same = set() if found.anew else {(s.start, s.version) for s in found.scores}
    same -= {(s.start, s.version) for s in found.changed}
    if found.anew:
        tx.execute(table.delete().where(mine))
    for start in found.starts:
        gone = mine & (table.c.start == start)
        kept = [version for begin, version in same if begin == start]
        tx.execute(table.delete().where(gone, table.c.version.not_in(kept)))
    values = [
        {"model": found.model, "scored": found.at, **{name: getattr(s, name) for name in _FIELDS}}
        for s in found.changed
    ]
    if values:
        tx.execute(table.insert(), values)


def listed(
    ledger: Ledger,
    model: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
) -> list[tuple[WindowScore, datetime]]:
    """Scores with the check that found each, oldest window first.

    Args:
        since, until: only windows with since <= start < until.
    """
    table = schema.window_scores
    query = sa.select(table).where(table.c.model == model)
    if since is not None:
        query = query.where(table.c.start >= since)
    if until is not None:
        query = query.where(table.c.start < until)
    if version is not None:
        query = query.where(table.c.version == version)
    with ledger.read() as tx:
        rows = tx.execute(query.order_by(table.c.start, table.c.version)).all()
    return [(_score(row), row.scored) for row in rows]


def _stored(tx: sa.Connection, model: str, since: datetime) -> list[WindowScore]:
    table = schema.window_scores
    rows = tx.execute(sa.select(table).where(table.c.model == model, table.c.start >= since))
    return [_score(row) for row in rows]


def _score(row: Any) -> WindowScore:
    return WindowScore(**{name: getattr(row, name) for name in _FIELDS})


def _step(width: timedelta) -> int:
    return width // timedelta(microseconds=1)


def _between(first: datetime, last: datetime, width: timedelta) -> set[datetime]:
    start, found = windows.floor(first, width), set[datetime]()
    while start < last:
        found.add(start)
        start += width
    return found


def _marks(tx: sa.Connection, model: str) -> tuple[datetime | None, str, int]:
    """Newest receipt of a hot row or a label, what `_recent` says of it, and the newest segment."""
    moments = [
        tx.scalar(sa.select(sa.func.max(table.c.received)).where(table.c.model == model))
        for table in (schema.labels, schema.predictions)
    ]
    received = max((m for m in moments if m is not None), default=None)
    files = schema.segments.c
    segment = tx.scalar(sa.select(sa.func.max(files.id)).where(files.model == model))
    return received, _recent(tx, model, received), int(segment or 0)


def _recent(tx: sa.Connection, model: str, until: datetime | None) -> str:
    """Count and sum of the receipts up to `_STALL` before a moment, of labels and hot rows, and the
    newest hot row (a sealer may have taken as many away as came)."""
    if until is None:
        return ""
    since, found = until - _STALL, []
    for table in (schema.labels, schema.predictions):
        # Counted from `since` on, the sum of a billion receipts fits into 64 bits.
        offset = sa.type_coerce(table.c.received, sa.BigInteger) - micros(since)
        query = sa.select(sa.func.count(), sa.func.sum(offset)).where(
            table.c.model == model, table.c.received > since, table.c.received <= until
        )
        n, total = tx.execute(query).one()
        found.append(f"{n}:{total or 0}")
    rows = schema.predictions.c
    newest = tx.scalar(sa.select(sa.func.max(rows.id)).where(rows.model == model))
    return f"{' '.join(found)} {newest or 0}"


def _touched(
    tx: sa.Connection, model: str, mark: Any, width: timedelta, at: datetime
) -> set[datetime]:
    """Starts of the windows that may not be what they were at the mark."""
    table, said, step = schema.predictions, schema.labels.c, _step(width)
    after = mark.received if mark.received is not None else from_micros(0)
    if _recent(tx, model, mark.received) != mark.recent:
        after -= _STALL
    bucket = sa.type_coerce(table.c.time, sa.BigInteger) // step
    fresh = sa.select(bucket).where(table.c.model == model, table.c.received > after)
    changed = (
        (said.model == model)
        & (said.time <= at)
        & ((said.received > after) | (said.time > mark.at))
    )
    relabelled = sa.select(bucket).where(
        table.c.model == model,
        table.c.prediction_id.in_(sa.select(said.prediction_id).where(changed)),
    )
    found = {from_micros(n * step) for n in tx.scalars(sa.union(fresh, relabelled))}
    found |= _between(mark.at, at, width)  # rows whose time has come
    for first, last in _sealed(
        tx, model, mark.segment, sa.select(said.prediction_id).where(changed)
    ):
        found |= _between(first, last + timedelta(microseconds=1), width)
    return found


def _sealed(
    tx: sa.Connection, model: str, newest: int, ids: sa.Select[Any]
) -> Iterable[tuple[datetime, datetime]]:
    """Event-time spans of segments that are new or hold predictions with these ids."""
    files, keys = schema.segments.c, schema.sealed_keys.c
    wanted = files.id > newest
    if tx.execute(sa.select(keys.event).limit(1)).first() is not None:
        names = [hot.key(model, name) for name in tx.scalars(ids.distinct())]
        holding = set(tx.scalars(sa.select(keys.segment).where(one_of(tx, keys.prediction, names))))
        wanted |= files.id.in_(sorted(holding))
    mine: Sequence[Any] = tx.execute(
        sa.select(files.min_time, files.max_time).where(files.model == model, wanted)
    ).all()
    return [(row.min_time, row.max_time) for row in mine]
