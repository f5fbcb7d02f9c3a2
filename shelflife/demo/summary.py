"""What a demo came to: counted from the stores, not from what the demo believes it did."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import sqlalchemy as sa

from core import schema
from core.files import write_atomic
from core.frames import to_frame
from core.ledger import Ledger
from monitor.measure.performance import aggregate, encode_labels, row_loss
from registry.loading import load_estimator, predict
from shelflife.demo import story
from shelflife.demo.receiver import OnCall
from shelflife.demo.replay import Tally
from shelflife.tick import TickResult

if TYPE_CHECKING:
    from registry.versions import Version
    from shelflife.service import Service

#: Decisions worth a line in the story; `wait` is the rule and is told once per reason.
_TOLD = "not needed"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at a moment of the replay."""

    at: datetime
    kind: str  # page, ticket, resolved, retraining, promoted, rejected, rollback, failed, decision
    text: str


class VersionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One version and how it fared."""

    version: str
    state: str
    rows: int
    trained_until: str
    gate: str
    served_rows: int
    alias: tuple[str, ...] = ()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Written to `summary.json`."""

    requests_sent: int
    requests_failed: int
    rows_acknowledged: int
    rows_in_log: int
    brier_served: float
    brier_frozen: float
    labelled: int
    retraining_runs: int
    promotions: int
    rejected: int
    failed_runs: int
    rollbacks: int
    pages: int
    tickets: int
    messages_received: int
    messages_refused: int
    seconds: float
    versions: list[VersionSummary]
    events: list[Event]
    data: str = story.ABOUT
    caveat: str = story.CAVEAT


def decisions(found: TickResult, at: datetime) -> list[Event]:
    """The tick's decision as an event, if it says that a run was not needed although drift was."""
    decision = found.decision
    drifted = found.check.state == "drifting" and decision.action == "wait"
    if drifted and _TOLD in decision.reason:
        return [Event(at=at, kind="not needed", text=decision.reason)]
    return []


def incidents_of(ledger: Ledger, ids: Sequence[int]) -> Sequence[sa.Row[Any]]:
    """The incidents with these ids."""
    table = schema.incidents
    with ledger.read() as tx:
        return tx.execute(sa.select(table).where(table.c.id.in_(ids)).order_by(table.c.id)).all()


def collect(
    service: Service,
    stream: pd.DataFrame,
    tally: Tally,
    on_call: OnCall,
    events: Sequence[Event],
    *,
    at: datetime,
    seconds: float,
) -> Summary:
    """Count everything once more, from the log, the ledger and MLflow."""
    served, frozen, labelled = brier(service)
    with service.ledger.read() as tx:
        runs = _counted(tx, schema.runs.c.state)
        severities = _counted(tx, schema.incidents.c.severity)
        kinds = _counted(tx, schema.promotions.c.kind)
    log = service.log.read(story.MODEL)
    versions = [
        _version(service, each, int((log.meta["version"] == each.version).sum()))
        for each in reversed(service.registry.versions(story.MODEL))
    ]
    return Summary(
        requests_sent=tally.sent,
        requests_failed=tally.failed,
        rows_acknowledged=tally.acknowledged,
        rows_in_log=len(log),
        brier_served=served,
        brier_frozen=frozen,
        labelled=labelled,
        retraining_runs=sum(runs.values()),
        promotions=runs.get("promoted", 0),
        rejected=runs.get("refused", 0),
        failed_runs=runs.get("failed", 0),
        rollbacks=kinds.get("rollback", 0),
        pages=severities.get("page", 0),
        tickets=severities.get("ticket", 0),
        messages_received=len(on_call.messages),
        messages_refused=on_call.refused,
        seconds=round(seconds, 1),
        versions=versions,
        events=thinned(events),
    )


def brier(service: Service) -> tuple[float, float, int]:
    """Brier score of what was served, and of version 1 on the very same labelled rows."""
    rows = service.log.read(story.MODEL, labelled=True)
    first = service.registry.get(story.MODEL, "1")
    spec = service.baseline(first)[0].spec
    y, _ = encode_labels(spec, rows.meta["label"].tolist())
    estimator = load_estimator(service.registry.fetch(first))
    inputs = to_frame(spec, {name: rows.inputs[name].to_numpy() for name in spec.columns})
    frozen = predict(estimator, spec, inputs)
    good = ~np.isnan(y)
    losses = [row_loss(spec, outputs[good], y[good]) for outputs in (rows.outputs, frozen)]
    return aggregate("brier", losses[0]), aggregate("brier", losses[1]), int(good.sum())


def _counted(tx: sa.Connection, column: sa.Column[Any]) -> dict[str, int]:
    query = sa.select(column, sa.func.count()).group_by(column)
    return {str(name): int(count) for name, count in tx.execute(query)}


def _version(service: Service, version: Version, served: int) -> VersionSummary:
    baseline, _ = service.baseline(version)
    gate, state = "first version: no champion to compare with", "served"
    if version.tags.get("shelflife.run_id"):
        gate, state = _gate(service.ledger, version.tags["shelflife.run_id"])
    if "champion" in version.aliases:
        state = "champion"
    return VersionSummary(
        version=version.version,
        state=state,
        rows=baseline.rows,
        trained_until=f"{baseline.trained_until:%Y-%m-%d}" if baseline.trained_until else "–",
        gate=gate,
        served_rows=served,
        alias=version.aliases,
    )


def _gate(ledger: Ledger, run_id: str) -> tuple[str, str]:
    table = schema.runs
    with ledger.read() as tx:
        row = tx.execute(sa.select(table.c.gate, table.c.state).where(table.c.id == run_id)).one()
    found = msgspec.json.decode(row.gate) if row.gate else {}
    return str(found.get("reason", "")), str(row.state)


def thinned(events: Sequence[Event]) -> list[Event]:
    """Events in order of time; of a row of equal `not needed` decisions only the first."""
    kept: list[Event] = []
    for event in sorted(events, key=lambda event: event.at):
        quiet = event.kind == "not needed"
        if not (quiet and any(e.kind == "not needed" for e in kept[-1:])):
            kept.append(event)
    return kept


def write(path: Path, found: Summary) -> None:
    """The summary as JSON."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(found)))
