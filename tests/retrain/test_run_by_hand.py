"""A person's word on a run, as it is typed and as it is asked for over the API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toyworld import AT, World

from core.settings import Settings
from registry.versions import Registry
from retrain import run as runs
from shelflife import commands
from shelflife.cli import main
from shelflife.service import Service

Waiting = Callable[..., World]


@pytest.fixture
def typed(
    waiting: Waiting, gated: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Types `shelflife runs …` in the home of a run that waits for approval of version 2."""
    here = waiting(mode="approve")
    settings = here.home / "shelflife.yaml"
    settings.write_text(f"home: {here.home}\ndefaults:\n  retrain: {{mode: approve}}\n")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["runs", *words, "--settings", str(settings), "--json"])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_approved_by_name_it_goes_on_to_be_champion(typed: Any, gated: tuple[Path, str]) -> None:
    code, out, err = typed("approve", gated[1], "--by", "ana", "--reason", "looked at it")
    assert code == 0, err
    found = json.loads(out)
    assert "approve" in found["done"]
    again, _, err = typed("approve", gated[1], "--by", "ana")
    assert again == 1
    assert "only a run that waits for a person" in err


def test_rejected_it_is_refused_and_says_by_whom(typed: Any, gated: tuple[Path, str]) -> None:
    code, out, _ = typed("reject", gated[1], "--by", "ana", "--reason", "not before the holidays")
    assert code == 0
    found = json.loads(out)
    assert found["state"] == "refused"
    assert found["outcome"] == "ana rejected version 2: not before the holidays"


def test_its_training_set_is_made_again(
    typed: Any, gated: tuple[Path, str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.parquet"
    code, out, err = typed("dataset", gated[1], "--out", str(file))
    assert code == 0, err
    found, rows = json.loads(out), pd.read_parquet(file)
    assert len(rows) == found["train_rows"] + found["holdout_rows"]
    assert set(rows["part"]) == {"train", "holdout"}
    assert found["content"]


def test_asked_for_over_the_api(waiting: Waiting, gated: tuple[Path, str]) -> None:
    """The API writes a command down; the scheduler carries it out."""
    here, run_id = waiting(mode="approve"), gated[1]
    service = Service(Settings(home=str(here.home)), folder=here.home)
    service.__dict__.update(
        registry=Registry(here.mlflow, here.home / "mlartifacts", here.home / "cache"),
        ledger=here.ledger,
    )

    def asked(action: str, **arguments: str) -> str:
        number = commands.ask(
            here.ledger, "toy", action, arguments, by="ana", reason="why not", now=AT
        )
        assert commands.obey(service, now=AT) == 1
        with here.ledger.read() as tx:
            table = commands.schema.commands
            row = tx.execute(table.select().where(table.c.id == number)).one()
        return f"{row.state}: {row.result}"

    assert asked("approve", run="nobody").startswith("failed: no run 'nobody'")
    assert asked("approve", run=run_id) == f"done: run {run_id} goes on with version 2"
    assert runs.load(here.ledger, run_id).state == "running"
    assert asked("reject", run=run_id).startswith(f"failed: run {run_id} is running")
    assert asked("abandon", run=run_id) == "done: abandoned by ana: why not"
