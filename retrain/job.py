"""What passes between a run and its training subprocess: files in one folder.

job.json             what to do and within which limits (`Job`)
train.parquet        columns `in:<name>`, `y` (encoded label), `time`, in order of time
holdout.parquet      the same without `y`: the trainer never sees the gate's labels
model/               the candidate, written by the trainer
predictions.parquet  both models' outputs on the holdout: `champion:<out>`, `candidate:<out>`
result.json          written last (`TrainerResult`): the training is finished if it is there
train.log            what the trainer said
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from core.files import write_atomic
from core.frames import to_frame
from core.spec import ModelSpec
from retrain.dataset import Slice

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


def write_slice(path: Path, part: Slice, *, labels: bool) -> None:
    """A slice as Parquet, there whole or not at all."""
    import pandas as pd

    frame = part.inputs.add_prefix("in:")
    frame["time"] = pd.to_datetime(list(part.times), utc=True)
    if labels:
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


def read_result(folder: Path) -> TrainerResult | None:
    """The result of a finished training; None when it is not finished."""
    path = folder / "result.json"
    return msgspec.json.decode(path.read_bytes(), type=TrainerResult) if path.is_file() else None
