"""A retraining run, with a real trainer and a real MLflow store, killed (`kill -9`) at every fail
point in turn, on SQLite and on PostgreSQL: it goes on, makes one version, and promotes it once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from toyworld import AT, START, World, settle

from core import schema
from core.times import iso
from registry.promotion import observe, promote, verify
from retrain import run as runs
from retrain.rollout import Registered

LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}
REPOSITORY = Path(__file__).parents[2]
RETRAIN = REPOSITORY / "tests" / "retrain"

_spec = importlib.util.spec_from_file_location("retrain_fixtures", RETRAIN / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
spec, champion, logged, template = (
    fixtures.spec, fixtures.champion, fixtures.logged, fixtures.template,
)  # fmt: skip

#: In the order in which a run that is killed and resumed passes them.
POINTS = [
    *(f"{when}_{name}" for name in runs.STEPS[:4] for when in ("before", "after", "done")),
    *(f"{when}_{name}" for name in ("shadow", "approve", "canary") for when in ("before", "done")),
    "before_promote", "before_alias", "after_intent", "after_previous", "before_move",
    "after_move", "done_promote", "before_serve", "after_serve", "done_serve", "before_finish",
]  # fmt: skip
MOVED = POINTS.index("after_move")


@pytest.mark.skipif(not LONG, reason="minutes: make chaos; tests/retrain has a short one")
@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_killed_at_every_fail_point_it_promotes_once(
    store: str,
    template: Path,
    logged: Callable[[bool], Path],
    champion: Any,
    spec: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    here, url = settle(tmp_path / "home", template, logged(True)), ""
    if store == "postgres":
        url = request.getfixturevalue("postgres_database")
        here.ledger.close()
        here = World(here.home, here.mlflow, ledger=url)
        fixtures.fill(here.log, spec, champion, turned=True)
        promote(
            here.registry, here.ledger, "toy", "1", expected="1", kind="first", by="x",
            reason="", now=START,
        )  # fmt: skip
        observe(here.registry, here.ledger, "toy", now=START)
    run_id = here.start()
    command = [sys.executable, str(RETRAIN / "advance_once.py"), str(here.home), here.mlflow]
    with subprocess.Popen(
        [*command, iso(AT), *([url] if url else [])],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        for i, point in enumerate(POINTS):
            forker.stdin.write(point + "\n")
            forker.stdin.flush()
            assert forker.stdout.readline() == "137\n", point
            assert runs.load(here.ledger, run_id).state == "running", point
            assert here.alias("champion") == ("2" if i >= MOVED else "1"), point
            assert len(here.registry.versions("toy")) <= 2, point
        forker.stdin.close()
    done = here.advance(run_id)
    assert done.state == "promoted", done.outcome
    with here.ledger.read() as tx:
        table = schema.promotions
        rows = tx.execute(sa.select(table).order_by(table.c.id)).all()
    registered = runs.result_of(here.ledger, run_id, "register", Registered)
    assert [(row.version, row.run_id) for row in rows] == [("1", None), ("2", run_id)]
    assert (here.alias("champion"), here.alias("previous")) == ("2", "1")
    verify(here.registry, here.registry.get("toy", "2"), registered.sha256)
    here.ledger.close()
