"""What a person may ask for: check, retrain, promote, roll back, decide on a run, acknowledge.

The CLI calls these directly; the API writes a row (`commands`) and the scheduler calls them.
"""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from pathlib import Path
from time import sleep

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import NotFound, ShelflifeError
from core.files import write_atomic
from core.spec import ModelSpec
from core.times import iso
from registry import promotion
from registry.versions import Version
from retrain import manual, policy, run
from retrain.gate import forced
from retrain.run import RunState
from serving import deploy
from serving.heartbeat import served_by
from shelflife import oncall
from shelflife.deploying import deploy_model
from shelflife.leases import held
from shelflife.runs import advance, tell_news
from shelflife.service import Service, wall_clock
from shelflife.tick import TickResult, decide, measure, observation, start_run, tick, watching

_POLL = 0.2  # seconds


def champion_of(service: Service, model: str, *, at: datetime) -> Version:
    """The model's champion.

    Raises:
        NotFound: no such model, or none of its versions is the champion.
    """
    if model not in service.registry.models():
        known = ", ".join(service.registry.models()) or "none yet"
        raise NotFound("model", model, f"registered models: {known}")
    champion = promotion.observe(service.registry, service.ledger, model, now=at)
    if champion is None:
        hint = f"move the alias in MLflow or run `shelflife promote {model} VERSION`"
        raise NotFound("champion of", model, hint)
    return champion


def champion_at(service: Service, model: str, *, at: datetime) -> Version:
    """The champion as of a moment: the version its recorded check judged, else the one promoted
    last by then. Reads only.

    Raises:
        NotFound: no such model, or it had no champion then.
    """
    checks, moves = schema.checks, schema.promotions
    judged = sa.select(checks.c.version).where(checks.c.model == model, checks.c.at == at)
    promoted = sa.select(moves.c.version).where(moves.c.model == model, moves.c.at <= at)
    with service.ledger.read() as tx:
        version = tx.scalar(judged) or tx.scalar(promoted.order_by(moves.c.id.desc()).limit(1))
    if version is None:
        known = ", ".join(service.registry.models()) or "none yet"
        if model in service.registry.models():
            hint = (
                f"no version was the champion at {iso(at)}; `shelflife backtest` replays a history"
            )
            raise NotFound("champion of", model, hint)
        raise NotFound("model", model, f"registered models: {known}")
    return service.registry.get(model, str(version))


def check_now(service: Service, model: str, *, at: datetime, record: bool = True) -> TickResult:
    """One check now, recorded, with its decision (which may start a run).

    With `record=False` nothing is written: what a check at that moment finds, or found.
    """
    if record:
        champion_of(service, model, at=at)
        with held(service.ledger, f"check:{model}") as lease:
            if lease is None:
                raise ShelflifeError(f"a check of {model} is running; try again in a moment")
            result = tick(service, model, at=at, lease=lease)
        if result is not None:
            return result
    champion = champion_at(service, model, at=at)
    found = measure(service, champion, at=at)
    watched = watching(service, champion, at=at)
    seen = observation(service, champion, found, watched, at=at)
    decision = decide(service, champion, found, seen, watched, at=at)
    return TickResult(check=found, decision=decision)


def retrain_now(service: Service, model: str, *, by: str, reason: str, at: datetime) -> str:
    """Start a retraining run by hand; the gate still decides. Returns the run's id.

    Raises:
        NotFound: see `champion_of`.
        ShelflifeError: a run of this model is unfinished.
    """
    champion = champion_of(service, model, at=at)
    decision = policy.Decision(
        action="retrain",
        trigger="manual",
        reason=reason or f"asked for by {by}",
    )
    with service.ledger.write() as tx:
        run_id = start_run(tx, service, champion, decision, at=at, by=by)
    if run_id is None:
        raise ShelflifeError(f"a retraining run of {model} is unfinished; see `shelflife runs`")
    return run_id


def promote_now(
    service: Service, model: str, version: str, *, by: str, reason: str, at: datetime
) -> Version:
    """Make a version the champion by a person's word; who and why are recorded.

    Raises:
        NotFound: no such model or version.
        GateRefused: the gate refused the version, and who overrides it or why is not said.
    """
    if model not in service.registry.models():
        raise NotFound("model", model, f"registered models: {service.registry.models()}")
    chosen = service.registry.get(model, version)
    waiting = _waits_for(service, model, chosen.version)
    if waiting is not None:  # the same path as any other approval, without a canary
        word = reason or f"`shelflife promote {model} {version}`"
        manual.approve(service.ledger, waiting, by=by, reason=word, at=at, direct=True)
        return carry(service, model, waiting, at=at)
    word = _overruled(service, chosen, by=by, why=reason)
    champion = promotion.observe(service.registry, service.ledger, model, now=at)
    promotion.promote(
        service.registry,
        service.ledger,
        model,
        chosen.version,
        expected=champion.version if champion else None,
        kind="forced",
        by=by,
        reason=word or reason,
        now=at,
        artifact=chosen.sha256,
    )
    return hand_over(service, model, at=at)


def _overruled(service: Service, chosen: Version, *, by: str, why: str) -> str:
    """A forced promotion in one sentence, also kept with the version and its run; empty where the
    gate has not said no."""
    if chosen.tags.get("shelflife.gate") not in ("refused", "asks"):
        return ""
    run_id = chosen.tags.get("shelflife.run_id", "")
    try:
        found = run.load(service.ledger, run_id).gate
    except NotFound:  # of another installation's ledger
        found, run_id = None, ""
    result = forced(found, by=by, why=why)
    if run_id:
        with service.ledger.write() as tx:
            text = msgspec.json.encode(result).decode()
            mine = schema.runs.c.id == run_id
            tx.execute(schema.runs.update().where(mine).values(gate=text))
    service.registry.tag(chosen, gate="forced")
    return result.reason


