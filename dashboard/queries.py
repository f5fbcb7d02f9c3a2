"""What the pages ask the ledger: plain functions, no Streamlit, nothing written.

Moments are UTC. `now` is the reader's clock, or the newest moment the ledger knows (`newest`) when
what it holds is a replayed history. `dashboard.history` has the one model over time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import NotFound, ShelflifeError
from core.ledger import Ledger
from core.times import micros
from dashboard import words
from dashboard.views import (
    Fleet,
    IncidentEvent,
    IncidentRow,
    IncidentView,
    Message,
    ModelRow,
    RunRow,
    RunStep,
    RunView,
    Spark,
)
from monitor.results import CheckResult, Finding

SPARK_DAYS = 30
SPARK_POINTS = 60
_LATE = 3  # checks in a row that may be missing before the model counts as unwatched
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
    ]
    changed = [
        sa.func.max(schema.incidents.c.updated),
        sa.func.max(schema.runs.c.updated),
        sa.func.max(schema.run_steps.c.started),
        sa.func.max(schema.outbox.c.delivered),
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


def models(tx: sa.Connection) -> list[str]:
    """Every model anybody checked, promoted, served or retrained, by name."""
    tables = (schema.promotions, schema.runs, schema.workers, schema.incidents)
    found = {name for table in tables for name in tx.scalars(sa.select(table.c.model).distinct())}
    # The checks are many and their index starts with the model: hop from name to name.
    name: str | None = ""
    while name is not None:
        column = schema.checks.c.model
        name = tx.scalar(sa.select(column).where(column > name).order_by(column).limit(1))
        found |= {name} if name else set()
    return sorted(found)


def fleet(ledger: Ledger, now: datetime) -> Fleet:
    """One row per model, the one that needs a person first on top."""
    with ledger.read() as tx:
        rows = [model_row(tx, name, now) for name in models(tx)]
    checked = max((row.checked for row in rows if row.checked), default=None)
    return Fleet(now=now, checked=checked, rows=tuple(sorted(rows, key=_consequence)))


def _consequence(row: ModelRow) -> tuple[int, bool, float, str]:
    paging = row.incident is not None and row.incident.severity == "page"
    rank = words.look(row.state).rank
    over = row.value / row.tolerated if row.value is not None and row.tolerated else 0.0
    # A page on a model that looks healthy (a failed run, say) comes before every quiet state.
    return min(rank, 1) if paging else rank, not paging, -over, row.model


def model_row(tx: sa.Connection, model: str, now: datetime) -> ModelRow:
    """The newest facts about one model; a model nobody checked yet has state `unchecked`."""
    table, moved = schema.checks, schema.promotions
    last = tx.execute(
        sa.select(table).where(table.c.model == model).order_by(table.c.at.desc()).limit(1)
    ).first()
    champion = tx.execute(
        sa.select(moved.c.version, moved.c.at)
        .where(moved.c.model == model)
        .order_by(moved.c.at.desc(), moved.c.id.desc())
        .limit(1)
    ).first()
    unresolved = [row for row in _incidents(tx, model=model, state="unresolved", limit=50)]
    active = _runs(tx, schema.runs.c.active == model, limit=1)
    facts: dict[str, Any] = {
        "model": model,
        "state": "unchecked",
        "version": champion.version if champion else "",
        "champion_since": champion.at if champion else None,
        "incident": min(unresolved, key=lambda i: words.look(i.severity, words.INCIDENTS).rank)
        if unresolved
        else None,
        "incidents": len(unresolved),
        "run": active[0] if active else None,
    }
    if last is not None:
        facts |= _checked(tx, last, now) | ({} if champion else {"version": last.version})
    return ModelRow(**facts)


def _checked(tx: sa.Connection, last: sa.Row[Any], now: datetime) -> dict[str, Any]:
    result = check_result(last.result)
    performance = result.performance if result else None
    every = _rhythm(tx, last.model)
    return {
        "state": last.state,
        "reason": last.reason,
        "since": _since(tx, last.model, last.state) if last.state != "healthy" else None,
        "metric": last.metric,
        "value": last.value,
        "low": last.low,
        "high": last.high,
        "expected": last.expected,
        "tolerated": last.tolerated,
        "n": performance.n if performance else None,
        "coverage": performance.coverage if performance else None,
        "why": performance.why if performance else "",
        "spark": _spark(tx, last.model, last.at, last.tolerated),
        "checked": last.at,
        "every": every,
        "overdue": every is not None and now - last.at > _LATE * every,
    }


def check_result(text: str) -> CheckResult | None:
    """A stored check; None where another shelflife wrote what this one cannot read."""
    try:
        return msgspec.json.decode(text, type=CheckResult)
    except msgspec.MsgspecError:
        return None


def _rhythm(tx: sa.Connection, model: str) -> timedelta | None:
    """The usual time between the last checks; None before the second."""
    at = schema.checks.c.at
    query = sa.select(at).where(schema.checks.c.model == model).order_by(at.desc()).limit(12)
    moments = list(tx.scalars(query))
    gaps = [later - earlier for later, earlier in pairwise(moments)]
    return median(gaps) if gaps else None


def _since(tx: sa.Connection, model: str, state: str) -> datetime | None:
    """The first check of the unbroken row of checks in this state."""
    table = schema.checks
    before = (
        sa.select(table.c.at)
        .where(table.c.model == model, table.c.state != state)
        .order_by(table.c.at.desc())
        .limit(1)
    )
    other = tx.scalar(before)
    first = sa.select(sa.func.min(table.c.at)).where(table.c.model == model)
    found: datetime | None = tx.scalar(first if other is None else first.where(table.c.at > other))
    return found


def _spark(tx: sa.Connection, model: str, until: datetime, tolerated: float | None) -> Spark:
    """The metric's mean in each of `SPARK_POINTS` equal parts of the last `SPARK_DAYS` days."""
    table = schema.checks
    start = until - timedelta(days=SPARK_DAYS)
    width = timedelta(days=SPARK_DAYS) // SPARK_POINTS
    # (start, until]: the newest check falls into the last part, not one beyond it.
    passed = sa.type_coerce(table.c.at, sa.BigInteger) - (micros(start) + 1)
    part = sa.cast(sa.func.floor(passed / (width // timedelta(microseconds=1))), sa.Integer)
    query = (
        sa.select(part.label("part"), sa.func.avg(table.c.value))
        .where(table.c.model == model, table.c.at > start, table.c.at <= until)
        .group_by("part")
    )
    found = {int(index): value for index, value in tx.execute(query)}
    values = tuple(found.get(index) for index in range(SPARK_POINTS))
    return Spark(values=values, tolerated=tolerated)


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


def plain_object(text: str) -> dict[str, Any]:
    """A stored JSON object; empty where there is none or it is something else."""
    try:
        value = msgspec.json.decode(text) if text else {}
    except msgspec.MsgspecError:
        return {}
    return value if isinstance(value, dict) else {}
