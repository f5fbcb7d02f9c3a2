"""A quarter in which everything drifts at once: how often is anybody told?

50 models of 500 columns are checked every hour for 90 days on a clock that only this program
moves. On day 10 all columns of all models drift at once, for 50 days; for half of the quarter one
model's feed flaps, found by every second check, and another's slowly, by one in six; one model
decays for a week. For the whole of day 10 every receiver fails. What is counted comes from the
ledger's tables and from what the receivers got, not from the code that decides:

- pages of an incident, at most one, however many of its columns drift;
- messages of a group nearer to each other than its interval, and repeats nearer than theirs: none;
- a flap: one beginning and one end (a slow one, found by one check in six, a few);
- every message arrives, with one id each, the end after the beginning.

Three ways of routing are run: the default (every incident alone), by owner (ten models share one)
and all in one. Run it with `python benchmarks/storm.py`; `--days 15 --every 6` is the short one
that the tests run. No seed: nothing is random but the jitter of retries (seed 0).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

from core import schema
from core.ledger import Ledger
from core.settings import Settings, parse, span
from monitor.alert import delivery, incidents
from monitor.alert.contract import Message, Outcome
from monitor.results import Finding
from shelflife import oncall

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
REPEAT = timedelta(days=7)
COLUMNS = tuple(f"column_{i}" for i in range(500))
JUDGED = frozenset({"broken_feed", "decay", "drift", "no_data", "stale"})
ROUTES = {
    "alone": "{}",
    "by owner": "{group_by: [owner], group_wait: 30m, group_interval: 4h}",
    "all in one": "{group_by: [], group_wait: 30m, group_interval: 1d}",
}
TURNS = (0, 0.5, 1, 2, 4, 6, 8, 12, 16, 20)  # hours after a check
STORM, CALM, OUTAGE = 10, 60, (10, 11)  # days


class Inbox:
    """A receiver that is down for a day and remembers what it was told."""

    longest = timedelta(seconds=1)

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.attempts = 0

    def send(self, message: Message, *, at: datetime) -> Outcome:
        self.attempts += 1
        if T0 + OUTAGE[0] * DAY <= at < T0 + OUTAGE[1] * DAY:
            return Outcome(status=503, error="HTTP 503")
        self.seen.append(message)
        return Outcome(delivered=True, status=200)


def findings(model: int, at: datetime, index: int, days: int) -> list[Finding]:
    """What the check of a model finds at a moment."""
    found, day = [], (at - T0) / DAY
    if STORM <= day < min(CALM, 0.7 * days):
        title = f"500 of 500 columns drifted, the most {COLUMNS[0]}"
        found.append(Finding(cause="drift", severity="ticket", title=title, columns=COLUMNS))
    if day < 0.5 * days and ((model == 0 and index % 2 == 0) or (model == 1 and index % 6 == 0)):
        found.append(Finding(cause="broken_feed", severity="page", title="column_7: 100 % missing"))
    if model == 2 and 1 <= day < 8:
        found.append(Finding(cause="decay", severity="page", title="Brier 0.213 over 0.190"))
    return found


def simulate(route: str, *, models: int, days: int, every: timedelta) -> dict[str, Any]:
    """One quarter under one way of routing; what was counted."""
    owners = "".join(f"  m{i:02}: {{owner: team-{i // 10}}}\n" for i in range(models))
    settings: Settings = parse(
        "receivers:\n"
        "  - {name: pager, url: 'https://pager.example', severities: [page]}\n"
        "  - {name: chat, url: 'https://chat.example'}\n"
        f"defaults: {{repeat_every: 7d, check_every: {every // HOUR}h}}\n"
        f"alerts: {{route: {route}}}\nmodels:\n{owners}"
    )
    shared = Path("/dev/shm")  # deliveries have threads of their own: one memory for all
    folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    ledger = Ledger(f"sqlite:///{folder.name}/ledger.db").create()
    inboxes = {"pager": Inbox(), "chat": Inbox()}
    rng, now, index, checks = random.Random(0), T0, 0, 0
    contexts = {name: oncall.context(settings, name, version="1") for name in settings.models}
    while now < T0 + days * DAY:
        for number, name in enumerate(settings.models):
            with ledger.write() as tx:
                incidents.apply(
                    tx, ledger, context=contexts[name], version="1", at=now, checked=JUDGED,
                    findings=findings(number, now, index, days),
                )  # fmt: skip
            checks += 1
        for hours in TURNS:  # the scheduler's turns between two checks
            moment = now + hours * HOUR
            if moment >= now + every:
                break
            oncall.turn(ledger, settings, now=moment)
            delivery.deliver_due(ledger, inboxes, now=moment, rng=rng)  # type: ignore[arg-type]
        now, index = now + every, index + 1
    for hour in range(1, 24 * 4):  # retries of what failed on the day of the outage
        delivery.deliver_due(ledger, inboxes, now=now + hour * HOUR, rng=rng)  # type: ignore[arg-type]
    interval = span(settings.alerts.route.group_interval or "0s")
    found = count(ledger, inboxes, interval)
    ledger.close()
    folder.cleanup()
    return {"checks": checks, **found}


def count(ledger: Ledger, inboxes: dict[str, Inbox], interval: timedelta) -> dict[str, Any]:
    """Messages by group, interval and kind, from the tables and from what arrived."""
    with ledger.read() as tx:
        rows = tx.execute(sa.select(schema.outbox).order_by(schema.outbox.c.id)).all()
        notices = tx.execute(
            sa.select(schema.notices).where(schema.notices.c.state == "sent")
        ).all()
        every = tx.execute(sa.select(schema.incidents)).all()
    bodies = {row.message_id: json.loads(row.body)["data"] for row in rows}
    kinds: dict[tuple[str, str], set[str]] = {}
    for notice in notices:
        kinds.setdefault((notice.message_id, notice.receiver), set()).add(notice.kind)
    by_group: dict[str, list[Any]] = {}
    for row in rows:
        by_group.setdefault(row.group_key, []).append(row)
    early = close = 0
    for told in by_group.values():
        for before, after in itertools.pairwise(told):
            apart = after.created - before.created
            only = kinds[(after.message_id, after.receiver)]
            early += only == {"reminder"} and apart < REPEAT
            close += apart < interval
    pages = Counter(
        (n.incident_id, n.receiver) for n in notices if n.kind == "opened" and n.receiver == "pager"
    )
    flaps = {}
    for model, what in (("m00", "flap"), ("m01", "slow flap")):
        mine = {one.id for one in every if (one.model, one.cause) == (model, "broken_feed")}
        told_of = [n for n in notices if n.incident_id in mine and n.receiver == "pager"]
        flaps[what] = (
            sum(n.kind == "opened" for n in told_of), sum(n.kind == "resolved" for n in told_of)
        )  # fmt: skip
    arrived = {name: [message.id for message in box.seen] for name, box in inboxes.items()}
    wanted = {name: [r.message_id for r in rows if r.receiver == name] for name in inboxes}
    return {
        "incidents": len(every),
        "messages": {name: len(wanted[name]) for name in inboxes},
        "attempts": {name: box.attempts for name, box in inboxes.items()},
        "groups": len(by_group),
        "most pages of an incident": max(pages.values(), default=0),
        "messages within an interval": close,
        "repeats within an interval": early,
        "opened and resolved": flaps,
        "on the day of the storm": sum(
            STORM * DAY <= row.created - T0 < (STORM + 1) * DAY for row in rows
        ),
        "all arrived, in order, once": all(
            sorted(arrived[name]) == sorted(wanted[name]) for name in inboxes
        )
        and all(_in_order(rows, inboxes, name) for name in inboxes),
        "largest body": max((len(row.body) for row in rows), default=0),
        "most incidents in a message": max(
            (d["incident_count"] for d in bodies.values()), default=0
        ),
    }


def _in_order(rows: Any, inboxes: dict[str, Inbox], name: str) -> bool:
    """Each group's messages arrived in the order they were written."""
    place = {message.id: index for index, message in enumerate(inboxes[name].seen)}
    last: dict[str, int] = {}
    for row in rows:
        if row.receiver == name and row.message_id in place:
            if place[row.message_id] < last.get(row.group_key, -1):
                return False
            last[row.group_key] = place[row.message_id]
    return True


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--days", type=int, default=90)
    given.add_argument("--every", type=int, default=1, metavar="HOURS")
    given.add_argument("--models", type=int, default=50)
    given.add_argument("--route", choices=list(ROUTES), action="append", help="all of them")
    asked = given.parse_args()
    raw = asked.models * 500 * asked.days * 24 // asked.every
    print(f"{asked.models} models x 500 columns, {asked.days} days, a check every {asked.every} h:")
    print(f"{raw:,} column checks; an alert for each that drifted would be "
          f"{asked.models * 500 * 50 * 24 // asked.every:,}")  # fmt: skip
    for name in asked.route or ROUTES:
        route = ROUTES[name]
        started = time.perf_counter()
        found = simulate(route, models=asked.models, days=asked.days, every=asked.every * HOUR)
        print(f"\n{name} ({time.perf_counter() - started:.0f} s)")
        for key, value in found.items():
            print(f"  {key:32} {value}")


if __name__ == "__main__":
    main()
