"""What each step of a run does. A step that was cut off is repeated: every side effect here is
either a file written whole, or one that its owner makes idempotent (`Registry.add` by the run's
id, a promotion by the expected champion).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import Conflict, NotFound, NotReady, TrainerFailed, UntrustedArtifact
from core.files import write_atomic
from core.settings import span
from core.spec import ModelSpec
from core.times import iso, parse_time, spell
from monitor import baseline
from monitor.log.privacy import not_logged
from registry.promotion import observe, promote
from retrain import past
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
from retrain.run import RunContext, RunState, StepName, fail_point
from retrain.source import open_source
from retrain.trainer import fit
from retrain.wording import METRIC_WORDS, plural, rounded

if TYPE_CHECKING:
    from registry.versions import Version

_ATTEMPTS = 3  # of a step that computes: one that keeps killing us must not do so forever
_COMPUTING: tuple[StepName, ...] = ("dataset", "train", "gate")
_ALIVE = timedelta(seconds=15)  # a worker seen within this time is live
_PATIENCE = timedelta(minutes=5)  # for workers to take the new version


class Registered(Struct, frozen=True, kw_only=True):
    """The candidate as the registry knows it."""

    version: str
    sha256: str


class Promoted(Struct, frozen=True, kw_only=True):
    """The candidate is champion."""

    version: str
    by: str  # "the gate", or "a person" who moved the alias


class Served(Struct, frozen=True, kw_only=True):
    """Every live worker answers with the candidate, or why the run did not wait for it."""

    workers: int
    note: str = ""


class _Since(Struct, frozen=True, kw_only=True):
    since: str  # wall clock: when the run began to wait for workers


def take(context: RunContext, run: RunState, *, at: datetime, wall: datetime) -> bool:
    """Do the run's next step, or end the run; False when it has to wait.

    Raises:
        RegistryError, LeaseLost: see `run.advance`.
    """
    name = run.step
    if name is None:
        fail_point("after_serve")
        note = runs.result_of(context.ledger, run.id, "serve", Served).note
        outcome = f"version {run.candidate} is champion: {_why(run)}"
        runs.finish(context, run, "promoted", f"{outcome}; {note}" if note else outcome, at=at)
        return False
    if name == "promote" and run.gate is not None and not run.gate.passed:
        outcome = f"version {run.candidate} was refused: {run.gate.reason}"
        runs.finish(context, run, "refused", outcome, at=at)
        return False
    before = runs.begin_step(context, run, name, at=at)
    if name in _COMPUTING and before >= _ATTEMPTS:
        outcome = f"step {name} was cut off {before} times and is not tried again"
        runs.finish(context, run, "failed", outcome, at=at)
        return False
    try:
        return _DO[name](context, run, at, wall)
    except (TooLittle, Conflict) as error:
        runs.finish(context, run, "refused", str(error), at=at)
    except (TrainerFailed, UntrustedArtifact) as error:
        runs.note_step(context, run, name, at=at, error=str(error))
        runs.finish(context, run, "failed", f"step {name}: {error}", at=at)
    except NotReady as error:  # another promotion is under way, say
        runs.note_step(context, run, name, at=at, state=run.state, error=str(error))
    except Exception as error:
        runs.note_step(context, run, name, at=at, state=run.state, error=str(error)[:2000])
        raise
    return False


def _dataset(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """Freeze the rows the run works on: training inputs and labels, holdout inputs, and apart from
    them the holdout's labels, which no trainer gets to see."""
    _same_champion(context, run)
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
        past=past.past_scores(context, run),
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
    done = Registered(version=version.version, sha256=version.sha256)
    runs.end_step(context, run, "register", done, at=at, candidate=version.version)
    context.tell("register", f"registered as version {version.version}")
    return True


