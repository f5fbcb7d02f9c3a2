"""The training subprocess: `python -m retrain.training FOLDER PARENT`; `retrain.trainer` starts it.

By default the champion's own pipeline is cloned (`sklearn.base.clone`: its settings, none of what
it learned) and refitted. A user's `package.module:function(inputs, labels, estimator)` gets the
training frame, its labels as the target spells them, and that clone, and returns a fitted
estimator. Windows compete first, then hyperparameters are searched where the settings ask for it,
then the candidate is fitted, saved, loaded again, and answers the held-out rows beside the
champion. Every fit is counted.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from core.errors import BadOutput, ShelflifeError, TrainerFailed
from core.files import sha256_tree, write_atomic
from core.spec import ModelSpec
from retrain.job import (
    Job,
    Progress,
    Searched,
    TrainerResult,
    read_frame,
    read_inputs,
    read_job,
    write_frame,
)
from retrain.windows import Choice, Window, fits_ahead

if TYPE_CHECKING:
    import pandas as pd

_POLL_S = 0.5


class Reporter:
    """Counts fits, and says how far the training is: in the log and in progress.json."""

    def __init__(self, folder: Path, planned: int) -> None:
        self._path, self._planned, self.fits = folder / "progress.json", planned, 0

    def say(self, text: str) -> None:
        """A line in the log, and as what is being done."""
        percent = min(100.0, 100.0 * self.fits / max(1, self._planned))
        progress = Progress(percent=round(percent, 1), text=text, fits=self.fits)
        write_atomic(self._path, msgspec.json.encode(progress))
        _say(f"[{percent:3.0f} %] {text}")

    def fitted(self, text: str, fits: int = 1) -> None:
        """So many more fits are done."""
        self.fits += fits
        self.say(text)


class _Trainer:
    """One training: the data, the base pipeline, and what was found on the way."""

    def __init__(self, job: Job, folder: Path, champion: Any, function: Any) -> None:
        from retrain import fitting

        self.job, self.function = job, function
        self.inputs = read_inputs(folder / "train.parquet", job.spec)
        self.y: np.ndarray = read_frame(folder / "train.parquet")["y"].to_numpy(np.float64)
        self.labels = spell_labels(job.spec, self.y)
        self.base = None if champion is None else fitting.fresh(champion, function)
        self.parameters: Mapping[str, Any] = {}
        searching = bool(job.search.space) and function is None
        planned = fits_ahead(
            [window.name for window in job.windows],
            job.past,
            trials=job.search.trials if searching else 0,
            indifferent=job.indifferent,
        )
        self.report = Reporter(folder, round(planned))

    def fit(self, window: Window | None, inputs: pd.DataFrame, labels: np.ndarray) -> Any:
        from retrain import fitting

        started = time.monotonic()
        model = fitting.fit_window(
            window,
            self.base,
            inputs,
            labels,
            function=self.function,
            parameters=self.parameters,
        )
        name = "all rows" if window is None else f"window {window.name}"
        self.report.fitted(f"fitted {name} in {time.monotonic() - started:.1f} s")
        return model

    def choose(self) -> Choice | None:
        """Let the windows compete."""
        from retrain.competition import compete

        choice = compete(
            self.job.spec,
            self.job.windows,
            self.inputs,
            self.y,
            self.labels,
            self.fit,
            judged_rows=self.job.judged_rows,
            past=self.job.past,
            indifferent=self.job.indifferent,
            metric=self.job.metric,
        )
        if choice is not None:
            self.report.say(f"window {choice.window.name}: {choice.reason}")
        return choice

    def search(self, choice: Choice | None) -> Searched | None:
        """Search hyperparameters on the rows of the window that won."""
        from retrain import fitting
        from retrain.search import folds_score, search

        settings = self.job.search
        if not settings.space or self.function is not None:
            return None
        rows = len(self.inputs) if choice is None else choice.window.rows
        start = max(0, len(self.inputs) - rows)

        def fit(inputs: pd.DataFrame, labels: np.ndarray, chosen: Mapping[str, Any]) -> Any:
            return fitting.fit_window(None, self.base, inputs, labels, parameters=chosen)

        score = folds_score(
            self.job.spec,
            self.inputs.iloc[start:].reset_index(drop=True),
            self.y[start:],
            self.labels[start:],
            fit,
            folds=settings.folds,
            metric=self.job.metric,
        )
        found = search(score, settings, say=self.report.fitted)
        self.parameters = found.best
        return found

    def candidate(self, choice: Choice | None) -> Any:
        """Fit what the run is after."""
        from retrain.competition import settle

        def fit(window: Window | None) -> Any:
            return self.fit(window, self.inputs, self.labels)

        return settle(choice, self.job.windows, fit, self.job.spec)[0]


def main(folder: Path, parent: int) -> None:
    """Train in this process, as long as the process `parent` lives; the caller is `trainer.fit`."""
    job = read_job(folder)
    _confine(job)
    _end_with(parent)
    if job.user_folder:
        sys.path.append(job.user_folder)  # last: no file of theirs shadows one of ours
    function = _users_trainer(job.trainer)  # first of all: a typo is told before any work
    champion = _champion(job, function)
    trainer = _Trainer(job, folder, champion, function)
    holdout = read_inputs(folder / "holdout.parquet", job.spec)
    rows = len(trainer.inputs)
    _say(f"{rows:,} training rows, {len(holdout):,} held out, {len(holdout.columns)} inputs")
    choice = trainer.choose()
    searched = trainer.search(choice)
    started = time.monotonic()
    candidate = trainer.candidate(choice)
    seconds = time.monotonic() - started
    _say(f"fitted {type(candidate).__name__} in {seconds:.1f} s")
    result = _prove(job, folder, trainer, (champion, candidate), holdout)
    window = None if choice is None else choice.window
    write_atomic(
        folder / "result.json",
        msgspec.json.encode(
            msgspec.structs.replace(
                result,
                rows=rows if window is None else window.rows,
                available=rows,
                seconds=seconds,
                peak_mb=_peak_mb(),
                fits=trainer.report.fits,
                choice=choice,
                searched=searched,
            )
        ),
    )
    trainer.report.say("done")


def _prove(
    job: Job,
    folder: Path,
    trainer: _Trainer,
    models: tuple[Any, Any],
    holdout: pd.DataFrame,
) -> TrainerResult:
    """Save, load and compare the candidate; write both models' answers; time them side by side."""
    from registry.loading import load_estimator, predict, save_estimator
    from retrain import latency
    from retrain.gate_data import swapped_columns

    champion, candidate = models
    ours = predict(candidate, job.spec, holdout)
    theirs = _champions_answers(job, champion, holdout)
    trust = job.trust_pickle
    path = save_estimator(candidate, folder / "model" / "model.skops", trust_pickle=trust)
    loaded = load_estimator(path, trust_pickle=trust)
    again = predict(loaded, job.spec, holdout)
    difference = np.abs(again.to_numpy(np.float64) - ours.to_numpy(np.float64))
    largest = float(difference.max(initial=0.0))  # NaN where an output is NaN: not reproduced
    _say(f"saved and loaded; largest difference {largest:g}")
    write_frame(
        folder / "predictions.parquet",
        theirs.add_prefix("champion:").join(ours.add_prefix("candidate:")),
    )
    both = [loaded] if theirs.isna().to_numpy().any() else [loaded, champion]
    taken = latency.measure(both, job.spec, holdout)
    _say(f"p99 of one row: {', '.join(f'{value:.3g} ms' for value in taken)}")
    return TrainerResult(
        dataset=job.dataset,
        rows=0,
        holdout_rows=len(holdout),
        seconds=0.0,
        peak_mb=0.0,
        reproduces=largest == 0.0,
        largest_difference=largest if np.isfinite(largest) else -1.0,
        estimator=type(candidate).__name__,
        model_sha256=sha256_tree(folder / "model"),
        latency_ms=taken[0],
        champion_latency_ms=taken[1] if len(taken) > 1 else None,
        swapped=swapped_columns(job.spec, trainer.inputs, holdout),
        trivial=_trivial(job, trainer.y),
    )


