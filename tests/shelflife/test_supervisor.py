"""Processes started, watched, started again, and stopped with all their children."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from core.settings import Settings
from shelflife import supervisor
from shelflife.supervisor import Part, Supervisor, parts


def script(text: str, name: str = "part") -> Part:
    return Part(name=name, command=[sys.executable, "-c", text])


def until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_part_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PAUSES", (0.01, 0.01))
    marks, said = tmp_path / "marks", []
    part = script(f"open({str(marks)!r}, 'a').write('x'); raise SystemExit(3)")
    running = Supervisor([part], tmp_path / "logs", said.append)
    running.start()
    until(lambda: running.failed)
    running.stop()
    assert marks.read_text() == "xxx"
    assert "status 3" in said[0]
    assert "keeps failing" in said[-1]


def test_stopping_ends_children_of_children(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    text = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)\n"
    )
    running = Supervisor([script(text)], tmp_path / "logs", print)
    running.start()
    until(lambda: note.exists() and len(note.read_text().split()) == 2)
    pids = [int(pid) for pid in note.read_text().split()]
    assert all(alive(pid) for pid in pids)
    threading.Thread(target=running.stop).start()
    until(lambda: not any(alive(pid) for pid in pids))


def test_an_installation_has_four_parts() -> None:
    found = parts(Settings(home="/nowhere"), "s.yaml")
    assert [part.name for part in found] == ["serve", "watch", "dashboard", "mlflow"]
    assert all("telemetry" not in " ".join(part.command) for part in found)
    assert [part.name for part in parts(Settings(), None, only=("watch",))] == ["watch"]
