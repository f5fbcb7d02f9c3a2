"""What the policy reads and what it leaves behind: thin I/O around `retrain.policy`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings, span
from monitor.log.records import SampleLog
from monitor.results import CheckResult
from retrain.dataset import ROLES, Account
from retrain.gate import GateResult
from retrain.policy import (
    BUDGET_SPAN,
    Decision,
    Measured,
    PolicyEvidence,
    excess_cost,
    run_wanted,
)


def gather(
    ledger: Ledger,
    log: SampleLog,
    check: CheckResult,
    settings: ModelSettings,
    *,
    trained_until: datetime | None,
    promoted: datetime | None,
    rollback: str = "",
    at: datetime,
) -> PolicyEvidence:
    """The evidence for one decision about the champion that `check` looked at.

    Args:
        trained_until: event time of the newest row the champion was trained on.
        promoted: when it became champion; None (unknown) counts its checks from the first one.
        rollback: why the watch wants the predecessor back, if it does.
    """
    model, version = check.model, check.version
    with ledger.read() as tx:
        runs = _runs(tx, model, at)
        history, labelled = _history(tx, model, version, at)
        refusals, refused_labels = _refusals(tx, runs, version)
    window = span(settings.window)
    since = promoted or min((c.at for c in history), default=at) - window
    age = check.staleness.model
    found = PolicyEvidence(
        version=version,
        state=check.state,
        check_reason=check.reason,
        performance=check.performance,
        drifted=tuple(c.column for c in check.drift if c.drifted),
        excess=excess_cost(
            history, promoted=since, window=window, cost_of_run=settings.retrain.cost_of_run
        ),
        labelled_here=max(labelled, check.labelled),
        runs_in_quarter=sum(run.started > at - BUDGET_SPAN for run in runs),
        last_run=runs[0].started if runs else None,
        last_outcome=runs[0].state if runs else "",
        refusals=refusals,
        refused_labels=refused_labels,
        active_run=next((run.id for run in runs if run.active is not None), ""),
        promoted=promoted,
        age=None if age is None else timedelta(seconds=age),
        max_age=span(settings.max_age) if settings.max_age else None,
        rollback=rollback,
    )
    if not run_wanted(found):
        return found
    # Counting reads every labelled row since the training: only where a decision rests on it.
    after = trained_until + timedelta(microseconds=1) if trained_until else None
    fresh = log.read(model, start=after, known_at=at, roles=ROLES, labelled=True, inputs=False)
    return msgspec.structs.replace(found, new_labels=len(fresh))


def record(
    tx: sa.Connection,
    model: str,
    version: str,
    decision: Decision,
    *,
    at: datetime,
    check_id: int | None = None,
    run_id: str | None = None,
) -> int:
    """Write a decision into the ledger, in the caller's transaction; returns its id."""
    added = tx.execute(
        schema.decisions.insert().values(
            model=model,
            version=version,
            at=at,
            check_id=check_id,
            action=decision.action,
            reason=decision.reason,
            detail=msgspec.json.encode(decision).decode(),
            run_id=run_id,
        )
    )
    return int(added.inserted_primary_key[0]) if added.inserted_primary_key else 0


def _runs(tx: sa.Connection, model: str, at: datetime) -> Sequence[Any]:
    """The model's runs, newest first; an unfinished one whenever it started."""
    table = schema.runs
    # Before `at`: looked at again, a decision must not find the run that it started itself.
    known = sa.or_(table.c.started < at, table.c.active.is_not(None))
    query = sa.select(table).where(table.c.model == model, known)
    return tx.execute(query.order_by(table.c.started.desc(), table.c.id)).all()


def _history(
    tx: sa.Connection, model: str, version: str, at: datetime
) -> tuple[list[Measured], int]:
    """Checks of this version that measured a loss, and the most labelled rows one of them had."""
    table = schema.checks
    query = sa.select(table.c.at, table.c.value, table.c.expected, table.c.labelled).where(
        table.c.model == model, table.c.version == version, table.c.at < at
    )
    rows = tx.execute(query.order_by(table.c.at)).all()
    measured = [
        Measured(at=row.at, value=row.value, expected=row.expected)
        for row in rows
        if row.value is not None and row.expected is not None
    ]
    return measured, max((row.labelled for row in rows), default=0)


def _refusals(tx: sa.Connection, runs: Sequence[Any], version: str) -> tuple[int, int]:
    """Runs in a row that the gate refused against this champion; new labels of the newest one.

    A run that failed or was abandoned proves nothing about the champion: it neither counts nor
    ends the row.
    """
    count, labels = 0, 0
    for run in runs:
        if run.active is not None or run.state in ("failed", "abandoned"):
            continue
        if run.state != "refused" or run.champion != version or not _gate_refused(run.gate):
            break
        if not count:
            labels = _labels_of(tx, run.id)
        count += 1
    return count, labels


def _gate_refused(gate: str) -> bool:
    return bool(gate) and not msgspec.json.decode(gate, type=GateResult).passed


def _labels_of(tx: sa.Connection, run_id: str) -> int:
    table = schema.run_steps
    text = tx.scalar(
        sa.select(table.c.result).where(table.c.run_id == run_id, table.c.name == "dataset")
    )
    return msgspec.json.decode(text, type=Account).new_rows if text else 0