def _promote(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    registry, model = context.registry, run.model
    gated = runs.result_of(context.ledger, run.id, "register", Registered)
    if _champion(context, run) == gated.version:
        # A person moved it, or we did and were cut off: `observe` tells and writes down which.
        observe(registry, context.ledger, model, now=at)
    elif context.settings.retrain.mode == "approve":
        _same_champion(context, run)
        return _wait_for_approval(context, run, gated, at)
    else:
        _check_artifact(registry.get(model, gated.version), gated)
        fail_point("before_alias")
        promote(
            registry,
            context.ledger,
            model,
            gated.version,
            expected=run.champion,
            kind="gate",
            by=run.by,
            reason=run.gate.reason if run.gate else "",
            now=at,
            run_id=run.id,
        )
        fail_point("after_alias")
    waiting = registry.by_alias(model, "challenger")
    if waiting is not None and waiting.version == gated.version:
        registry.drop_alias(model, "challenger")
    by = "the gate" if _moved_by(context, run) else "a person"
    done = Promoted(version=gated.version, by=by)
    runs.end_step(context, run, "promote", done, at=at, state="running")
    context.tell("promote", f"version {gated.version} is champion, moved by {by}")
    return True


def _wait_for_approval(context: RunContext, run: RunState, gated: Registered, at: datetime) -> bool:
    if run.state != "waiting":
        context.registry.set_alias(run.model, "challenger", gated.version)
        runs.note_step(context, run, "promote", at=at, state="waiting")
        context.tell(
            "waiting",
            f"version {gated.version} passed the gate and waits for a person: {_why(run)}",
        )
    return False


def _serve(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """Wait until every live worker answers with the candidate; five minutes at most."""
    table = schema.workers
    query = sa.select(table).where(table.c.model == run.model, table.c.seen >= wall - _ALIVE)
    with context.ledger.read() as tx:
        live = tx.execute(query).all()
    late = [row for row in live if row.version != run.candidate]
    note = ""
    if late:
        champion = _champion(context, run)
        text = runs.step_text(context.ledger, run.id, "serve")
        since = parse_time(msgspec.json.decode(text, type=_Since).since) if text else wall
        if champion != run.candidate:
            note = f"the champion has since moved to version {champion}"
        elif wall - since < _PATIENCE:
            error = f"{plural(len(late), 'worker')} of {len(live)} still on another version"
            begun = msgspec.json.encode(_Since(since=iso(since))).decode()
            runs.note_step(context, run, "serve", at=at, error=error, result=begun)
            return False
        else:
            why = next((f": {row.error}" for row in late if row.error), "")
            note = (
                f"{plural(len(late), 'worker')} of {len(live)} did not take it within "
                f"{spell(_PATIENCE)}{why}"
            )
    runs.end_step(context, run, "serve", Served(workers=len(live), note=note), at=at)
    context.tell("serve", note or f"{plural(len(live), 'live worker')} answer with it")
    return True


_DO: Mapping[StepName, Callable[[RunContext, RunState, datetime, datetime], bool]] = {
    "dataset": _dataset,
    "train": _train,
    "gate": _gate,
    "register": _register,
    "promote": _promote,
    "serve": _serve,
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


def _champion(context: RunContext, run: RunState) -> str | None:
    champion = context.registry.by_alias(run.model, "champion")
    return None if champion is None else champion.version


def _same_champion(context: RunContext, run: RunState) -> None:
    champion = _champion(context, run)
    if champion != run.champion:
        raise Conflict(
            f"the champion is version {champion} now, and this run competes with version "
            f"{run.champion}; start a new run"
        )


def _check_artifact(candidate: Version, gated: Registered) -> None:
    if candidate.sha256 != gated.sha256:
        raise UntrustedArtifact(
            f"version {candidate.version} has sha256 {candidate.sha256[:12]}…, the gate judged "
            f"{gated.sha256[:12]}…; register it anew"
        )


def _moved_by(context: RunContext, run: RunState) -> bool:
    """Whether it was this run that moved the alias."""
    table = schema.promotions
    query = sa.select(table.c.id).where(table.c.run_id == run.id)
    with context.ledger.read() as tx:
        return tx.scalar(query) is not None


def _why(run: RunState) -> str:
    if run.gate is None:
        return run.reason
    metric = METRIC_WORDS.get(run.gate.metric, run.gate.metric)
    return (
        f"{metric} {rounded(run.gate.candidate)} against {rounded(run.gate.champion)} of version "
        f"{run.champion} on {plural(run.gate.n, 'row')}"
    )
