"""Fitting a candidate, in a subprocess with limits: `python -m retrain.trainer FOLDER`.

By default the champion's own pipeline is cloned (`sklearn.base.clone`: its settings, none of what
it learned) and refitted. A user's `package.module:function(inputs, labels, estimator)` gets the
training frame, its labels as the target spells them, and that clone, and returns a fitted
estimator. `retrain.job` says which files go in and come out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from core.errors import TrainerFailed
from core.files import sha256_tree, write_atomic
from core.settings import Duration, span
from core.spec import ModelSpec
from retrain.job import Job, TrainerResult, read_frame, read_inputs, read_result, write_frame

if TYPE_CHECKING:
    import pandas as pd

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
_POLL_S = 0.5
_TAIL_LINES, _TAIL_CHARACTERS = 12, 1500  # of the log, in the error


def fit(
    folder: Path, *, time_limit: Duration, beat: Callable[[], None] = lambda: None
) -> TrainerResult:
    """Train as `folder/job.json` says and wait for it; a finished training is not repeated.

    Args:
        time_limit: wall time after which the subprocess and its children are killed.
        beat: called about twice a second while waiting, to renew a lease; what it raises ends
            the training.

    Raises:
        TrainerFailed: it raised, ran over its time or memory, or left no result; with the last
            lines of its log.
    """
    done, job = read_result(folder), _read_job(folder)
    if done is not None and done.dataset == job.dataset:
        return done
    with (folder / "train.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "retrain.trainer", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(job.threads),
            start_new_session=True,
        )
        try:
            timed_out = not _wait(process, span(time_limit).total_seconds(), beat)
        finally:
            _kill(process)
    result = read_result(folder)
    if process.returncode != 0 or result is None:
        raise TrainerFailed(_blame(folder, process.returncode, job, timed_out, time_limit))
    return result


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


def _environment(threads: int) -> dict[str, str]:
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
    elif "MemoryError" in tail:
        why = f"ran out of its memory limit of {job.memory_bytes / 1e9:.3g} GB"
    elif status < 0:
        why = f"was ended by {signal.Signals(-status).name}"
    else:
        why = f"ended with status {status}" + ("" if status else " and left no result")
    return f"the trainer {why}; last lines of its log:\n{tail or '(it said nothing)'}"


def _read_job(folder: Path) -> Job:
    return msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)


# --- the subprocess ------------------------------------------------------------------------------


def main(folder: Path, parent: int) -> None:
    """Train in this process, as long as the process `parent` lives; the caller is `fit`."""
    job = _read_job(folder)
    _confine(job)
    _end_with(parent)
    if job.user_folder:
        sys.path.append(job.user_folder)  # last: no file of theirs shadows one of ours
    function = _users_trainer(job.trainer)  # first of all: a typo is told before any work
    from registry.loading import load_estimator, predict, save_estimator

    inputs, y = read_inputs(folder / "train.parquet", job.spec), _labels(folder)
    holdout = read_inputs(folder / "holdout.parquet", job.spec)
    _say(f"{len(inputs):,} training rows, {len(holdout):,} held out, {inputs.shape[1]} inputs")
    champion = load_estimator(Path(job.champion), trust_pickle=job.trust_pickle)
    started = time.monotonic()
    candidate = _train(function, inputs, spell_labels(job.spec, y), champion)
    seconds = time.monotonic() - started
    _say(f"fitted {type(candidate).__name__} in {seconds:.1f} s")
    ours = predict(candidate, job.spec, holdout)
    theirs = _champions_answers(job, champion, holdout)
    path = save_estimator(
        candidate, folder / "model" / "model.skops", trust_pickle=job.trust_pickle
    )
    again = predict(load_estimator(path, trust_pickle=job.trust_pickle), job.spec, holdout)
    difference = np.abs(again.to_numpy(np.float64) - ours.to_numpy(np.float64))
    largest = float(difference.max(initial=0.0))  # NaN where an output is NaN: not reproduced
    _say(f"saved and loaded; largest difference {largest:g}")
    write_frame(
        folder / "predictions.parquet",
        theirs.add_prefix("champion:").join(ours.add_prefix("candidate:")),
    )
    result = TrainerResult(
        dataset=job.dataset,
        rows=len(inputs),
        holdout_rows=len(holdout),
        seconds=seconds,
        peak_mb=_peak_mb(),
        reproduces=largest == 0.0,
        largest_difference=largest if np.isfinite(largest) else -1.0,
        estimator=type(candidate).__name__,
        model_sha256=sha256_tree(folder / "model"),
    )
    write_atomic(folder / "result.json", msgspec.json.encode(result))


def spell_labels(spec: ModelSpec, y: np.ndarray) -> np.ndarray:
    """Encoded labels as the target spells them, so that the refit knows the same classes."""
    if spec.task == "regression":
        return y
    kinds = {type(label) for label in spec.classes}
    classes = np.array(spec.classes, dtype=None if len(kinds) == 1 else object)
    spelled: np.ndarray = classes[y.astype(np.intp)]
    return spelled


def _labels(folder: Path) -> np.ndarray:
    y: np.ndarray = read_frame(folder / "train.parquet")["y"].to_numpy(np.float64)
    return y


def _users_trainer(reference: str) -> Callable[..., Any] | None:
    """What `package.module:function` names; None for an empty reference."""
    if not reference:
        return None
    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(module), name or "train", None)
    if not callable(function):
        raise TrainerFailed(f"{reference} is not callable; expected package.module:function")
    return cast("Callable[..., Any]", function)


def _train(
    function: Callable[..., Any] | None, inputs: pd.DataFrame, labels: np.ndarray, champion: Any
) -> Any:
    from sklearn.base import clone

    try:
        fresh = clone(champion)
    except TypeError:  # no get_params: a model of another MLflow flavour
        if function is None:
            raise TrainerFailed(
                f"a {type(champion).__name__} cannot be cloned and refitted; set retrain.trainer "
                "to package.module:function"
            ) from None
        fresh = champion
    if function is None:
        return fresh.fit(inputs, labels)
    fitted = function(inputs, labels, fresh)
    if not hasattr(fitted, "predict"):
        raise TrainerFailed(
            f"{function.__module__}:{function.__qualname__} returned {type(fitted).__name__}; "
            "expected a fitted estimator"
        )
    return fitted


def _champions_answers(job: Job, champion: Any, holdout: pd.DataFrame) -> pd.DataFrame:
    """NaN where the champion cannot answer: the gate refuses then, and says whose fault it is."""
    import pandas as pd

    from core.errors import BadOutput
    from registry.loading import predict

    try:
        return predict(champion, job.spec, holdout)
    except BadOutput as error:
        _say(f"the champion cannot be evaluated: {error}")
        return pd.DataFrame(np.nan, index=holdout.index, columns=job.spec.outputs)


def _confine(job: Job) -> None:
    """Limits the kernel keeps: address space, processor time, and a low priority."""
    os.nice(10)  # serving answers on the same machine
    seconds = int(job.time_limit_s * job.threads) + 1
    for kind, amount in ((resource.RLIMIT_AS, job.memory_bytes), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(kind)
        soft = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (soft, hard))


def _end_with(parent: int) -> None:
    """Leave when whoever started us is gone: a resumed run trains anew in the same folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _blameless(error: Exception) -> str:
    """The traceback from where it left this file: theirs, not ours."""
    trace = error.__traceback__
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as failure:
        sys.stderr.write(_blameless(failure))
        sys.exit(1)
