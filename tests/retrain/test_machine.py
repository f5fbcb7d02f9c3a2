"""Whatever happens to a run, in whatever order: kills at any fail point, MLflow refusing or failing
after it committed, people who move aliases, approve, reject, abandon and roll back, files that
change, leases that run out. Afterwards everything is in one of the documented end states."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import sqlalchemy as sa
from fakes import FakeRegistry, fine
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from msgspec import Struct

from core import failpoints, schema
from core.errors import Conflict, LeaseLost, NotFound, NotReady, RegistryError, ShelflifeError
from core.ledger import Ledger, take_lease
from core.settings import ModelSettings, RetrainSettings
from registry import turn
from registry.promotion import observe, promote, rollback
from retrain import manual, rollout, steps
from retrain import run as runs
from retrain.gate import GateResult
from retrain.run import RunContext

LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}
FAST = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # a ledger that syncs to memory
NOW = datetime(2026, 1, 1, tzinfo=UTC)


#: Where the process may die or sleep, in the order in which a run passes them.
MOVES = [
    "after_intent", "after_previous", "before_move", "after_move", "before_record", "after_record",
]  # fmt: skip
POINTS = [
    *(f"{when}_{name}" for name in runs.STEPS[:4] for when in ("before", "after", "done")),
    *(f"{when}_{name}" for name in ("shadow", "approve", "canary") for when in ("before", "done")),
    "after_challenger", "before_promote", "before_alias", *MOVES, "after_alias", "done_promote",
    "before_serve", "after_serve", "done_serve", "before_finish", "after_finish",
]  # fmt: skip
POINT = st.one_of(st.none(), st.sampled_from(POINTS))
SELDOM = st.sampled_from([False, False, False, True])
FAULT = st.one_of(
    st.none(), st.none(), st.tuples(st.integers(1, 40), st.sampled_from(["before", "after"]))
)
WHAT = ["another process", "a person moves", "files change", "rolled back", "polled", "abandoned"]


class Killed(BaseException):
    """The process is gone."""


class Nothing(Struct):
    """The result of a step that is none of this test's business."""


def _gate(passes: bool) -> GateResult:
    return GateResult(
        passed=passes, reason="better" if passes else "worse", metric="brier", champion=0.2,
        candidate=0.1, gain=0.1, low=0.05, high=0.15, n=100, confidence=0.9, checks=(),
    )  # fmt: skip


