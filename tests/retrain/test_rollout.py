"""Shadow and canary: proven better goes on, proven worse is refused, the rest by settings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toyworld import AT, WALL, World

from core import schema
from core.settings import RolloutSettings
from monitor.log.records import Label, Prediction, Role
from retrain import rollout
from retrain import run as runs
from retrain.watch import Judgement, failed_promotions, failing, stage

HOUR = timedelta(hours=1)


@pytest.fixture
def staged(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> Callable[..., tuple[World, str]]:
    """A run whose candidate, version 2, has passed the gate and is registered."""

    def make(mode: str = "auto", **settings: Any) -> tuple[World, str]:
        here = waiting(mode=mode, rollout=RolloutSettings(**settings))
        table, steps = schema.runs, schema.run_steps
        with here.ledger.write() as tx:
            tx.execute(steps.delete().where(steps.c.name.in_(("shadow", "approve"))))
            tx.execute(table.update().values(state="running"))
        here.registry.drop_alias("toy", "challenger")
        return here, gated[1]

    return make


def answers(
    here: World, count: int, *, role: Role, version: str, right: float, start: datetime = AT
) -> None:
    """Labelled rows that a version answered, with probability `right` for what was true."""
    rng, rows, labels = np.random.default_rng(3), [], []
    for i in range(count):
        x, time = float(rng.normal()), start + timedelta(minutes=i + 1)
        yes = bool(rng.random() < 1 / (1 + np.exp(3 * x)))  # as in the stream that has turned
        sure = right + float(rng.normal(0, 0.02))
        rows.append(
            Prediction(
                model="toy",
                id=f"live{i}",
                version=version,
                time=time,
                role=role,
                inputs={"x": x, "k": 1, "c": "red"},
                outputs={"probability": sure if yes else 1 - sure},
                source=f"{role}/{version}",
            )
        )
        labels.append(Label(model="toy", id=f"live{i}", value="yes" if yes else "no", time=time))
    here.log.append(rows, received=AT)
    here.log.append_labels(labels, received=AT)


def test_a_shadow_that_proves_better_goes_on_before_its_time(staged: Any) -> None:
    here, run_id = staged(shadow="10d")
    state = here.advance(run_id)
    assert (state.state, state.step, here.alias("challenger")) == ("running", "shadow", "2")
    beside = rollout.beside(here.ledger, "toy", "1", here.settings, at=AT)
    assert beside == rollout.Beside(version="2", mode="shadow")
    answers(here, 200, role="champion", version="1", right=0.5)
    answers(here, 200, role="shadow", version="2", right=0.9)
    before = steps_of(here, run_id)
    assert here.advance(run_id).step == "shadow"  # it was looked at a moment ago
    assert steps_of(here, run_id) == before
    later = AT + 8 * HOUR
    done = here.advance(run_id, at=later, wall=WALL + HOUR)
    assert done.state == "promoted", done.outcome
    [shadow] = [text for kind, text in here.told if kind == "shadow" and "proven" in text]
    assert "the candidate loses less than the champion would have" in shadow
    assert (here.alias("champion"), here.alias("challenger")) == ("2", None)
    assert rollout.beside(here.ledger, "toy", "2", here.settings, at=later) is None


def steps_of(here: World, run_id: str) -> list[Any]:
    with here.ledger.read() as tx:
        table = schema.run_steps
        return list(tx.execute(table.select().where(table.c.run_id == run_id)).all())


def test_a_shadow_that_proves_worse_ends_the_run(staged: Any) -> None:
    here, run_id = staged(shadow="10d")
    here.advance(run_id)
    answers(here, 200, role="champion", version="1", right=0.8)
    answers(here, 200, role="shadow", version="2", right=0.5)
    done = here.advance(run_id, at=AT + 8 * HOUR, wall=WALL + HOUR)
    assert done.state == "refused"
    assert done.outcome.startswith("version 2 was refused in its shadow: the candidate loses more")
    assert (here.alias("champion"), here.alias("challenger")) == ("1", None)
    with here.ledger.read() as tx:
        [failed] = failed_promotions(tx, "toy", "1")
    assert (failed.version, failed.run_id, failed.how) == ("2", run_id, "shadow")


@pytest.mark.parametrize(("undecided", "state"), [("promote", "promoted"), ("refuse", "refused")])
def test_at_the_end_of_an_undecided_shadow_the_settings_decide(
    staged: Any, undecided: str, state: str
) -> None:
    here, run_id = staged(shadow=40, undecided=undecided)
    here.advance(run_id)
    answers(here, 39, role="champion", version="1", right=0.7)
    answers(here, 39, role="shadow", version="2", right=0.7)
    assert here.advance(run_id, at=AT + HOUR, wall=WALL + HOUR).step == "shadow"
    answers(here, 41, role="champion", version="1", right=0.7)
    answers(here, 41, role="shadow", version="2", right=0.7)
    done = here.advance(run_id, at=AT + 2 * HOUR, wall=WALL + 2 * HOUR)
    assert done.state == state
    assert undecided == "promote" or "and the settings say refuse" in done.outcome


def test_a_canary_begins_after_approval_and_is_compared_with_the_champions_own_answers(
    staged: Any,
) -> None:
    from retrain.manual import approve

    here, run_id = staged(mode="approve", canary=0.2, canary_for="10d")
    assert here.advance(run_id).state == "waiting"
    assert rollout.beside(here.ledger, "toy", "1", here.settings, at=AT) is None
    approve(here.ledger, run_id, by="ann", reason="", at=AT)
    assert here.advance(run_id).step == "canary"
    beside = rollout.beside(here.ledger, "toy", "1", here.settings, at=AT)
    assert beside == rollout.Beside(version="2", mode="canary", share=0.2)
    # Version 1 learned the relation before it turned: its own answers to these rows are wrong.
    answers(here, 200, role="challenger", version="2", right=0.8)
    done = here.advance(run_id, at=AT + 8 * HOUR, wall=WALL + HOUR)
    assert done.state == "promoted", done.outcome
    assert here.promotions()[-1].by == "ann"


def test_a_canary_that_fails_to_answer_is_refused(staged: Any) -> None:
    here, run_id = staged(canary=0.2)
    here.ledger.count("canary_failed", 50, model="toy")  # another run's
    assert here.advance(run_id).step == "canary"
    here.ledger.count("canary_answered", 10, model="toy")
    here.ledger.count("canary_failed", 6, model="toy")
    done = here.advance(run_id, at=AT + HOUR, wall=WALL + HOUR)
    assert done.state == "refused"
    assert "failed to answer 6 of 16 requests" in done.outcome


def test_a_candidate_that_no_worker_can_run_is_refused_after_five_minutes(staged: Any) -> None:
    here, run_id = staged(shadow="10d")
    here.advance(run_id)
    late = WALL + timedelta(minutes=6)
    here.worker("w1", "1", late)
    with here.ledger.write() as tx:
        broken = {"challenger": "2", "challenger_error": "no such file"}
        tx.execute(schema.workers.update().values(**broken))
    done = here.advance(run_id, at=AT + HOUR, wall=late)
    assert done.state == "refused"
    assert "a live worker could not run it for 5 min: no such file" in done.outcome


def test_a_person_who_promotes_it_meanwhile_ends_the_stage(staged: Any) -> None:
    here, run_id = staged(shadow="10d", canary=0.5)
    here.advance(run_id)
    here.registry.client.set_registered_model_alias("toy", "champion", "2")
    done = here.advance(run_id, at=AT + HOUR, wall=WALL + HOUR)
    assert done.state == "promoted"
    assert here.promotions()[-1].kind == "human"
    assert runs.active(here.ledger, "toy") is None


def test_what_a_stage_does_next_is_a_pure_decision() -> None:
    def judged(action: Any) -> Judgement:
        return Judgement(action=action, reason="because")

    for over in (False, True):
        assert stage(judged("rollback"), over=over, undecided="promote").action == "refuse"
        assert stage(judged("keep"), over=over, undecided="refuse").action == "next"
    assert stage(judged("wait"), over=False, undecided="refuse").action == "wait"
    assert stage(judged("wait"), over=True, undecided="refuse").action == "refuse"


def test_a_few_failures_may_be_chance_and_many_are_not() -> None:
    assert failing(0, 0) == failing(1, 1) == failing(1000, 10) == ""
    assert failing(4, 4)
    assert failing(1000, 100)
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(2000):  # looked at after every request, at the tolerated 1 %
        failed = np.cumsum(rng.random(400) < 0.01)
        alarms += any(failing(i + 1, int(f)) for i, f in enumerate(failed) if f)
    assert alarms <= 6  # at most 0.1 %: Binomial(2000, 0.001) exceeds 6 once in 200
