"""Two promoters race for one alias on a real MLflow store, each in its own process, while a person
moves it in between: once a round somebody wins, and every end is consistent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from registry.promotion import observe, promote
from registry.turn import wall_clock
from registry.versions import Registry

LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}
ROUNDS = 500 if LONG else 12
REPOSITORY = Path(__file__).parents[2]


def _racer(home: Path, ledger: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("racer.py")), str(home), ledger, name],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _say(racer: subprocess.Popen[str], line: str) -> None:
    assert racer.stdin is not None
    racer.stdin.write(line + "\n")
    racer.stdin.flush()


def _hear(racer: subprocess.Popen[str]) -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


def test_racing_promoters_and_a_person(empty_mlflow: Path, tmp_path: Path) -> None:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url).create()
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "a", tmp_path / "cache")
    registry.prepare()
    client = registry.client
    client.create_registered_model("churn", tags={"shelflife.managed": "true"})
    for made in range(1, 5):
        tags = {"shelflife.artifact_sha256": f"{made:064x}"}
        client.create_model_version("churn", f"file:///nowhere/{made}", tags=tags)
    promote(
        registry, ledger, "churn", "1", expected=None, kind="first", by="x", reason="",
        now=wall_clock(),
    )  # fmt: skip
    racers = [_racer(tmp_path, url, name) for name in "ab"]
    outcomes: dict[str, int] = {}
    try:
        assert [_hear(racer) for racer in racers] == ["ready", "ready"]
        for round_ in range(ROUNDS):
            champion = registry.by_alias("churn", "champion")
            assert champion is not None
            first, second, third = (v for v in "1234" if v != champion.version)
            for racer, version in zip(racers, (first, second), strict=True):
                _say(racer, f"{round_} {version} {champion.version}")
            if round_ % 3 == 2:
                client.set_registered_model_alias("churn", "champion", third)
            found = [_hear(racer) for racer in racers]
            _check(registry, ledger, round_, found, champion.version, interfered=round_ % 3 == 2)
            outcomes[" ".join(sorted(found))] = outcomes.get(" ".join(sorted(found)), 0) + 1
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
            for pipe in (racer.stdin, racer.stdout):
                if pipe is not None:
                    pipe.close()
        ledger.close()
    assert set(outcomes) <= {"lost won", "lost lost"}, outcomes


def _check(
    registry: Registry,
    ledger: Ledger,
    round_: int,
    found: list[str],
    before: str,
    *,
    interfered: bool,
) -> None:
    assert found.count("won") <= 1, (round_, found)
    if not interfered:
        assert found.count("won") == 1, (round_, found)
    champion = observe(registry, ledger, "churn", now=wall_clock())
    assert champion is not None
    table = schema.promotions
    with ledger.read() as tx:
        rows = tx.execute(sa.select(table).order_by(table.c.id.desc()).limit(3)).all()
        mine = tx.execute(sa.select(table.c.id).where(table.c.run_id.like(f"{round_}:%"))).all()
    assert rows[0].version == champion.version
    assert len(mine) == found.count("won")
    assert rows[0].previous == (rows[1].version if interfered and len(mine) else before)
    assert "previous" not in champion.aliases
