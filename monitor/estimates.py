"""Estimates kept by event-time window, and how right they were once labels came.

`record` and `settle` write in a tick's transaction; `listed` and `track` are for everybody. An
estimate rests on rows and the baseline alone, never on a label, so that taking it again when late
rows arrive does not flatter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from monitor.figures import Track
from monitor.results import CheckResult
from monitor.wording import figure

SETTLED = 0.8  # share of the estimated rows whose labels make a window's realised value
_KEPT = 60  # newest settled windows that `track` judges by
_LEAST = 3  # windows before anything is said


class EstimateRow(Struct, frozen=True, kw_only=True):
    """One window: what it was expected to score, and what it turned out to be."""

    start: datetime
    end: datetime
    version: str
    metric: str
    method: str
    value: float
    low: float
    high: float
    n: int
    expected: float | None
    made: datetime
    realised: float | None = None  # None while most of the labels are missing
    realised_n: int | None = None
    first: float | None = None  # the realised metric when most of the labels had come …
    settled: datetime | None = None  # … which this check found


_FIELDS = EstimateRow.__struct_fields__


def record(tx: sa.Connection, ledger: Ledger, result: CheckResult) -> None:
    """Keep a check's estimated windows; a later check's are never overwritten."""
    found = result.estimated
    if found is None or not found.windows:
        return
    table = schema.window_estimates
    expected = found.figures[0].expected if found.figures else None
    for window in found.windows:
        values = {
            "end": window.end,
            "metric": window.metric,
            "method": found.method,
            "value": window.value,
            "low": window.low,
            "high": window.high,
            "n": window.n,
            "expected": expected,
            "made": result.at,
        }
        key = {"model": result.model, "start": window.start, "version": window.version}
        mine = sa.and_(*(table.c[name] == value for name, value in key.items()))
        tx.execute(ledger.insert_ignore(table).values(**key, **values))
        tx.execute(
            table.update()
            .where(mine, table.c.made <= result.at, table.c.settled.is_(None))
            .values(**values)
        )


def settle(tx: sa.Connection, model: str, *, at: datetime) -> None:
    """Take the realised metric of windows most of whose labels have come, as it is known now.

    The first one stays beside it, with the moment: what `track` told of the past stays true.
    """
    table, scores = schema.window_estimates, schema.window_scores
    same = sa.and_(
        scores.c.model == table.c.model,
        scores.c.start == table.c.start,
        scores.c.version == table.c.version,
        scores.c.metric == table.c.metric,
    )
    rows = tx.execute(
        sa.select(table.c.start, table.c.version, scores.c.value, scores.c.n)
        .join(scores, same)
        .where(
            table.c.model == model,
            scores.c.value.is_not(None),
            scores.c.n >= SETTLED * table.c.n,
            sa.or_(
                table.c.realised.is_(None),
                table.c.realised != scores.c.value,
                table.c.realised_n != scores.c.n,
            ),
        )
    ).all()
    for row in rows:
        mine = (
            (table.c.model == model)
            & (table.c.start == row.start)
            & (table.c.version == row.version)
        )
        tx.execute(table.update().where(mine).values(realised=row.value, realised_n=row.n))
        first = {"first": row.value, "settled": at}
        tx.execute(table.update().where(mine, table.c.settled.is_(None)).values(**first))


def listed(
    ledger: Ledger,
    model: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
) -> list[EstimateRow]:
    """Estimated windows, oldest first.

    Args:
        since, until: only windows with since <= start < until.
    """
    table = schema.window_estimates
    query = sa.select(table).where(table.c.model == model)
    if since is not None:
        query = query.where(table.c.start >= since)
    if until is not None:
        query = query.where(table.c.start < until)
    if version is not None:
        query = query.where(table.c.version == version)
    with ledger.read() as tx:
        return [_row(row) for row in tx.execute(query.order_by(table.c.start, table.c.version))]


def _row(row: Any) -> EstimateRow:
    return EstimateRow(**{name: getattr(row, name) for name in _FIELDS})


def track(ledger: Ledger, model: str, metric: str, *, at: datetime) -> Track:
    """How right estimates have been, of windows whose labels had come by a moment."""
    table = schema.window_estimates
    query = (
        sa.select(table)
        .where(
            table.c.model == model,
            table.c.metric == metric,
            table.c.settled < at,
        )
        .order_by(table.c.start.desc(), table.c.version)
        .limit(_KEPT)
    )
    with ledger.read() as tx:
        return tracked([_row(row) for row in tx.execute(query)])


def tracked(rows: Sequence[EstimateRow]) -> Track:
    """How right these estimates were; only windows whose labels came count."""
    settled = [row for row in rows if row.first is not None]
    n = sum(row.realised_n or 0 for row in settled)
    if len(settled) < _LEAST:
        few = f"{len(settled)} of the {_LEAST} windows with labels that are needed to tell"
        return Track(windows=len(settled), n=n, why=few)
    value = np.array([row.value for row in settled])
    truth = np.array([row.first for row in settled], dtype=np.float64)
    inside = [row.low <= float(t) <= row.high for row, t in zip(settled, truth, strict=True)]
    hoped = np.array([row.expected if row.expected is not None else np.nan for row in settled])
    known = np.isfinite(hoped)
    error = float(np.abs(value - truth).mean())
    constant = float(np.abs(hoped - truth)[known].mean()) if known.any() else None
    share = float(np.mean(inside))
    text = (
        f"estimates were off by {figure(error)} on average over {len(settled)} windows, "
        f"{100 * share:.0f} % of the realised values were inside their interval"
    )
    if constant is not None:
        text += f" (always expecting the baseline's value: off by {figure(constant)})"
    return Track(
        windows=len(settled),
        n=n,
        since=min(row.start for row in settled),
        until=max(row.end for row in settled),
        bias=float((value - truth).mean()),
        error=error,
        constant=constant,
        inside=share,
        text=text,
    )
