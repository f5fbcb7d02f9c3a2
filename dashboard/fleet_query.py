"""The fleet from the ledger: a few queries for all models, and the rest for those that are shown.

Two hundred models with ninety days of hourly checks are 432,000 checks: what asks once per model is
asked for one page of them only (`detailed`), and no query reads the pages that hold results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.times import micros
from dashboard import words
from dashboard.queries import _incidents, _runs, check_result
from dashboard.views import Fleet, IncidentRow, ModelRow, RunRow, Spark

SPARK_DAYS = 30
SPARK_POINTS = 60
_LATE = 3  # checks in a row that may be missing before the model counts as unwatched
_GAPS = 5  # checks whose distances say how often a model is checked
_SHOWN = ("version", "state", "reason", "metric", "value", "low", "high", "expected", "tolerated")


def _checked_models() -> sa.CTE:
    """Every model that was ever checked: the index is hopped along, not scanned."""
    name = schema.checks.c.model
    first = sa.select(sa.func.min(name).label("model")).cte("models", recursive=True)
    after = schema.checks.alias("after")
    following = (
        sa.select(sa.func.min(after.c.model)).where(after.c.model > first.c.model).scalar_subquery()
    )
    return first.union_all(sa.select(following).where(first.c.model.is_not(None)))


def models(tx: sa.Connection) -> list[str]:
    """Every model anybody checked, promoted, served or retrained, by name."""
    tables = (schema.promotions, schema.runs, schema.workers, schema.incidents)
    found = {name for table in tables for name in tx.scalars(sa.select(table.c.model).distinct())}
    found |= {name for name in tx.scalars(sa.select(_checked_models().c.model)) if name}
    return sorted(found)


def known(tx: sa.Connection, model: str) -> bool:
    """Whether anybody ever checked, promoted, served or retrained a model of this name."""
    tables = (
        schema.checks, schema.promotions, schema.runs, schema.workers, schema.incidents,
    )  # fmt: skip
    asked = (sa.select(t.c.model).where(t.c.model == model).limit(1) for t in tables)
    return any(tx.scalar(query) is not None for query in asked)


def fleet(ledger: Ledger, now: datetime) -> Fleet:
    """One row per model, the one that needs a person first on top; see `detailed` for the rest."""
    with ledger.read() as tx:
        rows = _rows(tx, models(tx), _last_checks(tx, None), now)
    checked = max((row.checked for row in rows if row.checked), default=None)
    return Fleet(now=now, checked=checked, rows=tuple(sorted(rows, key=_consequence)))


def one(tx: sa.Connection, model: str, now: datetime) -> ModelRow:
    """One model's row in full; a model nobody checked yet has state `unchecked`."""
    [row] = _rows(tx, [model], _last_checks(tx, model), now)
    return _detail(tx, row)


def detailed(ledger: Ledger, rows: Iterable[ModelRow]) -> tuple[ModelRow, ...]:
    """The rows with what is asked one by one: since when, on how many labels, and the sparkline."""
    with ledger.read() as tx:
        return tuple(_detail(tx, row) for row in rows)


def _last_checks(tx: sa.Connection, model: str | None) -> dict[str, sa.Row[Any]]:
    """The newest check of each model, with the moments of those before it."""
    checks = schema.checks
    if model is None:
        names: sa.FromClause = _checked_models()
    else:
        names = sa.select(sa.literal(model).label("model")).cte("models")
    before = checks.alias("before")
    own = before.c.model == names.c.model
    moments = [
        sa.select(before.c.at).where(own).order_by(before.c.at.desc()).limit(1).offset(i)
        for i in range(_GAPS)
    ]
    query = (
        sa.select(
            checks.c.model,
            checks.c.at,
            *(checks.c[name] for name in _SHOWN),
            *(each.scalar_subquery().label(f"at{i}") for i, each in enumerate(moments)),
        )
        .select_from(names.join(checks, checks.c.model == names.c.model))
        .where(checks.c.at == moments[0].scalar_subquery())
    )
    return {row.model: row for row in tx.execute(query)}


