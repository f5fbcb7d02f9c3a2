"""When a run may start, when it must not, and whether the sentence says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings import GateSettings, RetrainSettings, span
from monitor.results import Performance, State
from retrain.policy import Measured, PolicyEvidence, decide, excess_cost

AT = datetime(2010, 10, 9, tzinfo=UTC)
DAY = timedelta(days=1)
SETTINGS = RetrainSettings()


def performance(value: float | None = 0.176, **changes: Any) -> Performance:
    given_ = {
        "metric": "brier",
        "value": value,
        "low": None if value is None else value - 0.01,
        "high": None if value is None else value + 0.01,
        "n": 1204,
        "coverage": 1.0,
        "expected": 0.178,
        "tolerated": 0.196,
        "worse": None if value is None else value - 0.01 > 0.196,
    }
    return Performance(**(given_ | changes))


def evidence(**changes: Any) -> PolicyEvidence:
    given_: dict[str, Any] = {
        "version": "3",
        "state": "healthy",
        "check_reason": "",
        "performance": performance(),
        "labelled_here": 1204,
        "new_labels": 2000,
    }
    return PolicyEvidence(**(given_ | changes))


def decaying(**changes: Any) -> PolicyEvidence:
    return evidence(**({"state": "decaying", "performance": performance(0.213)} | changes))


def test_drift_without_loss_is_not_needed() -> None:
    decision = decide(evidence(state="drifting", drifted=("a", "b", "c")), SETTINGS, at=AT)
    assert decision.action == "wait"
    assert decision.reason == (
        "drift on 3 columns, but Brier 0.176 is within tolerance 0.196 (n 1,204): not needed"
    )


def test_proven_decay_retrains() -> None:
    decision = decide(decaying(excess=0.4), SETTINGS, at=AT)
    assert (decision.action, decision.trigger) == ("retrain", "decay")
    assert decision.reason == (
        "Brier 0.213 is above tolerance 0.196 (n 1,204) and has cost 0.40 runs' worth since the "
        "promotion; 2,000 new labels can teach a successor"
    )
    assert decision.numbers["excess"] == 0.4


@pytest.mark.parametrize(
    ("value", "excess", "action"),
    [(0.19, 0.99, "wait"), (0.19, 1.0, "retrain"), (0.178, 5.0, "wait"), (0.17, 5.0, "wait")],
)
def test_a_run_pays_once_decay_has_cost_one_and_still_costs(
    value: float, excess: float, action: str
) -> None:
    decision = decide(evidence(performance=performance(value), excess=excess), SETTINGS, at=AT)
    assert decision.action == action
    assert decision.trigger == ("cost" if action == "retrain" else "")


def test_a_model_over_its_age_is_stale_and_a_refusal_doubles_the_limit() -> None:
    old = evidence(age=91 * DAY, max_age=90 * DAY, performance=performance(None, n=0))
    assert decide(old, SETTINGS, at=AT).trigger == "stale"
    refused = msgspec.structs.replace(old, refusals=1, refused_labels=0)
    assert decide(refused, SETTINGS, at=AT).action == "wait"
    older = msgspec.structs.replace(refused, age=181 * DAY)
    assert decide(older, SETTINGS, at=AT).trigger == "stale"


def test_after_a_refusal_the_price_doubles_and_more_labels_are_needed() -> None:
    once = decaying(refusals=1, refused_labels=1900, excess=1.5, new_labels=2100)
    decision = decide(once, SETTINGS, at=AT)
    assert decision.action == "wait"
    assert "1.5 runs' worth of excess loss is below the price of 2" in decision.reason
    dearer = msgspec.structs.replace(once, excess=2.0)
    assert decide(dearer, SETTINGS, at=AT).action == "retrain"
    fewer = msgspec.structs.replace(dearer, new_labels=2099)
    assert decide(fewer, SETTINGS, at=AT).action == "wait"
    twice = msgspec.structs.replace(dearer, refusals=2)
    assert decide(twice, SETTINGS, at=AT).action == "wait"


def test_modes() -> None:
    approve = RetrainSettings(mode="approve")
    assert decide(decaying(), approve, at=AT).action == "retrain"
    asked = decide(decaying(), RetrainSettings(mode="never"), at=AT)
    assert (asked.action, asked.trigger) == ("ask", "decay")
    back = evidence(rollback="the champion loses more")
    assert decide(back, SETTINGS, at=AT).action == "rollback"
    assert decide(back, approve, at=AT).action == "ask"


def test_unknown_loss_says_why() -> None:
    unknown = performance(None, n=0, why="")
    decision = decide(evidence(performance=unknown, labelled_here=0), SETTINGS, at=AT)
    assert decision.reason == "the loss is not known: no label for a row that version 3 answered"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"new_labels": 199}, "only 199 labels newer than the training data"),
        ({"last_run": AT - 6 * DAY, "last_outcome": "promoted"}, "the cooldown is 7d"),
        ({"runs_in_quarter": 12}, "the budget is 12"),
    ],
)
def test_a_hindrance_is_named_beside_the_need(changes: dict[str, Any], words: str) -> None:
    decision = decide(decaying(**changes), SETTINGS, at=AT)
    assert (decision.action, decision.trigger) == ("wait", "decay")
    assert words in decision.reason
    assert decision.would_change


evidences = st.builds(
    evidence,
    state=st.sampled_from(get_args(State)),
    check_reason=st.just("currency is 100 % missing"),
    performance=st.builds(
        performance, st.none() | st.floats(0, 1), tolerated=st.none() | st.floats(0, 1)
    ),
    drifted=st.lists(st.text(max_size=5), max_size=4).map(tuple),
    excess=st.floats(0, 50),
    labelled_here=st.integers(0, 3000),
    new_labels=st.integers(0, 3000),
    runs_in_quarter=st.integers(0, 20),
    last_run=st.none() | st.timedeltas(timedelta(), 400 * DAY).map(lambda ago: AT - ago),
    refusals=st.integers(0, 4),
    refused_labels=st.integers(0, 3000),
    active_run=st.sampled_from(["", "8f3"]),
    promoted=st.just(AT - 40 * DAY),
    age=st.none() | st.timedeltas(timedelta(), 400 * DAY),
    max_age=st.none() | st.timedeltas(DAY, 400 * DAY),
    rollback=st.sampled_from(["", "it loses more than its predecessor"]),
)
retrain_settings = st.builds(
    RetrainSettings,
    mode=st.sampled_from(["auto", "approve", "never"]),
    cooldown=st.sampled_from(["1h", "7d", "30d"]),
    budget_per_quarter=st.integers(0, 12),
    min_new_labels=st.integers(0, 2000),
    gate=st.builds(GateSettings, min_rows=st.integers(20, 500)),
)


@given(evidences, retrain_settings)
def test_what_forbids_a_run_always_forbids_it(
    found: PolicyEvidence, settings: RetrainSettings
) -> None:
    decision = decide(found, settings, at=AT)
    assert decision.reason
    assert "\n" not in decision.reason
    assert decision.would_change
    if found.state == "broken_feed":
        assert decision.action == "wait"
    if decision.action != "retrain":
        return
    assert settings.mode != "never"
    assert not found.active_run
    assert found.new_labels >= max(settings.min_new_labels, settings.gate.min_rows)
    assert found.runs_in_quarter < settings.budget_per_quarter
    if found.last_run is not None:
        assert AT - found.last_run >= span(settings.cooldown)
    if found.refusals:
        assert found.new_labels >= found.refused_labels + settings.min_new_labels
    assert decision.trigger in ("decay", "cost", "stale")


@given(evidences, retrain_settings)
def test_a_decision_is_a_function_of_its_arguments(
    found: PolicyEvidence, settings: RetrainSettings
) -> None:
    first, second = decide(found, settings, at=AT), decide(found, settings, at=AT)
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def history(*values: float, every: timedelta, expected: float = 0.2) -> list[Measured]:
    return [
        Measured(at=AT + (i + 1) * every, value=value, expected=expected)
        for i, value in enumerate(values)
    ]


def test_excess_is_in_runs_and_does_not_depend_on_how_often_one_looks() -> None:
    week = 7 * DAY
    # 10 % above expected for two windows, a run costs a fifth of one window's expected loss.
    weekly = excess_cost(history(0.22, 0.22, every=week), promoted=AT, window=week, cost_of_run=0.2)
    daily = excess_cost(history(*[0.22] * 14, every=DAY), promoted=AT, window=week, cost_of_run=0.2)
    assert weekly == pytest.approx(1.0)
    assert daily == pytest.approx(1.0)


def test_a_better_window_cancels_a_worse_one_but_saves_nothing_up() -> None:
    options: dict[str, Any] = {"window": 7 * DAY, "cost_of_run": 0.2}
    noise = history(0.22, 0.18, 0.22, 0.18, every=7 * DAY)
    assert excess_cost(noise, promoted=AT, **options) == pytest.approx(0.0)
    assert excess_cost(history(0.1, 0.22, every=7 * DAY), promoted=AT, **options) == pytest.approx(
        0.5
    )


def test_excess_counts_no_gain_no_gap_and_nothing_before_the_promotion() -> None:
    options: dict[str, Any] = {"window": 7 * DAY, "cost_of_run": 0.2}
    assert excess_cost(history(0.1, 0.1, every=7 * DAY), promoted=AT, **options) == 0
    late = history(0.22, every=70 * DAY)  # nothing was measured for nine weeks: one window counts
    assert excess_cost(late, promoted=AT, **options) == pytest.approx(0.5)
    assert excess_cost(late, promoted=AT + 71 * DAY, **options) == 0
    assert excess_cost(history(0.2, every=DAY, expected=0.0), promoted=AT, **options) == 0
