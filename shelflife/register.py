"""Adopt a model: an estimator, rows it is known to answer, their labels; the rest is done here.

`register` infers the model's schema, measures what performance to expect on rows the estimator has
not seen, builds the baseline, stores both with a new MLflow version, keeps the rows as history for
later retraining, and makes the first version the champion.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pandas as pd

from core.errors import InputError
from core.frames import to_frame
from core.spec import Feature, Metric, ModelSpec, Scalar, Task, infer_spec, valid_name
from core.times import from_micros, micros, utc
from monitor.log.records import Label, Prediction

if TYPE_CHECKING:
    from registry.versions import Version
    from shelflife.service import Service

_FOLDS = 5
_HISTORY_ROWS = 200_000  # newest reference rows kept for retraining
_BATCH = 5_000
Progress = Callable[[str], None]


class Reference(msgspec.Struct, kw_only=True):
    """A reference frame taken apart: inputs, labels, event times, ids, in order of time."""

    inputs: pd.DataFrame
    labels: list[Scalar]
    times: list[datetime]
    label_times: list[datetime]
    ids: list[str]
    timed: bool  # the times are real, not made up from the row order


def register(
    name: str,
    model: object,
    *,
    reference: pd.DataFrame,
    target: str,
    time: str | None = None,
    label_time: str | None = None,
    id: str | None = None,
    held_out: bool = False,
    metric: Metric | None = None,
    service: Service | None = None,
    settings: str | Path | None = None,
    promote: bool | None = None,
    trust_pickle: bool | None = None,
    by: str = "",
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Version:
    """Register a fitted model with its baseline and start watching it.

    Args:
        name: the model's name in MLflow and everywhere else.
        model: a fitted scikit-learn estimator, a path to one (`.skops`, `.joblib`, `.pkl`), or an
            MLflow URI (`models:/name/3`, `runs:/…`).
        reference: rows of inputs with their labels, one column per input; other columns than the
            estimator's inputs, `target`, `time`, `label_time` and `id` are left out.
        target: the label's column.
        time: event time of each row; without it the rows are taken to be in order of time.
        label_time: when each label became known; the event time if not given.
        id: unique id of each row; a hash of its values if not given.
        held_out: the model was not trained on these rows. Otherwise the expected performance is
            measured by refitting clones on parts of them and scoring the rest.
        metric: the loss to watch; Brier, log loss or MAE by task if not given.
        service: an open service; `settings` names its file otherwise.
        promote: make it the champion. By default only a model's first version is.
        trust_pickle: allow a model file or artifact that can only be unpickled (which runs any
            code in it); the model's own setting if not given.
        by: who registers it.
        now: the moment of registration; the real time if not given.
        progress: called with a line about each step.

    Returns:
        The new MLflow version.

    Raises:
        InputError: a column is missing or cannot be served, labels are missing or of one class,
            the estimator cannot answer the rows.
        UntrustedArtifact: the model contains types that loading would have to trust.
    """
    from shelflife.service import Service as Opened
    from shelflife.service import wall_clock

    service = service or Opened.open(settings)
    tell = progress or (lambda line: None)
    now = now or wall_clock()
    trusted = service.model(name).trust_pickle if trust_pickle is None else trust_pickle
    tell("reading the model and its reference rows")
    estimator, uri = _open(service, model, trusted)
    spec, rows = prepare(
        valid_name(name), estimator, reference, target, time, label_time, id, metric, now
    )
    tell(f"measuring what to expect: {len(rows.inputs):,} rows, {len(spec.features)} inputs")
    outputs, how = expected_outputs(spec, estimator, rows, held_out=held_out)
    files = baseline_files(spec, rows, outputs, how=how, now=now, held_out=held_out)
    tell("registering it in MLflow")
    tags = {"shelflife.trigger": "register", "shelflife.promoted_by": by or "register"}
    if uri:
        version = service.registry.adopt(
            name, uri, spec, files=files, tags=tags, metrics={}, now=now, trust_pickle=trusted
        )
    else:
        version = service.registry.add(
            name, estimator, spec, files=files, tags=tags, metrics={}, now=now,
            trust_pickle=trusted,
        )  # fmt: skip
    tell("keeping the rows as history for retraining")
    keep_history(service, spec, rows, outputs, version.version, now)
    _promote(service, version, promote, by, now)
    return service.registry.get(name, version.version)


def _open(service: Service, model: object, trusted: bool) -> tuple[Any, str]:
    """The estimator, and its MLflow URI where it came from there."""
    from registry.loading import load_estimator

    if isinstance(model, str) and model.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        with tempfile.TemporaryDirectory(prefix="shelflife-model-") as scratch:
            folder = service.registry.download(model, Path(scratch) / "model")
            return load_estimator(folder, trust_pickle=trusted), model
    if isinstance(model, str | Path):
        path = Path(model)
        if not path.exists():
            hint = "a path to a .skops, .joblib or .pkl file, or an MLflow URI such as models:/x/1"
            raise InputError("model", str(model), hint)
        return load_estimator(path, trust_pickle=trusted), ""
    if not hasattr(model, "predict"):
        raise InputError("model", type(model).__name__, "a fitted estimator with `predict`")
    return model, ""


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
        hashed = pd.util.hash_pandas_object(frame, index=False)
        ids = [f"h{value:016x}" for value in hashed]
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
    if held_out or not _clonable(estimator) or len(inputs) < 2 * _FOLDS:
        return direct, "reference"
    labels = np.array(rows.labels, dtype=object if spec.task != "regression" else np.float64)
    outputs = pd.DataFrame(np.nan, index=inputs.index, columns=spec.outputs)
    for train, test in _folds(spec, inputs, labels, rows.timed):
        fitted = _refit(estimator, inputs.iloc[train], labels[train])
        if fitted is not None:
            outputs.iloc[test] = predict(fitted, spec, inputs.iloc[test]).to_numpy()
    if outputs.isna().all(axis=None):
        return direct, "reference"
    return outputs, "out-of-fold"


def _clonable(estimator: Any) -> bool:
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


def _refit(estimator: Any, inputs: pd.DataFrame, labels: np.ndarray) -> Any:
    from sklearn.base import clone

    if labels.dtype == object:
        labels = np.array(labels.tolist())
        if len(np.unique(labels)) < len(getattr(estimator, "classes_", ())):
            return None  # a fold without one of the classes cannot answer for it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence and the like: the clone is thrown away
        return clone(estimator).fit(inputs, labels)


def baseline_files(
    spec: ModelSpec,
    rows: Reference,
    outputs: pd.DataFrame,
    *,
    how: str,
    now: datetime,
    held_out: bool,
) -> dict[str, bytes]:
    """`spec.json`, `baseline.json` and `reference.parquet` of a version."""
    from monitor import baseline as baselines
    from monitor.measure.performance import encode_labels

    y, _bad = encode_labels(spec, rows.labels)
    times = rows.times if rows.timed else None
    until = None if held_out or not rows.timed else rows.times[-1]
    built = baselines.build(
        spec, rows.inputs, outputs, y, times, created=now, how=how, trained_until=until
    )
    sample = baselines.reference_sample(rows.inputs, outputs, y, times)
    buffer = io.BytesIO()
    sample.to_parquet(buffer, index=False)
    return {
        "spec.json": msgspec.json.encode(spec),
        "baseline.json": baselines.dump(built),
        "reference.parquet": buffer.getvalue(),
    }


def keep_history(
    service: Service,
    spec: ModelSpec,
    rows: Reference,
    outputs: pd.DataFrame,
    version: str,
    now: datetime,
) -> int:
    """Log the reference rows as history, with their labels; repeating it adds nothing."""
    columns = {f.name: _plain(f, rows.inputs[f.name]) for f in spec.features}
    answers = outputs.to_numpy()
    first = max(0, len(rows.ids) - _HISTORY_ROWS)
    for start in range(first, len(rows.ids), _BATCH):
        part = range(start, min(start + _BATCH, len(rows.ids)))
        service.log.append(
            [
                Prediction(
                    model=spec.name,
                    id=rows.ids[i],
                    version=version,
                    time=rows.times[i],
                    inputs={name: values[i] for name, values in columns.items()},
                    outputs=_answer(spec, answers[i]),
                    role="history",
                    source=f"history/{spec.name}",
                )
                for i in part
            ],
            received=now,
        )
        known = [
            Label(
                model=spec.name, id=rows.ids[i], value=rows.labels[i], time=rows.label_times[i],
                source="history",
            )
            for i in part
        ]  # fmt: skip
        service.log.append_labels(known, received=now)
    return service.log.seal(before=now + timedelta(microseconds=1))


def _answer(spec: ModelSpec, values: np.ndarray) -> dict[str, float]:
    if np.isnan(values).any():
        return {}
    return dict(zip(spec.outputs, values.tolist(), strict=True))


def _plain(feature: Feature, column: pd.Series) -> list[Scalar]:
    """Column values as JSON can carry them; missing ones as None."""
    values = column.astype(object).where(column.notna(), None)
    return [value.item() if hasattr(value, "item") else value for value in values]


def _promote(
    service: Service, version: Version, wanted: bool | None, by: str, now: datetime
) -> None:
    from registry.promotion import observe, promote

    champion = observe(service.registry, service.ledger, version.model, now=now)
    if wanted is False or (wanted is None and champion is not None):
        service.registry.set_alias(version.model, "challenger", version.version)
        return
    promote(
        service.registry,
        service.ledger,
        version.model,
        version.version,
        expected=champion.version if champion else None,
        kind="forced" if champion else "first",
        by=by or "register",
        reason="registered" if champion else "first version",
        now=now,
    )
