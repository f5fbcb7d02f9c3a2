"""From the gate to the callers: shadow, approval, canary share, champion, served.

The shadow and the canary compare the candidate with the champion on the same rows, by the
confidence sequence of `retrain.watch`, so that looking often costs nothing: proven better goes on
at once, proven worse ends the run. What workers are to do meanwhile is read from the run's steps
(`beside`), so that it, too, survives a restart.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import NotReady
from core.failpoints import fail_point
from core.ledger import Ledger
from core.settings import ModelSettings, span
from core.times import iso, parse_time, spell
from registry import promotion
from retrain import run as runs
from retrain import watch
from retrain.run import RunContext, RunState, StepName
from retrain.stages import ALIVE, PATIENCE, advance_stage, begin_stage, begun_stage, skip_stage
from retrain.stages import end as end
from retrain.stages import present as present
from retrain.stages import same_champion as same_champion
from retrain.stages import why as why
from retrain.wording import plural

if TYPE_CHECKING:
    pass

_LOOK_EVERY = timedelta(seconds=20)  # between two comparisons of a stage
Mode = Literal["shadow", "canary"]


class Registered(Struct, frozen=True, kw_only=True):
    """The candidate as the registry knows it."""

    version: str
    sha256: str


class Approved(Struct, frozen=True, kw_only=True):
    """Callers may get the candidate's answers: by mode `auto`, or by a person's word."""

    by: str
    reason: str = ""
    direct: bool = False  # the person wants it champion now, without a canary


class Promoted(Struct, frozen=True, kw_only=True):
    """The candidate is champion."""

    version: str
    by: str  # "the gate", or "a person" who moved the alias


class Served(Struct, frozen=True, kw_only=True):
    """Every live worker answers with the candidate, or why the run did not wait for it."""

    workers: int
    note: str = ""


class Beside(Struct, frozen=True, kw_only=True):
    """A version that workers run beside the champion."""

    version: str
    mode: Mode
    share: float = 0.0


def beside(
    ledger: Ledger,
    model: str,
    champion: str,
    settings: ModelSettings,
    *,
    challenger: str = "",
    at: datetime,
) -> Beside | None:
    """What runs beside the champion now: the candidate of an unfinished run in its shadow or
    canary, the champion's predecessor while it is watched in shadow, or the version that a person
    has made `challenger`.

    Args:
        challenger: the version that the alias names in MLflow; empty: none.
    """
    run_id = runs.active(ledger, model)
    run = runs.load(ledger, run_id) if run_id is not None else None
    if run is not None and run.candidate not in (None, champion) and not run.finished:
        candidate = str(run.candidate)
        if run.step == "canary" and begun_stage(ledger, run, "canary") is not None:
            share = settings.retrain.rollout.canary
            return Beside(version=candidate, mode="canary", share=share)
        if run.step == "shadow" and begun_stage(ledger, run, "shadow") is not None:
            return Beside(version=candidate, mode="shadow")
        if run.step == "approve" and not watch.off(settings.retrain.rollout.shadow):
            return Beside(version=candidate, mode="shadow")  # what a person decides by grows on
        if candidate == challenger:  # the run's own alias, in a stage that is switched off
            challenger = ""
    if settings.retrain.rollout.watch_in_shadow:
        promoted = watch.watched(ledger, model, champion, settings, at=at)
        if promoted is not None:
            return Beside(version=promoted.predecessor, mode="shadow")
    if settings.retrain.rollout.shadow_challenger and challenger not in ("", champion):
        return Beside(version=challenger, mode="shadow")
    return None


def resting(
    context: RunContext, run: RunState, name: StepName, *, at: datetime, wall: datetime
) -> bool:
    """Whether nothing can have changed since the step was looked at, so that nothing is written.

    Raises:
        RegistryError: MLflow did not say who is champion.
    """
    if name == "approve" and run.state == "waiting" and _needs_a_person(context, run):
        champion = present(context, run)
        return champion == run.champion and not _expired(context, run, at)
    if name in ("shadow", "canary"):
        begun = begun_stage(context.ledger, run, name)
        if begun is not None:
            rested = max(wall - parse_time(begun.looked_wall), at - parse_time(begun.looked))
            return rested < _LOOK_EVERY
    return False


# --- the steps ---------------------------------------------------------------------------------


def shadow(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """The candidate answers a copy of the requests, unseen, and is compared with the champion."""
    limit = context.settings.retrain.rollout.shadow
    if watch.off(limit) or _taken(context, run) or _without_champion(run):
        return skip_stage(context, run, "shadow", at)
    same_champion(context, run)
    begun = begin_stage(context, run, "shadow", at, wall)
    context.registry.set_alias(run.model, "challenger", str(run.candidate))
    return advance_stage(context, run, "shadow", begun, at, wall)


def canary(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """The candidate answers a share of the callers; the champion answers where it fails."""
    approved = runs.result_of(context.ledger, run.id, "approve", Approved)
    wanted = context.settings.retrain.rollout.canary and not approved.direct
    if not wanted or _taken(context, run) or _without_champion(run):
        return skip_stage(context, run, "canary", at)
    same_champion(context, run)
    if (
        begun_stage(context.ledger, run, "canary") is None
    ):  # before the first caller gets its answer
        gated = runs.result_of(context.ledger, run.id, "register", Registered)
        version = context.registry.get(run.model, gated.version)
        promotion.verify(context.registry, version, gated.sha256)
    begun = begin_stage(context, run, "canary", at, wall)
    context.registry.set_alias(run.model, "challenger", str(run.candidate))
    return advance_stage(context, run, "canary", begun, at, wall)


def approve(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """In mode `approve`, or where the gate cannot decide, wait for a person: their word
    (`retrain.manual`), or the moved alias."""
    if not _needs_a_person(context, run):
        runs.end_step(context, run, "approve", Approved(by="the gate"), at=at, state="running")
        return True
    if _taken(context, run):
        done = Approved(by="mlflow", reason="`champion` was moved to it", direct=True)
        runs.end_step(context, run, "approve", done, at=at, state="running")
        return True
    same_champion(context, run)
    if _expired(context, run, at):
        limit = spell(span(context.settings.retrain.approval_expires))
        outcome = f"nobody approved version {run.candidate} within {limit}"
        end(context, run, "abandoned", outcome, at=at)
        return False
    if run.state != "waiting":
        context.registry.set_alias(run.model, "challenger", str(run.candidate))
        fail_point("after_challenger")
        runs.note_step(context, run, "approve", at=at, state="waiting", counts=False)
        context.tell(
            "waiting",
            f"version {run.candidate} {asks(run)}",
        )
    return False


def promote(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """Move `champion`, to the very files that were gated; or see that it has been moved."""
    registry, model = context.registry, run.model
    gated = runs.result_of(context.ledger, run.id, "register", Registered)
    approved = runs.result_of(context.ledger, run.id, "approve", Approved)
    if present(context, run) == gated.version:
        # A person moved it, or we did and were cut off: `observe` tells and writes down which.
        promotion.observe(registry, context.ledger, model, now=at)
        if _newest(context, run) != gated.version:
            raise NotReady(f"the promotion of version {gated.version} is being written down")
        promotion.verify(registry, registry.get(model, gated.version), gated.sha256)
    else:
        person = approved.by != "the gate"
        is_forced = run.gate is not None and run.gate.path == "forced"
        because = run.gate.reason if run.gate else ""
        if is_forced:  # what lies in MLflow says so too, before anybody gets its answers
            registry.tag(registry.get(model, gated.version), gate="forced")
        fail_point("before_alias")
        promotion.promote(
            registry,
            context.ledger,
            model,
            gated.version,
            expected=run.champion,
            kind="forced" if is_forced else "gate",
            by=approved.by if person else run.by,
            reason=(
                f"{approved.reason}; {because}"
                if person and approved.reason and not is_forced
                else because
            ),
            now=at,
            run_id=run.id,
            artifact=gated.sha256,
            guard=runs.fence(context, run.id),
        )
        fail_point("after_alias")
    waiting = registry.by_alias(model, "challenger")
    if waiting is not None and waiting.version == gated.version:
        registry.drop_alias(model, "challenger")
    by = "a person" if not _moved_by(context, run) else "the gate"
    done = Promoted(version=gated.version, by=by)
    runs.end_step(context, run, "promote", done, at=at, state="running")
    context.tell("promote", f"version {gated.version} is champion, moved by {by}")
    return True


class _Since(Struct, frozen=True, kw_only=True):
    since: str  # wall clock: when the run began to wait for workers


def serve(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
    """Wait until every live worker answers with the candidate; five minutes at most."""
    table = schema.workers
    query = sa.select(table).where(table.c.model == run.model, table.c.seen >= wall - ALIVE)
    with context.ledger.read() as tx:
        live = tx.execute(query).all()
    late = [row for row in live if row.version != run.candidate]
    note = ""
    if late:
        champion = present(context, run)
        text = runs.step_text(context.ledger, run.id, "serve")
        since = parse_time(msgspec.json.decode(text, type=_Since).since) if text else wall
        if champion != run.candidate:
            note = f"the champion has since moved to version {champion}"
        elif wall - since < PATIENCE:
            error = f"{plural(len(late), 'worker')} of {len(live)} still on another version"
            begun = msgspec.json.encode(_Since(since=iso(since))).decode()
            runs.note_step(context, run, "serve", at=at, error=error, result=begun, counts=False)
            return False
        else:
            because = next((f": {row.error}" for row in late if row.error), "")
            note = (
                f"{plural(len(late), 'worker')} of {len(live)} did not take it within "
                f"{spell(PATIENCE)}{because}"
            )
    fail_point("after_serve")
    runs.end_step(context, run, "serve", Served(workers=len(live), note=note), at=at)
    context.tell("serve", note or f"{plural(len(live), 'live worker')} answer with it")
    return True


# --- what is so ----------------------------------------------------------------------------------


def _taken(context: RunContext, run: RunState) -> bool:
    """Whether the candidate is champion already."""
    return present(context, run) == run.candidate


def _needs_a_person(context: RunContext, run: RunState) -> bool:
    return context.settings.retrain.mode == "approve" or (run.gate is not None and run.gate.asks)


def _without_champion(run: RunState) -> bool:
    """Whether there is nothing to compare the candidate with: the champion cannot be evaluated."""
    return run.gate is not None and (run.gate.asks or run.gate.path in ("no_champion", "forced"))


def asks(run: RunState) -> str:
    """What a person is asked, in one clause."""
    if run.gate is not None and run.gate.asks:
        return f"waits for a person: {run.gate.reason}"
    return f"passed the gate and waits for a person: {why(run)}"


def _expired(context: RunContext, run: RunState, at: datetime) -> bool:
    limit = span(context.settings.retrain.approval_expires)
    table = schema.run_steps
    query = sa.select(table.c.started).where(table.c.run_id == run.id, table.c.name == "approve")
    with context.ledger.read() as tx:
        since: datetime | None = tx.scalar(query)
    return bool(limit) and since is not None and at - since > limit


def _newest(context: RunContext, run: RunState) -> str:
    table = schema.promotions
    query = sa.select(table.c.version).where(table.c.model == run.model)
    with context.ledger.read() as tx:
        return str(tx.scalar(query.order_by(table.c.id.desc()).limit(1)) or "")


def _moved_by(context: RunContext, run: RunState) -> bool:
    """Whether it was this run that moved the alias."""
    table = schema.promotions
    query = sa.select(table.c.id).where(table.c.run_id == run.id)
    with context.ledger.read() as tx:
        return tx.scalar(query) is not None
