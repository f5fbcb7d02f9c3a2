"""What a served model is: its inputs, its task, its target, its metric.

The spec travels with the model version (as `shelflife/spec.json` in MLflow) and is the one contract
between callers, serving, the log, the monitor and the trainer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "integer", "categorical", "boolean"]
Task = Literal["binary", "multiclass", "regression"]
Metric = Literal["brier", "log_loss", "mae", "rmse"]
Scalar = str | int | float | bool | None

#: The loss each task is watched by unless told otherwise. Proper scores: they see lost calibration.
DEFAULT_METRIC: dict[Task, Metric] = {
    "binary": "brier",
    "multiclass": "log_loss",
    "regression": "mae",
}
METRICS: dict[Task, tuple[Metric, ...]] = {
    "binary": ("brier", "log_loss"),
    "multiclass": ("log_loss", "brier"),
    "regression": ("mae", "rmse"),
}
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
_MAX_LEVELS = 200  # more distinct strings than this and the levels are not kept in the spec


def valid_name(name: str, field: str = "model") -> str:
    """The name itself, if it is safe as a file name, a URL part and an MLflow model name.

    Raises:
        InputError: it is not.
    """
    if not NAME.match(name):
        raise InputError(field, name, "1 to 128 letters, digits, '.', '_' or '-'")
    return name


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One input column."""

    name: str
    kind: Kind
    nullable: bool = False
    levels: tuple[str, ...] = ()
    """Known categories, sorted; empty when there are none or too many to list."""

    def check(self, value: Scalar) -> Scalar:
        """The value as the model takes it.

        Raises:
            InputError: wrong type, not finite, or missing where the column is not nullable.
        """
        if value is None or (isinstance(value, float) and math.isnan(value)):
            if self.nullable:
                return None
            raise InputError(self.name, value, f"a {self.kind} value (the column is never null)")
        checked: Scalar = _CHECKS[self.kind](self, value)
        return checked


def _number(feature: Feature, value: Scalar) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(feature.name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        raise InputError(feature.name, value, "a number within 64 bits") from None
    if not math.isfinite(number):
        raise InputError(feature.name, value, "a finite number")
    return number


def _integer(feature: Feature, value: Scalar) -> int:
    number = _number(feature, value)
    whole = value if isinstance(value, int) else int(number)  # a float holds 53 bits of an integer
    if number != int(number) or not -(2**63) <= whole < 2**63:
        raise InputError(feature.name, value, "a whole number within 64 bits")
    return whole


def _text(feature: Feature, value: Scalar) -> str:
    if not isinstance(value, str):
        raise InputError(feature.name, value, "a string")
    return value


def _truth(feature: Feature, value: Scalar) -> bool:
    if not isinstance(value, bool):
        raise InputError(feature.name, value, "true or false")
    return value


_CHECKS: Mapping[Kind, Any] = {
    "numeric": _number,
    "integer": _integer,
    "categorical": _text,
    "boolean": _truth,
}


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model's contract with its callers and its monitor."""

    name: str
    task: Task
    target: str
    features: tuple[Feature, ...]
    metric: Metric
    classes: tuple[Scalar, ...] = ()
    """Class labels in the estimator's own order; empty for regression. For binary the second is
    the positive class, whose probability is the output."""

    @property
    def columns(self) -> list[str]:
        """Input column names, in the order the model was fitted with."""
        return [feature.name for feature in self.features]

    @property
    def outputs(self) -> list[str]:
        """Names of the float64 outputs a prediction has, and the log keeps."""
        if self.task == "regression":
            return ["prediction"]
        if self.task == "binary":
            return ["probability"]
        return [f"probability:{label}" for label in self.classes]

    def encode_label(self, value: object) -> float:
        """A label as a number: the value itself, or the index of its class (0 or 1 for binary).

        Raises:
            InputError: not a number (regression), or not one of the classes.
        """
        if self.task == "regression":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(self.target, value, "a number")
            if not math.isfinite(value):
                raise InputError(self.target, value, "a finite number")
            return float(value)
        for index, label in enumerate(self.classes):
            # 1, 1.0, True and "1" are the same answer, spelled by different pipelines.
            if value == label or str(value) == str(label):
                return float(index)
        raise InputError(self.target, value, f"one of {list(self.classes)}")


def infer_feature(column: pd.Series) -> Feature:
    """The feature a reference column describes; integers with missing values become numeric.

    Raises:
        InputError: a dtype that cannot be served (datetimes, lists, mixed objects).
    """
    import pandas as pd

    name, nullable = str(column.name), bool(column.isna().any())
    if pd.api.types.is_bool_dtype(column.dtype):
        return Feature(name=name, kind="boolean", nullable=nullable)
    if pd.api.types.is_integer_dtype(column.dtype):
        return Feature(name=name, kind="integer", nullable=nullable)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return Feature(name=name, kind="numeric", nullable=nullable)
    values = column.dropna().unique()
    if len(values) and all(isinstance(value, str) for value in values):
        levels = tuple(sorted(values)) if len(values) <= _MAX_LEVELS else ()
        return Feature(name=name, kind="categorical", nullable=nullable, levels=levels)
    hint = "a numeric, boolean or string column (turn datetimes into numbers, lists into columns)"
    raise InputError(name, str(column.dtype), hint)


def infer_spec(
    name: str,
    frame: pd.DataFrame,
    *,
    target: str,
    task: Task,
    classes: tuple[Scalar, ...] = (),
    metric: Metric | None = None,
) -> ModelSpec:
    """The spec of a model from the reference frame of its inputs (target column not included).

    Raises:
        InputError: a bad name, a column that cannot be served, a metric the task does not have.
    """
    chosen = metric or DEFAULT_METRIC[task]
    if chosen not in METRICS[task]:
        raise InputError("metric", chosen, f"one of {list(METRICS[task])} for a {task} model")
    features = tuple(infer_feature(frame[column]) for column in frame.columns)
    return ModelSpec(
        name=valid_name(name),
        task=task,
        target=target,
        features=features,
        metric=chosen,
        classes=classes,
    )
