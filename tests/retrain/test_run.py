"""A run end to end on a real MLflow store: promoted, refused, approved, overtaken, killed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from toyworld import AT, TRAINED_UNTIL, WALL, World

from core import failpoints, schema
from core.errors import InputError, LeaseLost, NotFound, RegistryError, ShelflifeError
from core.ledger import release_lease, take_lease
from core.settings import PrivacySettings
from core.spec import ModelSpec
from core.times import iso
from monitor.baseline import load
from monitor.log.records import Label, Prediction
from registry.promotion import rollback
from retrain import run as runs
from retrain.manual import abandon, approve, reject
from retrain.run import advance, start
from retrain.watch import Judgement, failed_promotions, look, watched

LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}


def test_a_better_candidate_becomes_champion_with_its_baseline_and_lineage(
    world: Callable[..., World], spec: ModelSpec
) -> None:
    here = world()
    run_id = here.start()
    done = here.advance(run_id)
    assert (done.state, done.candidate) == ("promoted", "2"), done.outcome
    assert done.gate is not None
    assert done.gate.passed
    assert done.outcome.startswith("version 2 is champion: Brier 0.")
    assert (here.alias("champion"), here.alias("previous")) == ("2", "1")
    assert here.alias("challenger") is None
    kinds = [kind for kind, _ in here.told]
    quiet = ("shadow", "approve", "canary")  # nothing was wanted of them
    assert kinds == [*(step for step in runs.STEPS if step not in quiet), "promoted"]
    version = here.registry.get("toy", "2")
    assert version.tags["shelflife.gate"] == "passed"
    assert version.tags["shelflife.run_id"] == run_id
    assert version.tags["shelflife.parent"] == "1"
    baseline = load(here.registry.file(version, "baseline.json"))
    account = msgspec.json.decode(here.registry.file(version, "dataset.json"))
    assert version.tags["shelflife.dataset"] == account["identity"]
    assert baseline.trained_until is not None
    assert iso(baseline.trained_until) == account["trained_until"]
    assert baseline.expected is not None
    assert baseline.expected.how == "holdout"
    assert baseline.expected.n == done.gate.n == account["holdout_rows"]
    assert baseline.expected.value == pytest.approx(done.gate.candidate)
    assert msgspec.json.decode(here.registry.file(version, "spec.json"), type=ModelSpec) == spec
    [first, second] = here.promotions()
    assert (second.version, second.previous, second.kind, second.run_id) == (
        "2",
        "1",
        "gate",
        run_id,
    )
    assert first.version == "1"
    # Nothing moves when a finished run is advanced again, and the model may have another run.
    assert here.advance(run_id) == done
    assert runs.active(here.ledger, "toy") is None


def test_a_candidate_that_is_no_better_is_registered_and_refused(
    world: Callable[..., World],
) -> None:
    here = world(turned=False)
    done = here.advance(here.start())
    assert (done.state, done.candidate) == ("refused", "2")
    assert done.gate is not None
    assert not done.gate.passed
    assert done.gate.reason in done.outcome
    assert here.alias("champion") == "1"
    version = here.registry.get("toy", "2")
    assert version.aliases == ()
    assert version.tags["shelflife.gate"] == "refused"
    attached = msgspec.json.decode(here.registry.file(version, "gate.json"))
    assert attached["passed"] is False


def test_in_mode_approve_a_person_moves_the_alias(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(mode="approve"), gated[1]
    assert (here.alias("champion"), here.alias("challenger")) == ("1", "2")
    assert here.advance(run_id).state == "waiting"
    assert here.told == []  # it said so once already
    here.registry.client.set_registered_model_alias("toy", "champion", "2")
    done = here.advance(run_id)
    assert done.state == "promoted"
    assert ("promote", "version 2 is champion, moved by a person") in here.told
    assert here.alias("challenger") is None
    assert [row.kind for row in here.promotions()][-1] == "human"


def test_a_champion_that_changed_meanwhile_refuses_the_run(
    waiting: Callable[..., World], gated: tuple[Path, str], champion: Any, spec: ModelSpec
) -> None:
    here, run_id = waiting(), gated[1]
    other = here.registry.add("toy", champion, spec, files={}, tags={}, metrics={}, now=AT)
    here.registry.client.set_registered_model_alias("toy", "champion", other.version)
    done = here.advance(run_id)
    assert done.state == "refused"
    assert "the champion is version 3" in done.outcome
    assert here.alias("champion") == "3"
    assert runs.active(here.ledger, "toy") is None


def test_a_version_whose_files_are_not_the_gated_ones_is_never_promoted(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(), gated[1]
    tag = "shelflife.artifact_sha256"
    here.registry.client.set_model_version_tag("toy", "2", tag, "0" * 64)
    done = here.advance(run_id)
    assert done.state == "failed"
    assert "has sha256 000000000000…, the gate judged" in done.outcome
    assert here.alias("champion") == "1"


def test_a_trainer_that_raises_leaves_the_champion(world: Callable[..., World]) -> None:
    here = world(trainer="mine:train")
    (here.home / "mine.py").write_text("def train(x, y, e):\n    raise ValueError('no luck')\n")
    done = here.advance(here.start())
    assert done.state == "failed"
    assert "ValueError: no luck" in done.outcome
    assert here.alias("champion") == "1"
    assert [v.version for v in here.registry.versions("toy")] == ["1"]
    assert here.told[-1][0] == "failed"


def test_too_little_data_is_a_refusal_that_does_not_count_against_the_champion(
    world: Callable[..., World],
) -> None:
    here = world()
    early = TRAINED_UNTIL + timedelta(days=2)
    done = here.advance(here.start(at=early))
    assert done.state == "refused"
    assert "newer than the champion's training data; the gate needs 100" in done.outcome
    assert done.gate is None


def test_killed_at_every_step_it_resumes_and_makes_one_version(
    world: Callable[..., World],
) -> None:
    here = world()
    run_id = here.start()
    script = str(Path(__file__).with_name("advance_once.py"))
    # Every fail point, without a real trainer: tests/retrain/test_machine.py. Here the real steps.
    points = ["dataset", "train", "gate", "register"] if LONG else ["train", "register"]
    with subprocess.Popen(
        [sys.executable, script, str(here.home), here.mlflow, iso(AT)],
        env=os.environ | {"PYTHONPATH": str(Path(runs.__file__).resolve().parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        for point in [
            *(f"after_{p}" for p in points),
            *(["before_alias"] if LONG else []),
            "after_alias",
            *(["after_serve"] if LONG else []),
        ]:
            forker.stdin.write(point + "\n")
            forker.stdin.flush()
            assert forker.stdout.readline() == "137\n", point
            state = runs.load(here.ledger, run_id)
            assert state.state == "running", point
            moved = point in ("after_alias", "after_serve")
            assert here.alias("champion") == ("2" if moved else "1"), point
        forker.stdin.close()
    done = here.advance(run_id)
    assert done.state == "promoted"
    assert [version.version for version in here.registry.versions("toy")] == ["2", "1"]
    assert [row.run_id for row in here.promotions()] == [None, run_id]


def test_it_waits_until_every_live_worker_has_the_version(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(), gated[1]
    here.worker("w1", "1", WALL)
    here.worker("w2", "2", WALL)
    here.worker("dead", "1", WALL - timedelta(seconds=16))
    state = here.advance(run_id)
    assert (state.state, state.step, here.alias("champion")) == ("running", "serve", "2")
    here.worker("w1", "2", WALL)
    assert here.advance(run_id).state == "promoted"
    assert here.told[-2] == ("serve", "2 live workers answer with it")


def test_a_worker_that_never_takes_it_does_not_hold_the_run_forever(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(), gated[1]
    here.worker("w1", "1", WALL, error="cannot load version 2")
    assert here.advance(run_id).step == "serve"
    later = WALL + timedelta(minutes=6)
    here.worker("w1", "1", later, error="cannot load version 2")
    done = here.advance(run_id, wall=later)
    assert done.state == "promoted"
    assert "did not take it within 5 min: cannot load version 2" in done.outcome


def test_a_run_that_waits_for_a_person_can_be_abandoned(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(mode="approve"), gated[1]
    done = abandon(here.registry, here.ledger, run_id, by="ann", reason="not wanted", at=AT)
    assert (done.state, done.outcome) == ("abandoned", "abandoned by ann: not wanted")
    assert here.advance(run_id) == done
    assert here.alias("challenger") is None
    with pytest.raises(ShelflifeError, match="finished already"):
        abandon(here.registry, here.ledger, run_id, by="ann", reason="", at=AT)


def test_a_person_approves_and_the_run_goes_the_usual_way(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(mode="approve"), gated[1]
    with pytest.raises(InputError, match="who says so"):
        approve(here.ledger, run_id, by=" ", reason="", at=AT)
    assert approve(here.ledger, run_id, by="ann", reason="I looked", at=AT).state == "running"
    done = here.advance(run_id)
    assert done.state == "promoted"
    newest = here.promotions()[-1]
    assert (newest.kind, newest.by, newest.run_id) == ("gate", "ann", run_id)
    assert newest.reason.startswith("I looked; ")
    assert here.alias("challenger") is None
    for act in (approve, lambda *a, **k: reject(here.registry, *a, **k)):
        with pytest.raises(ShelflifeError, match="only a run that waits"):
            act(here.ledger, run_id, by="bob", reason="", at=AT)


def test_a_person_rejects(waiting: Callable[..., World], gated: tuple[Path, str]) -> None:
    here, run_id = waiting(mode="approve"), gated[1]
    done = reject(here.registry, here.ledger, run_id, by="ann", reason="too odd", at=AT)
    assert (done.state, done.outcome) == ("refused", "ann rejected version 2: too odd")
    assert (here.alias("champion"), here.alias("challenger")) == ("1", None)
    assert runs.untold(here.ledger, "toy") == [run_id]


def test_an_approval_that_nobody_gives_expires(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(mode="approve", approval_expires="5d"), gated[1]
    assert here.advance(run_id, at=AT + timedelta(days=4)).state == "waiting"
    done = here.advance(run_id, at=AT + timedelta(days=6))
    assert (done.state, done.outcome) == ("abandoned", "nobody approved version 2 within 5 d")
    assert here.alias("challenger") is None


def test_an_approved_artifact_that_changed_in_the_store_is_not_promoted(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    """The tag and the cache still say what the gate saw; the files in the store do not."""
    here, run_id = waiting(mode="approve"), gated[1]
    location = here.registry.client.get_model_version_download_uri("toy", "2")
    [model] = Path(location.removeprefix("file://")).glob("*.skops")
    kept, data = model.read_bytes(), bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    try:
        approve(here.ledger, run_id, by="ann", reason="", at=AT)
        done = here.advance(run_id)
    finally:
        model.write_bytes(kept)  # other tests use this store
    assert done.state == "failed"
    assert "in the artifact store, the gate judged" in done.outcome
    assert (here.alias("champion"), here.alias("challenger")) == ("1", None)


def test_what_a_run_left_half_done_is_not_promoted_after_it_was_abandoned(
    waiting: Callable[..., World], gated: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process paused right before the alias wakes up after a person has ended its run."""
    here, run_id = waiting(), gated[1]

    def end(name: str) -> None:
        if name == "before_alias":
            abandon(here.registry, here.ledger, run_id, by="ann", reason="", at=AT)

    monkeypatch.setattr(failpoints, "hook", end)
    with pytest.raises(LeaseLost, match="ended meanwhile"):
        here.advance(run_id)
    assert here.alias("champion") == "1"
    assert runs.load(here.ledger, run_id).state == "abandoned"
    assert len(here.promotions()) == 1


