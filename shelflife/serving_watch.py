"""Whether anybody still answers: a model whose last worker went silent is a page.

A worker that stops on purpose takes its row away; one that dies leaves it behind. A model that was
never served here (its predictions come from elsewhere) has no rows and is none of our business.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from core import schema
from core.times import iso
from monitor.alert import incidents
from monitor.results import Finding
from shelflife import oncall
from shelflife.service import Service
from shelflife.tick import resolve_one_off

SILENT = timedelta(seconds=30)  # of heartbeats that come every two seconds
CAUSE = "serving_down"


def look(service: Service, *, started: datetime, now: datetime) -> list[str]:
    """Open or end the incidents of models that nobody answers; returns those models.

    Args:
        started: since when this process looks. Workers get `SILENT` from then on to come back,
            since after an outage of the whole machine nobody has beaten for long.
    """
    table = schema.workers
    newest = sa.select(table.c.model, sa.func.max(table.c.seen)).group_by(table.c.model)
    with service.ledger.read() as tx:
        seen = {row[0]: row[1] for row in tx.execute(newest)}
        known = {one.model for one in incidents.unresolved(tx) if one.cause == CAUSE}
    down = {model: at for model, at in seen.items() if now - max(at, started) > SILENT}
    for model in sorted(down.keys() - known):
        _open(service, model, down[model], now)
    for model in sorted(known - down.keys()):
        back = model in seen
        if back and now - seen[model] > SILENT:
            continue  # we have only just started to look
        text = "a worker answers" if back else "its workers were stopped on purpose"
        context = oncall.context(service.settings, model)
        with service.ledger.write() as tx:
            resolve_one_off(tx, context, CAUSE, text, now)
    return sorted(down)


def _open(service: Service, model: str, last: datetime, now: datetime) -> None:
    finding = Finding(
        cause=CAUSE,
        severity="page",
        title=f"no worker has been heard of since {iso(last.replace(microsecond=0))}",
        text="callers get no answer, and the log no rows: drift and silence are not told meanwhile",
        since=last,
    )
    context = oncall.context(service.settings, model, command="shelflife doctor")
    with service.ledger.write() as tx:
        incidents.open_incident(
            tx, service.ledger, context=context, version="", finding=finding, at=now
        )
