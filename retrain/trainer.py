"""Fitting a candidate in a subprocess with limits on time and memory: the side that waits.

The subprocess is `python -m retrain.training FOLDER`; `retrain.job` says which files go in and come
out. It gets no secrets: of our environment only what Python needs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from core.errors import TrainerFailed
from core.settings import Duration, span
from retrain.job import Job, Progress, TrainerResult, read_job, read_progress, read_result

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
_POLL_S = 0.5
# How Python, NumPy, C++ (XGBoost, LightGBM, CatBoost) and glibc say that there is no more.
_NO_MEMORY = ("MemoryError", "bad_alloc", "Unable to allocate", "Cannot allocate memory")
_TAIL_LINES, _TAIL_CHARACTERS = 12, 1500  # of the log, in the error


def fit(
    folder: Path,
    *,
    time_limit: Duration,
    beat: Callable[[], None] = lambda: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainerResult:
    """Train as `folder/job.json` says and wait for it; a finished training is not repeated.

    Args:
        time_limit: wall time after which the subprocess and its children are killed.
        beat: called about twice a second while waiting, to renew a lease; what it raises ends
            the training.
        progress: hears how far the training is, whenever that changes.

    Raises:
        TrainerFailed: it raised, ran over its time or memory, or left no result; with the last
            lines of its log.
    """
    done, job = read_result(folder), read_job(folder)
    if done is not None and done.dataset == job.dataset:
        return done
    (folder / "progress.json").unlink(missing_ok=True)
    with (folder / "train.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "retrain.training", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment(job.threads),
            start_new_session=True,
        )
        try:
            watch = _Watch(folder, beat, progress)
            timed_out = not _wait(process, span(time_limit).total_seconds(), watch.look)
            watch.look()
        finally:
            _kill(process)
    result = read_result(folder)
    if process.returncode != 0 or result is None:
        raise TrainerFailed(_blame(folder, process.returncode, job, timed_out, time_limit))
    return result


class _Watch:
    """Beats, and passes progress on when it changed."""

    def __init__(
        self, folder: Path, beat: Callable[[], None], progress: Callable[[Progress], None]
    ) -> None:
        self._folder, self._beat, self._progress = folder, beat, progress
        self._seen: Progress | None = None

    def look(self) -> None:
        self._beat()
        found = read_progress(self._folder)
        if found is not None and found != self._seen:
            self._seen = found
            self._progress(found)


def _wait(process: subprocess.Popen[bytes], seconds: float, beat: Callable[[], None]) -> bool:
    """Whether the process ended by itself within so many seconds."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            process.wait(timeout=min(_POLL_S, left))
            return True
        except subprocess.TimeoutExpired:
            beat()
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started: they are a session of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM when dead
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(threads: int) -> dict[str, str]:
    """What the trainer may know of our environment: no secrets, and a cap on threads."""
    root = str(Path(__file__).resolve().parents[1])
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    capped = {name: str(threads) for name in _THREADS}
    return passed | capped | {"PYTHONPATH": root, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}


def _blame(folder: Path, status: int, job: Job, timed_out: bool, time_limit: Duration) -> str:
    lines = (folder / "train.log").read_text(errors="replace").strip().splitlines()
    tail = "\n".join(lines[-_TAIL_LINES:])[-_TAIL_CHARACTERS:]
    if timed_out:
        why = f"ran over its time limit of {time_limit}"
    elif status == -signal.SIGXCPU:
        why = f"used more processor time than {time_limit} on {job.threads} threads allows"
    elif any(sign in tail for sign in _NO_MEMORY):
        why = f"ran out of its memory limit of {job.memory_bytes / 1e9:.3g} GB"
    elif status < 0:
        why = f"was ended by {signal.Signals(-status).name}"
    else:
        why = f"ended with status {status}" + ("" if status else " and left no result")
    return f"the trainer {why}; last lines of its log:\n{tail or '(it said nothing)'}"
