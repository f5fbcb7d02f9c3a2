"""Is anybody watching? What `/healthz`, `/metrics` and `monitor.unhealthy` say, from one place.

The ledger's facts go in, problems come out. A *page* is a monitor that is blind or mute: nothing is
checked, or nobody would be told. A *ticket* is one receiver that does not get its messages, while
others do. Light: the serving process imports it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from core.settings import Settings, span
from core.times import EPOCH, spell
from monitor.alert import outbox
from serving.store import pointers
from shelflife import pulses
from shelflife.pulses import PULSE, START, Pulse

SILENT = timedelta(minutes=1)  # a scheduler that is not heard of for longer is down
_LATE = timedelta(minutes=15)  # added to three missed checks
_CATCH_UP = timedelta(minutes=30)  # after a start, before late checks count
_WAITS = timedelta(hours=1)  # messages that wait longer make their receiver a problem
_FREE = 200e6  # bytes of disk below which the ledger will soon take nothing more
#: How long a job may go without a success, while the scheduler lives. Others: a day.
_PATIENCE = {
    "poll_registry": timedelta(minutes=10),
    "run_checks": timedelta(hours=1),
    "deliver": timedelta(minutes=10),
    "alerts": timedelta(minutes=10),
    "obey_commands": timedelta(hours=1),
}
_PATIENT = timedelta(days=1)


class Problem(Struct, frozen=True, kw_only=True):
    """Something that keeps the monitor from watching or from telling."""

    what: str  # scheduler, job:NAME, check:MODEL, disk, receiver:NAME
    severity: Literal["page", "ticket"]
    text: str  # one sentence for people


class Facts(Struct, frozen=True, kw_only=True):
    """What the problems are read from; gathered by `gather`, judged by `judge`."""

    jobs: Mapping[str, Pulse]
    checked: Mapping[str, datetime]  # when each model's newest check was written
    waiting: Mapping[str, tuple[int, datetime]]  # pending messages: how many, since when
    disabled: Mapping[str, str]
    free: int  # bytes on the disk of the home folder


def gather(ledger: Ledger, home: Path) -> Facts:
    """Read the facts, in one transaction."""
    checks, rows = schema.checks, schema.outbox
    newest = sa.select(checks.c.model, sa.func.max(checks.c.created)).group_by(checks.c.model)
    pending = (
        sa.select(rows.c.receiver, sa.func.count(), sa.func.min(rows.c.created))
        .where(rows.c.state == "pending")
        .group_by(rows.c.receiver)
    )
    with ledger.read() as tx:
        return Facts(
            jobs=pulses.read(tx),
            checked={model: moment for model, moment in tx.execute(newest)},
            waiting={name: (count, since) for name, count, since in tx.execute(pending)},
            disabled=outbox.disabled(tx),
            free=shutil.disk_usage(home if home.exists() else home.parent).free,
        )


def served(home: Path) -> list[str]:
    """The models that a home folder holds for serving."""
    return sorted(path.stem for path in pointers(home).glob("*.json"))


def judge(
    facts: Facts, settings: Settings, models: Iterable[str], *, now: datetime
) -> list[Problem]:
    """What is wrong at a moment, gravest first. Pure.

    Args:
        models: those that are served now; a check of another one is missed by nobody.
    """
    found = [*_scheduler(facts, now), *_checks(facts, settings, set(models), now)]
    if facts.free < _FREE:
        text = f"{facts.free / 1e6:.0f} MB are free on the disk: soon nothing can be written"
        found.append(Problem(what="disk", severity="page", text=text))
    found += _receivers(facts, settings, now)
    return sorted(found, key=lambda one: one.severity != "page")


def _scheduler(facts: Facts, now: datetime) -> Iterable[Problem]:
    pulse = facts.jobs.get(PULSE)
    if pulse is None or pulse.succeeded is None:
        return  # none was ever started here
    silent = now - pulse.succeeded
    if silent > SILENT:
        text = f"no scheduler has been heard of for {spell(silent)}: nothing is checked or told"
        yield Problem(what="scheduler", severity="page", text=text)
        return
    started = _started(facts)
    for name, job in sorted(facts.jobs.items()):
        last = max(job.succeeded or started, started)
        if name != START and now - last > _PATIENCE.get(name, _PATIENT):
            why = f" ({job.error})" if job.error and job.failed and job.failed > last else ""
            text = f"the job {name} has not come to its end for {spell(now - last)}{why}"
            yield Problem(what=f"job:{name}", severity="page", text=text)


def _checks(facts: Facts, settings: Settings, models: set[str], now: datetime) -> Iterable[Problem]:
    if PULSE not in facts.jobs or now - _started(facts) < _CATCH_UP:
        return
    for model, created in sorted(facts.checked.items()):
        late = now - created
        if model in models and late > 3 * span(settings.model(model).check_every) + _LATE:
            text = f"{model} was last checked {spell(late)} ago"
            yield Problem(what=f"check:{model}", severity="page", text=text)


def _started(facts: Facts) -> datetime:
    start = facts.jobs.get(START)
    return EPOCH if start is None or start.succeeded is None else start.succeeded


def _receivers(facts: Facts, settings: Settings, now: datetime) -> Iterable[Problem]:
    known = {one.name for one in settings.receivers}
    for name, why in sorted(facts.disabled.items()):
        if name in known:
            text = f"the receiver {name} is disabled ({why}); `shelflife receivers enable {name}`"
            yield Problem(what=f"receiver:{name}", severity="ticket", text=text)
    for name, (count, since) in sorted(facts.waiting.items()):
        if name in facts.disabled or now - since < _WAITS:
            continue
        why = "" if name in known else ": it is not in the settings"
        text = f"{count} messages wait for the receiver {name}, the oldest {spell(now - since)}"
        yield Problem(what=f"receiver:{name}", severity="ticket", text=text + why)
