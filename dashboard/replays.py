"""Backtests that people start from the page: one at a time, in a process and folder of its own.

`home/backtests/<id>/` holds the history, what was asked (`job.json`), the answer (`result.json`,
`picture.html`) and what the process said (`log.txt`). The process is `shelflife backtest`, so that
the page shows exactly what the command line would.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from core.errors import InputError, NotFound, ShelflifeError
from core.times import duration

FORMATS = (".parquet", ".csv")
POLICIES = ("default", "every:1", "every:5", "every:10", "threshold", "drift_share", "never")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "OMP_NUM_THREADS")
_CPU = 3600  # seconds of processor time a backtest may take
_MEMORY = 16 << 30  # bytes of address space
_LISTED = 50
_lock = threading.Lock()
State = Literal["running", "done", "failed"]


class Job(Struct, frozen=True, kw_only=True):
    """What somebody asked to replay."""

    id: str
    history: str  # name of the file, for people
    target: str
    time: str
    label_delay: str
    window: str
    policies: tuple[str, ...]
    by: str
    started: datetime
    pid: int = 0


class Replay(Struct, frozen=True, kw_only=True):
    """A backtest and where it stands."""

    job: Job
    state: State
    said: str  # the last words of the process, where it failed
    result: dict[str, Any]  # the JSON of `shelflife backtest --json`
    picture: Path | None


class Replays:
    """The backtests in a home folder."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "backtests"
        self._shelf = home / "histories"

    def histories(self) -> list[str]:
        """Names of the files somebody put into `home/histories` to be picked."""
        if not self._shelf.is_dir():
            return []
        return sorted(p.name for p in self._shelf.iterdir() if p.suffix in FORMATS and p.is_file())

    def picked(self, name: str) -> Path:
        """One of `histories`.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in self.histories():
            raise NotFound("history", name, f"files in {self._shelf} can be picked")
        return self._shelf / name

    def start(
        self, history: Path | bytes, name: str, *, target: str, time: str, label_delay: str,
        window: str, policies: tuple[str, ...], by: str, now: datetime,
    ) -> str:  # fmt: skip
        """Start one; returns its id.

        Raises:
            InputError: a file or a span that cannot be read, or no policy.
            ShelflifeError: another one is running.
        """
        suffix = Path(name).suffix.lower()
        if suffix not in FORMATS:
            raise InputError("history", name, "a .parquet or .csv file")
        for span in (label_delay, window):
            if span:
                duration(span)
        unknown = [p for p in policies if p not in POLICIES]
        if unknown or not policies:
            raise InputError("policies", unknown or None, f"one or more of {', '.join(POLICIES)}")
        with _lock:
            running = next((r for r in self.listed() if r.state == "running"), None)
            if running is not None:
                raise ShelflifeError(
                    f"a backtest of {running.job.history} by {running.job.by} is running; one at "
                    "a time"
                )
            identity = secrets.token_hex(6)
            folder = self._folder / identity
            folder.mkdir(parents=True)
            data = history.read_bytes() if isinstance(history, Path) else history
            (folder / f"history{suffix}").write_bytes(data)
            job = Job(
                id=identity, history=Path(name).name, target=target, time=time,
                label_delay=label_delay, window=window, policies=policies, by=by, started=now,
            )  # fmt: skip
            self._launch(folder, job, suffix)
        return identity

    def _launch(self, folder: Path, job: Job, suffix: str) -> None:
        command = [
            sys.executable, "-m", "shelflife.cli", "backtest", str(folder / f"history{suffix}"),
            "--json", f"--target={job.target}", f"--html={folder / 'picture.html'}",
        ]  # fmt: skip
        command += [f"--time={job.time}"] if job.time else []
        command += [f"--label-delay={job.label_delay}"] if job.label_delay else []
        command += [f"--window={job.window}"] if job.window else []
        command += [f"--policy={policy}" for policy in job.policies]
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with (folder / "result.part").open("wb") as out, (folder / "log.txt").open("wb") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=said, env=env, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(OSError, AttributeError):  # a bound where the system has one
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (_CPU, _CPU))
            resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        job = msgspec.structs.replace(job, pid=process.pid)
        (folder / "job.json").write_bytes(msgspec.json.encode(job))
        threading.Thread(target=_wait, args=(process, folder), daemon=True).start()

    def listed(self) -> list[Replay]:
        """The latest, newest first; without their results."""
        if not self._folder.is_dir():
            return []
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(NotFound):
                found.append(self._read(path, whole=False))
        return sorted(found, key=lambda replay: replay.job.started, reverse=True)[:_LISTED]

    def get(self, identity: str) -> Replay:
        """One of them.

        Raises:
            NotFound: there is none of this id.
        """
        sound = len(identity) == 12 and all(c in "0123456789abcdef" for c in identity)
        if not sound:
            raise NotFound("backtest", identity)
        return self._read(self._folder / identity, whole=True)

    def _read(self, folder: Path, *, whole: bool) -> Replay:
        try:
            job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
        except (OSError, msgspec.MsgspecError):
            raise NotFound("backtest", folder.name) from None
        done = folder / "result.json"
        result: dict[str, Any] = {}
        state: State = "done" if done.is_file() else "running" if _alive(job) else "failed"
        if whole and state == "done":
            result = msgspec.json.decode(done.read_bytes(), type=dict[str, Any])
        picture = folder / "picture.html"
        return Replay(
            job=job,
            state=state,
            said=_tail(folder / "log.txt") if state == "failed" else "",
            result=result,
            picture=picture if picture.is_file() else None,
        )


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Give the result its name once it is whole."""
    if process.wait() == 0:
        (folder / "result.part").replace(folder / "result.json")


def _alive(job: Job) -> bool:
    """Whether its process still runs: a process of that number which is a backtest of ours."""
    try:
        words = Path(f"/proc/{job.pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"backtest" in words and state != "Z"


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-8:])


def columns(history: Path | bytes, name: str) -> list[str]:
    """The file's columns, without reading its rows.

    Raises:
        InputError: it is no Parquet or CSV file.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    source = io.BytesIO(history) if isinstance(history, bytes) else history
    try:
        if name.lower().endswith(".parquet"):
            return list(pq.read_schema(source).names)
        return _header(source)
    except (pa.ArrowException, OSError, UnicodeDecodeError, StopIteration):
        raise InputError("history", name, "a Parquet or CSV file with named columns") from None


def _header(source: Any) -> list[str]:
    import csv
    import io

    if isinstance(source, Path):
        with source.open(newline="", encoding="utf-8-sig") as file:
            return [name.strip() for name in next(csv.reader(file))]
    text = source.read(1 << 16).decode("utf-8-sig", errors="strict")
    return [name.strip() for name in next(csv.reader(io.StringIO(text)))]
