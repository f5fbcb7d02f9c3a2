"""One model over time: its metric, its drift, what happened, and why.

A chart gets at most `POINTS` points. Where there are more checks, several in a row (of one version)
share a point and the worst of them is shown, so that no excursion disappears.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import NotFound
from core.ledger import Ledger
from dashboard import words
from dashboard.fleet_query import known, one
from dashboard.queries import _incidents, _runs, check_result, plain_object
from dashboard.views import (
    Decision,
    DriftMap,
    Event,
    IncidentRow,
    ModelView,
    Promotion,
    RunRow,
    Worker,
)
from monitor import estimates
from monitor.measure.drift import DECIDING
from monitor.results import CheckResult, Statistic
from monitor.wording import told

if TYPE_CHECKING:
    import pandas as pd

POINTS = 2000
_CELLS = 120  # moments the drift map shows; each is a check that has to be decoded
_COLUMNS = 20  # columns the drift map shows
_ESTIMATES = 300  # windows with an estimate that are drawn
_FLAPS = 3  # changes of state in a row that are told one by one
_SERIES = (
    "at",
    "version",
    "state",
    "metric",
    "value",
    "low",
    "high",
    "expected",
    "tolerated",
    "rows",
    "labelled",
)


class _Column(msgspec.Struct):
    """The part of a `ColumnDrift` the map needs: decoding no more keeps a long history quick."""

    column: str
    role: Literal["input", "output"]
    statistics: tuple[Statistic, ...]


class _Drift(msgspec.Struct):
    drift: tuple[_Column, ...]


def model_view(
    ledger: Ledger, model: str, now: datetime, *, start: datetime | None = None
) -> ModelView:
    """One model since `start` (since the beginning when None).

    Raises:
        NotFound: nobody ever checked, promoted, served or retrained a model of this name.
    """
    with ledger.read() as tx:
        if not known(tx, model):
            raise NotFound("model", model, "the fleet page lists them")
        checks, every = _checks(tx, model, start)
        promotions = _promotions(tx, model)
        found = _incidents(tx, model=model, state=None, limit=100)
        runs = _runs(tx, schema.runs.c.model == model, limit=100)
        return ModelView(
            row=one(tx, model, now),
            checks=checks,
            every=every,
            promotions=promotions,
            drift=_drift(tx, model, start),
            latest=_latest(tx, model),
            incidents=found,
            decisions=_decisions(tx, model),
            runs=runs,
            workers=_workers(tx, model),
            estimates=_estimates(ledger, model, start),
            events=_events(_states(tx, model, start), promotions, found, runs, start),
        )


def _since(query: sa.Select[Any], column: sa.Column[Any], start: datetime | None) -> Any:
    return query if start is None else query.where(column >= start)


def _checks(tx: sa.Connection, model: str, start: datetime | None) -> tuple[pd.DataFrame, int]:
    import pandas as pd

    table = schema.checks
    query = sa.select(*(table.c[name] for name in _SERIES)).where(table.c.model == model)
    rows = tx.execute(_since(query, table.c.at, start).order_by(table.c.at)).all()
    kept, every = _worst(rows)
    frame = pd.DataFrame([tuple(row) for row in kept], columns=list(_SERIES))
    frame["at"] = pd.to_datetime(frame["at"], utc=True)
    for name in ("value", "low", "high", "expected", "tolerated"):
        frame[name] = frame[name].astype("float64")
    return frame, every


def _worst(rows: Sequence[Any]) -> tuple[list[Any], int]:
    """At most `POINTS` checks: of each so many in a row of one version, the one of highest loss."""
    served = [list(group) for _, group in groupby(rows, key=lambda row: row.version)]
    every = max(1, len(rows) // POINTS)
    while sum(ceil(len(same) / every) for same in served) > POINTS and every < len(rows):
        every += 1
    parts = (same[i : i + every] for same in served for i in range(0, len(same), every))
    kept = [max(part, key=lambda row: -1.0 if row.value is None else row.value) for part in parts]
    return kept[-POINTS:], every


def _latest(tx: sa.Connection, model: str) -> CheckResult | None:
    table = schema.checks
    query = sa.select(table.c.result).where(table.c.model == model)
    text = tx.scalar(query.order_by(table.c.at.desc()).limit(1))
    return None if text is None else check_result(text)


def _drift(tx: sa.Connection, model: str, start: datetime | None) -> DriftMap:
    table = schema.checks
    query = sa.select(table.c.id, table.c.at).where(table.c.model == model)
    all_checks = tx.execute(_since(query, table.c.at, start).order_by(table.c.at)).all()
    every = max(1, ceil(len(all_checks) / _CELLS))
    # Counted from the newest, so that the newest check is always on the map.
    shown = all_checks[::-1][::every][::-1]
    texts = {
        row.id: row.result
        for row in tx.execute(
            sa.select(table.c.id, table.c.result).where(table.c.id.in_([row.id for row in shown]))
        )
    }
    usual = shown[1].at - shown[0].at if len(shown) > 1 else None
    cells: list[dict[str, Any]] = []
    for index, row in enumerate(shown):
        end = shown[index + 1].at if index + 1 < len(shown) else row.at + (usual or row.at - row.at)
        cells += [{"start": row.at, "end": end, **cell} for cell in _cells(texts[row.id])]
    return _folded(cells, every)


def _cells(text: str) -> list[dict[str, Any]]:
    try:
        drift = msgspec.json.decode(text, type=_Drift).drift
    except msgspec.MsgspecError:
        return []
    cells = []
    for column in drift:
        known = [s for s in column.statistics if s.value is not None and s.threshold]
        # The tests that decide, so that the map agrees with the verdict; PSI and the like are only
        # shown where a column has nothing else.
        judged = [s for s in known if s.name in DECIDING] or known
        if not judged:
            continue
        top = max(judged, key=_ratio)
        cells.append(
            {
                "column": column.column,
                "role": column.role,
                "ratio": _ratio(top),
                "statistic": top.name,
                "value": top.value,
                "threshold": top.threshold,
                "said": told(top),
            }
        )
    return cells


def _ratio(statistic: Statistic) -> float:
    return (statistic.value or 0.0) / (statistic.threshold or 1.0)


def _folded(cells: list[dict[str, Any]], every: int) -> DriftMap:
    """Only the columns that ever crossed, those that crossed by most (lately, then ever) first."""
    import pandas as pd

    names = ["column", "role", "start", "end", "ratio", "statistic", "value", "threshold", "said"]
    worst: dict[str, float] = {}
    latest: dict[str, float] = {}
    for cell in cells:
        worst[cell["column"]] = max(worst.get(cell["column"], 0.0), cell["ratio"])
        latest[cell["column"]] = cell["ratio"]
    crossed = [column for column, ratio in worst.items() if ratio >= 1]
    crossed.sort(key=lambda column: (-latest[column], -worst[column], column))
    shown = crossed[:_COLUMNS]
    frame = pd.DataFrame([c for c in cells if c["column"] in set(shown)], columns=names)
    for name in ("start", "end"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    return DriftMap(
        frame=frame,
        columns=tuple(shown),
        quiet=len(worst) - len(crossed),
        folded=len(crossed) - len(shown),
        every=every,
    )


def _promotions(tx: sa.Connection, model: str) -> tuple[Promotion, ...]:
    table = schema.promotions
    columns = [table.c[field] for field in Promotion.__struct_fields__]
    query = sa.select(*columns).where(table.c.model == model).order_by(table.c.at, table.c.id)
    return tuple(Promotion(**row._mapping) for row in tx.execute(query))


def _decisions(tx: sa.Connection, model: str, limit: int = 500) -> tuple[Decision, ...]:
    """Newest first; decisions in a row with the same action and version are one, the newest."""
    table = schema.decisions
    query = sa.select(table).where(table.c.model == model)
    rows = tx.execute(query.order_by(table.c.at.desc(), table.c.id.desc()).limit(limit)).all()
    found = []
    for _, group in groupby(rows, key=lambda row: (row.action, row.version, row.run_id)):
        same = list(group)
        first = same[0]
        found.append(
            Decision(
                at=first.at,
                version=first.version,
                action=first.action,
                reason=first.reason,
                detail=plain_object(first.detail),
                run_id=first.run_id,
                repeated=len(same),
            )
        )
    return tuple(found)


def _estimates(ledger: Ledger, model: str, start: datetime | None) -> pd.DataFrame:
    """What the metric is estimated to be in the windows whose labels are missing."""
    import pandas as pd

    rows = [
        (row.start + (row.end - row.start) / 2, row.value, row.low, row.high, row.n, row.method)
        for row in estimates.listed(ledger, model, since=start)
        if row.realised is None
    ]
    frame = pd.DataFrame(rows[-_ESTIMATES:], columns=["at", "value", "low", "high", "n", "method"])
    frame["at"] = pd.to_datetime(frame["at"], utc=True)
    return frame


def _workers(tx: sa.Connection, model: str) -> tuple[Worker, ...]:
    table = schema.workers
    columns = [table.c[field] for field in Worker.__struct_fields__]
    query = sa.select(*columns).where(table.c.model == model).order_by(table.c.worker)
    return tuple(Worker(**row._mapping) for row in tx.execute(query))


def _states(
    tx: sa.Connection, model: str, start: datetime | None
) -> list[tuple[datetime, str, str]]:
    """When the state changed, to what, and why."""
    table = schema.checks
    query = sa.select(table.c.at, table.c.state, table.c.reason).where(table.c.model == model)
    rows = tx.execute(_since(query, table.c.at, start).order_by(table.c.at)).all()
    return [tuple(next(group)) for _, group in groupby(rows, key=lambda row: row.state)]


def _events(
    states: list[tuple[datetime, str, str]],
    promotions: tuple[Promotion, ...],
    incidents: tuple[IncidentRow, ...],
    runs: tuple[RunRow, ...],
    start: datetime | None,
) -> tuple[Event, ...]:
    """Everything that happened, newest first."""
    events = [
        Event(at=at, kind="state", text=f"{words.look(state).label}: {reason}")
        for at, state, reason in states
    ]
    for moved in promotions:
        before = f" after v{moved.previous}" if moved.previous else ""
        text = f"v{moved.version} became champion{before} ({moved.kind}, by {moved.by})"
        text += f": {moved.reason}" if moved.reason else ""
        events.append(Event(at=moved.at, kind="promotion", text=text, run_id=moved.run_id))
    for row in incidents:
        text = f"incident {row.id} ({row.severity}): {row.title}"
        events.append(Event(at=row.opened, kind="incident", text=text, incident_id=row.id))
        if row.resolved is not None:
            text = f"incident {row.id} resolved"
            events.append(Event(at=row.resolved, kind="resolved", text=text, incident_id=row.id))
    for run in runs:
        text = f"run {run.id} started ({run.trigger}, by {run.by}): {run.reason}"
        events.append(Event(at=run.started, kind="run", text=text, run_id=run.id))
        if run.finished is not None:
            text = f"run {run.id} {run.state}: {run.outcome}"
            events.append(Event(at=run.finished, kind="finished", text=text, run_id=run.id))
    kept = [event for event in events if start is None or event.at >= start]
    # Of one moment: what was noticed, then what was done; the list is read from the newest.
    order = ("state", "incident", "run", "finished", "promotion", "resolved")
    kept.sort(key=lambda e: (e.at, order.index(e.kind)), reverse=True)
    return tuple(_calmer(kept))


def _calmer(events: list[Event]) -> list[Event]:
    """The same, where a state that went to and fro is two lines: the newest, and the others."""
    found: list[Event] = []
    for kind, group in groupby(events, key=lambda event: event.kind):
        same = list(group)
        if kind != "state" or len(same) <= _FLAPS:
            found += same
            continue
        moods = sorted({event.text.partition(":")[0] for event in same})
        first = words.day(same[-1].at)
        text = f"{len(same) - 1} changes since {first}, between {' and '.join(moods)}"
        found += [same[0], Event(at=same[1].at, kind="state", text=text)]
    return found
