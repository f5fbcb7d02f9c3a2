"""Real streams for benchmarks: `meta.json` and one Parquet file each (columns `f_*` and `y`).

What the other scripts share: reading a folder of streams, the estimator they are scored with, and
its cached fits. A stream's `meta.json` entry names its task (clf or reg), the rows of the first
model (`init`), the rows of a batch and the rows its champion learns from (`window`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from msgspec import Struct
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from core.spec import Feature, ModelSpec

BINARY = {"clf": True, "reg": False}
_LIKE = {
    "max_iter": 60,
    "learning_rate": 0.15,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "early_stopping": False,
    "random_state": 0,
}


class Stream(Struct, kw_only=True):
    """A stream in order of time."""

    name: str
    inputs: np.ndarray  # (rows, features), float32
    y: np.ndarray
    spec: ModelSpec
    init: int
    batch: int
    window: int

    @property
    def batches(self) -> int:
        """Whole batches after the first model's rows."""
        return (len(self.y) - self.init) // self.batch

    def rows(self, batch: int) -> slice:
        """Where a batch lies."""
        return slice(self.init + batch * self.batch, self.init + (batch + 1) * self.batch)

    def frame(self, where: slice | np.ndarray) -> pd.DataFrame:
        """Inputs as the product's frames."""
        return pd.DataFrame(self.inputs[where].astype(np.float64), columns=self.spec.columns)

    def outputs(self, values: np.ndarray) -> pd.DataFrame:
        """A model's answers as the product's frames."""
        return pd.DataFrame({self.spec.outputs[0]: values.astype(np.float64)})


def names(folder: Path) -> list[str]:
    """The streams of a folder."""
    return list(json.loads((folder / "meta.json").read_text()))


def read(folder: Path, name: str) -> Stream:
    """One stream."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())[name]
    data = pd.read_parquet(folder / f"{name}.parquet")
    columns = [column for column in data.columns if column.startswith("f_")]
    binary = BINARY[meta["task"]]
    spec = ModelSpec(
        name=name,
        task="binary" if binary else "regression",
        target="y",
        features=tuple(Feature(name=c, kind="numeric", nullable=True) for c in columns),
        metric="brier" if binary else "mae",
        classes=(0.0, 1.0) if binary else (),
    )
    return Stream(
        name=name,
        inputs=data[columns].to_numpy("float32"),
        y=data["y"].to_numpy("float64"),
        spec=spec,
        init=meta["init"],
        batch=meta["batch"],
        window=meta["window"],
    )


def learn(
    spec: ModelSpec, inputs: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> Any:
    """The estimator all streams are scored with, fitted; answers by `answer`."""
    kind = (
        HistGradientBoostingClassifier if spec.task == "binary" else HistGradientBoostingRegressor
    )
    with threadpool_limits(1):
        return kind(**_LIKE).fit(inputs, y, sample_weight=weights)


def answer(model: Any, inputs: np.ndarray) -> np.ndarray:
    """Probabilities of class 1, or predictions."""
    found: np.ndarray
    if not hasattr(model, "predict_proba"):
        found = model.predict(inputs)
        return found
    known = list(model.classes_)
    found = (
        model.predict_proba(inputs)[:, known.index(1.0)] if 1.0 in known else np.zeros(len(inputs))
    )
    return found
