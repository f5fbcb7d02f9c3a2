"""Transactions and leases, on both databases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from core import schema
from core.errors import LeaseLost, ShelflifeError
from core.ledger import Ledger, release_lease, renew_lease, take_lease
from core.times import from_micros, micros
from core.upgrade import add_missing

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_a_lease_has_one_holder_until_it_expires(any_ledger: Ledger) -> None:
    first = take_lease(any_ledger, "check:m", "a", now=NOW, lasts=MINUTE)
    assert first is not None
    assert take_lease(any_ledger, "check:m", "b", now=NOW + MINUTE / 2, lasts=MINUTE) is None
    renew_lease(any_ledger, first, now=NOW + MINUTE / 2, lasts=MINUTE)
    assert take_lease(any_ledger, "check:m", "b", now=NOW + MINUTE, lasts=MINUTE) is None
    second = take_lease(any_ledger, "check:m", "b", now=NOW + 2 * MINUTE, lasts=MINUTE)
    assert second is not None
    assert second.token > first.token


def test_a_holder_that_slept_cannot_write(any_ledger: Ledger) -> None:
    slow = take_lease(any_ledger, "x", "a", now=NOW, lasts=MINUTE)
    assert slow is not None
    take_lease(any_ledger, "x", "b", now=NOW + 2 * MINUTE, lasts=MINUTE)
    with pytest.raises(LeaseLost, match="another process"), any_ledger.write() as tx:
        tx.execute(schema.meta.insert().values(key="late", value="1"))
        slow.guard(tx)
    with any_ledger.read() as tx:
        assert tx.scalar(sa.select(schema.meta.c.key).where(schema.meta.c.key == "late")) is None


def test_due_work_is_taken_once_and_again_when_it_is_due_again(any_ledger: Ledger) -> None:
    lease = take_lease(any_ledger, "x", "a", now=NOW, lasts=MINUTE, due=True)
    assert lease is not None
    release_lease(any_ledger, lease, due=NOW + MINUTE)
    early = NOW + MINUTE / 2
    assert take_lease(any_ledger, "x", "b", now=early, lasts=MINUTE, due=True) is None
    assert take_lease(any_ledger, "x", "b", now=NOW + MINUTE, lasts=MINUTE, due=True) is not None


def test_many_takers_at_once_get_one_lease(any_ledger: Ledger) -> None:
    got: list[object] = []
    start = threading.Barrier(8)

    def take(name: str) -> None:
        start.wait()
        lease = take_lease(any_ledger, "race", name, now=NOW, lasts=MINUTE)
        if lease is not None:
            got.append(lease)

    threads = [threading.Thread(target=take, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_failed_transaction_leaves_nothing(any_ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), any_ledger.write() as tx:
        any_ledger.count_in(tx, {("m", "shed"): 3})
        raise RuntimeError
    any_ledger.count("shed", 2, model="m")
    any_ledger.count("shed", 5, model="m")
    with any_ledger.read() as tx:
        assert tx.execute(sa.select(schema.counters)).all() == [("m", "shed", 7)]


def test_moments_come_back_to_the_microsecond(any_ledger: Ledger) -> None:
    moment = datetime(2026, 3, 29, 1, 30, 0, 123457, tzinfo=UTC)
    with any_ledger.write() as tx:
        tx.execute(schema.leases.insert().values(name="x", token=0, due=moment))
    with any_ledger.read() as tx:
        assert tx.scalar(sa.select(schema.leases.c.due)) == moment


@given(st.integers(0, 4_000_000_000_000_000))
def test_microseconds_round_trip(count: int) -> None:
    assert micros(from_micros(count)) == count


def test_a_newer_schema_is_refused(any_ledger: Ledger) -> None:
    with any_ledger.write() as tx:
        tx.execute(schema.meta.update().values(value=str(schema.VERSION + 1)))
    with pytest.raises(ShelflifeError, match="upgrade shelflife"):
        any_ledger.create()


def test_an_older_ledger_gains_what_it_lacks_and_keeps_its_rows(any_ledger: Ledger) -> None:
    with any_ledger.write() as tx:
        tx.execute(schema.counters.insert().values(model="m", name="shed", value=7))
        tx.exec_driver_sql("DROP INDEX runs_by_model")
        tx.exec_driver_sql("ALTER TABLE incidents DROP COLUMN report_state")
        tx.exec_driver_sql("DROP TABLE commands")
        tx.exec_driver_sql("UPDATE meta SET value = '1' WHERE key = 'schema'")
        tx.exec_driver_sql(
            "INSERT INTO incidents (model, cause, severity, state, opened, updated)"
            " VALUES ('m', 'decay', 'page', 'open', 0, 0)"
        )
    any_ledger.create()
    with any_ledger.read() as tx:
        assert tx.scalar(sa.select(schema.meta.c.value)) == str(schema.VERSION)
        assert tx.scalar(sa.select(schema.counters.c.value)) == 7
        assert tx.scalar(sa.select(schema.incidents.c.report_state)) == "wanted"
        assert tx.execute(sa.select(schema.commands)).all() == []
        assert "runs_by_model" in {i["name"] for i in sa.inspect(tx).get_indexes("runs")}


def test_a_column_that_existing_rows_cannot_have_is_refused(any_ledger: Ledger) -> None:
    wanted = sa.MetaData()
    sa.Table("counters", wanted, sa.Column("note", sa.Text, nullable=False))
    with pytest.raises(ShelflifeError, match=r"counters\.note"), any_ledger.write() as tx:
        add_missing(tx, wanted)


def test_what_was_deleted_can_be_taken_out_of_the_files(any_ledger: Ledger) -> None:
    with any_ledger.write() as tx:
        tx.execute(schema.meta.insert().values(key="k", value="v"))
    assert any_ledger.scrub(whole=True)
    assert any_ledger.scrub() == any_ledger.sqlite  # PostgreSQL needs its VACUUM
    with any_ledger.read() as tx:
        assert tx.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "k")) == "v"