def spell_labels(spec: ModelSpec, y: np.ndarray) -> np.ndarray:
    """Encoded labels as the target spells them, so that the refit knows the same classes."""
    if spec.task == "regression":
        return y
    kinds = {type(label) for label in spec.classes}
    classes = np.array(spec.classes, dtype=None if len(kinds) == 1 else object)
    spelled: np.ndarray = classes[y.astype(np.intp)]
    return spelled


def _trivial(job: Job, y: np.ndarray) -> tuple[float, ...]:
    """The best answer without inputs: each class's share, the mean, the median for MAE."""
    if job.spec.task == "multiclass":
        return tuple(float((y == index).mean()) for index in range(len(job.spec.classes)))
    metric = job.metric or job.spec.metric
    return (float(np.median(y) if metric == "mae" else np.mean(y)),)


def _users_trainer(reference: str) -> Callable[..., Any] | None:
    """What `package.module:function` names; None for an empty reference."""
    if not reference:
        return None
    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(module), name or "train", None)
    if not callable(function):
        raise TrainerFailed(f"{reference} is not callable; expected package.module:function")
    return cast("Callable[..., Any]", function)


def _champion(job: Job, function: Callable[..., Any] | None) -> Any:
    """The champion; None if it cannot be loaded and a function does without it."""
    from registry.loading import load_estimator

    try:
        return load_estimator(Path(job.champion), trust_pickle=job.trust_pickle)
    except ShelflifeError as error:
        if function is None:
            raise
        _say(f"the champion cannot be evaluated: {error}")
        return None


def _champions_answers(job: Job, champion: Any, holdout: pd.DataFrame) -> pd.DataFrame:
    """NaN where the champion cannot answer: the gate says whose fault it is."""
    import pandas as pd

    from registry.loading import predict

    blank = pd.DataFrame(np.nan, index=holdout.index, columns=job.spec.outputs)
    if champion is None:
        return blank
    try:
        return predict(champion, job.spec, holdout)
    except BadOutput as error:
        _say(f"the champion cannot be evaluated: {error}")
        return blank


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
    """The traceback from where it left our files: theirs, not ours."""
    ours, trace = str(Path(__file__).parent), error.__traceback__
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as failure:
        sys.stderr.write(_blameless(failure))
        sys.exit(1)