def _waits_for(service: Service, model: str, version: str) -> str | None:
    """The id of the run that waits for a person to approve this very version."""
    run_id = run.active(service.ledger, model)
    if run_id is None:
        return None
    found = run.load(service.ledger, run_id)
    return run_id if found.state == "waiting" and found.candidate == version else None


def carry(service: Service, model: str, run_id: str, *, at: datetime) -> Version:
    """Carry a run on until it has promoted its candidate, here or wherever it is being carried.

    Raises:
        ShelflifeError: the run ended otherwise, or is not done within a minute.
    """
    end = wall_clock() + timedelta(minutes=1)
    while wall_clock() < end:
        found = run.load(service.ledger, run_id)
        if "promote" in found.done:
            return hand_over(service, model, at=at)
        if found.finished:
            raise ShelflifeError(f"run {run_id} ended {found.state}: {found.outcome}")
        with held(service.ledger, f"run:{model}") as lease:
            if lease is not None:
                advance(service, model, at=at, wall=wall_clock(), lease=lease)
                continue
        sleep(_POLL)
    raise ShelflifeError(f"run {run_id} is still under way; follow it with `shelflife runs`")


def approve_now(service: Service, run_id: str, *, by: str, reason: str, at: datetime) -> RunState:
    """Let a run that waits for a person go on; the scheduler carries it from there.

    Raises:
        NotFound: no such run.
        ShelflifeError: it waits for nobody.
    """
    return manual.approve(service.ledger, run_id, by=by, reason=reason, at=at)


def reject_now(service: Service, run_id: str, *, by: str, reason: str, at: datetime) -> RunState:
    """Refuse the candidate of a run that waits for a person.

    Raises: see `approve_now`.
    """
    done = manual.reject(service.registry, service.ledger, run_id, by=by, reason=reason, at=at)
    tell_news(service, done.model, at=at)
    return done


def abandon_now(service: Service, run_id: str, *, by: str, reason: str, at: datetime) -> RunState:
    """Give an unfinished run up; the champion stays.

    Raises: see `retrain.manual.abandon`.
    """
    done = manual.abandon(service.registry, service.ledger, run_id, by=by, reason=reason, at=at)
    tell_news(service, done.model, at=at)
    return done


def resume_now(service: Service, run_id: str, *, at: datetime) -> RunState:
    """Carry an unfinished run as far as it goes now, as the scheduler does every second.

    Raises:
        NotFound: no such run.
        ShelflifeError: it is finished, or another process is carrying it.
    """
    found = run.load(service.ledger, run_id)
    if found.finished:
        raise ShelflifeError(f"run {run_id} is finished: {found.state}: {found.outcome}")
    with held(service.ledger, f"run:{found.model}") as lease:
        if lease is None:
            raise ShelflifeError(f"run {run_id} is being carried by another process already")
        advance(service, found.model, at=at, wall=wall_clock(), lease=lease)
    return run.load(service.ledger, run_id)


class RebuiltDataset(msgspec.Struct, frozen=True, kw_only=True):
    """A training set that was made again."""

    run: str
    file: str
    identity: str  # SHA-256 of the segments and of every row's id, time and label
    content: str  # SHA-256 of the values, the same as then
    train_rows: int
    holdout_rows: int
    segments: tuple[str, ...]


def dataset_of(service: Service, run_id: str, file: Path) -> RebuiltDataset:
    """Make a run's training set again from what its record names, and write it as Parquet: inputs,
    the target as spelled, `time`, `id`, and `part` (train or holdout).

    Raises:
        NotFound: no such run, its list of rows was not kept, or rows are gone (the segments named).
        CorruptSegment: the rows are there and hold other values.
    """
    from retrain.rebuild import rebuild, table

    state = run.load(service.ledger, run_id)
    context = service.run_context(state.model, guard=lambda tx: None)
    data = rebuild(context, run_id)
    champion = service.registry.get(state.model, state.champion)
    spec = msgspec.json.decode(service.registry.file(champion, "spec.json"), type=ModelSpec)
    buffer = io.BytesIO()
    table(data, spec).to_parquet(buffer, index=False)
    write_atomic(file, buffer.getvalue())
    account = data.account
    return RebuiltDataset(
        run=run_id,
        file=str(file),
        identity=account.identity,
        content=account.content,
        train_rows=len(data.train),
        holdout_rows=len(data.holdout),
        segments=account.segments,
    )


def rollback_now(service: Service, model: str, *, by: str, reason: str, at: datetime) -> Version:
    """Go back to the version before, `previous`.

    Raises:
        NotFound: there is none.
    """
    champion_of(service, model, at=at)
    promotion.rollback(service.registry, service.ledger, model, by=by, reason=reason, now=at)
    return hand_over(service, model, at=at)


def hand_over(service: Service, model: str, *, at: datetime) -> Version:
    """Prepare the champion for the workers now, instead of at the next poll."""
    deploy_model(service, model, now=at)
    return champion_of(service, model, at=at)


def served(service: Service, model: str, version: str, *, within: timedelta) -> bool | None:
    """Whether every live worker answers with the version; None when no worker is live."""
    if not served_by(service.ledger, model, version, now=wall_clock()).workers:
        return None
    return deploy.wait_served(service.ledger, model, version, timeout=within).ok


def acknowledge_now(
    service: Service, incident: int, *, by: str, at: datetime, reason: str = ""
) -> None:
    """Somebody looks after it: no repeats until it is resolved.

    Raises:
        NotFound: no such incident.
    """
    oncall.acknowledge(
        service.ledger, incident, by=by, at=at, reason=reason, settings=service.settings
    )
