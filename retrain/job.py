"""What passes between a run and its training subprocess: files in one folder.

job.json             what to do and within which limits (`Job`)
train.parquet        columns `in:<name>`, `y` (encoded label), `time`, `id`, in order of time
holdout.parquet      the same without `y` and `id`: the trainer never sees the gate's labels
model/               the candidate, written by the trainer
predictions.parquet  both models' outputs on the holdout: `champion:<out>`, `candidate:<out>`
result.json          written last (`TrainerResult`): the training is finished if it is there
progress.json        how far it is (`Progress`), rewritten as it goes
train.log            what the trainer said
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from core.files import write_atomic
from core.frames import to_frame
from core.settings import SearchSettings
from core.spec import Metric, ModelSpec
from retrain.dataset import Slice
from retrain.windows import Choice, Window

if TYPE_CHECKING:
    import pandas as pd


class Job(Struct, frozen=True, kw_only=True):
    """What the subprocess is asked to do."""

    spec: ModelSpec
    champion: str  # folder of the champion's model files
    trust_pickle: bool
    trainer: str  # `package.module:function`; empty: refit the champion's own pipeline
    user_folder: str  # last on the trainer's import path; empty: none
    dataset: str  # identity of the data it learns from
    threads: int
    memory_bytes: int
    time_limit_s: float
    metric: Metric | None = None  # the loss that windows and search compete by; the spec's if None
    windows: tuple[Window, ...] = ()  # what may be learned from; several compete
    past: tuple[dict[str, float], ...] = ()  # `Score.relative` by window of earlier runs
    indifferent: float | None = 0.0  # share of the loss that is not worth a competition
    judged_rows: int = 0  # newest training rows on which they compete
    search: SearchSettings = SearchSettings()


class Progress(Struct, frozen=True, kw_only=True):
    """How far a training is; shown while it runs."""

    percent: float  # of the fits that are planned
    text: str
    fits: int  # done so far


class Searched(Struct, frozen=True, kw_only=True):
    """What a hyperparameter search did."""

    engine: str
    trials: int
    best: dict[str, Any]  # parameters set on the pipeline; empty: its own were not beaten
    loss: float | None  # of the best trial, mean over the folds
    before: float | None  # of the pipeline's own parameters
    stopped: str = ""  # why it ended early


class TrainerResult(Struct, frozen=True, kw_only=True):
    """What the subprocess did."""

    dataset: str
    rows: int
    holdout_rows: int
    seconds: float  # of the fit alone, wall time
    peak_mb: float  # largest resident memory of the subprocess, MiB
    reproduces: bool  # saved and loaded, it gives the very same outputs on the holdout
    largest_difference: float  # between the outputs before saving and after loading
    estimator: str  # its class
    model_sha256: str  # of the model folder (`core.files.sha256_tree`)
    fits: int = 1  # every fit: the windows', the search's trials, the candidate's
    choice: Choice | None = None  # which window won, and why
    searched: Searched | None = None
    latency_ms: float | None = None  # p99 of a one-row prediction
    champion_latency_ms: float | None = None  # the champion's, measured in turn
    swapped: tuple[tuple[str, str], ...] = ()  # columns that look mixed up in the training rows
    trivial: tuple[float, ...] = ()  # what answering without inputs would be, one per output
    available: int = 0  # training rows the windows could choose from


def write_slice(path: Path, part: Slice, *, labels: bool) -> None:
    """A slice as Parquet, there whole or not at all."""
    import pandas as pd

    frame = part.inputs.add_prefix("in:")
    frame["time"] = pd.to_datetime(list(part.times), utc=True)
    if labels:
        if part.ids:
            frame["id"] = list(part.ids)
        frame["y"] = part.y
    write_frame(path, frame)


def read_inputs(path: Path, spec: ModelSpec) -> pd.DataFrame:
    """The input frame of a written slice, with the dtypes the model takes."""
    frame = read_frame(path)
    return to_frame(spec, {name: frame[f"in:{name}"].tolist() for name in spec.columns})


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """A frame as Parquet, there whole or not at all."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomic(path, buffer.getvalue())


def read_frame(path: Path) -> pd.DataFrame:
    """A Parquet file as a frame."""
    import pandas as pd

    return pd.read_parquet(path)


def read_job(folder: Path) -> Job:
    """What a folder's training is asked to do."""
    return msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)


def read_progress(folder: Path) -> Progress | None:
    """How far the training in a folder is; None before it says so."""
    path = folder / "progress.json"
    return msgspec.json.decode(path.read_bytes(), type=Progress) if path.is_file() else None


def read_result(folder: Path) -> TrainerResult | None:
    """The result of a finished training; None when it is not finished."""
    path = folder / "result.json"
    return msgspec.json.decode(path.read_bytes(), type=TrainerResult) if path.is_file() else None
