"""What people asked for through the API: one ledger row each, carried out by the scheduler.

Serving workers import this file to write requests down, so what carries them out is imported where
it is used: it would cost a worker a third of its start.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core import schema
from core.errors import InputError, ShelflifeError
from core.ledger import Ledger
from shelflife.service import Service

#: The arguments each action takes.
ACTIONS: dict[str, tuple[str, ...]] = {
    "check": (),
    "retrain": (),
    "promote": ("version",),
    "rollback": (),
    "approve": ("run",),
    "reject": ("run",),
    "abandon": ("run",),
    "acknowledge": ("incident",),
    "accept": (),
    "report": ("subject",),
}


def ask(
    ledger: Ledger,
    model: str,
    action: str,
    arguments: dict[str, Any],
    *,
    by: str,
    reason: str,
    now: datetime,
) -> int:
    """Write a request down; returns its id, under which its outcome can be read.

    Raises:
        InputError: an unknown action, or a missing argument.
    """
    if action not in ACTIONS:
        raise InputError("action", action, f"one of {sorted(ACTIONS)}")
    for name in ACTIONS[action]:
        if not isinstance(arguments.get(name), str | int) or not str(arguments[name]):
            raise InputError(name, arguments.get(name), f"the {name} to {action}")
    with ledger.write() as tx:
        added = tx.execute(
            schema.commands.insert().values(
                model=model,
                action=action,
                arguments=json.dumps({name: arguments[name] for name in ACTIONS[action]}),
                by=by,
                reason=reason,
                requested=now,
                state="asked",
            )
        )
        return int(added.inserted_primary_key[0])  # type: ignore[index]


def obey(service: Service, *, now: datetime) -> int:
    """Carry out everything that was asked for, in order; returns how many.

    A command that was running when its process died is failed, not repeated: its effect can be
    seen, and asking again is one click.
    """
    table = schema.commands
    with service.ledger.write() as tx:
        stale = table.update().where(table.c.state == "running")
        tx.execute(stale.values(state="failed", result="interrupted; ask again", finished=now))
        rows = tx.execute(sa.select(table).where(table.c.state == "asked").order_by(table.c.id))
        waiting = rows.all()
    for row in waiting:
        _mark(service, row.id, state="running")
        try:
            result = _DO[row.action](service, row, json.loads(row.arguments), now)
            _mark(service, row.id, state="done", result=result, finished=now)
        except ShelflifeError as error:
            _mark(service, row.id, state="failed", result=str(error), finished=now)
    return len(waiting)


def _mark(service: Service, identity: int, **values: Any) -> None:
    table = schema.commands
    with service.ledger.write() as tx:
        tx.execute(table.update().where(table.c.id == identity).values(**values))


def _check(service: Service, row: Any, _arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    result = actions.check_now(service, row.model, at=now)
    return f"{result.check.state}: {result.check.reason}"


def _retrain(service: Service, row: Any, _arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    run = actions.retrain_now(service, row.model, by=row.by, reason=row.reason, at=now)
    return f"run {run} started"


def _promote(service: Service, row: Any, arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    chosen = actions.promote_now(
        service, row.model, str(arguments["version"]), by=row.by, reason=row.reason, at=now
    )
    return f"version {chosen.version} is the champion"


def _rollback(service: Service, row: Any, _arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    chosen = actions.rollback_now(service, row.model, by=row.by, reason=row.reason, at=now)
    return f"version {chosen.version} is the champion again"


def _approve(service: Service, row: Any, arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    run = _run_of(service, row.model, arguments)
    done = actions.approve_now(service, run, by=row.by, reason=row.reason, at=now)
    return f"run {done.id} goes on with version {done.candidate}"


def _reject(service: Service, row: Any, arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    run = _run_of(service, row.model, arguments)
    return actions.reject_now(service, run, by=row.by, reason=row.reason, at=now).outcome


def _abandon(service: Service, row: Any, arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    run = _run_of(service, row.model, arguments)
    return actions.abandon_now(service, run, by=row.by, reason=row.reason, at=now).outcome


def _run_of(service: Service, model: str, arguments: dict[str, Any]) -> str:
    """The run that is named; it must be one of the model the request was for."""
    from retrain import run as runs

    run = runs.load(service.ledger, str(arguments["run"]))
    if run.model != model:
        raise InputError("run", run.id, f"a run of {model}; this is one of {run.model}")
    return run.id


def _acknowledge(service: Service, row: Any, arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import actions

    number = int(arguments["incident"])
    actions.acknowledge_now(service, number, by=row.by, at=now, reason=row.reason)
    return f"incident {arguments['incident']} acknowledged"


def _accept(service: Service, row: Any, _arguments: dict[str, Any], now: datetime) -> str:
    from shelflife.accepting import accept_now

    done = accept_now(service, row.model, by=row.by, reason=row.reason, at=now)
    return f"{done.rows:,} rows are the baseline of version {done.version}"


def _report(service: Service, row: Any, arguments: dict[str, Any], now: datetime) -> str:
    from shelflife import reports  # pandas: not beside requests

    return reports.want(service, row.model, str(arguments["subject"]), by=row.by, now=now)


_DO: dict[str, Callable[[Service, Any, dict[str, Any], datetime], str]] = {
    "check": _check,
    "retrain": _retrain,
    "promote": _promote,
    "rollback": _rollback,
    "approve": _approve,
    "reject": _reject,
    "abandon": _abandon,
    "acknowledge": _acknowledge,
    "accept": _accept,
    "report": _report,
}
