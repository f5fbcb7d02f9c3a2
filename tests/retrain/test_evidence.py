"""What a decision rests on, read from a real ledger and a real log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings
from monitor.log.log import InferenceLog
from monitor.results import CheckResult, ColumnDrift, Performance, Staleness, State
from retrain import observing
from retrain.dataset import Account
from retrain.evidence import gather, record
from retrain.gate import GateResult
from retrain.policy import PolicyEvidence, decide
from retrain.probe import Observation
from retrain.run import start

START = datetime(2020, 1, 1, tzinfo=UTC)
TRAINED_UNTIL = START + 599 * timedelta(minutes=30)
PROMOTED = START + timedelta(days=13)
AT = START + timedelta(days=40)
WEEK = timedelta(days=7)


def check(version: str = "1", state: State = "drifting") -> CheckResult:
    return CheckResult(
        model="toy",
        version=version,
        at=AT,
        window_start=AT - WEEK,
        window_end=AT,
        rows=336,
        labelled=280,
        state=state,
        reason="x drifted",
        quality=(),
        drift=(
            ColumnDrift(
                column="x",
                role="input",
                kind="numeric",
                n=9,
                missing_share=0,
                statistics=(),
                drifted=True,
            ),
        ),
        performance=Performance(
            metric="brier",
            value=0.22,
            low=0.2,
            high=0.24,
            n=280,
            coverage=0.9,
            expected=0.2,
            tolerated=0.22,
            worse=False,
        ),
        staleness=Staleness(
            model=864000.0,
            training_row=None,
            prediction=None,
            label=None,
            promotion=None,
            label_lag=None,
        ),
        findings=(),
    )


def past_run(
    ledger: Ledger, at: datetime, state: str, *, passed: bool | None = None, champion: str = "1"
) -> None:
    """A finished run whose dataset had as many new labels as days have passed."""
    run_id = start(ledger, "toy", trigger="decay", reason="", by="policy", champion=champion, at=at)
    assert run_id is not None
    gate = GateResult(
        passed=bool(passed),
        reason="",
        metric="brier",
        champion=0.2,
        candidate=0.2,
        gain=0.0,
        low=None,
        high=None,
        n=200,
        confidence=0.9,
        checks=(),
    )
    account = Account(
        identity="",
        segments=(),
        problems=(),
        known_at=at,
        train_rows=1,
        holdout_rows=1,
        new_rows=(at - START).days,
        since=at,
        trained_until=at,
        holdout_since=at,
        holdout_until=at,
        label_low=0,
        label_high=1,
    )
    table = schema.runs
    with ledger.write() as tx:
        tx.execute(
            table.update()
            .where(table.c.id == run_id)
            .values(
                state=state,
                active=None,
                gate="" if passed is None else msgspec.json.encode(gate).decode(),
            )
        )
        tx.execute(
            schema.run_steps.insert().values(
                run_id=run_id,
                name="dataset",
                state="done",
                started=at,
                result=msgspec.json.encode(account).decode(),
            )
        )


@pytest.fixture
def log(open_log: Callable[..., InferenceLog]) -> InferenceLog:
    return open_log()


def found(log: InferenceLog, state: State = "drifting", **changes: Any) -> PolicyEvidence:
    settings = ModelSettings(max_age="30d")
    moments: dict[str, Any] = {"trained_until": TRAINED_UNTIL, "promoted": PROMOTED, "at": AT}
    return gather(log.ledger, log, check(state=state), settings, **(moments | changes))


def test_what_the_check_and_the_log_say(log: InferenceLog) -> None:
    evidence = found(log)
    assert (evidence.state, evidence.drifted, evidence.labelled_here) == ("drifting", ("x",), 280)
    assert evidence.new_labels is None  # drift is no reason to count
    assert found(log, "decaying").new_labels == 900
    assert evidence.age == timedelta(days=10)
    assert evidence.max_age == timedelta(days=30)
    assert (evidence.runs_in_quarter, evidence.last_run, evidence.active_run) == (0, None, "")
    # A day's labels are not known yet a day earlier.
    early = TRAINED_UNTIL + timedelta(days=1) + 10 * timedelta(minutes=30)
    assert found(log, "decaying", at=early).new_labels == 10


def observed(log: InferenceLog, at: datetime, version: str = "1", **changes: Any) -> Observation:
    """An observation of one week, kept in the ledger."""
    seen = Observation(
        at=at, windows=1.0, rows=300, loss=0.22, expected=0.2, until=at - timedelta(days=1)
    )
    seen = msgspec.structs.replace(seen, **changes)
    with log.ledger.write() as tx:
        observing.record(tx, log.ledger, "toy", version, seen)
    return seen


def test_the_series_is_this_versions_since_its_promotion(log: InferenceLog) -> None:
    observed(log, PROMOTED - WEEK)
    first = observed(log, PROMOTED + WEEK)
    observed(log, PROMOTED + 1.5 * WEEK, version="2")
    last = observed(log, PROMOTED + 3 * WEEK, loss=0.24)
    now = msgspec.structs.replace(last, at=AT, until=AT)
    evidence = found(log, expected=0.2, seen=now)
    assert evidence.series == (first, last, now)
    # A fifth of a window's expected loss for each training job: two windows and the candidate.
    assert evidence.fits == 3.0
    assert evidence.cost == pytest.approx(3 * 0.04)
    assert evidence.windows_old == pytest.approx((AT - TRAINED_UNTIL) / WEEK)
    # A decision looked at again does not find the observation of its own moment.
    assert found(log, expected=0.2, at=last.at).series == (first,)


def test_labels_that_would_tell_most_are_named_where_there_are_none(log: InferenceLog) -> None:
    unknown = msgspec.structs.replace(
        check(),
        window_start=START + timedelta(days=30),
        window_end=START + timedelta(days=31),
        performance=Performance(
            metric="brier", value=None, low=None, high=None, n=0, coverage=None, expected=0.2,
            tolerated=0.22, worse=None,
        ),
    )  # fmt: skip
    at = START + timedelta(days=31)
    evidence = gather(
        log.ledger, log, unknown, ModelSettings(),
        trained_until=TRAINED_UNTIL, promoted=PROMOTED, at=at,
    )  # fmt: skip
    assert len(evidence.label_first) == 20
    decision = decide(evidence, ModelSettings().retrain, at=at)
    assert decision.action == "wait"
    assert decision.label_first == evidence.label_first


def test_refusals_in_a_row_against_this_champion(log: InferenceLog) -> None:
    ledger = log.ledger
    past_run(ledger, START + timedelta(days=20), "refused", passed=False)
    past_run(ledger, START + timedelta(days=21), "promoted", passed=True)
    past_run(ledger, START + timedelta(days=25), "refused", passed=False)
    past_run(ledger, START + timedelta(days=28), "failed")
    past_run(ledger, START + timedelta(days=30), "refused", passed=False)
    evidence = found(log)
    assert (evidence.refusals, evidence.refused_labels) == (2, 30)
    assert (evidence.runs_in_quarter, evidence.last_outcome) == (5, "refused")
    assert evidence.last_run == START + timedelta(days=30)
    assert found(log, at=AT + timedelta(days=76)).runs_in_quarter == 2  # since day 26
    # Refused because the champion had moved: that says nothing about a fresh model.
    past_run(ledger, START + timedelta(days=31), "refused", passed=True)
    assert found(log).refusals == 0


def test_a_promotion_that_was_rolled_back_counts_as_a_refusal(log: InferenceLog) -> None:
    """The gate passed it, live rows refuted it: another run is as doubtful as after a refusal."""
    ledger, day = log.ledger, timedelta(days=1)
    past_run(ledger, START + 25 * day, "refused", passed=False)
    past_run(ledger, START + 30 * day, "promoted", passed=True)
    with ledger.write() as tx:
        made = tx.scalar(sa.select(schema.runs.c.id).where(schema.runs.c.state == "promoted"))
        common = {"model": "toy", "by": "run", "reason": "", "sha256": ""}
        rows = [
            {"version": "2", "previous": "1", "kind": "gate", "run_id": made, "at": START},
            {"version": "1", "previous": "2", "kind": "rollback", "run_id": None, "at": AT - day},
        ]
        tx.execute(schema.promotions.insert(), [common | row for row in rows])
    evidence = found(log)
    assert (evidence.refusals, evidence.refused_labels) == (2, 30)
    assert evidence.refused_at == START + 30 * day
    # Before the rollback the promotion had not failed yet.
    assert found(log, at=AT - 2 * day).refusals == 0


def test_refusals_against_another_champion_do_not_count(log: InferenceLog) -> None:
    past_run(log.ledger, START + timedelta(days=20), "refused", passed=False, champion="0")
    assert found(log).refusals == 0


def test_an_unfinished_run_is_seen_and_a_decision_is_kept(log: InferenceLog) -> None:
    run_id = start(log.ledger, "toy", trigger="decay", reason="", by="policy", champion="1", at=AT)
    evidence = found(log)
    assert evidence.active_run == run_id
    decision = decide(evidence, ModelSettings().retrain, at=AT)
    with log.ledger.write() as tx:
        record(tx, "toy", "1", decision, at=AT, run_id=None)
    with log.ledger.read() as tx:
        row = tx.execute(sa.select(schema.decisions)).one()
    assert (row.action, row.reason) == ("wait", decision.reason)
    assert msgspec.json.decode(row.detail)["would_change"] == "the end of that run"
