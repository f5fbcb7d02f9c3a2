"""How a shadow or a canary proceeds: begun once, compared now and then, ended by a verdict."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import Conflict, RegistryError
from core.failpoints import fail_point
from core.ledger import Ledger
from core.spec import ModelSpec
from core.times import iso, parse_time, spell
from registry import promotion
from registry.versions import Version
from retrain import paired, watch
from retrain import run as runs
from retrain.run import RunContext, RunState, StepName
from retrain.wording import METRIC_WORDS, plural, rounded

_log = logging.getLogger("shelflife.retrain")
ALIVE = timedelta(seconds=15)  # a worker seen within this time is live
PATIENCE = timedelta(minutes=5)  # for workers to take a version


class StageDone(Struct, frozen=True, kw_only=True):
    """How the shadow or the canary ended."""

    verdict: watch.Verdict
    reason: str
    since: str = ""
    until: str = ""
    n: int = 0
    harm: float | None = None  # candidate's loss minus the champion's, per row
    low: float | None = None
    high: float | None = None


class Begun(Struct, frozen=True, kw_only=True):
    """A stage under way: since when, when it was looked at last, and what was counted before."""

    since: str  # the model's time
    wall: str
    looked: str
    looked_wall: str
    answered: int = 0
    failed: int = 0
    candidate: str = ""


def advance_stage(
    context: RunContext,
    run: RunState,
    name: Literal["shadow", "canary"],
    begun: Begun,
    at: datetime,
    wall: datetime,
) -> bool:
    rollout = context.settings.retrain.rollout
    since = parse_time(begun.since)
    found = compare(context, run, name, since, at)
    limit = rollout.shadow if name == "shadow" else rollout.canary_for
    over = watch.over(limit, since=since, at=at, rows=lambda: _answered(context, run, name, since))
    broken = _broken(context, run, begun, wall)
    if broken:
        found = msgspec.structs.replace(found, action="rollback", reason=broken)
    step = watch.stage(found, over=over, undecided=rollout.undecided)
    fail_point(f"after_{name}")
    if step.action == "wait":
        looked = msgspec.structs.replace(begun, looked=iso(at), looked_wall=iso(wall))
        text = msgspec.json.encode(looked).decode()
        runs.note_step(
            context, run, name, at=at, state=run.state, error=step.reason, result=text, counts=False
        )
        return False
    if step.action == "refuse":
        runs.note_step(context, run, name, at=at, error=step.reason)
        outcome = f"version {run.candidate} was refused in its {name}: {step.reason}"
        end(context, run, "refused", outcome, at=at)
        return False
    done = StageDone(
        verdict=step.verdict, reason=step.reason, since=begun.since, until=iso(at), n=found.n,
        harm=found.harm, low=found.low, high=found.high,
    )  # fmt: skip
    runs.end_step(context, run, name, done, at=at)
    context.tell(name, f"{step.verdict}: {step.reason}")
    return True


def compare(
    context: RunContext, run: RunState, name: Literal["shadow", "canary"], since: datetime,
    at: datetime,
) -> watch.Judgement:  # fmt: skip
    """The candidate against the champion on the rows of a stage whose labels are known."""
    settings, spec = context.settings, _spec(context, run)
    candidate = str(run.candidate)
    in_shadow = name == "shadow"
    pairs = paired.losses(
        context.registry, context.log, spec, settings,
        answered_by=run.champion if in_shadow else candidate,
        role="champion" if in_shadow else "challenger",
        other=candidate if in_shadow else run.champion,
        since=since, at=at, compute=not in_shadow,
    )  # fmt: skip
    new, old = (pairs.other, pairs.answered) if in_shadow else (pairs.answered, pairs.other)
    return watch.judge(
        new, old, settings.retrain.gate.confidence, min_rows=settings.min_rows,
        names=("the candidate", "the champion"),
    )  # fmt: skip


def _broken(context: RunContext, run: RunState, begun: Begun, wall: datetime) -> str:
    """Why the candidate cannot answer at all; empty when it can."""
    answered, failed = _counted(context, run)
    asked = answered + failed - begun.answered - begun.failed
    why = watch.failing(asked, failed - begun.failed)
    if why:
        return why
    table = schema.workers
    query = sa.select(table.c.challenger_error).where(
        table.c.model == run.model,
        table.c.seen >= wall - ALIVE,
        table.c.challenger == run.candidate,
        table.c.challenger_error != "",
    )
    with context.ledger.read() as tx:
        error = tx.scalar(query.limit(1))
    if error and wall - parse_time(begun.wall) > PATIENCE:
        return f"a live worker could not run it for {spell(PATIENCE)}: {error}"
    return ""


def _counted(context: RunContext, run: RunState) -> tuple[int, int]:
    table = schema.counters
    names = ("canary_answered", "canary_failed")
    query = sa.select(table.c.name, table.c.value).where(
        table.c.model == run.model, table.c.name.in_(names)
    )
    with context.ledger.read() as tx:
        found = {row.name: int(row.value) for row in tx.execute(query)}
    return found.get(names[0], 0), found.get(names[1], 0)


def _answered(context: RunContext, run: RunState, name: str, since: datetime) -> int:
    role: Literal["shadow", "challenger"] = "shadow" if name == "shadow" else "challenger"
    log = context.log
    rows = log.read(run.model, start=since, roles=(role,), version=run.candidate, inputs=False)
    return len(rows)


def begin_stage(
    context: RunContext, run: RunState, name: StepName, at: datetime, wall: datetime
) -> Begun:
    begun = begun_stage(context.ledger, run, name)
    if begun is not None:
        return begun
    answered, failed = _counted(context, run)
    begun = Begun(
        since=iso(at), wall=iso(wall), looked=iso(at), looked_wall=iso(wall),
        answered=answered, failed=failed, candidate=str(run.candidate),
    )  # fmt: skip
    text = msgspec.json.encode(begun).decode()
    runs.note_step(context, run, name, at=at, result=text)
    limit = getattr(context.settings.retrain.rollout, "shadow" if name == "shadow" else "canary")
    context.tell(name, f"version {run.candidate} begins its {name} ({limit})")
    return begun


def begun_stage(ledger: Ledger, run: RunState, name: StepName) -> Begun | None:
    text = runs.step_text(ledger, run.id, name)
    try:
        return msgspec.json.decode(text, type=Begun) if text else None
    except msgspec.ValidationError:  # the stage is done: that is its result
        return None


def skip_stage(context: RunContext, run: RunState, name: StepName, at: datetime) -> bool:
    done = StageDone(verdict="skipped", reason="not wanted, or overtaken by a person")
    runs.end_step(context, run, name, done, at=at)
    return True


def end(
    context: RunContext, run: RunState, state: runs.State, outcome: str, *, at: datetime
) -> None:
    """End a run without a promotion; what it left in MLflow is taken back if MLflow can be had."""
    if run.candidate is not None:
        try:
            promotion.withdraw(context.registry, context.ledger, run.model, run.candidate, run.id)
        except RegistryError as error:  # an alias that means nothing any more: the run must end
            _log.warning("not_withdrawn", extra={"run": run.id, "error": str(error)})
    runs.finish(context, run, state, outcome, at=at)


def present(context: RunContext, run: RunState) -> str | None:
    """The champion's version now."""
    champion: Version | None = context.registry.by_alias(run.model, "champion")
    return None if champion is None else champion.version


def same_champion(context: RunContext, run: RunState) -> None:
    """Assert that the run still competes with the champion.

    Raises:
        Conflict: somebody moved it.
    """
    champion = present(context, run)
    if champion != run.champion:
        raise Conflict(
            f"the champion is version {champion} now, and this run competes with version "
            f"{run.champion}; start a new run"
        )


def why(run: RunState) -> str:
    """The gate's numbers in one clause."""
    if run.gate is None:
        return run.reason
    metric = METRIC_WORDS.get(run.gate.metric, run.gate.metric)
    return (
        f"{metric} {rounded(run.gate.candidate)} against {rounded(run.gate.champion)} of version "
        f"{run.champion} on {plural(run.gate.n, 'row')}"
    )


def _spec(context: RunContext, run: RunState) -> ModelSpec:
    champion = context.registry.get(run.model, run.champion)
    return msgspec.json.decode(context.registry.file(champion, "spec.json"), type=ModelSpec)