def test_mlflow_out_of_reach_is_no_try_of_a_step(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world()
    run_id = here.start()

    def down(*_: Any) -> None:
        raise RegistryError("MLflow is down")

    monkeypatch.setattr(here.registry, "by_alias", down)
    for _ in range(6):  # more often than the step may be cut off
        with pytest.raises(RegistryError):
            here.advance(run_id)
    monkeypatch.undo()
    assert here.advance(run_id).state == "promoted"


def test_a_rolled_back_version_is_not_promoted_again_by_its_run(
    waiting: Callable[..., World], gated: tuple[Path, str]
) -> None:
    here, run_id = waiting(), gated[1]
    here.worker("w1", "1", WALL)
    assert here.advance(run_id).step == "serve"
    rollback(here.registry, here.ledger, "toy", by="watch", reason="worse", now=AT, champion="2")
    done = here.advance(run_id)
    assert done.state == "promoted"
    assert "the champion has since moved to version 1" in done.outcome
    assert here.alias("champion") == "1"
    with here.ledger.read() as tx:
        [failed] = failed_promotions(tx, "toy", "1")
    assert (failed.version, failed.run_id, failed.how, failed.reason) == (
        "2",
        run_id,
        "rollback",
        "worse",
    )
    with here.ledger.read() as tx:
        assert failed_promotions(tx, "toy", "2") == []


def test_one_run_per_model_and_one_more_after_it_was_abandoned(
    world: Callable[..., World],
) -> None:
    here = world()
    run_id = here.start()
    again = start(here.ledger, "toy", trigger="decay", reason="", by="policy", champion="1", at=AT)
    assert again is None
    assert (
        abandon(here.registry, here.ledger, run_id, by="ann", reason="", at=AT).state == "abandoned"
    )
    assert here.start() != run_id
    with pytest.raises(NotFound, match="no run"):
        here.advance("nothing")


def test_a_step_that_keeps_being_cut_off_is_given_up(world: Callable[..., World]) -> None:
    here = world()
    run_id = here.start()
    with here.ledger.write() as tx:
        tx.execute(
            schema.run_steps.insert().values(
                run_id=run_id, name="dataset", state="running", attempts=3, started=AT
            )
        )
    done = here.advance(run_id)
    assert (done.state, done.outcome) == (
        "failed",
        "step dataset was cut off 3 times and is not tried again",
    )


def test_who_lost_the_lease_writes_nothing(world: Callable[..., World]) -> None:
    here = world()
    run_id = here.start()
    lease = take_lease(here.ledger, "run", "a", now=WALL, lasts=timedelta(seconds=1))
    assert lease is not None
    late = WALL + timedelta(seconds=2)
    assert take_lease(here.ledger, "run", "b", now=late, lasts=timedelta(seconds=1))
    from dataclasses import replace

    with pytest.raises(LeaseLost):
        advance(replace(here.context, guard=lease.guard), run_id, at=AT, wall=WALL)
    assert runs.load(here.ledger, run_id).done == ()
    release_lease(here.ledger, lease)


def test_of_many_triggers_at_once_one_starts_a_run(world: Callable[..., World]) -> None:
    here = world()

    def trigger(number: int) -> str | None:
        moment = AT + timedelta(seconds=number)
        options: dict[str, Any] = {"reason": "", "by": "policy", "champion": "1", "at": moment}
        return start(here.ledger, "toy", trigger="decay", **options)

    with ThreadPoolExecutor(20) as pool:
        started = [run_id for run_id in pool.map(trigger, range(20)) if run_id is not None]
    assert len(started) == 1
    assert runs.active(here.ledger, "toy") == started[0]


def turned_rows(here: World, spec: ModelSpec, version: str, count: int, *, bad: bool) -> None:
    """Rows a version answered after its promotion; `bad`: the relation turned back meanwhile."""
    rng = np.random.default_rng(5)
    rows, labels = [], []
    for i in range(count):
        x, time = float(rng.normal()), AT + timedelta(minutes=i + 1)
        positive = rng.random() < 1 / (1 + np.exp(-3 * x * (1 if bad else -1)))
        inputs: dict[str, Any] = {"x": x, "k": 1, "c": "red"}
        rows.append(
            Prediction(
                model="toy",
                id=f"after{i}",
                version=version,
                time=time,
                inputs=inputs,
                outputs={"probability": 0.5},
            )
        )
        labels.append(
            Label(model="toy", id=f"after{i}", value="yes" if positive else "no", time=time)
        )
    here.log.append(rows, received=AT)
    here.log.append_labels(labels, received=AT)


@pytest.mark.parametrize(("bad", "action"), [(True, "rollback"), (False, "keep")])
def test_the_watch_compares_a_new_champion_with_its_predecessor(
    waiting: Callable[..., World],
    gated: tuple[Path, str],
    spec: ModelSpec,
    bad: bool,
    action: str,
) -> None:
    here, later = waiting(), AT + timedelta(days=10)
    assert here.advance(gated[1]).state == "promoted"
    promotion = watched(here.ledger, "toy", "2", here.settings, at=later)
    assert promotion is not None
    assert (promotion.version, promotion.predecessor, promotion.since) == ("2", "1", AT)
    assert watched(here.ledger, "toy", "1", here.settings, at=later) is None
    over = AT + timedelta(days=61)
    assert watched(here.ledger, "toy", "2", here.settings, at=over) is None

    def judged() -> Judgement:
        return look(here.registry, here.log, spec, promotion, here.settings, at=later)

    assert judged().reason == "only 0 labelled rows since the promotion, 50 are needed (10 d on)"
    turned_rows(here, spec, "2", 300, bad=bad)
    found = judged()
    assert (found.action, found.n) == (action, 300)
    if bad:
        rollback(here.registry, here.ledger, "toy", by="watch", reason=found.reason, now=later)
        assert watched(here.ledger, "toy", "1", here.settings, at=later) is None
    tag = "shelflife.artifact_sha256"
    here.registry.client.set_model_version_tag("toy", "1", tag, "")
    assert judged().action == "wait"
    assert "cannot be compared" in judged().reason


def test_a_model_that_needs_what_the_log_may_not_keep_is_not_retrained(
    world: Callable[..., World],
) -> None:
    here = world()
    name = load(here.registry.file(here.registry.get("toy", "1"), "baseline.json")).spec.columns[0]
    private = msgspec.structs.replace(here.settings, privacy=PrivacySettings(deny=(name,)))
    context = dataclasses.replace(here.context, settings=private)
    done = advance(context, here.start(), at=AT, wall=WALL)
    assert done.state == "refused"
    assert f"the log may not keep {name}, which toy needs" in done.outcome
