"""A person's word on a run: approve, reject, abandon. Who and why is part of the record.

None of them does the run's work. An approval is written into the run's row, and the run goes on by
the same promotion, with the same checks, as one that nobody had to approve.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import InputError, RegistryError, ShelflifeError
from core.ledger import Ledger
from registry import promotion
from registry.turn import alone
from retrain import run as runs
from retrain.gate import forced
from retrain.rollout import Approved
from retrain.run import RunState, State

if TYPE_CHECKING:
    from registry.versions import Registry


def approve(
    ledger: Ledger, run_id: str, *, by: str, reason: str, at: datetime, direct: bool = False
) -> RunState:
    """Let a waiting run go on to its canary and its promotion.

    Where the gate could not decide, the person decides in its place: the run's result says that it
    was forced, by whom and why, and its promotion counts as theirs.

    Args:
        direct: without the canary.

    Raises:
        NotFound: no such run.
        InputError: nobody is named.
        GateRefused: the gate could not decide, and no reason is given.
        ShelflifeError: the run does not wait for anybody.
    """
    run = _waiting(ledger, run_id, by)
    values: dict[str, Any] = {"state": "running", "updated": at}
    if run.gate is not None and run.gate.asks:
        result = forced(run.gate, by=by, why=reason)
        values["gate"] = msgspec.json.encode(result).decode()
    word = msgspec.json.encode(Approved(by=by, reason=reason, direct=direct)).decode()
    table, steps = schema.runs, schema.run_steps
    with ledger.write() as tx:
        still = (table.c.id == run_id) & (table.c.state == "waiting")
        if not tx.execute(table.update().where(still).values(**values)).rowcount:
            raise ShelflifeError(f"run {run_id} was ended meanwhile; see `shelflife runs {run_id}`")
        step = (steps.c.run_id == run_id) & (steps.c.name == "approve")
        tx.execute(
            steps.update().where(step).values(state="done", finished=at, result=word, error="")
        )
    return runs.load(ledger, run.id)


def reject(
    registry: Registry, ledger: Ledger, run_id: str, *, by: str, reason: str, at: datetime
) -> RunState:
    """Refuse the candidate of a waiting run; it stays registered, without an alias.

    Raises: see `approve`, and RegistryError: MLflow cannot say whether the candidate is champion.
    """
    run = _waiting(ledger, run_id, by)
    said = f"{by} rejected version {run.candidate}" + (f": {reason}" if reason else "")
    return _end(registry, ledger, run, "refused", said, at)


def abandon(
    registry: Registry, ledger: Ledger, run_id: str, *, by: str, reason: str, at: datetime
) -> RunState:
    """Give an unfinished run up, whatever it is doing; the champion stays.

    The process that carries the run finds out at its next write, or while its trainer works.

    Raises:
        NotFound: no such run.
        InputError: nobody is named.
        ShelflifeError: the run is finished, or its candidate is the champion already.
        NotReady: a promotion is under way; ask again in a minute.
        RegistryError: MLflow cannot say whether the candidate is champion.
    """
    run = runs.load(ledger, run_id)
    _named(by)
    if run.finished:
        raise ShelflifeError(f"run {run_id} is finished already: {run.state}: {run.outcome}")
    said = f"abandoned by {by}" + (f": {reason}" if reason else "")
    return _end(registry, ledger, run, "abandoned", said, at)


def _end(
    registry: Registry, ledger: Ledger, run: RunState, state: State, outcome: str, at: datetime
) -> RunState:
    with alone(ledger, run.model):  # no promotion of ours comes between
        run = runs.load(ledger, run.id)
        if run.candidate is not None:
            _tidy(registry, ledger, run)
        with ledger.write() as tx:
            runs.end_in(tx, run.id, state, outcome, at=at)
    return runs.load(ledger, run.id)


def _tidy(registry: Registry, ledger: Ledger, run: RunState) -> None:
    """Take back what the run left in MLflow; its candidate must not be champion."""
    candidate = str(run.candidate)
    try:
        champion = registry.by_alias(run.model, "champion")
        if champion is not None and champion.version == candidate:
            raise ShelflifeError(
                f"version {candidate} of run {run.id} is the champion already; the way back is "
                f"`shelflife rollback {run.model}`"
            )
        promotion.withdraw(registry, ledger, run.model, candidate, run.id)
    except RegistryError:
        if _may_have_moved(ledger, run):
            raise


def _may_have_moved(ledger: Ledger, run: RunState) -> bool:
    """Whether the run has ever begun to move the alias, or somebody was asked to."""
    table = schema.run_steps
    begun = table.c.name.in_(("promote", "approve"))
    with ledger.read() as tx:
        query = sa.select(table.c.name).where(table.c.run_id == run.id, begun)
        return tx.execute(query).first() is not None


def _waiting(ledger: Ledger, run_id: str, by: str) -> RunState:
    run = runs.load(ledger, run_id)
    _named(by)
    if run.state != "waiting":
        raise ShelflifeError(
            f"run {run_id} is {run.state}{f': {run.outcome}' if run.outcome else ''}; only a run "
            "that waits for a person can be approved or rejected"
        )
    return run


def _named(by: str) -> None:
    if not by.strip():
        raise InputError("by", by, "who says so")
