"""What each step of a run does. A step that was cut off is repeated: every side effect here is
either a file written whole, or one that its owner makes idempotent (`Registry.add` by the run's
id, a promotion by the expected champion).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core.errors import (
    Conflict,
    LeaseLost,
    NotFound,
    NotReady,
    RegistryError,
    TrainerFailed,
    UntrustedArtifact,
)
from core.failpoints import fail_point
from core.files import write_atomic
from core.settings import span
from core.spec import ModelSpec
from core.times import iso
from monitor import baseline
from monitor.log.privacy import not_logged
from retrain import past, rollout
from retrain import run as runs
from retrain.dataset import Account, TooLittle, assemble
from retrain.gate import GateResult, compare
from retrain.gate_data import TrainingFacts
from retrain.job import (
    Job,
    Progress,
    TrainerResult,
    read_frame,
    read_inputs,
    write_frame,
    write_slice,
)
from retrain.rebuild import ROWS_FILE, name_rows
from retrain.register import register
from retrain.run import RunContext, RunState, StepName
from retrain.source import open_source
from retrain.trainer import fit
from retrain.wording import plural

#: Tries of a step that ended in a kill or an error of ours: one that keeps killing us must not do
#: so for ever. Waiting for MLflow, for a person or for labels is no try.
_ATTEMPTS: Mapping[StepName, int] = {"dataset": 3, "train": 3, "gate": 3}
_OTHERS = 20
#: A store is out of reach: nothing is wrong with the step.
_UNAVAILABLE = (RegistryError, OperationalError, InterfaceError, PoolTimeout)


def take(context: RunContext, run: RunState, *, at: datetime, wall: datetime) -> bool:
    """Do the run's next step, or end the run; False when it has to wait.

    Raises:
        RegistryError, LeaseLost: see `run.advance`.
    """
    name = run.step
    if name is None:
        note = runs.result_of(context.ledger, run.id, "serve", rollout.Served).note
        outcome = f"version {run.candidate} is champion: {rollout.why(run)}"
        runs.finish(context, run, "promoted", f"{outcome}; {note}" if note else outcome, at=at)
        return False
    if "register" in run.done and run.gate is not None and run.gate.refused:
        outcome = f"version {run.candidate} was refused: {run.gate.reason}"
        rollout.end(context, run, "refused", outcome, at=at)
        return False
    if rollout.resting(context, run, name, at=at, wall=wall):
        return False
    before = runs.begin_step(context, run, name, at=at)
    if before >= _ATTEMPTS.get(name, _OTHERS):
        error = runs.step_error(context.ledger, run.id, name)
        outcome = f"step {name} was cut off {before} times and is not tried again"
        rollout.end(context, run, "failed", f"{outcome}: {error}" if error else outcome, at=at)
        return False
    try:
        return context.steps.get(name, _DO[name])(context, run, at, wall)
    except LeaseLost:
        raise
    except (TooLittle, Conflict) as error:
        rollout.end(context, run, "refused", str(error), at=at)
    except (TrainerFailed, UntrustedArtifact) as error:
        runs.note_step(context, run, name, at=at, error=str(error))
        rollout.end(context, run, "failed", f"step {name}: {error}", at=at)
    except NotReady as error:  # another promotion is under way, say
        runs.note_step(context, run, name, at=at, state=run.state, error=str(error), counts=False)
    except Exception as error:
        waits = isinstance(error, _UNAVAILABLE)
        with suppress(SQLAlchemyError):  # it is the ledger that is out of reach
            runs.note_step(
                context, run, name, at=at, state=run.state, error=str(error)[:2000],
                counts=not waits,
            )  # fmt: skip
        raise
    return False


def _dataset(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """Freeze the rows the run works on: training inputs and labels, holdout inputs, and apart from
    them the holdout's labels, which no trainer gets to see."""
    rollout.same_champion(context, run)
    spec, folder = _spec(context, run), context.folder(run.id)
    hidden = not_logged(context.settings.privacy, spec.columns)
    if hidden:  # it would learn from blanks or hashes, and be asked with the values themselves
        raise TooLittle(f"the log may not keep {', '.join(hidden)}, which {run.model} needs")
    # Labels known when the run was decided: repeated later, the step finds the same rows.
    settings = context.settings.retrain
    data = assemble(
        context.log if not settings.source else open_source(context, spec, known_at=run.started),
        spec,
        settings,
        known_at=run.started,
        after=_trained_until(context, run),
        exclude=past.exclusions(context, run),
    )
    write_slice(folder / "job" / "train.parquet", data.train, labels=True)
    write_slice(folder / "job" / "holdout.parquet", data.holdout, labels=False)
    write_slice(folder / "holdout.parquet", data.holdout, labels=True)
    write_frame(folder / ROWS_FILE, name_rows(data))
    fail_point("after_dataset")
    runs.end_step(context, run, "dataset", data.account, at=at)
    left = sum(data.account.left_out.values())
    context.tell(
        "dataset",
        f"{plural(len(data.train), 'training row')} until {iso(data.account.trained_until)}, "
        f"{len(data.holdout):,} held out" + (f", {left:,} left out" if left else ""),
    )
    return True


