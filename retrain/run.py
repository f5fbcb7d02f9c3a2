"""One retraining run: a state machine in the ledger that survives a kill at any point.

    dataset ─ train ─ gate ─ register ─ shadow ─ approve ─ canary ─ promote ─ serve ─► promoted
       │        │                │         │        │         │        │
    refused   failed          refused   refused  waiting   refused  refused
   (too few            (by the gate)   (proven   (mode    (proven   (somebody moved
      rows)                              worse)  approve)   worse)   the champion)

Each step is a row of `run_steps`; its result is committed there once it is done, and a step that is
done is never done again. A step that was cut off is repeated, and every step is written so that
repeating it changes nothing (`retrain.steps`, `retrain.rollout`). At most one run per model is
unfinished: the unique `runs.active` column says so. Whoever writes holds a lease, and asserts in
the same transaction that it does and that nobody has ended the run (`fence`). See docs/runs.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import LeaseLost, NotFound
from core.failpoints import fail_point
from core.ledger import Ledger
from core.settings import ModelSettings
from core.times import micros
from monitor.log.records import SampleLog
from retrain.gate import GateResult

if TYPE_CHECKING:
    from registry.versions import Registry

State = Literal["running", "waiting", "promoted", "refused", "failed", "abandoned"]
StepName = Literal[
    "dataset", "train", "gate", "register", "shadow", "approve", "canary", "promote", "serve"
]
STEPS: tuple[StepName, ...] = (
    "dataset", "train", "gate", "register", "shadow", "approve", "canary", "promote", "serve",
)  # fmt: skip
T = TypeVar("T")


class RunState(Struct, frozen=True, kw_only=True):
    """Where a run stands."""

    id: str
    model: str
    trigger: str
    reason: str
    by: str
    state: State
    champion: str  # the version it competes with
    candidate: str | None
    started: datetime
    incident_id: int | None
    outcome: str  # how it ended, one sentence; empty while unfinished
    gate: GateResult | None
    done: tuple[StepName, ...]

    @property
    def step(self) -> StepName | None:
        """The first step that is not done."""
        return next((name for name in STEPS if name not in self.done), None)

    @property
    def finished(self) -> bool:
        return self.state not in ("running", "waiting")


#: Does one step at a moment of the model's time and of the wall's; False when it has to wait.
Step = Callable[["RunContext", RunState, datetime, datetime], bool]


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run works with; made anew by every process that advances one.

    `tell(kind, text)` hears of progress after it was committed: kind is a step's name, `waiting`,
    or the state the run ended in. `guard` runs inside every transaction that writes (a lease's
    guard, so that a paused process cannot overwrite its successor) and `beat` about twice a second
    while the trainer works (to renew that lease).
    """

    registry: Registry
    ledger: Ledger
    log: SampleLog
    settings: ModelSettings
    home: Path
    tell: Callable[[str, str], None] = lambda kind, text: None
    user_folder: Path | None = None  # where a user's trainer module lies
    threads: int = 0  # that the trainer may use; 0 takes half the cores
    #: Steps done otherwise than by `retrain.steps`: a replay trains in its own process, on no disk.
    steps: Mapping[StepName, Step] = field(default_factory=dict)
    guard: Callable[[sa.Connection], None] = lambda tx: None
    beat: Callable[[], None] = lambda: None

    def folder(self, run_id: str) -> Path:
        """The run's work folder."""
        return self.home / "runs" / run_id


def start(
    ledger: Ledger,
    model: str,
    *,
    trigger: str,
    reason: str,
    by: str,
    champion: str,
    incident_id: int | None = None,
    at: datetime,
) -> str | None:
    """Begin a run, unless the model has an unfinished one; returns its id, or None."""
    with ledger.write() as tx:
        return start_in(
            tx,
            ledger,
            model,
            trigger=trigger,
            reason=reason,
            by=by,
            champion=champion,
            incident_id=incident_id,
            at=at,
        )


def start_in(
    tx: sa.Connection,
    ledger: Ledger,
    model: str,
    *,
    trigger: str,
    reason: str,
    by: str,
    champion: str,
    incident_id: int | None = None,
    at: datetime,
) -> str | None:
    """`start` in the caller's transaction, so that the decision and its run commit together."""
    table = schema.runs
    before = tx.scalar(sa.select(sa.func.count()).where(table.c.model == model))
    # No randomness: the same history replayed gives the same ids.
    run_id = hashlib.sha256(f"{model} {micros(at)} {before}".encode()).hexdigest()[:12]
    added = tx.execute(
        ledger.insert_ignore(table).values(
            id=run_id,
            model=model,
            trigger=trigger,
            reason=reason,
            by=by,
            state="running",
            champion=champion,
            started=at,
            updated=at,
            incident_id=incident_id,
            active=model,
            told="",
        )
    )
    return run_id if added.rowcount else None


