from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from core import failpoints, schema
from core.errors import Conflict, LeaseLost, NotFound, NotReady, RegistryError, UntrustedArtifact
from core.ledger import Ledger, release_lease, take_lease
from registry import promotion, turn
from registry.promotion import observe, promote, rollback
from registry.versions import Registry, Version

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WALL = turn.wall_clock
Add = Callable[..., Version]


@pytest.fixture
def add(registry: Registry) -> Add:
    """A version with a recorded hash and no files: promotion never opens them."""

    def adding() -> Version:
        client, made = registry.client, len(registry.versions("churn")) + 1
        if made == 1:
            client.create_registered_model("churn", tags={"shelflife.managed": "true"})
        tags = {"shelflife.artifact_sha256": f"{made:064x}"}
        client.create_model_version("churn", f"file:///nowhere/{made}", tags=tags)
        return registry.get("churn", str(made))

    return adding


def _promote(registry: Registry, ledger: Ledger, version: str, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "expected": None,
        "kind": "gate",
        "by": "run",
        "reason": "better",
        "now": NOW,
    }
    promote(registry, ledger, "churn", version, **{**arguments, **changes})


def _rows(ledger: Ledger) -> list[tuple[str, str, str, str]]:
    table = schema.promotions
    columns = (table.c.version, table.c.previous, table.c.kind, table.c.by)
    with ledger.read() as tx:
        return [tuple(row) for row in tx.execute(sa.select(*columns).order_by(table.c.id))]


def _alias(registry: Registry, alias: str) -> str | None:
    version = registry.by_alias("churn", alias)
    return None if version is None else version.version


