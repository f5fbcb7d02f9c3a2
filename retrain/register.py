"""Handing a candidate to the registry: with its baseline, its gate result and its lineage."""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from core.errors import TrainerFailed, UntrustedArtifact
from core.files import sha256_tree
from core.settings import span
from core.spec import ModelSpec
from core.times import iso, utc
from monitor.baseline import Baseline, build, dump, reference_sample
from retrain import gate_report
from retrain.dataset import Account, Slice
from retrain.gate import GateResult
from retrain.job import TrainerResult, read_frame, read_inputs
from retrain.rebuild import ROWS_FILE
from retrain.run import RunContext, RunState

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from registry.versions import Version


def register(
    context: RunContext,
    run: RunState,
    spec: ModelSpec,
    *,
    account: Account,
    trained: TrainerResult,
    gate: GateResult,
    at: datetime,
) -> Version:
    """The candidate's version, made at most once per run.

    Raises:
        UntrustedArtifact: the model's file is not the one that was gated.
        TrainerFailed: what came out of the registry does not answer as what was gated.
        RegistryError: MLflow could not do it.
    """
    from registry.loading import load_estimator, predict

    folder, trust = context.folder(run.id) / "job", context.settings.trust_pickle
    if sha256_tree(folder / "model") != trained.model_sha256:
        raise UntrustedArtifact(f"run {run.id}: the trained model's file changed after the gate")
    report = gate_report.begin(context, run, spec, trained, gate)
    version = context.registry.add(
        run.model,
        load_estimator(folder / "model", trust_pickle=trust),
        spec,
        files=_files(context, run, spec, account=account, trained=trained, gate=gate, at=at),
        tags=_tags(run, account, trained, gate),
        metrics=_metrics(gate, trained),
        now=at,
        idempotency_key=run.id,
        trust_pickle=trust,
    )
    gate_report.attach(context, version, report)
    # The registry wrote the estimator anew: what it keeps must be what was gated.
    kept = load_estimator(context.registry.fetch(version), trust_pickle=trust)
    again = predict(kept, spec, read_inputs(folder / "holdout.parquet", spec))
    if not np.array_equal(again.to_numpy(), _outputs(folder, spec).to_numpy()):
        raise TrainerFailed(
            f"version {version.version} does not give the predictions that were gated; it gets no "
            "alias"
        )
    return version


def _outputs(folder: Path, spec: ModelSpec) -> pd.DataFrame:
    frame = read_frame(folder / "predictions.parquet")
    return frame[[f"candidate:{name}" for name in spec.outputs]].set_axis(spec.outputs, axis=1)


def _tags(
    run: RunState, account: Account, trained: TrainerResult, gate: GateResult
) -> dict[str, str]:
    return {
        "shelflife.window": trained.choice.window.name if trained.choice else "all",
        "shelflife.gate": "passed" if gate.passed else "asks" if gate.asks else "refused",
        "shelflife.run_id": run.id,
        "shelflife.trigger": run.trigger,
        **({"shelflife.incident": str(run.incident_id)} if run.incident_id else {}),
        "shelflife.parent": run.champion,
        "shelflife.dataset": account.identity,
        "shelflife.trained_until": iso(account.trained_until),
    }


def _metrics(gate: GateResult, trained: TrainerResult) -> dict[str, float]:
    numbers = {
        f"holdout_{gate.metric}": gate.candidate,
        f"champion_{gate.metric}": gate.champion,
        "gain": gate.gain,
        "gain_low": gate.low,
        "gain_high": gate.high,
        "holdout_rows": float(gate.n),
        "train_rows": float(trained.rows),
        "fit_seconds": trained.seconds,
        "fits": float(trained.fits),
        "latency_ms": trained.latency_ms,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _files(
    context: RunContext,
    run: RunState,
    spec: ModelSpec,
    *,
    account: Account,
    trained: TrainerResult,
    gate: GateResult,
    at: datetime,
) -> dict[str, bytes]:
    """What travels with the version: its baseline and how it came about."""
    folder = context.folder(run.id)
    baseline, reference = candidate_baseline(
        spec,
        _slice(folder / "job" / "train.parquet", spec),
        _slice(folder / "holdout.parquet", spec),
        _outputs(folder / "job", spec),
        trained_until=account.trained_until,
        every=span(context.settings.check_every),
        window=span(context.settings.window),
        at=at,
    )
    buffer = io.BytesIO()
    reference.to_parquet(buffer, index=False)
    return {
        "spec.json": msgspec.json.encode(spec),
        "baseline.json": dump(baseline),
        "reference.parquet": buffer.getvalue(),
        "gate.json": msgspec.json.encode(gate),
        "dataset.json": msgspec.json.encode(account),
        "training.json": msgspec.json.encode(trained),
        ROWS_FILE: (folder / ROWS_FILE).read_bytes(),
        "train.log": (folder / "job" / "train.log").read_bytes(),
    }


def candidate_baseline(
    spec: ModelSpec,
    train: Slice,
    holdout: Slice,
    outputs: pd.DataFrame,
    *,
    trained_until: datetime,
    every: timedelta,
    window: timedelta,
    at: datetime,
) -> tuple[Baseline, pd.DataFrame]:
    """A candidate's baseline and its reference sample. Pure.

    Args:
        outputs: the candidate's on the holdout, columns `spec.outputs`.
        every, window: the rhythm of checks and how far they look back.
    """
    import pandas as pd

    inputs = pd.concat([train.inputs, holdout.inputs], ignore_index=True)
    # What the model answers on rows it learned from says nothing: no outputs and no labels there.
    blank = pd.DataFrame(np.nan, index=range(len(train)), columns=spec.outputs)
    answers = pd.concat([blank, outputs], ignore_index=True)
    y = np.concatenate([np.full(len(train), np.nan), holdout.y])
    times = (*train.times, *holdout.times)
    built = build(
        spec,
        inputs,
        answers,
        y,
        times,
        created=at,
        how="holdout",
        trained_until=trained_until,
        every=every,
        window=window,
    )
    return built, reference_sample(inputs, answers, y, times)


def _slice(path: Path, spec: ModelSpec) -> Slice:
    """A written slice; labels NaN where the file has none."""
    frame = read_frame(path)
    blank = np.full(len(frame), np.nan)
    return Slice(
        inputs=read_inputs(path, spec),
        y=frame["y"].to_numpy(np.float64) if "y" in frame else blank,
        times=tuple(utc(moment.to_pydatetime()) for moment in frame["time"]),
    )