class RunMachine(RuleBasedStateMachine):
    """One model, one ledger, one MLflow, and everybody who touches them."""

    @initialize(mode=st.sampled_from(["auto", "approve"]))
    def begin(self, mode: Any) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="shelflife-machine-", dir=FAST))
        self.ledger = Ledger(f"sqlite:///{self.home / 'ledger.db'}").create()
        self.registry: Any = FakeRegistry(self.home / "files")
        self.now, self.mode, self.passes = NOW, mode, True
        self.started: list[str] = []
        self.gated: dict[str, tuple[str, bool]] = {}  # run -> what was gated, and the verdict
        self.forged: set[str] = set()
        self.told: list[tuple[str, str]] = []
        self.by_person: set[str] = set()
        self.late: set[str] = set()  # changed after they had been checked, before the alias moved
        first = self.registry.add("m", b"model 0")
        promote(
            self.registry, self.ledger, "m", first.version, expected=None, kind="first", by="x",
            reason="", now=self.now,
        )  # fmt: skip
        self.patches = [
            patch.object(turn, "_PAUSE", 0.0),
            patch.object(turn, "_TRIES", 2),
            patch.dict(steps._DO, {
                "dataset": self._compute("dataset"), "train": self._compute("train"),
                "gate": self._gate_step, "register": self._register_step,
            }),
        ]  # fmt: skip
        for each in self.patches:
            each.start()

    # --- steps that cost nothing, with the contract of the real ones -----------------------------

    def _compute(self, name: Any) -> Callable[..., bool]:
        def step(context: Any, run: Any, at: Any, wall: Any) -> bool:
            if name == "dataset":
                rollout.same_champion(context, run)
            failpoints.fail_point(f"after_{name}")
            runs.end_step(context, run, name, Nothing(), at=at)
            return True

        return step

    def _gate_step(self, context: Any, run: Any, at: Any, wall: Any) -> bool:
        # A repeated step finds the same rows, so it comes to the same verdict.
        passes = self.gated.setdefault(run.id, ("", self.passes))[1]
        result = _gate(passes)
        failpoints.fail_point("after_gate")
        text = msgspec.json.encode(result).decode()
        runs.end_step(context, run, "gate", result, at=at, gate=text)
        return True

    def _register_step(self, context: Any, run: Any, at: Any, wall: Any) -> bool:
        version = context.registry.add("m", f"of {run.id}".encode(), idempotency_key=run.id)
        failpoints.fail_point("after_register")
        self.gated[run.id] = (version.sha256, self.gated[run.id][1])
        done = rollout.Registered(version=version.version, sha256=version.sha256)
        runs.end_step(context, run, "register", done, at=at, candidate=version.version)
        return True

    def _context(self) -> Any:
        lease = take_lease(
            self.ledger, "run:m", "us", now=self.now, lasts=timedelta(seconds=30)
        ) or SimpleNamespace(guard=lambda tx: None)
        return RunContext(
            registry=self.registry,
            ledger=self.ledger,
            log=SimpleNamespace(),  # type: ignore[arg-type]  # no stage looks into it
            settings=ModelSettings(retrain=RetrainSettings(mode=self.mode)),
            home=self.home,
            tell=lambda kind, text: self.told.append((kind, text)),
            guard=lease.guard,
        )

    @contextmanager
    def _trouble(
        self,
        kill: str | None,
        fault: tuple[int, str] | None,
        meanwhile: Callable[[], None] | None = None,
        held: bool = False,
    ) -> Iterator[None]:
        """At a fail point die, or sleep past every lease while something else happens; fail the
        n-th thing asked of MLflow."""
        asked = 0

        def hook(name: str) -> None:
            if name != kill:
                return
            if meanwhile is None:
                raise Killed
            failpoints.hook = None
            self._expire()
            meanwhile()

        def wrong(_operation: str) -> str:
            nonlocal asked
            asked += 1
            return fault[1] if fault is not None and asked == fault[0] else ""

        failpoints.hook, self.registry.fault = hook, wrong
        try:
            yield
        except Killed:
            if not held:
                return
            with self.ledger.write() as tx:  # a dead process gives no lease back
                dead = schema.leases.update().where(schema.leases.c.name.in_(["alias:m", "run:m"]))
                tx.execute(dead.values(holder="gone", expires=self.now + timedelta(days=9999)))
        except (RegistryError, LeaseLost, NotReady):
            pass
        finally:
            failpoints.hook, self.registry.fault = None, fine

    # --- what may happen -------------------------------------------------------------------------

    @rule()
    def another_is_not_started(self) -> None:
        if runs.active(self.ledger, "m") is not None:
            assert self._start() is None  # one run per model at a time

    def _start(self) -> str | None:
        observe(self.registry, self.ledger, "m", now=self.now)  # as every tick does first
        run_id = runs.start(
            self.ledger, "m", trigger="decay", reason="", by="policy",
            champion=self.registry.alias("champion"), at=self.now,
        )  # fmt: skip
        self.started += [run_id] if run_id is not None else []
        return run_id

    def _advance(self) -> None:
        runs.resume(self._context(), "m", at=self.now, wall=self.now)

    @rule(passes=st.sampled_from([True, True, True, False]), kill=POINT, held=SELDOM, fault=FAULT)
    def work(self, passes: bool, kill: str | None, held: bool, fault: Any) -> None:
        """Start a run where there is none, and carry it on, until something happens to us."""
        if runs.active(self.ledger, "m") is None:
            self.passes = passes
            self._start()
        with self._trouble(kill, fault, held=held):
            self._advance()

    @rule(kill=POINT, held=SELDOM)
    def carry_on(self, kill: str | None, held: bool) -> None:
        with self._trouble(kill, None, held=held):
            self._advance()

    @rule(point=st.sampled_from(POINTS[8:]), pick=st.integers(0, 20), what=st.sampled_from(WHAT))
    def overtaken(self, point: str, pick: int, what: str) -> None:
        """The process that carries the run sleeps past its leases, somebody acts, it wakes up."""
        if runs.active(self.ledger, "m") is None:
            self.passes = True
            self._start()

        def meanwhile() -> None:
            if what == "another process":
                self._advance()
            elif what == "a person moves":
                self.person_moves_champion(pick)
            elif what == "files change":
                self.files_change(pick)
                if point in MOVES:
                    self.late |= self.forged
            elif what == "rolled back":
                self.roll_back(None, "ann")
            elif what == "polled":
                observe(self.registry, self.ledger, "m", now=self.now)
            else:
                self.decide("abandon", "")

        with self._trouble(point, None, meanwhile):
            self._advance()

    @rule(word=st.sampled_from(["approve", "reject", "abandon"]), fault=st.sampled_from(["", "1"]))
    def decide(self, word: str, fault: str) -> None:
        run_id = runs.active(self.ledger, "m")
        if run_id is None:
            return
        with self._trouble(None, (int(fault), "before") if fault else None):
            try:
                if word == "approve":
                    manual.approve(self.ledger, run_id, by="ann", reason="", at=self.now)
                else:
                    act = getattr(manual, word)
                    act(self.registry, self.ledger, run_id, by="ann", reason="", at=self.now)
            except ShelflifeError:
                pass  # it says why: not waiting, finished, champion already, MLflow is down

    @rule(pick=st.integers(0, 20))
    def person_moves_champion(self, pick: int) -> None:
        numbers = list(self.registry.files)
        chosen = numbers[pick % len(numbers)]
        self.registry.person_moves("champion", chosen)
        self.by_person.add(chosen)

    @rule(kill=st.one_of(st.none(), st.sampled_from(MOVES)), by=st.sampled_from(["watch", "ann"]))
    def roll_back(self, kill: str | None, by: str) -> None:
        with self._trouble(kill, None):
            try:
                observe(self.registry, self.ledger, "m", now=self.now)
                rollback(self.registry, self.ledger, "m", by=by, reason="", now=self.now)
            except (NotFound, Conflict):
                pass

    @rule(fault=st.one_of(st.none(), st.tuples(st.integers(1, 6), st.just("after"))))
    def poll(self, fault: tuple[int, str] | None) -> None:
        with self._trouble(None, fault):
            observe(self.registry, self.ledger, "m", now=self.now)

    @rule(pick=st.integers(0, 20))
    def files_change(self, pick: int) -> None:
        """Somebody replaces a candidate's file in the artifact store."""
        candidates = [number for number in self.registry.files if number != "1"]
        if candidates:
            chosen = candidates[pick % len(candidates)]
            self.registry.files[chosen] = b"forged"
            self.forged.add(chosen)

    @rule(hours=st.sampled_from([1, 24, 24 * 31]))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        self._expire()

    def _expire(self) -> None:
        with self.ledger.write() as tx:
            tx.execute(schema.leases.update().values(holder=None, expires=None))

    # --- what always holds -----------------------------------------------------------------------

    def _rows(self, table: sa.Table) -> list[Any]:
        with self.ledger.read() as tx:
            order = table.c.id if table is schema.promotions else table.c.started
            return list(tx.execute(sa.select(table).order_by(order)).all())

    @invariant()
    def one_version_per_run(self) -> None:
        keys = [
            self.registry.tags(number).get("shelflife.idempotency_key", number)
            for number in self.registry.files
        ]
        assert len(keys) == len(set(keys))

    @invariant()
    def nothing_ungated_was_promoted(self) -> None:
        promoted = [row for row in self._rows(schema.promotions) if row.run_id]
        assert len({row.run_id for row in promoted}) == len(promoted)  # once per run
        for row in promoted:
            sha256, passed = self.gated[row.run_id]
            assert passed
            assert row.sha256 == sha256

    @invariant()
    def at_most_one_unfinished_run(self) -> None:
        unfinished = [r for r in self._rows(schema.runs) if r.state in ("running", "waiting")]
        assert len(unfinished) <= 1
        assert all(row.active == "m" for row in unfinished)

    @invariant()
    def no_forged_file_was_promoted(self) -> None:
        """Whatever moved `champion` by our hand was, when it moved, what had been registered; a
        rollback goes to what a person or the gate had chosen before."""
        before = self.by_person | self.late
        for version, sound in self.registry.moves:
            assert sound or version in before
            before.add(version)  # it may come back

    @rule()
    def settle(self) -> None:
        """Leases run out, MLflow is there again, nobody interferes: all ends are tied up."""
        self.time_passes(1)
        for _ in range(3):
            try:
                runs.resume(self._context(), "m", at=self.now, wall=self.now)
            except LeaseLost:
                raise AssertionError("nobody else is there") from None
            self.time_passes(1)
        run_id = runs.active(self.ledger, "m")
        if run_id is not None:
            assert runs.load(self.ledger, run_id).state == "waiting"
        champion = observe(self.registry, self.ledger, "m", now=self.now)
        assert champion is not None
        newest = self._rows(schema.promotions)[-1]
        assert champion.version == newest.version
        assert self.registry.alias("previous") != champion.version
        rows = self._rows(schema.promotions)
        for row, after in zip(rows, [*rows[1:], None], strict=True):
            undone = after is not None and after.by == "shelflife"
            assert row.kind != "human" or row.version in self.by_person or undone
        for row in self._rows(schema.runs):
            assert bool(row.active) == (row.state in ("running", "waiting"))
            if row.state == "promoted":
                moved = [p for p in self._rows(schema.promotions) if p.version == row.candidate]
                assert moved
            own = [p for p in self._rows(schema.promotions) if p.run_id == row.id]
            assert not own or row.state in ("promoted", "running", "failed", "refused")
            if row.state == "refused" and row.gate and not self.gated[row.id][1]:
                assert not own

    def teardown(self) -> None:
        if hasattr(self, "home"):
            try:
                self.settle()
            finally:
                failpoints.hook = None
                for each in self.patches:
                    each.stop()
                self.ledger.close()
                shutil.rmtree(self.home, ignore_errors=True)


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(
    max_examples=1000 if LONG else 25,
    stateful_step_count=40 if LONG else 25,
    deadline=None,
    derandomize=not LONG,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


CHECKS = (
    RunMachine.one_version_per_run,
    RunMachine.nothing_ungated_was_promoted,
    RunMachine.at_most_one_unfinished_run,
    RunMachine.no_forged_file_was_promoted,
)


def _scene(mode: str, act: Callable[[RunMachine], None]) -> None:
    """One machine, driven by hand; everything it promises is checked afterwards."""
    machine = RunMachine()
    machine.begin(mode)
    try:
        act(machine)
        machine.settle()
        for check in CHECKS:
            check(machine)
    finally:
        machine.teardown()


@pytest.mark.parametrize("mode", ["auto", "approve"])
def test_killed_at_each_fail_point_and_again_at_the_next(mode: str) -> None:
    def every_point(machine: RunMachine) -> None:
        for point in POINTS:
            machine.work(True, point, False, None)
            if mode == "approve" and point == "after_challenger":
                machine._advance()
                machine.decide("approve", "")
        first, *others = machine._rows(schema.runs)
        assert first.state == "promoted", first.outcome
        # A run that was resumed past the points left is done; the next kill meets another.
        assert {row.state for row in others} <= {"promoted", "running", "waiting"}

    _scene(mode, every_point)


@pytest.mark.parametrize("what", WHAT)
def test_overtaken_at_each_fail_point(what: str) -> None:
    for point in POINTS[8:] if LONG else (*MOVES, "done_register", "before_promote", "after_alias"):
        _scene("auto", lambda machine, at=point: machine.overtaken(at, 0, what))


@pytest.mark.parametrize("when", ["before", "after"])
def test_mlflow_fails_at_each_request(when: str) -> None:
    """The n-th request of a run fails, and with `after` it was carried out nevertheless."""

    def failing(machine: RunMachine) -> None:
        for n in range(1, 28, 1 if LONG else 3):
            machine.work(True, None, False, (n, when))
            machine.settle()
        rows = machine._rows(schema.runs)
        assert {row.state for row in rows} == {"promoted"}

    _scene("auto", failing)
