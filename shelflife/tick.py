"""One pass of the loop for one model at one moment: check, tell, decide, and start a run.

`tick(service, model, at=…)` is the same code whether the clock is real (the scheduler), accelerated
(the demo) or historical. It does the I/O; what it finds and decides comes from pure functions
(`monitor.check.run_check`, `retrain.policy.decide`).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import Conflict
from core.ledger import Lease
from core.settings import span
from core.times import iso
from monitor import check as checks
from monitor import estimates, lifetimes, profiles, scores
from monitor.alert import incidents, signs
from monitor.alert.messages import MessageContext
from monitor.log.labels import activity
from monitor.results import CheckResult, Finding, WindowScore
from monitor.verdict import judged_causes
from registry import promotion
from registry.promotion import observe
from retrain import evidence as evidences
from retrain import observing, policy, run, watch
from retrain.probe import Observation
from shelflife import foresight, story
from shelflife.asking import asking
from shelflife.service import Service

if TYPE_CHECKING:
    from registry.versions import Version

#: The promotion that is being watched, if one is, and what the watch says.
Watching = tuple[watch.Watched | None, watch.Judgement]
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
    foresight.complete(service, version, evidence, history, at=at)
    facts = checks.ModelFacts(
        version=version.version,
        registered=baseline.created,
        promoted=_promoted(service, version, at),
    )
    from shelflife.accepting import in_force

    return checks.run_check(
        baseline,
        reference,
        evidence,
        history,
        facts,
        settings,
        at=at,
        predict=asking(service, version, baseline.spec),
        accepted=in_force(service, version, at=at),
    )


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
    watched = watching(service, champion, at=at)
    seen = observation(service, champion, result, watched, at=at)
    decision = decide(service, champion, result, seen, watched, at=at)
    context = _context(service, champion, decision, at)
    past = _rescore(service, champion, result, at)
    points = foresight.lived(service, champion, result, past, at=at)
    with service.ledger.write() as tx:
        if lease is not None:
            lease.guard(tx)
        check_id = checks.record(tx, result)
        profiles.keep(tx, model, champion.version, service.baseline(champion)[0].columns)
        if past is not None:
            scores.record(tx, service.ledger, past)
        estimates.record(tx, service.ledger, result)
        estimates.settle(tx, model, at=at)
        lifetimes.record(tx, service.ledger, model, points, at=at)
        if seen is not None:
            observing.record(tx, service.ledger, model, champion.version, seen)
        changes = incidents.apply(
            tx,
            service.ledger,
            context=context,
            version=champion.version,
            findings=signs.findings(result),
            signs=signs.first_signs(result),
            at=at,
            checked=judged_causes(result, service.model(model).min_rows),
        )
        story.watch_over(tx, champion, service.model(model), at=at)
        run_id = None
        if decision.action == "retrain":
            run_id = start_run(tx, service, champion, decision, at=at)
        evidences.record(
            tx, model, champion.version, decision, at=at, check_id=check_id, run_id=run_id
        )
        if decision.action == "rollback":
            _announce_rollback(tx, service, champion, decision, context, at)
        elif decision.trigger == "watch":
            _advise_rollback(tx, service, champion, decision, context, at)
    if decision.action == "rollback":  # if we die before it, the next tick decides it again
        with suppress(Conflict):  # a person was faster: their champion stays
            promotion.rollback(
                service.registry, service.ledger, model,
                by="watch", reason=decision.reason, now=at, champion=champion.version,
            )  # fmt: skip
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
    metric, late = checks.chosen_metric(spec, settings), foresight.late(result)
    return scores.rescore(service.ledger, service.log, spec, metric, settings, at=at, late=late)


def observation(
    service: Service, champion: Version, result: CheckResult, watched: Watching, *, at: datetime
) -> Observation | None:
    """What the labels that are new since the last observation say, if it is time for the next.

    Rows of a broken feed teach nothing and are not judged: they wait until it is whole again.
    """
    if not service.observes(champion.model):
        return None
    settings = service.model(champion.model)
    baseline, reference = service.baseline(champion)
    metric = settings.metric or baseline.spec.metric
    expected = observing.expected_loss(baseline, metric)
    if expected is None or result.state == "broken_feed":
        return None
    refused = evidences.refusals(service.ledger, champion.model, champion.version, at=at)
    fresh = refused.fresh
    seen = observing.look(
        service.ledger,
        service.log,
        baseline,
        reference,
        champion.version,
        settings,
        promoted=_promoted(service, champion, at),
        normal=observing.Normal(
            expected=expected,
            refused_at=refused.at,
            fresh=fresh**2 if fresh is not None and metric == "rmse" else fresh,
        ),
        eager=result.state == "decaying",
        learned=service.learned,
        at=at,
    )
    harm = watched[1].harm
    if seen is None or harm is None:
        return seen
    return msgspec.structs.replace(seen, brought=-harm)


def decide(
    service: Service,
    champion: Version,
    result: CheckResult,
    seen: Observation | None,
    watched: Watching,
    *,
    at: datetime,
) -> policy.Decision:
    """What the policy says to a check's result; reads, and writes nothing.

    Args:
        seen: the observation of this moment, if there is one.
    """
    settings = service.model(champion.model)
    baseline, _ = service.baseline(champion)
    promoted, found = watched
    harmful = found.action == "rollback"
    evidence = evidences.gather(
        service.ledger,
        service.log,
        result,
        settings,
        trained_until=baseline.trained_until,
        promoted=_promoted(service, champion, at),
        expected=observing.expected_loss(baseline, settings.metric or baseline.spec.metric),
        seen=seen,
        rollback=found.reason if harmful else "",
        at=at,
    )
    decision = policy.decide(evidence, settings.retrain, at=at)
    if decision.action != "rollback" or promoted is None or not promoted.by_a_person:
        return decision
    if settings.retrain.rollback_of_people:
        return decision
    who = promoted.by if promoted.kind == "forced" else "a person"
    return msgspec.structs.replace(
        decision,
        action="ask",
        reason=f"{found.reason}; {who} promoted it, so a person decides",
        would_change="`shelflife rollback`, or retrain.rollback_of_people: true",
    )


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
    incident = story.answered_by_a_run(tx, champion.model)
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


def watching(service: Service, champion: Version, *, at: datetime) -> Watching:
    """The promotion that is being watched, if one is, and what the watch says of it."""
    settings = service.model(champion.model)
    promoted = watch.watched(service.ledger, champion.model, champion.version, settings, at=at)
    if promoted is None:
        return None, watch.Judgement(action="wait", reason="no promotion is being watched")
    spec = service.baseline(champion)[0].spec
    return promoted, watch.look(service.registry, service.log, spec, promoted, settings, at=at)


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
        tx, service.ledger, context=context, version=champion.version, finding=finding, at=at,
        of=story.behind(tx, champion),
    )  # fmt: skip


def _advise_rollback(
    tx: sa.Connection,
    service: Service,
    champion: Version,
    decision: policy.Decision,
    context: MessageContext,
    at: datetime,
) -> None:
    """Tell, and ask: the rollback is a person's to decide here."""
    finding = Finding(
        cause="rollback_advised",
        severity="page",
        title=f"v{champion.version} disappoints; its predecessor would lose less",
        text=decision.reason,
        since=at,
    )
    advice = msgspec.structs.replace(context, next=f"shelflife rollback {champion.model}")
    incidents.open_incident(
        tx, service.ledger, context=advice, version=champion.version, finding=finding, at=at,
        of=story.behind(tx, champion),
    )  # fmt: skip


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


def _done(decision: policy.Decision) -> str:
    if decision.action == "retrain":
        return f"a retraining run starts: {decision.reason}"
    return f"nothing yet: {decision.reason}"


def _cost(decision: policy.Decision) -> str:
    spent = decision.numbers.get("excess")
    return f"cost so far ≈ {spent:.2g} of a retraining run" if spent else ""


def resolve_one_off(
    tx: sa.Connection, context: MessageContext, cause: str, text: str, at: datetime
) -> None:
    """End the incident of something that happened once and has been made up for."""
    incident = incidents.find(tx, context.model, cause)
    if incident is not None:
        incidents.resolve(tx, incident.id, at=at, text=text, context=context)


def grid(now: datetime, every: timedelta) -> datetime:
    """The newest moment at or before `now` on which checks of this rhythm fall."""
    whole = now.timestamp() // every.total_seconds()
    return datetime.fromtimestamp(whole * every.total_seconds(), tz=now.tzinfo)


def rhythm(service: Service, model: str) -> timedelta:
    """How often the model is checked."""
    return span(service.model(model).check_every)
