from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from core import schema
from core.errors import Conflict, LeaseLost, NotFound, NotReady, RegistryError, UntrustedArtifact
from core.ledger import Ledger, take_lease
from registry import promotion
from registry.promotion import observe, promote, rollback
from registry.versions import Registry, Version

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
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
        take_lease(ledger, "alias:churn", "b", now=NOW + timedelta(hours=1), lasts=timedelta(1))
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
    monkeypatch.setattr(promotion, "_PAUSE", 0.001)
    take_lease(ledger, "alias:churn", "other", now=NOW, lasts=timedelta(seconds=60))
    with pytest.raises(NotReady, match="under way"):
        _promote(registry, ledger, "1")
    registry.set_alias("churn", "champion", "1")
    champion = observe(registry, ledger, "churn", now=NOW)
    assert champion is not None
    assert _rows(ledger) == []  # that promotion will record itself
    _promote(registry, ledger, "1", expected="1", now=NOW + timedelta(minutes=2))


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
