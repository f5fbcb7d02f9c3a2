"""The command line: results on stdout, talk on stderr, exit codes as documented."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import skops.io
from shop import NOW, ask, customers

from core.times import iso
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import cli
from shelflife.service import Service

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns its exit code and what it wrote."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


def test_a_newcomer_registers_and_checks(
    home: Path, run: Run, model: object, frame: pd.DataFrame
) -> None:
    skops.io.dump(model, home / "model.skops")
    frame.to_parquet(home / "rows.parquet")
    given = ["--model", "model.skops", "--reference", "rows.parquet", "--target", "bought"]
    code, out, err = run("register", "shop", *given, "--time", "at", "--id", "id", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["version"]["aliases"] == ["champion"]
    assert found["expected"]["metric"] == "brier"
    assert "registering it in MLflow" in err
    code, out, _ = run("check", "shop")
    assert code == 0
    assert "insufficient data" in out
    code, out, _ = run("runs")
    assert (code, out.strip()) == (0, "no retraining run yet")
    assert run("incidents", "--json")[1].strip() == "[]"


def test_a_check_of_a_moment_records_nothing(service: Service, champion: Version, run: Run) -> None:
    estimator = load_estimator(service.registry.fetch(champion))
    ask(service, "1", customers(300, seed=2, start=NOW, turned=True), estimator)
    at = iso(NOW + 5 * (NOW - NOW.replace(day=1)) + pd.Timedelta(days=6).to_pytimedelta())
    code, out, _ = run("check", "shop", "--at", at, "--json", "--fail-on-drift")
    found = json.loads(out)
    assert found["check"]["performance"]["worse"] is True
    assert found["decision"]["reason"]
    assert code == (3 if found["check"]["state"] not in ("healthy", "insufficient_data") else 0)
    assert json.loads(run("incidents", "--json")[1]) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["COMMAND", "--help"]),
        (["explode"], 2, ["invalid choice", "--help"]),
        (["check"], 2, ["model", "--help"]),
        (["check", "nobody"], 2, ["no model 'nobody'", "none yet"]),
        (["check", "x", "--at", "noon"], 2, ["--at", "'noon'", "ISO 8601"]),
        (["check", "x", "--settings", "none.yaml"], 2, ["none.yaml", "shelflife init"]),
        (["init"], 2, ["shelflife.yaml", "--force"]),
        (["runs", "f00"], 2, ["no run 'f00'", "--all"]),
        (["runs", "dataset"], 2, ["id of a run", "shelflife runs"]),
        (["runs", "dataset", "f00"], 2, ["no run 'f00'"]),
        (["runs", "dataset", "f00", "--out", "no/where.parquet"], 2, ["--out", "exists"]),
        (
            ["register", "x", "--model", "m", "--reference", "r.parquet", "--target", "y"],
            2,
            ["r.parquet", "existing"],
        ),
    ],
)
def test_a_mistake_is_named_with_the_next_step(
    home: Path, run: Run, arguments: list[str], code: int, words: list[str]
) -> None:
    found, _, err = run(*arguments)
    assert found == code
    for word in words:
        assert word in err


def test_a_typo_in_the_settings_stops_with_its_line(home: Path, run: Run) -> None:
    (home / "shelflife.yaml").write_text("home: home\ndefaults:\n  windw: 7d\n")
    code, _, err = run("up")
    assert code == 2
    assert "line 3" in err
    assert "'window'" in err


def test_promote_and_rollback(service: Service, champion: Version, run: Run, model: object) -> None:
    files = {n: service.registry.file(champion, n) for n in ("spec.json", "baseline.json")}
    files["reference.parquet"] = service.registry.file(champion, "reference.parquet")
    spec = service.baseline(champion)[0].spec
    service.registry.add(
        "shop", model, spec, files=files, tags={"shelflife.gate": "refused"}, metrics={}, now=NOW
    )
    code, _, err = run("promote", "shop", "2")
    assert code == 4
    assert "gate refused" in err
    code, _, err = run("promote", "shop", "2", "--force")
    assert code == 2
    assert "--reason" in err
    code, out, _ = run("promote", "shop", "2", "--force", "--reason", "known better", "--by", "me")
    assert code == 0
    assert "version 2 is the champion" in out
    code, out, _ = run("rollback", "shop", "--reason", "slower", "--json")
    assert code == 0
    assert json.loads(out)["version"] == "1"
    assert run("promote", "shop", "9")[0] == 2


def test_retraining_without_new_labels_is_refused(champion: Version, run: Run) -> None:
    code, out, err = run("retrain", "shop", "--reason", "try")
    assert code == 4
    assert "labelled" in err
    assert "refused" in out


def test_the_doctor_finds_what_is_wrong(service: Service, champion: Version, run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    found = {each["what"]: each for each in json.loads(out)}
    assert found["shop"]["level"] == "ok"
    assert found["serving"]["level"] == "warning"
    assert "shelflife up" in found["serving"]["mend"]
    assert code == 0
    Path("shelflife.yaml").write_text(
        "home: home\nreceivers:\n  - {name: pager, url: 'http://127.0.0.1:9/', secret: env:NONE}\n"
        "models:\n  shoop: {}\n"
    )
    code, out, _ = run("doctor")
    assert code == 1
    assert "NONE" in out
    assert "shoop: is in the settings but not registered" in out


def test_help_needs_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "shelflife.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "COMMAND" in done.stdout
    for heavy in ("pandas", "sqlalchemy", "mlflow", "sklearn", "numpy"):
        assert f" {heavy}\n" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_options_and_files(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)
    assert "backtest" in script
    assert "--fail-on-drift" in script
    if shell == "bash":
        asked = f"{script}\nCOMP_WORDS=(shelflife roll); COMP_CWORD=1; _shtab_shelflife\n"
        found = subprocess.run(
            ["bash", "-c", asked + 'echo "${COMPREPLY[@]}"'],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout.split() == ["rollback"]
