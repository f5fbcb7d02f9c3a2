"""When a run may start, when it must not, and whether the sentence says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.settings import GateSettings, RetrainSettings, span
from monitor.results import Performance, State
from retrain.policy import PolicyEvidence, decide, parse
from retrain.probe import Observation
from retrain.worth import normal_after_refusal, worth

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


def seen(
    windows_ago: int, *, loss: float = 0.178, gain: float | None = 0.0, growth: float = 0.0
) -> Observation:
    """One window's observation; `growth` feeds every bet of the e-detector alike."""
    return Observation(
        at=AT - windows_ago * 7 * DAY,
        windows=1.0,
        rows=200,
        loss=loss,
        expected=0.178,
        gains={} if gain is None else {"newest": gain, "long": gain / 2},
        growth=(growth,) * 4 if growth else (),
    )


def series(n: int, **changes: Any) -> tuple[Observation, ...]:
    return tuple(seen(n - i, **changes) for i in range(n))


COST = 0.2 * 0.178  # of a run, in losses per row times windows


def test_proven_decay_retrains() -> None:
    decision = decide(decaying(), SETTINGS, at=AT)
    assert (decision.action, decision.trigger) == ("retrain", "decay")
    assert decision.reason == (
        "Brier 0.213 is above tolerance 0.196 (n 1,204); 2,000 new labels can teach a successor"
    )


def test_harm_that_the_detector_proved_retrains_once_it_cost_the_price() -> None:
    worse = series(4, loss=0.213, gain=0.02, growth=3.0)
    harmed = decide(decaying(series=worse, cost=COST, windows_old=4.0), SETTINGS, at=AT)
    assert (harmed.action, harmed.trigger) == ("retrain", "decay")
    assert "provably above normal" in harmed.reason
    cheap = decide(decaying(series=worse, cost=100 * COST, windows_old=4.0), SETTINGS, at=AT)
    assert cheap.action == "wait"


def test_a_harder_task_is_no_reason_to_retrain() -> None:
    """The loss rose, but nothing that earlier rows teach would have avoided any of it."""
    harder = series(4, loss=0.213, gain=-0.001, growth=3.0)
    decision = decide(decaying(series=harder, cost=COST, windows_old=9.0), SETTINGS, at=AT)
    assert decision.action == "wait"
    assert "the task is harder, the model not stale" in decision.reason
    assert decision.would_change


@pytest.mark.parametrize(("age", "action"), [(2.0, "wait"), (12.0, "retrain")])
def test_staleness_pays_once_the_model_is_old_enough(age: float, action: str) -> None:
    """age x now - what staleness has cost >= 0.4 of the cost of a run: 0.01 a row, cost 0.036."""
    stale = evidence(series=series(4, gain=0.01), cost=COST, windows_old=age)
    decision = decide(stale, SETTINGS, at=AT)
    assert decision.action == action
    assert decision.trigger == ("cost" if action == "retrain" else "")


def test_worth_by_hand() -> None:
    # Savings that grow with age, 0.001 a window: the line through the origin finds them exactly.
    ages = (7.0, 8.0, 9.0, 10.0)
    growing = tuple(seen(4 - i, gain=0.001 * age) for i, age in enumerate(ages))
    found = worth(growing, cost=0.1, age=10.0)
    assert found.memory == "newest"
    assert found.now == pytest.approx(0.01)
    assert found.due == pytest.approx(10 * 0.01 - sum(0.001 * age for age in ages))
    assert found.price == pytest.approx(0.04)
    assert found.why == "stale"  # 0.1 - 0.034 is above the price
    dearer = worth(growing, cost=0.2, age=10.0)
    assert (dearer.price, dearer.why) == (pytest.approx(0.08), "")
    twice = worth(growing, cost=0.1, age=10.0, refusals=1)
    assert (twice.price, twice.why) == (pytest.approx(0.08), "")
    after = worth(growing, cost=0.1, age=10.0, refused_at=AT - 14 * DAY)
    assert (after.windows, after.paused, after.why) == (1.0, True, "")
    assert normal_after_refusal(series(3, loss=0.2), 0.178, 0.21) == pytest.approx(0.21)


def test_an_alarm_is_believed_unless_the_last_run_did_not_pay() -> None:
    """The price is 0.04, the model two windows old: its run pays from 0.02 a row on."""

    def judged(brought: float | None, gain: float | None) -> str:
        alarm = [
            msgspec.structs.replace(one, brought=brought)
            for one in series(3, loss=0.3, gain=gain, growth=3.0)
        ]
        return worth(alarm, cost=0.1, age=2.0).why

    assert judged(None, None) == "harm"  # nothing is known of runs yet
    assert judged(0.025, None) == "harm"
    assert judged(0.015, None) == ""
    assert judged(0.015, 0.001) == ""
    assert judged(0.015, 0.05) == "harm"  # the probe says that this run would pay


def test_doubt_ends_once_the_rise_has_cost_fifty_prices() -> None:
    """A run that brought nothing must not keep a ruinous loss from being answered for ever."""
    alarm = [
        msgspec.structs.replace(one, brought=0.0)
        for one in series(4, loss=0.778, gain=None, growth=3.0)
    ]  # 0.6 a row above normal, 2.4 in four windows
    assert worth(alarm, cost=0.125, age=2.0).why == ""  # 48 prices of 0.05
    assert worth(alarm, cost=0.1, age=2.0).why == "harm"  # 60 prices of 0.04


