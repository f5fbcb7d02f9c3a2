"""Carrying retraining runs forward, and telling what became of them, once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Lease
from core.settings import span
from monitor.alert import incidents
from monitor.alert.messages import MessageContext
from monitor.results import Finding
from retrain import run
from retrain.cleaning import clean_runs
from serving.cleaning import clean_store
from shelflife.service import Service, wall_clock
from shelflife.story import watched_from
from shelflife.tick import resolve_one_off

_LOOK_EVERY = timedelta(seconds=1)  # at whether somebody ended the run while its trainer works


def advance(
    service: Service, model: str, *, at: datetime, wall: datetime, lease: Lease | None = None
) -> run.RunState | None:
    """Carry the model's unfinished run as far as it goes now; tell what became of it.

    Returns the run, or None when there is no unfinished one. Repeating it is safe: every step is
    idempotent, and each outcome is told once.
    """
    run_id = run.active(service.ledger, model)
    if run_id is None:
        tell_news(service, model, at=at)  # a process that ended a run died before it told
        return None
    context = service.run_context(
        model,
        guard=lease.guard if lease is not None else _unguarded,
        beat=_alive(service, run_id),
    )
    state = run.resume(context, model, at=at, wall=wall)
    tell_news(service, model, at=at)
    return state


def _alive(service: Service, run_id: str) -> Callable[[], None]:
    """Ends the trainer when its run has been ended."""
    looked = wall_clock()

    def beat() -> None:
        nonlocal looked
        if wall_clock() - looked >= _LOOK_EVERY:
            looked = wall_clock()
            with service.ledger.read() as tx:
                run.assert_active(tx, run_id)

    return beat


def _unguarded(_tx: sa.Connection) -> None:
    """One process carries this run and knows it (a replay, a command line)."""


def tell_news(service: Service, model: str, *, at: datetime) -> None:
    """Tell what became of the model's runs, where nobody has been told yet."""
    for run_id in run.untold(service.ledger, model):
        _tell(service, run.load(service.ledger, run_id), at)


_MESSAGES = {
    "promoted": "retrain.succeeded",
    "refused": "retrain.refused",
    "waiting": "candidate.registered",
}
#: What a person can do then, for the message.
_NEXT = {
    "promoted": "nothing: v{candidate} is watched from now on; shelflife rollback {model}",
    "refused": "nothing: the champion still serves; shelflife runs --model {model}",
    "waiting": "shelflife runs approve {run}, or reject; compare them in MLflow first",
    "failed": "mend what the run says, then shelflife retrain {model}",
}
#: One-off incidents that a promotion ends: what failed has been made up for.
_MENDED = ("retrain_failed", "promotion_failed", "rollback", "rollback_advised")
#: Steps of a run in which what fails is its promotion.
_PROMOTING = ("shadow", "canary", "promote", "serve")


def _tell(service: Service, state: run.RunState, at: datetime) -> None:
    """Put the run's state on its incident's timeline, once; a failed run is an incident."""
    model = state.model
    champion = service.registry.by_alias(model, "champion")
    context = service.context(model, champion, command=f"shelflife runs {state.id}")
    following = _NEXT.get(state.state, "").format(
        model=model, candidate=state.candidate, run=state.id
    )
    context = msgspec.structs.replace(context, next=following)
    with service.ledger.write() as tx:
        if not run.mark_told(tx, state):
            return  # another process told it
        if state.incident_id is not None:
            incidents.add_event(
                tx,
                state.incident_id,
                at=at,
                kind="run",
                text=f"run {state.id} {state.state}: {state.outcome or _asked(state)}",
                context=context,
                message_type=_MESSAGES.get(state.state),
            )
        if state.state == "promoted":
            if state.incident_id is not None:
                text = watched_from(service.model(model), state.candidate, state.champion)
                incidents.add_event(tx, state.incident_id, at=at, kind="watched", text=text)
            for cause in _MENDED:
                resolve_one_off(tx, context, cause, f"run {state.id} promoted a successor", at)
        if state.state == "failed":
            _page(tx, service, state, context, at)
        elif state.state == "waiting" and not _heard_of(tx, state):
            _ask(tx, service, state, context, at)
        if state.finished:
            resolve_one_off(tx, context, "approval", f"run {state.id} {state.state}", at)


def _heard_of(tx: sa.Connection, state: run.RunState) -> bool:
    """Whether somebody hears of the run by the incident that it answers."""
    if state.incident_id is None:
        return False
    return incidents.get(tx, state.incident_id).state in ("open", "acknowledged")


def _asked(state: run.RunState) -> str:
    if state.gate is not None and state.gate.asks:
        return f"version {state.candidate} waits for a person: {state.gate.reason}"
    return f"version {state.candidate} passed the gate and waits for a person"


def _page(
    tx: sa.Connection,
    service: Service,
    state: run.RunState,
    context: MessageContext,
    at: datetime,
) -> None:
    step = "retraining" if state.step not in _PROMOTING else "the promotion"
    finding = Finding(
        cause="retrain_failed" if state.step not in _PROMOTING else "promotion_failed",
        severity="page",
        title=f"{step} failed; v{state.champion} still serves",
        text=state.outcome,
        since=at,
    )
    incidents.open_incident(
        tx, service.ledger, context=context, version=state.champion, finding=finding, at=at,
        of=state.incident_id,
    )  # fmt: skip


def _ask(
    tx: sa.Connection,
    service: Service,
    state: run.RunState,
    context: MessageContext,
    at: datetime,
) -> None:
    """A ticket for a run that waits and answers no incident; another has its own to be told on."""
    title = f"v{state.candidate} passed the gate and waits for approval"
    finding = Finding(cause="approval", severity="ticket", title=title, text=title, since=at)
    number = incidents.open_incident(
        tx, service.ledger, context=context, version=state.champion, finding=finding, at=at,
        of=state.incident_id,
    )  # fmt: skip
    incidents.attach_run(tx, number, state.id)
    runs = schema.runs  # what becomes of it is told under the same id
    tx.execute(runs.update().where(runs.c.id == state.id).values(incident_id=number))


def clean(service: Service, *, now: datetime) -> list[str]:
    """Remove work folders and prepared versions that nobody needs any more; returns their names.

    The longest `retrain.keep_runs` of all models decides.
    """
    every = [service.settings.defaults, *service.settings.models.values()]
    keep = max(span(settings.retrain.keep_runs) for settings in every)
    return [
        *clean_runs(service.ledger, service.home, now=now, keep=keep),
        *clean_store(service.home, now=now, keep=keep),
    ]
