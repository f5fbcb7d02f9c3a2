"""One home folder with a model `toy`, its log and its MLflow store; the tests of runs share it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import GateSettings, ModelSettings, RetrainSettings
from monitor.log.log import InferenceLog
from registry.promotion import observe
from registry.versions import Registry
from retrain.run import RunContext, RunState, advance, start

START = datetime(2020, 1, 1, tzinfo=UTC)
TRAINED_UNTIL = START + 599 * timedelta(minutes=30)
AT = START + timedelta(days=40)
WALL = datetime(2026, 1, 1, tzinfo=UTC)
TELL = Callable[[str, str], None]


class World:
    """One home folder with a champion, and a context over it."""

    def __init__(self, home: Path, mlflow: str, *, ledger: str = "", **settings: Any) -> None:
        self.home, self.mlflow = home, mlflow
        self.told: list[tuple[str, str]] = []
        self.ledger = Ledger(ledger or f"sqlite:///{home / 'ledger.db'}").create()
        self.registry = Registry(mlflow, home / "mlartifacts", home / "cache")
        self.log = InferenceLog(self.ledger, home / "segments")
        gate = GateSettings(min_rows=100, report=False)
        self.settings = ModelSettings(retrain=RetrainSettings(gate=gate, **settings))
        self.context = RunContext(
            registry=self.registry,
            ledger=self.ledger,
            log=self.log,
            settings=self.settings,
            home=home,
            threads=1,
            tell=lambda kind, text: self.told.append((kind, text)),
            user_folder=home,
        )

    def start(self, at: datetime = AT) -> str:
        run_id = start(
            self.ledger,
            "toy",
            trigger="manual",
            reason="a test",
            by="tester",
            champion="1",
            at=at,
        )
        assert run_id is not None
        return run_id

    def advance(self, run_id: str, wall: datetime = WALL, at: datetime = AT) -> RunState:
        return advance(self.context, run_id, at=at, wall=wall)

    def alias(self, name: str) -> str | None:
        version = self.registry.by_alias("toy", name)
        return None if version is None else version.version

    def promotions(self) -> list[Any]:
        with self.ledger.read() as tx:
            return list(tx.execute(sa.select(schema.promotions)).all())

    def worker(self, name: str, version: str, seen: datetime, error: str = "") -> None:
        key = schema.workers.c.worker == name
        with self.ledger.write() as tx:
            tx.execute(schema.workers.delete().where(key))
            tx.execute(
                schema.workers.insert().values(
                    worker=name,
                    model="toy",
                    version=version,
                    sha256="",
                    loaded=seen,
                    seen=seen,
                    error=error,
                )
            )


def settle(home: Path, template: Path, logged: Path, **settings: Any) -> World:
    """A home with the log of `logged` and the MLflow store of `template`."""
    shutil.copytree(logged, home)
    shutil.copy(template / "mlflow.db", home / "mlflow.db")
    shutil.copytree(template / "cache", home / "cache")
    here = World(home, f"sqlite:///{home / 'mlflow.db'}", **settings)
    observe(here.registry, here.ledger, "toy", now=START)
    return here
