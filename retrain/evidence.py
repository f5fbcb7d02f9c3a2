"""What the policy reads and what it leaves behind: thin I/O around `retrain.policy`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings, span
from monitor.log.records import SampleLog
from monitor.results import CheckResult
from retrain.dataset import ROLES, Account
from retrain.gate import GateResult
from retrain.label_first import LabelWish, rank
from retrain.observing import observations
from retrain.past import past_scores
from retrain.policy import BUDGET_SPAN, Decision, PolicyEvidence, run_wanted
from retrain.probe import Observation
from retrain.watch import failed_promotions
from retrain.windows import fits_ahead, indifference

_MOST_UNLABELLED = 20_000  # rows of the window among which labels are asked for


class Refusals(Struct, frozen=True, kw_only=True):
    """Runs in a row that came to nothing against one champion."""

    count: int = 0
    labels: int = 0  # new labels that the newest of them had
    at: datetime | None = None  # when the newest was decided on
    fresh: float | None = None  # the metric of its candidate on the held-out rows


def gather(
    ledger: Ledger,
    log: SampleLog,
    check: CheckResult,
    settings: ModelSettings,
    *,
    trained_until: datetime | None,
    promoted: datetime | None,
    expected: float | None = None,
    seen: Observation | None = None,
    rollback: str = "",
    at: datetime,
) -> PolicyEvidence:
    """The evidence for one decision about the champion that `check` looked at.

    Args:
        trained_until: event time of the newest row the champion was trained on.
        promoted: when it became champion; None (unknown) counts all its observations.
        expected: its expected loss per row, which the cost of a run is counted in.
        seen: the observation of this very moment, not in the ledger yet.
        rollback: why the watch wants the predecessor back, if it does.
    """
    model, version, window = check.model, check.version, span(settings.window)
    with ledger.read() as tx:
        runs = _runs(tx, model, at)
        labelled = _labelled(tx, model, version, at)
        refused = _refusals(tx, runs, model, version, at)
        series = observations(tx, model, version, since=promoted, at=at)
        begun = [moment for moment in (promoted, runs[0].started if runs else None) if moment]
        passed = _windows_since(tx, check, max(begun), at) if begun else None
    series = (*series, seen) if seen is not None else series
    old = _windows_old(series, trained_until, window)
    fits = _fits_ahead(ledger, model, settings, old, at)
    age = check.staleness.model
    found = PolicyEvidence(
        version=version,
        state=check.state,
        check_reason=check.reason,
        performance=check.performance,
        drifted=tuple(c.column for c in check.drift if c.drifted),
        columns=sum(not c.why for c in check.drift),
        series=series,
        cost=None if expected is None else settings.retrain.cost_of_run * expected * fits,
        fits=fits,
        windows_old=old,
        labelled_here=max(labelled, check.labelled),
        runs_in_quarter=sum(run.started > at - BUDGET_SPAN for run in runs),
        last_run=runs[0].started if runs else None,
        last_outcome=runs[0].state if runs else "",
        windows_since_run=passed,
        refusals=refused.count,
        refused_labels=refused.labels,
        refused_at=refused.at,
        active_run=next((run.id for run in runs if run.active is not None), ""),
        promoted=promoted,
        age=None if age is None else timedelta(seconds=age),
        max_age=span(settings.max_age) if settings.max_age else None,
        rollback=rollback,
        label_first=_label_first(log, check, at) if check.performance.value is None else (),
    )
    if not run_wanted(found, settings.retrain):
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


def _fits_ahead(
    ledger: Ledger, model: str, settings: ModelSettings, old: float, at: datetime
) -> float:
    """How many training jobs a run decided on now will probably take."""
    retrain = settings.retrain
    searching = bool(retrain.search.space) and not retrain.trainer
    trials = retrain.search.trials if searching else 0
    past = past_scores(ledger, model, before=at)
    singles = len([name for name in retrain.windows if name not in ("blend", "since_change")])
    unimportant = indifference(singles, cost_of_fit=retrain.cost_of_run, lasts=old)
    return fits_ahead(retrain.windows, past, trials=trials, indifferent=unimportant)


def _runs(tx: sa.Connection, model: str, at: datetime) -> Sequence[Any]:
    """The model's runs, newest first; an unfinished one whenever it started."""
    table = schema.runs
    # Before `at`: looked at again, a decision must not find the run that it started itself.
    known = sa.or_(table.c.started < at, table.c.active.is_not(None))
    query = sa.select(table).where(table.c.model == model, known)
    return tx.execute(query.order_by(table.c.started.desc(), table.c.id)).all()


