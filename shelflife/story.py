"""One incident's story: from the sign to the run that answers it, its promotion, and its watch."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core import schema
from core.settings import ModelSettings, span
from core.times import spell
from monitor.alert import incidents
from registry.versions import Version

_ANSWERED = ("decay", "shelf_life", "stale", "drift")  # what a run answers, the gravest first


def answered_by_a_run(tx: sa.Connection, model: str) -> int | None:
    """The unresolved incident that a run of this model answers: decay first, then the oldest."""
    table = schema.incidents
    rows = tx.execute(
        sa.select(table.c.id, table.c.cause)
        .where(table.c.model == model, table.c.open_key.is_not(None))
        .order_by(table.c.id)
    ).all()
    for cause in _ANSWERED:
        for row in rows:
            if row.cause == cause:
                return int(row.id)
    return None


def behind(tx: sa.Connection, champion: Version) -> int | None:
    """The incident that a run promoted this version to answer, if one did."""
    found = _promotion(tx, champion)
    return None if found is None else found.incident_id


def watch_over(
    tx: sa.Connection, champion: Version, settings: ModelSettings, *, at: datetime
) -> int | None:
    """Write the end of a promotion's watch on its incident, once; returns the incident then."""
    found = _promotion(tx, champion)
    lasts = span(settings.retrain.watch)
    if found is None or found.incident_id is None or at - found.at <= lasts:
        return None
    events = schema.incident_events
    told = sa.select(events.c.id).where(
        events.c.incident_id == found.incident_id,
        events.c.kind == "watch",
        events.c.at > found.at,
    )
    if tx.scalar(told.limit(1)) is not None:
        return None
    text = f"v{champion.version} was watched for {spell(lasts)} and is kept"
    incidents.add_event(tx, found.incident_id, at=at, kind="watch", text=text)
    return int(found.incident_id)


def watched_from(settings: ModelSettings, candidate: str | None, before: str) -> str:
    """What the timeline says when a promotion's watch begins."""
    lasts = spell(span(settings.retrain.watch))
    return f"v{candidate} is compared with v{before} on the same rows for {lasts}"


def _promotion(tx: sa.Connection, champion: Version) -> Any:
    moves, runs = schema.promotions, schema.runs
    mine = (moves.c.model == champion.model) & (moves.c.version == champion.version)
    query = (
        sa.select(moves.c.at, runs.c.incident_id)
        .select_from(moves)
        .join(runs, runs.c.id == moves.c.run_id)
        .where(mine)
        .order_by(moves.c.id.desc())
        .limit(1)
    )
    return tx.execute(query).first()
