"""One pass of the loop for one model at one moment: check, tell, decide, and carry a run forward.

`tick(service, model, at=…)` is the same code whether the clock is real (the scheduler), accelerated
(the demo) or historical. It does the I/O; what it finds and decides comes from pure functions
(`monitor.check.run_check`, `retrain.policy.decide`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Lease
from core.settings import span
from core.times import iso
from monitor import check as checks
from monitor import scores
from monitor.alert import incidents
from monitor.alert.messages import MessageContext
from monitor.log.labels import activity
from monitor.results import CheckResult, Finding, WindowScore
from monitor.verdict import judged_causes
from registry import promotion
from registry.promotion import observe
from retrain import evidence as evidences
from retrain import policy, run, watch
from shelflife.service import Service

if TYPE_CHECKING:
    from registry.versions import Version

_HISTORY = 12  # earlier checks a verdict may look back on


class TickResult(msgspec.Struct, kw_only=True):
    """What one tick found and did."""

    check: CheckResult
    decision: policy.Decision
    opened: tuple[int, ...] = ()  # incident ids
    resolved: tuple[int, ...] = ()
    run_id: str | None = None
    rolled_back: bool = False
    rescored: tuple[WindowScore, ...] = ()  # past windows whose score is another since this tick


def measure(service: Service, version: Version, *, at: datetime) -> CheckResult:
    """Check one version as of a moment; writes nothing."""
    model, settings = version.model, service.model(version.model)
    baseline, reference = service.baseline(version)
    evidence = checks.gather(service.log, model, version.version, at=at, settings=settings)
    evidence.activity = activity(
        service.ledger, model, after=evidence.window_start, until=evidence.window_end
    )
    history = checks.recent(service.ledger, model, before=at, limit=_HISTORY)
    facts = checks.ModelFacts(
        version=version.version,
        registered=baseline.created,
        promoted=_promoted(service, version, at),
    )
    return checks.run_check(baseline, reference, evidence, history, facts, settings, at=at)


def tick(
    service: Service, model: str, *, at: datetime, lease: Lease | None = None
) -> TickResult | None:
    """Check the champion, update incidents, decide about retraining, and start a run if so.

    Returns None when the model has no champion. Everything a tick writes, messages included, goes
    into one transaction, guarded by the lease when there is one.
    """
    champion = observe(service.registry, service.ledger, model, now=at)
    if champion is None:
        return None
    result = measure(service, champion, at=at)
    decision = decide(service, champion, result, at=at)
    context = _context(service, champion, decision, at)
    past = _rescore(service, champion, result, at)
    with service.ledger.write() as tx:
        if lease is not None:
            lease.guard(tx)
        check_id = checks.record(tx, result)
        if past is not None:
            scores.record(tx, service.ledger, past)
        changes = incidents.apply(
            tx,
            service.ledger,
            context=context,
            version=champion.version,
            findings=result.findings,
            at=at,
            checked=judged_causes(result, service.model(model).min_rows),
            repeat=span(service.model(model).repeat_every),
        )
        run_id = None
        if decision.action == "retrain":
            run_id = start_run(tx, service, champion, decision, at=at)
        evidences.record(
            tx, model, champion.version, decision, at=at, check_id=check_id, run_id=run_id
        )
        if decision.action == "rollback":
            _announce_rollback(tx, service, champion, decision, context, at)
    if decision.action == "rollback":  # if we die before it, the next tick decides it again
        promotion.rollback(
            service.registry, service.ledger, model, by="watch", reason=decision.reason, now=at
        )
    return TickResult(
        check=result,
        decision=decision,
        opened=tuple(c.incident_id for c in changes if c.change == "opened"),
        resolved=tuple(c.incident_id for c in changes if c.change == "resolved"),
        run_id=run_id,
        rolled_back=decision.action == "rollback",
        rescored=past.changed if past is not None else (),
    )


def _rescore(
    service: Service, champion: Version, result: CheckResult, at: datetime
) -> scores.Rescored | None:
    """Past windows scored again, where labels landed since the tick before."""
    settings, spec = service.model(champion.model), service.baseline(champion)[0].spec
    lag = dict(result.labels.lag) if result.labels else {}
    late = timedelta(seconds=max(lag[0.95], 0.0)) if 0.95 in lag else None
    metric = checks.chosen_metric(spec, settings)
    return scores.rescore(service.ledger, service.log, spec, metric, settings, at=at, late=late)


def decide(
    service: Service, champion: Version, result: CheckResult, *, at: datetime
) -> policy.Decision:
    """What the policy says to a check's result; reads, and writes nothing."""
    settings = service.model(champion.model)
    baseline, _ = service.baseline(champion)
    evidence = evidences.gather(
        service.ledger,
        service.log,
        result,
        settings,
        trained_until=baseline.trained_until,
        promoted=_promoted(service, champion, at),
        rollback=_watch(service, champion, at),
        at=at,
    )
    return policy.decide(evidence, settings.retrain, at=at)


