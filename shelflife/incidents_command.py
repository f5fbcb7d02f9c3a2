"""`shelflife incidents` and `shelflife silences`: what on-call does from a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from core.errors import InputError

ACTIONS = ("list", "show", "ack", "silence", "resolve", "replay")
_SILENCES = ("list", "add", "end")
_FOR = "4h"


def options(command: argparse.ArgumentParser) -> None:
    """The options of `incidents`."""
    command.add_argument(
        "action", nargs="?", default="list",
        help="list, show, ack, silence, resolve, replay; or the id of one, to show it",
    )  # fmt: skip
    command.add_argument("id", nargs="?", help="the incident that is meant")
    command.add_argument("--model", help="only this model's")
    command.add_argument("--all", action="store_true", help="the finished ones too")
    command.add_argument(
        "--for", dest="span", default=_FOR, metavar="SPAN", help="silence: so long (%(default)s)"
    )
    command.add_argument("--receiver", help="replay: only to this receiver")


def silence_options(command: argparse.ArgumentParser) -> None:
    """The options of `silences`."""
    command.add_argument("action", nargs="?", default="list", choices=_SILENCES, help="what to do")
    command.add_argument("id", nargs="?", help="end: the silence that is meant")
    command.add_argument(
        "--match", nargs="+", default=[], metavar="MATCHER",
        help="add: 'model=\"churn\"', 'cause=~\"drift|decay\"', 'severity!=\"page\"'",
    )  # fmt: skip
    command.add_argument(
        "--for", dest="span", default=_FOR, metavar="SPAN", help="so long (%(default)s)"
    )
    command.add_argument("--until", metavar="TIME", help="or until this moment")
    command.add_argument("--starts", metavar="TIME", help="not before this moment")
    command.add_argument("--all", action="store_true", help="the ones that are over, too")


def do_incidents(given: argparse.Namespace) -> int:
    """List, show, acknowledge, silence, resolve, replay."""
    from shelflife import oncall, show
    from shelflife.command_line import _out, _who
    from shelflife.service import Service, wall_clock

    if given.action.isdigit() and given.id is None:
        given.action, given.id = "show", given.action
    if given.action not in ACTIONS:
        raise InputError("incidents", given.action, f"an id, or one of {', '.join(ACTIONS)}")
    service, now = Service.open(given.settings), wall_clock()
    ledger = service.ledger
    if given.action == "list":
        given.id = None
        rows = show.fetch(ledger, "incidents", given)
        _out(given, rows, show.incidents(rows, detailed=False))
        return 0
    number = _number(given, "incidents")
    if given.action == "show":
        row = oncall.detail(ledger, number)
        _out(given, row, show.incidents([row], detailed=True))
    elif given.action == "ack":
        oncall.acknowledge(
            ledger, number, by=_who(given), at=now, reason=given.reason,
            settings=service.settings,
        )  # fmt: skip
        _tell(given, ledger, number)
    elif given.action == "resolve":
        oncall.resolve(
            ledger, service.settings, number, by=_who(given), reason=given.reason, at=now
        )
        _tell(given, ledger, number)
    elif given.action == "silence":
        ends = oncall.until(given.span, now)
        added = oncall.silence(
            ledger, number, by=_who(given), reason=given.reason, ends=ends, at=now
        )
        shown = oncall.shown(added, now)
        _out(given, shown, _silences([shown]))
    else:
        count = oncall.replay(ledger, number, receiver=given.receiver)
        _out(given, {"replayed": count}, f"{count} messages are sent again")
    return 0


def do_silences(given: argparse.Namespace) -> int:
    """List, add, end."""
    from core.times import parse_time
    from monitor.alert import silences
    from shelflife import oncall
    from shelflife.command_line import _out, _who
    from shelflife.service import Service, wall_clock

    service, now = Service.open(given.settings), wall_clock()
    ledger = service.ledger
    if given.action == "list":
        rows = oncall.silence_rows(ledger, now=now, every=given.all)
        _out(given, rows, _silences(rows))
        return 0
    with ledger.write() as tx:
        if given.action == "end":
            found = silences.end(tx, _number(given, "silences end"), by=_who(given), at=now)
        else:
            starts = parse_time(given.starts, field="--starts") if given.starts else now
            ends = oncall.until(given.until or given.span, starts)
            found = silences.add(
                tx, match=given.match, by=_who(given), reason=given.reason, ends=ends, at=now,
                starts=starts,
            )  # fmt: skip
    row = oncall.shown(found, now)
    _out(given, row, _silences([row]))
    return 0


def _number(given: argparse.Namespace, what: str) -> int:
    text = given.id or ""
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise InputError(f"{what} {given.action}", given.id, "the id of one; the list shows them")
    return int(text)


def _tell(given: argparse.Namespace, ledger: Any, number: int) -> None:
    from shelflife import oncall, show
    from shelflife.command_line import _out

    row = oncall.detail(ledger, number)
    _out(given, row, show.incidents([row], detailed=False))


def _silences(rows: Sequence[Any]) -> str:
    if not rows:
        return "no silence"
    lines = []
    for row in rows:
        how = "" if row.active else f", ended by {row.ended_by}" if row.ended_by else ", not now"
        lines.append(
            f"{row.id:>5}  {row.starts:%Y-%m-%d %H:%M} to {row.ends:%Y-%m-%d %H:%M} UTC{how}  "
            f"{' '.join(row.matchers)}  {row.by}: {row.reason}"
        )
    return "\n".join(lines)