def load(ledger: Ledger, run_id: str) -> RunState:
    """Where a run stands now.

    Raises:
        NotFound: no such run.
    """
    runs, steps = schema.runs, schema.run_steps
    with ledger.read() as tx:
        row = tx.execute(sa.select(runs).where(runs.c.id == run_id)).first()
        query = sa.select(steps.c.name).where(steps.c.run_id == run_id, steps.c.state == "done")
        done = set(tx.scalars(query))
    if row is None:
        raise NotFound("run", run_id)
    return RunState(
        id=row.id,
        model=row.model,
        trigger=row.trigger,
        reason=row.reason,
        by=row.by,
        state=row.state,
        champion=row.champion,
        candidate=row.candidate,
        started=row.started,
        incident_id=row.incident_id,
        outcome=row.outcome,
        gate=msgspec.json.decode(row.gate, type=GateResult) if row.gate else None,
        done=tuple(name for name in STEPS if name in done),
    )


def active(ledger: Ledger, model: str) -> str | None:
    """The id of the model's unfinished run."""
    table = schema.runs
    with ledger.read() as tx:
        found: str | None = tx.scalar(sa.select(table.c.id).where(table.c.active == model))
    return found


def unsettled(ledger: Ledger) -> list[str]:
    """Models with a run that is unfinished, or whose end nobody has been told of yet."""
    table = schema.runs
    news = (table.c.state != "running") & (table.c.told != table.c.state)
    query = sa.select(table.c.model).where(sa.or_(table.c.active.is_not(None), news)).distinct()
    with ledger.read() as tx:
        return sorted(tx.scalars(query))


def untold(ledger: Ledger, model: str) -> list[str]:
    """Ids of the model's runs whose present state nobody has been told of, oldest first.

    Told is what `mark_told` committed together with the message: a process that died in between
    leaves the run here.
    """
    table = schema.runs
    news = (table.c.state != "running") & (table.c.told != table.c.state)
    query = sa.select(table.c.id).where(table.c.model == model, news)
    with ledger.read() as tx:
        return list(tx.scalars(query.order_by(table.c.started, table.c.id)))


def mark_told(tx: sa.Connection, run: RunState) -> bool:
    """Note, in the transaction that writes the message, that this state is told; False if it
    was told already, or is not the run's state any more."""
    table = schema.runs
    fresh = (table.c.id == run.id) & (table.c.state == run.state) & (table.c.told != run.state)
    return bool(tx.execute(table.update().where(fresh).values(told=run.state)).rowcount)


def resume(context: RunContext, model: str, *, at: datetime, wall: datetime) -> RunState | None:
    """Advance the model's unfinished run, if there is one: what a restarted process does first."""
    run_id = active(context.ledger, model)
    return None if run_id is None else advance(context, run_id, at=at, wall=wall)


def advance(context: RunContext, run_id: str, *, at: datetime, wall: datetime) -> RunState:
    """Do the steps that can be done now; returns when the run is finished or must wait.

    Args:
        at: the moment in the model's time (event time in a replay).
        wall: the moment on the wall, which workers' heartbeats are judged by.

    Raises:
        RegistryError: MLflow is out of reach; the step is repeated at the next call.
        LeaseLost: another process took the run over.
    """
    from retrain import steps

    run = load(context.ledger, run_id)
    while not run.finished and steps.take(context, run, at=at, wall=wall):
        run = load(context.ledger, run_id)
    return load(context.ledger, run_id)


def finish(context: RunContext, run: RunState, state: State, outcome: str, *, at: datetime) -> None:
    """End a run, once; the model may have another from then on."""
    fail_point("before_finish")
    with context.ledger.write() as tx:
        context.guard(tx)
        ended = end_in(tx, run.id, state, outcome, at=at)
    fail_point("after_finish")
    if ended:
        context.tell(state, outcome)


