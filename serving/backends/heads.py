"""From what an interpreter computes to a spec's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import UntrustedArtifact
from core.files import write_atomic
from core.spec import ModelSpec
from serving.backend import INTERPRETER, Interpreter, ModelFailed, NotApplicable, Outputs

#: Where each class of the spec stands among the interpreter's probabilities; None: nowhere.
Order = list[int | None]


def order_of(estimator: Any, spec: ModelSpec) -> Order:
    """Where each class of the spec stands among the estimator's; empty for a regression.

    Raises:
        NotApplicable: the estimator gives no probabilities.
    """
    from registry.loading import class_order

    if spec.task == "regression":
        return []
    if not hasattr(estimator, "predict_proba"):
        raise NotApplicable(f"{type(estimator).__name__} gives no probabilities")
    return list(class_order(estimator, spec))


def outputs_of(spec: ModelSpec, raw: np.ndarray, order: Order) -> Outputs:
    """The spec's outputs from probabilities (rows, classes) or predictions (rows,) or (rows, 1).

    One probability per row is that of the second class.
    """
    raw = np.asarray(raw, dtype=np.float64)
    if spec.task == "regression":
        if raw.ndim == 2 and raw.shape[1] != 1:
            raise ModelFailed(f"the interpreter answered the shape {raw.shape}; expected (rows, 1)")
        return {spec.outputs[0]: raw.reshape(len(raw))}
    if raw.ndim == 1 or raw.shape[1] == 1:
        second = raw.reshape(len(raw))
        raw = np.stack([1.0 - second, second], axis=1)
    wanted = order[1:] if spec.task == "binary" else order
    return {
        name: np.zeros(len(raw)) if index is None else raw[:, index]
        for name, index in zip(spec.outputs, wanted, strict=True)
    }


def write_interpreter(folder: Path, interpreter: Interpreter) -> None:
    """Say beside the files what they are for."""
    data = msgspec.json.encode(interpreter, order="deterministic")
    write_atomic(folder / INTERPRETER, data)


def read_interpreter(folder: Path) -> Interpreter:
    """What the files of a prepared interpreter are for.

    Raises:
        UntrustedArtifact: nothing that `write_interpreter` wrote.
    """
    try:
        return msgspec.json.decode((folder / INTERPRETER).read_bytes(), type=Interpreter)
    except (OSError, msgspec.DecodeError) as error:
        raise UntrustedArtifact(f"{folder / INTERPRETER}: {error}; prepare it anew") from None