def test_a_promotion_moves_the_aliases_and_is_recorded(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    add(), add()
    _promote(registry, ledger, "1", kind="first", by="cli")
    assert (_alias(registry, "champion"), _alias(registry, "previous")) == ("1", None)
    registry.set_alias("churn", "challenger", "2")
    _promote(registry, ledger, "2", expected="1", run_id="r1")
    assert (_alias(registry, "champion"), _alias(registry, "previous")) == ("2", "1")
    assert _alias(registry, "challenger") is None
    assert _rows(ledger) == [("1", "", "first", "cli"), ("2", "1", "gate", "run")]
    second = registry.get("churn", "2")
    assert second.tags["shelflife.promoted_by"] == "run"
    assert "shelflife.promoting" not in second.tags
    with ledger.read() as tx:
        row = tx.execute(sa.select(schema.promotions).order_by(schema.promotions.c.id.desc()))
        newest = row.mappings().first()
    assert newest is not None
    assert (newest["sha256"], newest["at"], newest["run_id"]) == (second.sha256, NOW, "r1")


def test_another_challenger_stays(registry: Registry, ledger: Ledger, add: Add) -> None:
    add(), add()
    registry.set_alias("churn", "challenger", "2")
    _promote(registry, ledger, "1")
    assert _alias(registry, "challenger") == "2"


def test_a_champion_that_moved_is_a_conflict(registry: Registry, ledger: Ledger, add: Add) -> None:
    for _ in range(3):
        add()
    _promote(registry, ledger, "1")
    registry.set_alias("churn", "champion", "2")
    with pytest.raises(Conflict, match=r"champion is version 2, .* against 1"):
        _promote(registry, ledger, "3", expected="1")
    with pytest.raises(Conflict, match="against none"):
        _promote(registry, ledger, "3")
    assert _alias(registry, "champion") == "2"
    assert len(_rows(ledger)) == 1


def test_of_racing_promoters_exactly_one_succeeds(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    add(), add(), add()
    _promote(registry, ledger, "1")
    champion = "1"
    for round_ in range(10):
        others = [number for number in ("1", "2", "3") if number != champion]
        start, outcome = threading.Barrier(2), dict[str, str]()

        def race(version: str, expected: str, start: Any, outcome: Any, round_: int) -> None:
            start.wait()
            try:
                _promote(registry, ledger, version, expected=expected, run_id=f"{round_}:{version}")
                outcome[version] = "won"
            except Conflict:
                outcome[version] = "lost"

        threads = [
            threading.Thread(target=race, args=(other, champion, start, outcome, round_))
            for other in others
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome.values()) == ["lost", "won"]
        before, champion = champion, next(v for v in others if outcome[v] == "won")
        assert _alias(registry, "champion") == champion
        assert _alias(registry, "previous") == before
    assert len(_rows(ledger)) == 11


def test_repeating_a_promotion_does_nothing_more(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    add(), add()
    _promote(registry, ledger, "1")
    for _ in range(2):
        _promote(registry, ledger, "2", expected="1", run_id="r1")
    assert len(_rows(ledger)) == 2
    registry.set_alias("churn", "champion", "1")
    _promote(registry, ledger, "2", expected="1", run_id="r1")
    assert _alias(registry, "champion") == "1"  # what came after is left alone


@pytest.mark.parametrize("finisher", ["promote", "observe"])
def test_a_crash_after_the_alias_is_completed_under_the_promoters_name(
    finisher: str, registry: Registry, ledger: Ledger, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(), add()
    _promote(registry, ledger, "1")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(promotion, "_finish", crash)
    with pytest.raises(KeyboardInterrupt):
        _promote(registry, ledger, "2", expected="1", run_id="r1")
    monkeypatch.undo()
    assert _alias(registry, "champion") == "2"
    assert len(_rows(ledger)) == 1
    for _ in range(2):
        if finisher == "promote":
            _promote(registry, ledger, "2", expected="1", run_id="r1")
        else:
            observe(registry, ledger, "churn", now=NOW)
    assert _rows(ledger)[1:] == [("2", "1", "gate", "run")]
    assert _alias(registry, "previous") == "1"


def test_an_error_after_mlflow_moved_the_alias_is_completed_on_repeat(
    registry: Registry, ledger: Ledger, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    move = registry.client.set_registered_model_alias

    def commit_then_fail(*arguments: Any) -> None:
        move(*arguments)
        raise OSError("500 after commit")

    monkeypatch.setattr(registry.client, "set_registered_model_alias", commit_then_fail)
    with pytest.raises(RegistryError, match="500"):
        _promote(registry, ledger, "1", run_id="r1")
    monkeypatch.undo()
    _promote(registry, ledger, "1", run_id="r1")
    assert _rows(ledger) == [("1", "", "gate", "run")]


def test_a_version_without_a_recorded_hash_is_not_promoted(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    version = registry.tag(add(), artifact_sha256=None)
    assert version.sha256 == ""
    with pytest.raises(UntrustedArtifact, match="no recorded sha256"):
        _promote(registry, ledger, "1")
    assert _alias(registry, "champion") is None
    with pytest.raises(NotFound):
        _promote(registry, ledger, "5")


def test_a_promoter_that_lost_its_lease_moves_nothing(
    registry: Registry, ledger: Ledger, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    get = registry.get

    def slow(model: str, version: str) -> Version:
        take_lease(ledger, "alias:churn", "b", now=WALL() + timedelta(hours=1), lasts=timedelta(1))
        return get(model, version)

    monkeypatch.setattr(registry, "get", slow)
    with pytest.raises(LeaseLost):
        _promote(registry, ledger, "1")
    assert _alias(registry, "champion") is None
    assert _rows(ledger) == []


def test_a_promotion_waits_only_so_long_for_another(
    registry: Registry, ledger: Ledger, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setattr(turn, "_PAUSE", 0.001)
    held = take_lease(ledger, "alias:churn", "other", now=WALL(), lasts=timedelta(seconds=60))
    assert held is not None
    with pytest.raises(NotReady, match="under way"):
        _promote(registry, ledger, "1")
    registry.set_alias("churn", "champion", "1")
    champion = observe(registry, ledger, "churn", now=NOW)
    assert champion is not None
    assert _rows(ledger) == []  # that promotion will record itself
    later = WALL() + timedelta(minutes=2)
    _promote(registry, ledger, "1", expected="1", clock=lambda: later)


def test_a_holder_that_died_on_this_machine_is_not_waited_for(
    registry: Registry, ledger: Ledger, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setattr(turn, "_PAUSE", 0.001)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    lasts = timedelta(hours=1)
    for holder in (f"{turn._place()}#{os.getpid()}:1", f"elsewhere/1#{gone.pid}:1"):
        lease = take_lease(ledger, "alias:churn", holder, now=WALL(), lasts=lasts)
        assert lease is not None
        with pytest.raises(NotReady):
            _promote(registry, ledger, "1")
        release_lease(ledger, lease)
    dead = f"{turn._place()}#{gone.pid}:1"
    assert take_lease(ledger, "alias:churn", dead, now=WALL(), lasts=lasts) is not None
    _promote(registry, ledger, "1")
    assert _alias(registry, "champion") == "1"


class Slept:
    """At a fail point the promoter sleeps past its lease, while `meanwhile` happens."""

    def __init__(self, ledger: Ledger, point: str, meanwhile: Callable[[], object]) -> None:
        self.ledger, self.point, self.meanwhile = ledger, point, meanwhile

    def __call__(self, name: str) -> None:
        if name == self.point:
            failpoints.hook = None
            with self.ledger.write() as tx:  # its lease ran out
                tx.execute(schema.leases.update().values(expires=NOW - timedelta(days=999)))
            self.meanwhile()


@pytest.fixture
def slept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def at(point: str, meanwhile: Callable[[], object]) -> None:
        monkeypatch.setattr(failpoints, "hook", Slept(ledger, point, meanwhile))

    return at


def test_a_promoter_that_slept_takes_its_late_move_back(
    registry: Registry, ledger: Ledger, add: Add, slept: Callable[..., None]
) -> None:
    """Paused between its last look at the fence and the alias, while another promotes."""
    add(), add(), add()
    _promote(registry, ledger, "1")

    def other() -> None:
        _promote(registry, ledger, "3", expected="1", run_id="r3")

    slept("before_move", other)
    with pytest.raises(LeaseLost):
        _promote(registry, ledger, "2", expected="1", run_id="r2")
    assert (_alias(registry, "champion"), _alias(registry, "previous")) == ("3", "1")
    assert [version for version, *_ in _rows(ledger)] == ["1", "3"]
    assert "shelflife.promoting" not in registry.get("churn", "2").tags


def test_a_late_move_that_was_taken_for_a_humans_is_undone_and_recorded(
    registry: Registry, ledger: Ledger, add: Add, slept: Callable[..., None]
) -> None:
    add(), add(), add()
    _promote(registry, ledger, "1")

    def other() -> None:
        _promote(registry, ledger, "3", expected="1", run_id="r3")
        slept("after_move", lambda: observe(registry, ledger, "churn", now=NOW))

    slept("before_move", other)
    with pytest.raises(LeaseLost):
        _promote(registry, ledger, "2", expected="1", run_id="r2")
    assert _alias(registry, "champion") == "3"
    assert [row[:3] for row in _rows(ledger)][2:] == [
        ("2", "3", "human"),
        ("3", "2", "rollback"),
    ]


@pytest.mark.parametrize("point", ["after_intent", "after_previous"])
def test_a_promotion_that_was_withdrawn_meanwhile_moves_nothing(
    point: str, registry: Registry, ledger: Ledger, add: Add, slept: Callable[..., None]
) -> None:
    add(), add(), add()
    _promote(registry, ledger, "1")
    _promote(registry, ledger, "2", expected="1")
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    def guard(tx: sa.Connection) -> None:
        if ended:
            raise LeaseLost("the run has been ended")

    slept(point, end)
    with pytest.raises(LeaseLost, match="ended"):
        _promote(registry, ledger, "3", expected="2", run_id="r3", guard=guard)
    assert _alias(registry, "champion") == "2"
    observe(registry, ledger, "churn", now=NOW)
    assert _alias(registry, "previous") == "1"  # as it was before that promotion
    promotion.withdraw(registry, ledger, "churn", "3", "r3")
    registry.client.set_registered_model_alias("churn", "champion", "3")
    observe(registry, ledger, "churn", now=NOW)
    assert _rows(ledger)[-1] == ("3", "2", "human", "mlflow")  # not the run's


def test_a_human_who_moves_the_alias_in_between_wins(
    registry: Registry, ledger: Ledger, add: Add, slept: Callable[..., None]
) -> None:
    add(), add(), add()
    _promote(registry, ledger, "1")
    move = registry.client.set_registered_model_alias
    slept("after_previous", lambda: move("churn", "champion", "3"))
    with pytest.raises((Conflict, LeaseLost)):
        _promote(registry, ledger, "2", expected="1", run_id="r2")
    assert _alias(registry, "champion") == "3"
    observe(registry, ledger, "churn", now=NOW)
    assert _rows(ledger)[1:] == [("3", "1", "human", "mlflow")]


def test_a_rollback_half_way_given_up_can_be_repeated(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    """`previous` points to the champion itself: the ledger knows the version before."""
    add(), add()
    _promote(registry, ledger, "1")
    _promote(registry, ledger, "2", expected="1")
    registry.set_alias("churn", "previous", "2")
    with pytest.raises(Conflict, match="decided against 1"):
        rollback(registry, ledger, "churn", by="watch", reason="worse", now=NOW, champion="1")
    back = rollback(registry, ledger, "churn", by="watch", reason="worse", now=NOW, champion="2")
    assert (back.version, _alias(registry, "previous")) == ("1", "2")


def test_a_humans_move_is_recorded_once_and_obeyed(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    assert observe(registry, ledger, "churn", now=NOW) is None
    add(), add(), add()
    _promote(registry, ledger, "1")
    assert observe(registry, ledger, "churn", now=NOW) == registry.get("churn", "1")
    registry.client.set_registered_model_alias("churn", "champion", "3")
    for _ in range(3):
        champion = observe(registry, ledger, "churn", now=NOW)
    assert champion is not None
    assert champion.version == "3"
    assert _rows(ledger)[1:] == [("3", "1", "human", "mlflow")]
    assert _alias(registry, "previous") == "1"
    registry.client.set_registered_model_alias("churn", "champion", "1")
    observe(registry, ledger, "churn", now=NOW)
    assert _rows(ledger)[2:] == [("1", "3", "human", "mlflow")]


def test_a_humans_first_champion_is_recorded(registry: Registry, ledger: Ledger, add: Add) -> None:
    add()
    registry.client.set_registered_model_alias("churn", "champion", "1")
    observe(registry, ledger, "churn", now=NOW)
    assert _rows(ledger) == [("1", "", "human", "mlflow")]
    assert _alias(registry, "previous") is None


def test_an_announcement_left_behind_is_not_taken_for_a_new_move(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    add(), add()
    _promote(registry, ledger, "1")
    _promote(registry, ledger, "2", expected="1", run_id="r1")
    left = '{"previous": "1", "kind": "gate", "by": "run", "reason": "", "run_id": "r1"}'
    registry.tag(registry.get("churn", "2"), promoting=left)  # a crash before it was removed
    for version in ("1", "2"):
        registry.client.set_registered_model_alias("churn", "champion", version)
        observe(registry, ledger, "churn", now=NOW)
    assert [kind for _, _, kind, _ in _rows(ledger)] == ["gate", "gate", "human", "human"]
    registry.tag(registry.get("churn", "1"), promoting="no JSON")
    registry.client.set_registered_model_alias("churn", "champion", "1")
    observe(registry, ledger, "churn", now=NOW)
    assert _rows(ledger)[-1] == ("1", "2", "human", "mlflow")


def test_many_observers_record_a_move_once(registry: Registry, ledger: Ledger, add: Add) -> None:
    add()
    registry.set_alias("churn", "champion", "1")
    threads = [
        threading.Thread(target=observe, args=(registry, ledger, "churn"), kwargs={"now": NOW})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observe(registry, ledger, "churn", now=NOW)
    assert len(_rows(ledger)) == 1


def test_rollback_returns_to_the_previous_version_and_back(
    registry: Registry, ledger: Ledger, add: Add
) -> None:
    add(), add()
    with pytest.raises(NotFound, match="no other version was champion"):
        rollback(registry, ledger, "churn", by="ann", reason="worse", now=NOW)
    _promote(registry, ledger, "1")
    with pytest.raises(NotFound, match="versions: 2, 1"):
        rollback(registry, ledger, "churn", by="ann", reason="worse", now=NOW)
    _promote(registry, ledger, "2", expected="1")
    version = rollback(registry, ledger, "churn", by="ann", reason="worse", now=NOW)
    assert version.version == "1"
    assert "champion" in version.aliases
    assert _alias(registry, "previous") == "2"
    assert _rows(ledger)[2:] == [("1", "2", "rollback", "ann")]
    assert rollback(registry, ledger, "churn", by="ann", reason="no", now=NOW).version == "2"
