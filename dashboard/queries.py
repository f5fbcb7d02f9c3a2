"""What the pages ask the ledger: plain functions, no Streamlit, nothing written.

Moments are UTC. `now` is the reader's clock, or the newest moment the ledger knows (`newest`) when
what it holds is a replayed history. `dashboard.fleet_query` has all models at once,
`dashboard.history` one model over time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import NotFound, ShelflifeError
from core.ledger import Ledger
from dashboard.views import (
    IncidentEvent,
    IncidentRow,
    IncidentView,
    Message,
    RunRow,
    RunStep,
    RunView,
)
from monitor.results import CheckResult, Finding

_OPEN = ("open", "acknowledged")
#: In a replayed history the steps of a run begin at one moment: then they come in this order.
_STEPS = (
    "dataset", "train", "gate", "register", "shadow", "approve", "canary", "promote", "serve",
)  # fmt: skip


def ready(ledger: Ledger) -> None:
    """Assert that the ledger can be read and is of a schema we know.

    Raises:
        ShelflifeError: no shelflife ledger there, or one of a newer shelflife.
    """
    with ledger.read() as tx:
        if not sa.inspect(tx).has_table(schema.meta.name):
            raise ShelflifeError("the database has no shelflife tables yet")
        found = tx.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "schema"))
    if found is None or int(found) > schema.VERSION:
        raise ShelflifeError(
            f"the ledger has schema {found}, this dashboard knows up to {schema.VERSION}; "
            "upgrade shelflife"
        )


def version(ledger: Ledger) -> str:
    """A text that changes whenever anything the pages show has changed."""
    newest = [
        sa.func.max(schema.checks.c.id),
        sa.func.max(schema.promotions.c.id),
        sa.func.max(schema.decisions.c.id),
        sa.func.max(schema.incident_events.c.id),
        sa.func.max(schema.commands.c.id),
    ]
    changed = [
        sa.func.max(schema.incidents.c.updated),
        sa.func.max(schema.runs.c.updated),
        sa.func.max(schema.run_steps.c.started),
        sa.func.max(schema.outbox.c.delivered),
        sa.func.max(schema.commands.c.finished),
        sa.func.max(schema.reports.c.state),
        sa.func.max(schema.reports.c.asked),
        sa.func.sum(schema.outbox.c.attempts),
    ]
    with ledger.read() as tx:
        return "/".join(str(tx.scalar(sa.select(what))) for what in newest + changed)


def newest(ledger: Ledger) -> datetime | None:
    """The newest moment the ledger knows: the clock of a replayed history."""
    columns = (
        schema.checks.c.at,
        schema.promotions.c.at,
        schema.incidents.c.updated,
        schema.runs.c.updated,
    )
    with ledger.read() as tx:
        found = [tx.scalar(sa.select(sa.func.max(column))) for column in columns]
    return max((moment for moment in found if moment is not None), default=None)


def check_result(text: str) -> CheckResult | None:
    """A stored check; None where another shelflife wrote what this one cannot read."""
    try:
        return msgspec.json.decode(text, type=CheckResult)
    except msgspec.MsgspecError:
        return None


def incidents(
    ledger: Ledger, *, model: str | None = None, state: str | None = None, limit: int = 200
) -> tuple[IncidentRow, ...]:
    """Incidents, unresolved ones first, then newest first.

    Args:
        state: `unresolved` or `resolved`; both when None.
    """
    with ledger.read() as tx:
        return _incidents(tx, model=model, state=state, limit=limit)


def _incidents(
    tx: sa.Connection, *, model: str | None, state: str | None, limit: int
) -> tuple[IncidentRow, ...]:
    table = schema.incidents
    columns = [table.c[field] for field in IncidentRow.__struct_fields__]
    query = sa.select(*columns).order_by(
        (table.c.state == "resolved").asc(), table.c.opened.desc(), table.c.id.desc()
    )
    if model is not None:
        query = query.where(table.c.model == model)
    if state is not None:
        resolved = table.c.state == "resolved"
        query = query.where(resolved if state == "resolved" else table.c.state.in_(_OPEN))
    return tuple(IncidentRow(**row._mapping) for row in tx.execute(query.limit(limit)))


def incident(ledger: Ledger, incident_id: int) -> IncidentView:
    """One incident, its timeline and the messages it caused.

    Raises:
        NotFound: no incident has this number.
    """
    table, lines, sent = schema.incidents, schema.incident_events, schema.outbox
    with ledger.read() as tx:
        found = tx.execute(sa.select(table).where(table.c.id == incident_id)).first()
        if found is None:
            raise NotFound("incident", incident_id)
        events = tx.execute(
            sa.select(lines.c.at, lines.c.kind, lines.c.text)
            .where(lines.c.incident_id == incident_id)
            .order_by(lines.c.at, lines.c.id)
        ).all()
        columns = [sent.c[field] for field in Message.__struct_fields__]
        messages = tx.execute(
            sa.select(*columns).where(sent.c.incident_id == incident_id).order_by(sent.c.id)
        ).all()
    fields = {name: found._mapping[name] for name in IncidentRow.__struct_fields__}
    try:
        finding = msgspec.json.decode(found.finding, type=Finding)
    except msgspec.MsgspecError:
        finding = None
    return IncidentView(
        row=IncidentRow(**fields),
        finding=finding,
        events=tuple(IncidentEvent(**row._mapping) for row in events),
        messages=tuple(Message(**row._mapping) for row in messages),
    )


def runs(ledger: Ledger, *, model: str | None = None, limit: int = 200) -> tuple[RunRow, ...]:
    """Retraining runs, unfinished ones first, then newest first."""
    with ledger.read() as tx:
        return _runs(tx, None if model is None else schema.runs.c.model == model, limit=limit)


def _runs(
    tx: sa.Connection, wanted: sa.ColumnElement[bool] | None, *, limit: int
) -> tuple[RunRow, ...]:
    table, steps = schema.runs, schema.run_steps
    step = (
        sa.select(steps.c.name)
        .where(steps.c.run_id == table.c.id)
        .order_by(steps.c.finished.is_(None).desc(), steps.c.started.desc(), _place().desc())
        .limit(1)
        .scalar_subquery()
    )
    query = sa.select(table, step.label("step")).order_by(
        table.c.active.is_(None).asc(), table.c.started.desc(), table.c.id.desc()
    )
    if wanted is not None:
        query = query.where(wanted)
    return tuple(_run_row(row._mapping) for row in tx.execute(query.limit(limit)))


def _place() -> sa.ColumnElement[int]:
    """Which step of a run this is; a step of a newer shelflife comes last."""
    order = {name: index for index, name in enumerate(_STEPS)}
    return sa.case(order, value=schema.run_steps.c.name, else_=len(_STEPS))


def _run_row(row: sa.RowMapping) -> RunRow:
    names = set(RunRow.__struct_fields__) - {"gate", "step"}
    fields = {name: row[name] for name in names}
    return RunRow(**fields, step=row["step"] or "", gate=plain_object(row["gate"]))


def run(ledger: Ledger, run_id: str) -> RunView:
    """One run, step by step.

    Raises:
        NotFound: no run has this id.
    """
    steps = schema.run_steps
    with ledger.read() as tx:
        found = _runs(tx, schema.runs.c.id == run_id, limit=1)
        if not found:
            raise NotFound("run", run_id)
        rows = tx.execute(
            sa.select(steps).where(steps.c.run_id == run_id).order_by(steps.c.started, _place())
        ).all()
    done = tuple(
        RunStep(
            name=row.name,
            state=row.state,
            attempts=row.attempts,
            started=row.started,
            finished=row.finished,
            result=plain_object(row.result),
            error=row.error,
        )
        for row in rows
    )
    return RunView(row=found[0], steps=done)


def reported(ledger: Ledger, subject: str) -> tuple[str, str | None]:
    """State and path of the report of `check:ID` or `run:ID`; ("", None) where nobody asked."""
    table = schema.reports
    with ledger.read() as tx:
        row = tx.execute(sa.select(table).where(table.c.subject == subject)).first()
    return ("", None) if row is None else (row.state, row.path)


def plain_object(text: str) -> dict[str, Any]:
    """A stored JSON object; empty where there is none or it is something else."""
    try:
        value = msgspec.json.decode(text) if text else {}
    except msgspec.MsgspecError:
        return {}
    return value if isinstance(value, dict) else {}
