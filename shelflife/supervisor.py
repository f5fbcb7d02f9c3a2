"""`shelflife up`: every process of one installation, started, watched and stopped together.

Requests, checks and pages live in processes of their own, so that none can slow or kill another. A
process that dies is started again, with growing pauses; one that keeps dying is reported and left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from core.settings import Settings

_PAUSES = (0.5, 2.0, 5.0, 15.0, 30.0)  # seconds before each restart of a process that keeps dying
_STEADY = 60.0  # a process that lived this long starts again with the first pause
_GRACE = 15.0  # seconds between asking a process to stop and killing it
Tell = Callable[[str], None]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One process to run."""

    name: str
    command: list[str]
    address: str = ""
    env: dict[str, str] = {}


def parts(
    settings: Settings, file: str | None, *, only: tuple[str, ...] = (), replay: bool = False
) -> list[Part]:
    """The processes of an installation.

    Args:
        file: the settings file the processes are to read; found by themselves when None.
        only: names of those wanted; all when empty.
        replay: the ledger holds a replayed history: pages take its newest moment for now.
    """
    from dashboard import launch

    own = [sys.executable, "-m", "shelflife.cli"]
    named = ["--settings", file] if file else []
    serving, mlflow = settings.serving, settings.mlflow
    ui = mlflow.ui or f"http://{serving.host}:{mlflow.port}"
    every = [
        Part(
            name="serve",
            command=[*own, "serve", *named],
            address=f"http://{serving.host}:{serving.port}/v2",
        ),
        Part(name="watch", command=[*own, "watch", *named]),
        Part(
            name="dashboard",
            command=launch.command(settings),
            address=launch.address(settings),
            env=launch.environment(settings, mlflow_ui=ui, replay=replay),
        ),
    ]
    if not mlflow.ui:
        every.append(
            Part(
                name="mlflow",
                command=mlflow_command(settings),
                address=ui,
                env={"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
            )
        )
    return [part for part in every if not only or part.name in only]


def mlflow_command(settings: Settings) -> list[str]:
    """The command line of the MLflow UI over the installation's store."""
    return [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", settings.tracking_uri,
        "--default-artifact-root", settings.artifact_root,
        "--host", settings.serving.host,
        "--port", str(settings.mlflow.port),
        "--workers", "1",
    ]  # fmt: skip


class Supervisor:
    """Runs parts until told to stop."""

    def __init__(self, wanted: list[Part], logs: Path, tell: Tell) -> None:
        self.wanted, self.logs, self.tell = wanted, logs, tell
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self.failed: set[str] = set()

    def start(self) -> None:
        """Start every part; returns at once."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for part in self.wanted:
            thread = threading.Thread(target=self._keep, args=(part,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def run_forever(self) -> int:
        """Run until SIGINT or SIGTERM; returns 1 if a part had to be given up."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: self._stop.set())
        self.start()
        while not self._stop.wait(0.5):
            if self.failed:
                break
        self.stop()
        return 1 if self.failed else 0

    def stop(self) -> None:
        """Ask every part to stop, wait, and kill what does not."""
        self._stop.set()
        with self._lock:
            running = list(self._running.values())
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
        for thread in self._threads:
            thread.join(_GRACE)

    def _keep(self, part: Part) -> None:
        attempt = 0
        while not self._stop.is_set():
            began = time.monotonic()
            code = self._run(part)
            if self._stop.is_set():
                return
            attempt = 0 if time.monotonic() - began > _STEADY else attempt + 1
            if attempt > len(_PAUSES):
                self.tell(f"{part.name} keeps failing; see {self.logs / (part.name + '.log')}")
                self.failed.add(part.name)
                return
            pause = _PAUSES[max(0, attempt - 1)]
            self.tell(f"{part.name} ended with status {code}; starting it again in {pause:g} s")
            self._stop.wait(pause)

    def _run(self, part: Part) -> int:
        with (self.logs / f"{part.name}.log").open("ab") as log:
            with self._lock:
                if self._stop.is_set():
                    return 0
                process = subprocess.Popen(
                    part.command,
                    env=os.environ | part.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches us; we stop them in order
                )
                self._running[part.name] = process
            return process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a part and what it started in its turn (MLflow's server forks its workers)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