def end_in(tx: sa.Connection, run_id: str, state: State, outcome: str, *, at: datetime) -> bool:
    """End a run in the caller's transaction; False if it has ended already."""
    table = schema.runs
    ended = tx.execute(
        table.update()
        .where(table.c.id == run_id, table.c.active.is_not(None))
        .values(state=state, outcome=outcome, updated=at, finished=at, active=None)
    )
    return bool(ended.rowcount)


def fence(context: RunContext, run_id: str) -> Callable[[sa.Connection], None]:
    """What every write of a run asserts in its transaction: the lease is held, the run not ended.

    The assertion raises LeaseLost: another process, or a person, has taken the run over.
    """

    def assert_ours(tx: sa.Connection) -> None:
        context.guard(tx)
        assert_active(tx, run_id)

    return assert_ours


def assert_active(tx: sa.Connection, run_id: str) -> None:
    """Assert that nobody has ended the run.

    Raises:
        LeaseLost: somebody has.
    """
    query = sa.select(schema.runs.c.active).where(schema.runs.c.id == run_id)
    # FOR UPDATE: on PostgreSQL a person who ends the run waits until this write is over.
    if tx.scalar(query.with_for_update()) is None:
        raise LeaseLost(f"run {run_id} has been ended meanwhile")


# --- the ledger's side of one step ---------------------------------------------------------------


def begin_step(context: RunContext, run: RunState, name: StepName, *, at: datetime) -> int:
    """Note that a step is tried (again); returns how many times it was tried before."""
    table = schema.run_steps
    key = (table.c.run_id == run.id) & (table.c.name == name)
    with context.ledger.write() as tx:
        fence(context, run.id)(tx)
        tx.execute(
            context.ledger.insert_ignore(table).values(
                run_id=run.id, name=name, state="running", started=at
            )
        )
        before = int(tx.scalar(sa.select(table.c.attempts).where(key)) or 0)
        tx.execute(table.update().where(key).values(state="running", attempts=before + 1))
    fail_point(f"before_{name}")
    return before


def end_step(
    context: RunContext,
    run: RunState,
    name: StepName,
    result: Struct,
    *,
    at: datetime,
    **changes: Any,
) -> None:
    """Commit a step's result, together with what it changes of the run's own row."""
    table, runs = schema.run_steps, schema.runs
    key = (table.c.run_id == run.id) & (table.c.name == name)
    text = msgspec.json.encode(result).decode()
    with context.ledger.write() as tx:
        fence(context, run.id)(tx)
        tx.execute(
            table.update().where(key).values(state="done", finished=at, result=text, error="")
        )
        tx.execute(runs.update().where(runs.c.id == run.id).values(updated=at, **changes))
    fail_point(f"done_{name}")


def note_step(
    context: RunContext,
    run: RunState,
    name: StepName,
    *,
    at: datetime,
    state: State = "running",
    error: str = "",
    result: str | None = None,
    counts: bool = True,
) -> None:
    """Note why a step is not done yet; `state` is the run's. A try that does not count against
    the step (MLflow was out of reach, it waits for somebody) is taken off its attempts."""
    table, runs = schema.run_steps, schema.runs
    key = (table.c.run_id == run.id) & (table.c.name == name)
    values: dict[str, Any] = {"error": error} | ({} if result is None else {"result": result})
    if not counts:
        values["attempts"] = table.c.attempts - 1
    with context.ledger.write() as tx:
        fence(context, run.id)(tx)
        tx.execute(table.update().where(key).values(**values))
        tx.execute(runs.update().where(runs.c.id == run.id).values(updated=at, state=state))


def result_of(ledger: Ledger, run_id: str, name: StepName, kind: type[T]) -> T:
    """What a finished step left in the ledger.

    Raises:
        NotFound: the step has left nothing.
    """
    text = step_text(ledger, run_id, name)
    if not text:
        raise NotFound("result of step", f"{run_id} {name}")
    return msgspec.json.decode(text, type=kind)


def step_text(ledger: Ledger, run_id: str, name: StepName) -> str:
    """The raw result of a step; empty when there is none."""
    table = schema.run_steps
    query = sa.select(table.c.result).where(table.c.run_id == run_id, table.c.name == name)
    with ledger.read() as tx:
        return str(tx.scalar(query) or "")


def step_error(ledger: Ledger, run_id: str, name: StepName) -> str:
    """What a step said when it could not be done; empty when it said nothing."""
    table = schema.run_steps
    query = sa.select(table.c.error).where(table.c.run_id == run_id, table.c.name == name)
    with ledger.read() as tx:
        return str(tx.scalar(query) or "")
