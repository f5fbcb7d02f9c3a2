"""The gate's other ways: it cannot decide and asks a person, or a person overrules it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toyworld import AT, World

from core import schema
from core.errors import GateRefused
from retrain import manual, rollout
from retrain import run as runs
from retrain.gate import GateResult

Undecided = Callable[..., tuple[World, str]]


@pytest.fixture
def undecided(waiting: Callable[..., World], gated: tuple[Path, str]) -> Undecided:
    """A run in mode auto whose gate found that the champion cannot be evaluated."""

    def make(**settings: Any) -> tuple[World, str]:
        here = waiting(mode="auto", **settings)
        found = runs.load(here.ledger, gated[1]).gate
        assert found is not None
        asked = msgspec.structs.replace(
            found, passed=False, asks=True, path="no_champion",
            reason="the champion cannot be evaluated: no finite loss; a person has to decide",
        )  # fmt: skip
        table, steps = schema.runs, schema.run_steps
        with here.ledger.write() as tx:
            tx.execute(steps.delete().where(steps.c.name.in_(("shadow", "approve"))))
            text = msgspec.json.encode(asked).decode()
            tx.execute(table.update().values(state="running", gate=text))
        here.registry.drop_alias("toy", "challenger")
        return here, gated[1]

    return make


def test_a_champion_that_cannot_be_evaluated_makes_the_run_wait_for_a_person(
    undecided: Undecided,
) -> None:
    here, run_id = undecided(rollout=rollout_settings())
    asked = here.advance(run_id)
    assert (asked.state, asked.step, here.alias("champion")) == ("waiting", "approve", "1")
    assert here.alias("challenger") == "2"
    assert "the champion cannot be evaluated" in here.told[-1][1]
    assert "passed the gate" not in here.told[-1][1]
    assert here.advance(run_id).state == "waiting"  # mode auto does not go on by itself
    with pytest.raises(GateRefused, match="who forces it and why"):
        manual.approve(here.ledger, run_id, by="ana", reason=" ", at=AT)
    assert runs.load(here.ledger, run_id).state == "waiting"

    manual.approve(here.ledger, run_id, by="ana", reason="the old one is broken", at=AT)
    done = here.advance(run_id)
    assert (done.state, here.alias("champion")) == ("promoted", "2")
    assert done.gate is not None
    assert (done.gate.path, done.gate.by, done.gate.passed) == ("forced", "ana", True)
    newest = here.promotions()[-1]
    assert (newest.kind, newest.by, newest.run_id) == ("forced", "ana", run_id)
    assert newest.reason.startswith("forced by ana: the old one is broken (the gate said: the ch")
    assert here.registry.get("toy", "2").tags["shelflife.gate"] == "forced"


def rollout_settings() -> Any:
    """Stages that compare with the champion: without one that answers they are skipped."""
    from core.settings import RolloutSettings

    return RolloutSettings(shadow="10d", canary=0.2)


def test_what_nobody_forces_is_rejected_like_any_candidate(undecided: Undecided) -> None:
    here, run_id = undecided()
    here.advance(run_id)
    done = manual.reject(here.registry, here.ledger, run_id, by="ana", reason="no", at=AT)
    assert (done.state, here.alias("champion"), here.alias("challenger")) == ("refused", "1", None)
    assert done.gate is not None
    assert (done.gate.path, done.gate.refused) == ("no_champion", False)


def test_a_challenger_set_by_hand_answers_in_shadow(undecided: Undecided) -> None:
    here, run_id = undecided()
    manual.abandon(here.registry, here.ledger, run_id, by="ana", reason="", at=AT)

    def beside(challenger: str, champion: str = "1", settings: Any = None) -> Any:
        chosen = settings or here.settings
        return rollout.beside(here.ledger, "toy", champion, chosen, challenger=challenger, at=AT)

    assert beside("2") == rollout.Beside(version="2", mode="shadow")
    assert beside("") is None
    assert beside("2", champion="2") is None
    quiet = msgspec.structs.replace(rollout_settings(), shadow_challenger=False)
    retrain = msgspec.structs.replace(here.settings.retrain, rollout=quiet)
    off = msgspec.structs.replace(here.settings, retrain=retrain)
    assert beside("2", settings=off) is None


def test_a_runs_own_alias_is_not_a_persons_wish(undecided: Undecided) -> None:
    """The shadow is switched off, so a candidate that waits for approval is not shadowed."""
    here, run_id = undecided()
    assert here.advance(run_id).state == "waiting"
    found = rollout.beside(
        here.ledger, "toy", "1", here.settings, challenger=here.alias("challenger") or "", at=AT
    )
    assert found is None


def test_an_older_result_reads_as_it_was() -> None:
    plain = GateResult(
        passed=False, reason="worse", metric="brier", champion=0.2, candidate=0.3, gain=-0.1,
        low=None, high=None, n=100, confidence=0.9, checks=(),
    )  # fmt: skip
    assert plain.refused
    assert not msgspec.structs.replace(plain, asks=True).refused
    assert not msgspec.structs.replace(plain, passed=True).refused
