"""Reference rows: what a model is known to answer, and what to expect of it on such rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd

from core.errors import InputError
from core.frames import to_frame
from core.spec import Feature, Metric, ModelSpec, Scalar, Task, infer_spec
from core.times import from_micros, micros, utc

_FOLDS = 5


class Reference(msgspec.Struct, kw_only=True):
    """A reference frame taken apart: inputs, labels, event times, ids, in order of time."""

    inputs: pd.DataFrame
    labels: list[Scalar]
    times: list[datetime]
    label_times: list[datetime]
    ids: list[str]
    timed: bool  # the times are real, not made up from the row order


def prepare(
    name: str,
    estimator: Any,
    frame: pd.DataFrame,
    target: str,
    time: str | None,
    label_time: str | None,
    id: str | None,
    metric: Metric | None,
    now: datetime,
) -> tuple[ModelSpec, Reference]:
    """The model's spec and its reference rows, checked.

    Raises:
        InputError: see `register`.
    """
    for role, column in (
        ("target", target),
        ("time", time),
        ("label_time", label_time),
        ("id", id),
    ):
        if column is not None and column not in frame.columns:
            raise InputError(role, column, f"one of the columns {list(frame.columns)}")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].tolist()
        raise InputError("reference", twice, "column names that occur once")
    if len(frame) == 0:
        raise InputError("reference", "0 rows", "rows the model can answer, with their labels")
    if frame[target].isna().any():
        count = int(frame[target].isna().sum())
        raise InputError(target, f"{count} missing labels", "a label in every reference row")
    if time is not None:
        frame = frame.sort_values(time, kind="stable")
    task, classes = _task(estimator, frame[target])
    aside = {target, time, label_time, id}
    wanted = [str(c) for c in getattr(estimator, "feature_names_in_", [])]
    absent = [column for column in wanted if column not in frame.columns]
    if absent:
        raise InputError("reference", absent, "every column the estimator was fitted with")
    columns = wanted or [c for c in frame.columns if c not in aside]
    spec = infer_spec(
        name, frame[columns], target=target, task=task, classes=classes, metric=metric
    )
    return spec, _reference(frame, columns, target, time, label_time, id, now)


def _task(estimator: Any, labels: pd.Series) -> tuple[Task, tuple[Scalar, ...]]:
    from registry.loading import describe

    task, classes = describe(estimator)
    if task == "regression" and not pd.api.types.is_numeric_dtype(labels.dtype):
        raise InputError(str(labels.name), str(labels.dtype), "numbers (the model is a regressor)")
    if task != "regression" and labels.nunique() < 2:
        only = labels.iloc[0]
        raise InputError(str(labels.name), f"only {only!r}", "labels of at least two classes")
    return task, tuple(classes)


def _reference(
    frame: pd.DataFrame,
    columns: Sequence[str],
    target: str,
    time: str | None,
    label_time: str | None,
    id: str | None,
    now: datetime,
) -> Reference:
    count = len(frame)
    if time is None:  # keep the order, a microsecond apart, ending now
        end = micros(now)
        times = [from_micros(end - count + i) for i in range(count)]
    else:
        times = _moments(frame[time])
    known = times if label_time is None else _moments(frame[label_time])
    inputs = frame[list(columns)].reset_index(drop=True)
    if id is None:
        # Equal rows are rows of their own: numbered, so that none is lost and a repeat adds none.
        hashed = pd.util.hash_pandas_object(frame, index=False)
        again = hashed.groupby(hashed).cumcount()
        ids = [f"h{value:016x}-{n}" for value, n in zip(hashed, again, strict=True)]
    else:
        ids = [str(value) for value in frame[id]]
    if len(set(ids)) < count and id is not None:
        twice = frame[id][frame[id].duplicated()].iloc[0]
        raise InputError(id, twice, "ids that occur once")
    return Reference(
        inputs=inputs,
        labels=[value.item() if hasattr(value, "item") else value for value in frame[target]],
        times=times,
        label_times=known,
        ids=ids,
        timed=time is not None,
    )


def _moments(column: pd.Series) -> list[datetime]:
    try:
        moments = pd.to_datetime(column, utc=True)
    except (ValueError, TypeError):
        example = column.iloc[0]
        raise InputError(str(column.name), example, "dates or ISO 8601 times") from None
    if moments.isna().any():
        raise InputError(str(column.name), "missing times", "a time in every row")
    return [utc(moment) for moment in moments.dt.to_pydatetime()]


def expected_outputs(
    spec: ModelSpec, estimator: Any, rows: Reference, *, held_out: bool
) -> tuple[pd.DataFrame, Literal["out-of-fold", "reference"]]:
    """What the model answers on reference rows it has not seen; NaN rows where that is unknown.

    A model answers its own training rows too well. Unless the rows were held out, clones of it are
    fitted on earlier rows and answer the later ones (`TimeSeriesSplit`; shuffled folds where rows
    have no time), as scikit-learn's `cross_val_predict` would. A model that cannot be cloned
    answers itself, and the baseline says so.
    """
    from registry.loading import predict

    inputs = to_frame(spec, {column: rows.inputs[column].to_numpy() for column in spec.columns})
    try:
        direct = predict(estimator, spec, inputs)
    except InputError:
        raise
    except Exception as error:
        hint = "rows the estimator can answer; it was fitted on other columns or types"
        raise InputError("reference", f"{type(error).__name__}: {error}", hint) from error
    if held_out or not clonable(estimator) or len(inputs) < 2 * _FOLDS:
        return direct, "reference"
    labels = np.array(rows.labels, dtype=object if spec.task != "regression" else np.float64)
    outputs = pd.DataFrame(np.nan, index=inputs.index, columns=spec.outputs)
    for train, test in _folds(spec, inputs, labels, rows.timed):
        fitted = refit(estimator, inputs.iloc[train], labels[train])
        if fitted is not None:
            outputs.iloc[test] = predict(fitted, spec, inputs.iloc[test]).to_numpy()
    if outputs.isna().all(axis=None):
        return direct, "reference"
    return outputs, "out-of-fold"


def clonable(estimator: Any) -> bool:
    """Whether an unfitted copy of it can be made and fitted."""
    return hasattr(estimator, "get_params") and hasattr(estimator, "fit")


def _folds(spec: ModelSpec, inputs: pd.DataFrame, labels: np.ndarray, timed: bool) -> Any:
    from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit

    if timed:
        # Only the newer half is tested: with much less to learn from than the model itself had, a
        # clone would promise too little.
        return TimeSeriesSplit(_FOLDS, test_size=len(inputs) // (2 * _FOLDS)).split(inputs)
    if spec.task == "regression":
        return KFold(_FOLDS, shuffle=True, random_state=0).split(inputs)
    smallest = int(pd.Series(labels).value_counts().min())
    if smallest < _FOLDS:
        return KFold(_FOLDS, shuffle=True, random_state=0).split(inputs)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    return folds.split(inputs, labels.astype(str))


def refit(estimator: Any, inputs: pd.DataFrame, labels: np.ndarray) -> Any:
    """A clone fitted on rows; None where they lack a class that the estimator knows."""
    from sklearn.base import clone

    if labels.dtype == object:
        labels = np.array(labels.tolist())
        if len(np.unique(labels)) < len(getattr(estimator, "classes_", ())):
            return None  # a fold without one of the classes cannot answer for it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence and the like: the clone is thrown away
        return clone(estimator).fit(inputs, labels)


def plain(feature: Feature, column: pd.Series) -> list[Scalar]:
    """Column values as JSON can carry them; missing ones as None."""
    values = column.astype(object).where(column.notna(), None)
    return [value.item() if hasattr(value, "item") else value for value in values]