def test_an_alarm_does_not_expire_and_is_found_in_one_pass() -> None:
    """Proven in window 3 of thousands, and the loss has been normal since."""
    long = (*(seen(5000 - i, growth=8.0 if i < 3 else -1.0, loss=0.3) for i in range(5000)),)
    found = worth(long, cost=0.1, age=5000.0)
    assert found.harmed
    assert found.evidence >= 500
    assert not worth(long[3:], cost=0.1, age=5000.0).harmed


def test_an_alarm_that_is_not_believed_is_explained() -> None:
    worse = [
        msgspec.structs.replace(one, brought=0.0001)
        for one in series(4, loss=0.213, gain=0.0005, growth=3.0)
    ]
    doubted = evidence(series=tuple(worse), cost=COST, windows_old=4.0)
    decision = decide(doubted, SETTINGS, at=AT)
    assert decision.action == "wait"
    assert "the last run brought 0.00010 a row" in decision.reason
    assert decision.would_change == "savings that pay for a run"


def test_policies_by_name() -> None:
    assert parse("every:5") == ("every", 5.0)
    assert parse("drift_share") == ("drift_share", 0.5)
    for wrong in ("every", "every:0", "never:3", "sometimes", "threshold:-1"):
        with pytest.raises(InputError, match="policy"):
            parse(wrong)
    due = evidence(windows_since_run=5.0)
    assert decide(due, RetrainSettings(policy="every:5"), at=AT).trigger == "calendar"
    assert decide(due, RetrainSettings(policy="every:6"), at=AT).action == "wait"
    assert decide(decaying(), RetrainSettings(policy="never"), at=AT).action == "wait"
    moved = evidence(state="drifting", drifted=("a", "b"), columns=4)
    assert decide(moved, RetrainSettings(policy="drift_share:0.5"), at=AT).trigger == "drift"
    assert decide(moved, RetrainSettings(policy="drift_share:0.6"), at=AT).action == "wait"
    worse = evidence(performance=performance(0.19))
    assert decide(worse, RetrainSettings(policy="threshold:0.05"), at=AT).action == "retrain"
    assert decide(worse, RetrainSettings(policy="threshold:0.1"), at=AT).action == "wait"


def test_a_model_over_its_age_is_stale_and_a_refusal_doubles_the_limit() -> None:
    old = evidence(age=91 * DAY, max_age=90 * DAY, performance=performance(None, n=0))
    assert decide(old, SETTINGS, at=AT).trigger == "stale"
    refused = msgspec.structs.replace(old, refusals=1, refused_labels=0)
    assert decide(refused, SETTINGS, at=AT).action == "wait"
    older = msgspec.structs.replace(refused, age=181 * DAY)
    assert decide(older, SETTINGS, at=AT).trigger == "stale"


def test_after_a_refusal_more_labels_are_needed_and_the_loss_alone_is_no_reason() -> None:
    once = decaying(refusals=1, refused_labels=1900, new_labels=2100, refused_at=AT - 70 * DAY)
    assert decide(once, SETTINGS, at=AT).action == "wait"
    stale = msgspec.structs.replace(once, series=series(6, gain=0.02), cost=COST, windows_old=12.0)
    assert decide(stale, SETTINGS, at=AT).action == "retrain"
    fewer = msgspec.structs.replace(stale, new_labels=2099)
    assert decide(fewer, SETTINGS, at=AT).action == "wait"


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
    series=st.lists(
        st.builds(
            seen,
            st.integers(0, 30),
            loss=st.floats(0, 1),
            gain=st.none() | st.floats(-0.1, 0.1),
            growth=st.floats(-1, 5),
        ),
        max_size=6,
    ).map(lambda found: tuple(sorted(found, key=lambda one: one.at))),
    cost=st.none() | st.floats(0.001, 1),
    windows_old=st.floats(0, 50),
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
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_forbids_a_run_always_forbids_it(
    found: PolicyEvidence, chosen: RetrainSettings
) -> None:
    decision = decide(found, chosen, at=AT)
    assert decision.reason
    assert "\n" not in decision.reason
    assert decision.would_change
    if found.state == "broken_feed":
        assert decision.action == "wait"
    if decision.action != "retrain":
        return
    assert chosen.mode != "never"
    assert not found.active_run
    assert found.new_labels >= max(chosen.min_new_labels, chosen.gate.min_rows)
    assert found.runs_in_quarter < chosen.budget_per_quarter
    if found.last_run is not None:
        assert AT - found.last_run >= span(chosen.cooldown)
    if found.refusals:
        assert found.new_labels >= found.refused_labels + chosen.min_new_labels
    assert decision.trigger in ("decay", "cost", "stale")


@given(evidences, retrain_settings)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_decision_is_a_function_of_its_arguments(
    found: PolicyEvidence, chosen: RetrainSettings
) -> None:
    first, second = decide(found, chosen, at=AT), decide(found, chosen, at=AT)
    assert msgspec.json.encode(first) == msgspec.json.encode(second)