def _rows(
    tx: sa.Connection, names: list[str], last: dict[str, sa.Row[Any]], now: datetime
) -> list[ModelRow]:
    only = names[0] if len(names) == 1 else None
    champions = _champions(tx, only)
    opened: dict[str, list[IncidentRow]] = defaultdict(list)
    for incident in _incidents(tx, model=only, state="unresolved", limit=2000):
        opened[incident.model].append(incident)
    active = schema.runs.c.active
    wanted = active.is_not(None) if only is None else active == only
    running = {run.model: run for run in _runs(tx, wanted, limit=2000)}
    return [
        _row(name, last.get(name), champions.get(name), opened[name], running.get(name), now)
        for name in names
    ]


def _champions(tx: sa.Connection, model: str | None) -> dict[str, tuple[str, datetime]]:
    moved = schema.promotions
    newest = sa.select(moved.c.model, sa.func.max(moved.c.at).label("at")).group_by(moved.c.model)
    if model is not None:
        newest = newest.where(moved.c.model == model)
    last = newest.subquery()
    both = sa.and_(moved.c.model == last.c.model, moved.c.at == last.c.at)
    query = sa.select(moved.c.model, moved.c.version, moved.c.at).join(last, both)
    return {row.model: (row.version, row.at) for row in tx.execute(query.order_by(moved.c.id))}


def _row(
    model: str,
    last: sa.Row[Any] | None,
    champion: tuple[str, datetime] | None,
    opened: list[IncidentRow],
    run: RunRow | None,
    now: datetime,
) -> ModelRow:
    facts: dict[str, Any] = {"model": model, "state": "unchecked"}
    if last is not None:
        moments = [m for i in range(_GAPS) if (m := last._mapping[f"at{i}"]) is not None]
        gaps = [later - earlier for later, earlier in pairwise(moments)]
        every = median(gaps) if gaps else None
        facts |= {name: last._mapping[name] for name in _SHOWN}
        facts |= {
            "checked": last.at,
            "every": every,
            "overdue": every is not None and now - last.at > _LATE * every,
        }
    if champion is not None:
        facts |= {"version": champion[0], "champion_since": champion[1]}
    worst = min(opened, key=lambda i: words.look(i.severity, words.INCIDENTS).rank, default=None)
    return ModelRow(**facts, incident=worst, incidents=len(opened), run=run)


def _consequence(row: ModelRow) -> tuple[int, bool, float, str]:
    paging = row.incident is not None and row.incident.severity == "page"
    rank = words.look(row.state).rank
    over = row.value / row.tolerated if row.value is not None and row.tolerated else 0.0
    # A page on a model that looks healthy (a failed run, say) comes before every quiet state.
    return min(rank, 1) if paging else rank, not paging, -over, row.model


def _detail(tx: sa.Connection, row: ModelRow) -> ModelRow:
    if row.checked is None:
        return row
    table = schema.checks
    mine = sa.and_(table.c.model == row.model, table.c.at == row.checked)
    text = tx.scalar(sa.select(table.c.result).where(mine))
    result = check_result(text) if text else None
    performance = result.performance if result else None
    return msgspec.structs.replace(
        row,
        since=_since(tx, row.model, row.state) if row.state != "healthy" else None,
        n=performance.n if performance else None,
        coverage=performance.coverage if performance else None,
        why=performance.why if performance else "",
        life=words.life(result.shelf_life) if result else "",
        spark=_spark(tx, row.model, row.checked, row.tolerated),
    )


def _since(tx: sa.Connection, model: str, state: str) -> datetime | None:
    """The first check of the unbroken row of checks in this state."""
    table = schema.checks
    newest = [
        sa.select(sa.func.max(table.c.at)).where(table.c.model == model, table.c.state == other)
        for other in words.STATES
        if other != state
    ]
    known = [moment for query in newest if (moment := tx.scalar(query)) is not None]
    first = sa.select(sa.func.min(table.c.at)).where(table.c.model == model)
    found: datetime | None = tx.scalar(first.where(table.c.at > max(known)) if known else first)
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