def start_run(
    tx: sa.Connection,
    service: Service,
    champion: Version,
    decision: policy.Decision,
    *,
    at: datetime,
    by: str = "policy",
) -> str | None:
    """Start a retraining run in the transaction of its decision, on the incident it answers.

    Returns None when the model has an unfinished run.
    """
    incident = _incident_for(tx, champion.model)
    run_id = run.start_in(
        tx,
        service.ledger,
        champion.model,
        trigger=decision.trigger,
        reason=decision.reason,
        by=by,
        champion=champion.version,
        incident_id=incident,
        at=at,
    )
    if run_id is not None and incident is not None:
        incidents.attach_run(tx, incident, run_id)
        text = f"retraining run {run_id} started: {decision.reason}"
        incidents.add_event(tx, incident, at=at, kind="run", text=text)
    return run_id


def _watch(service: Service, champion: Version, at: datetime) -> str:
    """Why the predecessor should come back, if the watch after the promotion says so."""
    settings = service.model(champion.model)
    promoted = watch.watched(service.ledger, champion.model, champion.version, settings, at=at)
    if promoted is None:
        return ""
    spec = service.baseline(champion)[0].spec
    found = watch.look(service.registry, service.log, spec, promoted, settings, at=at)
    return found.reason if found.action == "rollback" else ""


def _announce_rollback(
    tx: sa.Connection,
    service: Service,
    champion: Version,
    decision: policy.Decision,
    context: MessageContext,
    at: datetime,
) -> None:
    finding = Finding(
        cause="rollback",
        severity="page",
        title=f"v{champion.version} disappointed; the version before it serves again",
        text=decision.reason,
        since=at,
    )
    incidents.open_incident(
        tx, service.ledger, context=context, version=champion.version, finding=finding, at=at
    )


def _context(
    service: Service, champion: Version, decision: policy.Decision, at: datetime
) -> MessageContext:
    model = champion.model
    context = service.context(model, champion, command=f"shelflife check {model} --at {iso(at)}")
    return msgspec.structs.replace(context, done=_done(decision), cost=_cost(decision))


def _promoted(service: Service, version: Version, at: datetime) -> datetime | None:
    table = schema.promotions
    query = sa.select(sa.func.max(table.c.at)).where(
        table.c.model == version.model, table.c.version == version.version, table.c.at <= at
    )
    with service.ledger.read() as tx:
        moment: datetime | None = tx.scalar(query)
    return moment


def _incident_for(tx: sa.Connection, model: str) -> int | None:
    """The unresolved incident a run of this model answers: decay first, then the oldest."""
    table = schema.incidents
    rows = tx.execute(
        sa.select(table.c.id, table.c.cause)
        .where(table.c.model == model, table.c.state != "resolved")
        .order_by(table.c.id)
    ).all()
    for cause in ("decay", "stale", "drift"):
        for row in rows:
            if row.cause == cause:
                return int(row.id)
    return None


def _done(decision: policy.Decision) -> str:
    if decision.action == "retrain":
        return f"a retraining run starts: {decision.reason}"
    return f"nothing yet: {decision.reason}"


