"""Several schedulers, one ledger: each due check once."""

from __future__ import annotations

import multiprocessing
from datetime import datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from shop import NOW, ask, customers

from core import schema
from core.errors import LeaseLost, ShelflifeError
from core.ledger import take_lease
from core.settings import load
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import scheduler as scheduling
from shelflife.leases import held
from shelflife.scheduler import Scheduler, run_due
from shelflife.service import Service
from shelflife.tick import grid, tick
from shelflife.web import hints

DAY = timedelta(days=1)


def _work(file: str, days: int, barrier: Barrier) -> None:
    """One scheduler's looks at what is due, in a process of its own, in step with the others."""
    service = Service(load(Path(file)))
    for day in range(days):
        barrier.wait(60)
        run_due(service, "shop", now=NOW + day * DAY)
        run_due(service, "shop", now=NOW + day * DAY + timedelta(seconds=1))
        barrier.wait(60)  # the fake clock moves on when both are done
    service.close()


def test_two_processes_never_run_the_same_check_twice(
    service: Service, champion: Version, home: Path
) -> None:
    estimator = load_estimator(service.registry.fetch(champion))
    ask(service, "1", customers(200, seed=2, start=NOW - 4 * DAY), estimator)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    arguments = (str(home / "shelflife.yaml"), 3, barrier)
    processes = [context.Process(target=_work, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    with service.ledger.read() as tx:
        moments = tx.scalars(sa.select(schema.checks.c.at).order_by(schema.checks.c.at)).all()
        decided = tx.scalar(sa.select(sa.func.count()).select_from(schema.decisions))
        token = tx.scalar(
            sa.select(schema.leases.c.token).where(schema.leases.c.name == "check:shop")
        )
    assert moments == [NOW, NOW + DAY, NOW + 2 * DAY]
    assert decided == token == 3  # a check that ran twice would have been leased, decided twice


def test_a_scheduler_that_slept_past_its_lease_writes_nothing(
    service: Service, champion: Version
) -> None:
    estimator = load_estimator(service.registry.fetch(champion))
    ask(service, "1", customers(200, seed=2, start=NOW - 4 * DAY), estimator)
    slow = take_lease(service.ledger, "check:shop", "slow", now=NOW, lasts=timedelta(seconds=1))
    assert run_due(service, "shop", now=NOW + DAY) is not None  # another took over
    with pytest.raises(LeaseLost):
        tick(service, "shop", at=NOW, lease=slow)
    with service.ledger.read() as tx:
        moments = tx.scalars(sa.select(schema.checks.c.at)).all()
    assert moments == [NOW + DAY]


def test_checks_fall_on_a_grid() -> None:
    assert grid(NOW + timedelta(hours=5, minutes=3), timedelta(hours=1)) == NOW + timedelta(hours=5)
    assert grid(NOW, DAY) == NOW


def test_a_check_is_due_again_after_its_rhythm(service: Service, champion: Version) -> None:
    assert run_due(service, "shop", now=NOW) is not None
    assert run_due(service, "shop", now=NOW + DAY / 2) is None
    assert run_due(service, "shop", now=NOW + DAY) is not None
    late = run_due(service, "shop", now=NOW + 9.5 * DAY)  # after an outage: once, the newest
    assert late is not None
    assert late.check.at == NOW + 9 * DAY
    assert run_due(service, "shop", now=NOW + 9.6 * DAY) is None


def test_every_job_runs_and_one_failure_stops_nothing(service: Service, champion: Version) -> None:
    scheduler = Scheduler(service)
    for job in (
        scheduler.poll_registry,
        scheduler.run_retraining,
        scheduler.alerts,
        scheduler.deliver,
        scheduler.refresh,
        scheduler.heed_hints,
        scheduler.watch_itself,
        scheduler.pulse,
        scheduler.obey_commands,
        scheduler.render_reports,
        scheduler.seal,
    ):
        job()
    assert (service.home / "serving" / "pointers" / "shop.json").is_file()
    with service.ledger.read() as tx:
        held = tx.scalars(sa.select(schema.leases.c.holder)).all()
    assert set(held) == {None}


def test_a_model_whose_check_fails_holds_up_no_other(
    service: Service, champion: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(service)
    monkeypatch.setattr(service.registry, "models", lambda: ["broken", "shop"])

    def due(given: Service, model: str, *, now: datetime) -> Any:
        if model == "broken":
            raise ShelflifeError("broken")
        return run_due(given, model, now=now)

    monkeypatch.setattr(scheduling, "run_due", due)
    with pytest.raises(ShelflifeError):  # and the job is known to have failed
        scheduler.run_checks()
    with service.ledger.read() as tx:
        checked = set(tx.scalars(sa.select(schema.checks.c.model)))
        counted = tx.scalars(
            sa.select(schema.counters.c.model).where(schema.counters.c.name == "check_failures")
        ).all()
    assert (checked, counted) == ({"shop"}, ["broken"])


def test_a_hint_hastens_one_poll(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    polls: list[bool] = []
    monkeypatch.setattr(scheduling, "deploy_all", lambda *_, **__: polls.append(True))
    scheduler = Scheduler(service)
    scheduler.heed_hints()
    assert polls == []
    hints.note(service.ledger, NOW)
    with held(service.ledger, "registry"):
        scheduler.heed_hints()  # somebody polls at the moment, who may have looked before
    assert polls == []
    scheduler.heed_hints()
    scheduler.heed_hints()
    assert polls == [True]