def _train(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    settings, folder = context.settings.retrain, context.folder(run.id) / "job"
    champion = context.registry.get(run.model, run.champion)
    account = runs.result_of(context.ledger, run.id, "dataset", Account)
    cores = os.cpu_count() or 2
    job = Job(
        spec=_spec(context, run),
        champion=str(context.registry.fetch(champion).resolve()),
        trust_pickle=context.settings.trust_pickle,
        trainer=settings.trainer,
        user_folder=str((context.user_folder or Path.cwd()).resolve()),
        dataset=account.identity,
        threads=context.threads or max(1, cores // 2),
        memory_bytes=int(settings.memory_limit_gb * 1e9),
        time_limit_s=span(settings.time_limit).total_seconds(),
        metric=context.settings.metric,
        windows=account.windows,
        past=past.past_scores(context.ledger, run.model, before=run.started),
        indifferent=past.indifferent(
            context.settings, account, champion_until=_trained_until(context, run)
        ),
        judged_rows=account.holdout_rows,
        search=settings.search,
    )
    write_atomic(folder / "job.json", msgspec.json.encode(job))
    result = fit(
        folder.resolve(),
        time_limit=settings.time_limit,
        beat=context.beat,
        progress=lambda found: _note_progress(context, run, found, at),
    )
    fail_point("after_train")
    runs.end_step(context, run, "train", result, at=at)
    chosen = f", window {result.choice.window.name}" if result.choice else ""
    context.tell(
        "train",
        f"{result.estimator} fitted on {plural(result.rows, 'row')}{chosen} in "
        f"{result.seconds:.1f} s ({plural(result.fits, 'fit')}, {result.peak_mb:,.0f} MB at most)",
    )
    return True


def _note_progress(context: RunContext, run: RunState, found: Progress, at: datetime) -> None:
    """How far the training is, in the step's row until its result takes the place."""
    text = msgspec.json.encode({"progress": found}).decode()
    runs.note_step(context, run, "train", at=at, result=text)


def _gate(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    folder, spec = context.folder(run.id), _spec(context, run)
    trained = runs.result_of(context.ledger, run.id, "train", TrainerResult)
    account = runs.result_of(context.ledger, run.id, "dataset", Account)
    outputs = read_frame(folder / "job" / "predictions.parquet")
    names = spec.outputs
    result = compare(
        spec,
        read_frame(folder / "holdout.parquet")["y"].to_numpy(np.float64),
        outputs[[f"champion:{name}" for name in names]].set_axis(names, axis=1),
        outputs[[f"candidate:{name}" for name in names]].set_axis(names, axis=1),
        settings=context.settings.retrain.gate,
        metric=context.settings.metric,
        reproduces=trained.reproduces,
        label_range=(account.label_low, account.label_high),
        inputs=read_inputs(folder / "holdout.parquet", spec),
        facts=TrainingFacts(
            trained_until=account.trained_until,
            champion_until=_trained_until(context, run),
            rows=trained.rows,
            champion_rows=past.champion_rows(context, run),
            window_won=trained.choice is not None,
            swapped=trained.swapped,
            latency_ms=trained.latency_ms,
            champion_latency_ms=trained.champion_latency_ms,
        ),
        trivial=np.array(trained.trivial) if trained.trivial else None,
    )
    text = msgspec.json.encode(result)
    write_atomic(folder / "gate.json", text)
    fail_point("after_gate")
    runs.end_step(context, run, "gate", result, at=at, gate=text.decode())
    context.tell("gate", f"{'passed' if result.passed else 'refused'}: {result.reason}")
    return True


def _register(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """Register the candidate, refused ones too (without an alias), so that people can compare."""
    version = register(
        context,
        run,
        _spec(context, run),
        account=runs.result_of(context.ledger, run.id, "dataset", Account),
        trained=runs.result_of(context.ledger, run.id, "train", TrainerResult),
        gate=runs.result_of(context.ledger, run.id, "gate", GateResult),
        at=at,
    )
    fail_point("after_register")
    done = rollout.Registered(version=version.version, sha256=version.sha256)
    runs.end_step(context, run, "register", done, at=at, candidate=version.version)
    context.tell("register", f"registered as version {version.version}")
    return True


_DO: Mapping[StepName, Callable[[RunContext, RunState, datetime, datetime], bool]] = {
    "dataset": _dataset,
    "train": _train,
    "gate": _gate,
    "register": _register,
    "shadow": rollout.shadow,
    "approve": rollout.approve,
    "canary": rollout.canary,
    "promote": rollout.promote,
    "serve": rollout.serve,
}


def _spec(context: RunContext, run: RunState) -> ModelSpec:
    """The champion's spec: a candidate answers the same callers."""
    champion = context.registry.get(run.model, run.champion)
    return msgspec.json.decode(context.registry.file(champion, "spec.json"), type=ModelSpec)


def _trained_until(context: RunContext, run: RunState) -> datetime | None:
    """Event time of the newest row the champion was trained on; None where nobody wrote it down."""
    champion = context.registry.get(run.model, run.champion)
    try:
        return baseline.load(context.registry.file(champion, "baseline.json")).trained_until
    except NotFound:
        return None
