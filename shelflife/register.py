"""Adopt a model: an estimator, rows it is known to answer, their labels; the rest is done here.

`register` infers the model's schema, measures what performance to expect on rows the estimator has
not seen, builds the baseline, stores both with a new MLflow version, keeps the rows as history for
later retraining, and makes the first version the champion.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from core.errors import InputError
from core.settings import ModelSettings, span
from core.spec import Metric, ModelSpec, valid_name
from monitor.log.records import Label, Prediction
from shelflife.backtested import lives
from shelflife.reference import Reference, expected_outputs, plain, prepare

if TYPE_CHECKING:
    from monitor.baseline import Baseline
    from monitor.measure.lives import Path as LifePath
    from registry.versions import Version
    from shelflife.service import Service

_HISTORY_ROWS = 200_000  # newest reference rows kept for retraining
_BATCH = 5_000
Progress = Callable[[str], None]


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
    rhythm = service.model(name)
    tested = () if held_out else lives(spec, estimator, rows)
    files = baseline_files(
        spec, rows, outputs, rhythm, how=how, now=now, held_out=held_out, tested=tested
    )
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


def baseline_files(
    spec: ModelSpec,
    rows: Reference,
    outputs: pd.DataFrame,
    settings: ModelSettings,
    *,
    how: str,
    now: datetime,
    held_out: bool,
    tested: tuple[LifePath, ...] = (),
) -> dict[str, bytes]:
    """`spec.json`, `baseline.json` and `reference.parquet` of a version.

    Args:
        tested: back-tested lives, for its first forecasts of the shelf life.
    """
    from monitor import baseline as baselines

    built, sample = first_baseline(
        spec, rows, outputs, settings, how=how, now=now, held_out=held_out
    )
    buffer = io.BytesIO()
    sample.to_parquet(buffer, index=False)
    return {
        "spec.json": msgspec.json.encode(spec),
        "baseline.json": baselines.dump(msgspec.structs.replace(built, lives=tested)),
        "reference.parquet": buffer.getvalue(),
    }


def first_baseline(
    spec: ModelSpec,
    rows: Reference,
    outputs: pd.DataFrame,
    settings: ModelSettings,
    *,
    how: str,
    now: datetime,
    held_out: bool,
) -> tuple[Baseline, pd.DataFrame]:
    """The baseline of a model that was not trained here, and its reference sample."""
    from monitor import baseline as baselines
    from monitor.measure.performance import encode_labels

    y, _bad = encode_labels(spec, rows.labels)
    times = rows.times if rows.timed else None
    until = None if held_out or not rows.timed else rows.times[-1]
    built = baselines.build(
        spec,
        rows.inputs,
        outputs,
        y,
        times,
        created=now,
        how=how,
        trained_until=until,
        every=span(settings.check_every),
        window=span(settings.window),
    )
    return built, baselines.reference_sample(rows.inputs, outputs, y, times)


def keep_history(
    service: Service,
    spec: ModelSpec,
    rows: Reference,
    outputs: pd.DataFrame,
    version: str,
    now: datetime,
) -> int:
    """Log the reference rows as history, with their labels; repeating it adds nothing."""
    columns = {f.name: plain(f, rows.inputs[f.name]) for f in spec.features}
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