def _cost(decision: policy.Decision) -> str:
    spent = decision.numbers.get("excess")
    return f"cost so far ≈ {spent:.2g} of a retraining run" if spent else ""


def advance(
    service: Service, model: str, *, at: datetime, wall: datetime, lease: Lease | None = None
) -> run.RunState | None:
    """Carry the model's unfinished run as far as it goes now; tell what became of it.

    Returns the run, or None when there is no unfinished one. Repeating it is safe: every step is
    idempotent, and each outcome is told once.
    """
    run_id = run.active(service.ledger, model)
    if run_id is None:
        return None
    context = run.RunContext(
        registry=service.registry,
        ledger=service.ledger,
        log=service.log,
        settings=service.model(model),
        home=service.home,
        user_folder=service.folder,
        guard=lease.guard if lease is not None else _unguarded,
    )
    state = run.advance(context, run_id, at=at, wall=wall)
    if state.state != "running":
        _tell(service, state, at)
    return state


def _unguarded(_tx: sa.Connection) -> None:
    """One process carries this run and knows it (a replay, a command line)."""


_MESSAGES = {
    "promoted": "retrain.succeeded",
    "refused": "retrain.refused",
    "waiting": "candidate.registered",
}
#: What a person can do then, for the message.
_NEXT = {
    "promoted": "nothing: v{candidate} is watched from now on; shelflife rollback {model}",
    "refused": "nothing: the champion still serves; shelflife runs --model {model}",
    "waiting": "shelflife promote {model} {candidate}; compare them in MLflow first",
    "failed": "mend what the run says, then shelflife retrain {model}",
}
#: One-off incidents that a promotion ends: what failed has been made up for.
_MENDED = ("retrain_failed", "rollback")


def _tell(service: Service, state: run.RunState, at: datetime) -> None:
    """Put the run's outcome on its incident's timeline, once; a failed run is an incident."""
    model = state.model
    champion = service.registry.by_alias(model, "champion")
    context = service.context(model, champion, command=f"shelflife runs {state.id}")
    following = _NEXT.get(state.state, "").format(model=model, candidate=state.candidate)
    context = msgspec.structs.replace(context, next=following)
    text = f"run {state.id} {state.state}: {state.outcome}"
    with service.ledger.write() as tx:
        if state.incident_id is not None and not _told(tx, state.incident_id, text):
            incidents.add_event(
                tx,
                state.incident_id,
                at=at,
                kind="run",
                text=text,
                context=context,
                message_type=_MESSAGES.get(state.state),
            )
        if state.state == "promoted":
            for cause in _MENDED:
                resolve_one_off(tx, context, cause, f"run {state.id} promoted a successor", at)
        if state.state == "failed":
            finding = Finding(
                cause="retrain_failed",
                severity="page",
                title=f"retraining failed; v{state.champion} still serves",
                text=state.outcome,
                since=at,
            )
            incidents.open_incident(
                tx, service.ledger, context=context, version=state.champion, finding=finding, at=at
            )


def resolve_one_off(
    tx: sa.Connection, context: MessageContext, cause: str, text: str, at: datetime
) -> None:
    """End the incident of something that happened once and has been made up for."""
    incident = incidents.find(tx, context.model, cause)
    if incident is not None:
        incidents.resolve(tx, incident.id, at=at, text=text, context=context)


def _told(tx: sa.Connection, incident_id: int, text: str) -> bool:
    table = schema.incident_events
    query = sa.select(table.c.id).where(table.c.incident_id == incident_id, table.c.text == text)
    return tx.execute(query).first() is not None


def grid(now: datetime, every: timedelta) -> datetime:
    """The newest moment at or before `now` on which checks of this rhythm fall."""
    whole = now.timestamp() // every.total_seconds()
    return datetime.fromtimestamp(whole * every.total_seconds(), tz=now.tzinfo)


def rhythm(service: Service, model: str) -> timedelta:
    """How often the model is checked."""
    return span(service.model(model).check_every)