def _windows_since(tx: sa.Connection, check: CheckResult, begun: datetime, at: datetime) -> float:
    """Check windows that passed since a moment, each stretch between two checks in the unit of its
    own window: a replay's windows of so many rows last differently long."""
    table = schema.checks
    query = sa.select(table.c.at, table.c.window_start, table.c.window_end).where(
        table.c.model == check.model, table.c.at > begun, table.c.at < at
    )
    rows = tx.execute(query.order_by(table.c.at)).all()
    ends = [row.at for row in rows] + [at]
    lengths = [row.window_end - row.window_start for row in rows]
    lengths.append(check.window_end - check.window_start)
    starts = [begun, *ends[:-1]]
    spans = zip(starts, ends, lengths, strict=True)
    return float(sum((end - start) / length for start, end, length in spans))


def _labelled(tx: sa.Connection, model: str, version: str, at: datetime) -> int:
    """The most labelled rows one earlier check of this version had."""
    table = schema.checks
    query = sa.select(sa.func.max(table.c.labelled)).where(
        table.c.model == model, table.c.version == version, table.c.at < at
    )
    return int(tx.scalar(query) or 0)


def _windows_old(
    series: Sequence[Observation], trained_until: datetime | None, window: timedelta
) -> float:
    """Windows of labelled rows that are newer than the training data."""
    newest = series[-1].until if series else None
    observed = sum(seen.windows for seen in series)
    if newest is None or trained_until is None:
        return observed
    return max(observed, (newest - trained_until) / window)


def refusals(ledger: Ledger, model: str, version: str, *, at: datetime) -> Refusals:
    """Runs in a row that came to nothing against this version, as known at a moment."""
    with ledger.read() as tx:
        return _refusals(tx, _runs(tx, model, at), model, version, at)


def _refusals(
    tx: sa.Connection, runs: Sequence[Any], model: str, version: str, at: datetime
) -> Refusals:
    """Refused by the gate, by a shadow or a canary, or promoted and rolled back. A run that failed
    or was abandoned proves nothing about the champion: it neither counts nor ends the row."""
    found = Refusals()
    taken_back = {each.run_id for each in failed_promotions(tx, model, version, at=at)}
    for run in runs:
        if run.active is not None or run.state in ("failed", "abandoned"):
            continue
        refused = run.state == "refused" and _gate_refused(run.gate)
        if run.champion != version or not (refused or run.id in taken_back):
            break
        if not found.count:
            gate = msgspec.json.decode(run.gate, type=GateResult)
            found = Refusals(
                count=0, labels=_labels_of(tx, run.id), at=run.started, fresh=gate.candidate
            )
        found = msgspec.structs.replace(found, count=found.count + 1)
    return found


def _label_first(log: SampleLog, check: CheckResult, at: datetime) -> tuple[LabelWish, ...]:
    """Which of the window's unlabelled rows this version answered would tell most."""
    rows = log.read(
        check.model,
        start=check.window_start,
        end=check.window_end,
        known_at=at,
        version=check.version,
        newest=_MOST_UNLABELLED,
    )
    missing = rows.meta["label_time"].isna().to_numpy(bool)
    ids = rows.meta["id"][missing].tolist()
    outputs = rows.outputs[missing]
    chances = all(str(name).startswith("probability") for name in outputs.columns)
    return rank(ids, outputs.to_numpy(np.float64), probabilities=chances)


def _gate_refused(gate: str) -> bool:
    """A refusal that a person overruled later was one all the same."""
    if not gate:
        return False
    found = msgspec.json.decode(gate, type=GateResult)
    return not found.passed or found.path == "forced"


def _labels_of(tx: sa.Connection, run_id: str) -> int:
    table = schema.run_steps
    text = tx.scalar(
        sa.select(table.c.result).where(table.c.run_id == run_id, table.c.name == "dataset")
    )
    return msgspec.json.decode(text, type=Account).new_rows if text else 0
