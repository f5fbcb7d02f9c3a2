"""`shelflife backtest` as a person types it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from streams import stepped

from shelflife.cli import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--train-rows", "1500", "--batch-rows", "500", "--estimator", "mine:make"]


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "def make(seed, task):\n"
        "    assert (seed, task) == (7, 'binary')\n"
        "    return LogisticRegression(random_state=seed)\n"
    )
    path = tmp_path / "history.parquet"
    stepped(3000).to_parquet(path)
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shelflife.cli", "backtest", *arguments]
    known = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=known)


def test_json_on_stdout_and_nothing_on_stderr_in_a_pipe(history: Path) -> None:
    done = run(
        str(history), "--target", "y", "--time", "at", "--json", "--seed", "7",
        "--policy", "never", "--policy", "every:2", "--html", "b.html", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["policies"]) == ["never", "every:2"]
    assert found["history"]["seed"] == 7
    assert done.stderr == "picture: b.html\n"
    assert "<svg" in (history.parent / "b.html").read_text()


def test_a_terminal_sees_a_bar(history: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shelflife.cli", "backtest", str(history), "--target", "y"]
    known = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        [*command, "--policy", "never", "--seed", "7", *SMALL],
        stdout=subprocess.PIPE, stderr=theirs, env=known, text=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux: the other side is closed
                break
            if not part:
                break
            said += part
        assert process.stdout is not None
        text = process.stdout.read()
    assert b"never" in said
    assert b"3/3" in said
    assert text.startswith("3 windows from 2026-01-16")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "z"], "--target: got 'z'; expected one of the columns a, b, c, y, at"),
        (["--target", "y", "--policy", "every:0"], "--policy"),
        (["--target", "y", "--window", "soon"], "a duration such as"),
        (["--target", "y", "--html", "no/such/folder.html"], "a path in a folder that exists"),
        (["--target", "y", "--estimator", "nothing"], "package.module:factory"),
    ],
)
def test_mistakes_are_told_and_end_with_2(
    history: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backtest", str(history), *options]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err


@pytest.mark.parametrize(
    "options",
    [
        ["--label-delay", "1d", "--label-time", "known"],
        ["--batch-rows", "10", "--window", "1d"],
        ["--train-rows", "0"],
        ["--task", "ranking"],
    ],
)
def test_usage_errors_end_with_2(
    history: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["backtest", str(history), "--target", "y", *options])
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_a_model_that_cannot_be_trained_ends_with_1(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (history.parent / "broken.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "def make():\n    return LogisticRegression(C=-1)\n"
    )
    options = ["--target", "y", "--estimator", "broken:make", "--train-rows", "1500"]
    assert main(["backtest", str(history), *options, "--batch-rows", "500"]) == 1
    assert "InvalidParameterError" in capsys.readouterr().err


def test_a_settings_file_is_taken_as_it_is(history: Path) -> None:
    import shelflife

    file = history.parent / "s.yaml"
    file.write_text("defaults:\n  tolerance: 0.3\n  retrain: {cooldown: 30d}\n")
    found = shelflife.backtest(
        history, target="y", train_rows=1500, batch_rows=500, policies="never",
        estimator="mine:make", seed=7, settings=file,
    )  # fmt: skip
    assert found.facts.settings["tolerance"] == 0.3
    assert found.facts.settings["retrain"]["cooldown"] == "30d"
