"""`shelflife tokens`: make, list and revoke what programs and people use the API with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from core.errors import InputError

if TYPE_CHECKING:
    from core.access import Scope
    from core.tokens import Token

Out = Callable[[argparse.Namespace, object, str], None]
SCOPES = ("read", "operate", "admin", "infer", "ingest")  # as `core.access`, which is not light
ROLES = {"viewer": "read", "operator": "operate", "admin": "admin"}


def options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = command.add_argument
    add("verb", choices=("create", "list", "revoke"), help="what to do")
    add("name", nargs="?", help="create: who or what will use it; revoke: the token's id")
    add(
        "--scope", action="append", default=[], choices=SCOPES,
        help="what it may do; repeat it (admin ⊃ operate ⊃ read; infer; ingest)",
    )  # fmt: skip
    add("--role", choices=tuple(ROLES), help="the same for a person: the role's highest scope")
    add("--rate", type=int, metavar="N", help="requests a minute; the settings' when not given")
    add("--expires", metavar="SPAN", help="ends after so long: 90d; never when not given")


def run(given: argparse.Namespace, out: Out, *, by: str) -> int:
    """Do it.

    Raises:
        InputError: a name, an id, a scope or a rate that will not do.
        NotFound: no token of this id.
    """
    import msgspec

    from core import tokens
    from core.times import duration
    from shelflife.service import Service, wall_clock

    ledger, now = Service.open(given.settings).ledger, wall_clock()
    if given.verb == "list":
        found = tokens.listed(ledger)
        out(given, found, _table(found))
        return 0
    if not given.name:
        wanted = "a name" if given.verb == "create" else "the id of a token"
        raise InputError("tokens " + given.verb, None, wanted)
    if given.verb == "revoke":
        done = tokens.revoke(ledger, given.name, now=now)
        out(given, done, f"token {done.id} ({done.name}) is revoked; workers forget it within 5 s")
        return 0
    scopes = [*given.scope, *([ROLES[given.role]] if given.role else [])]
    if not scopes:
        raise InputError("--scope", None, f"one or more of {', '.join(SCOPES)}, or --role")
    expires = now + duration(given.expires) if given.expires else None
    token, made = tokens.create(
        ledger,
        given.name,
        cast("list[Scope]", scopes),
        by=by,
        now=now,
        expires=expires,
        per_minute=given.rate,
    )
    shown = {**msgspec.to_builtins(made), "token": token}
    out(given, shown, f"{token}\n\nkeep it now: only its hash is stored. {_told(made)}")
    return 0


def _told(token: Token) -> str:
    rate = f", {token.per_minute:,} requests a minute" if token.per_minute else ""
    ends = f", until {token.expires:%Y-%m-%d}" if token.expires else ""
    return f"token {token.id} for {token.name}: {', '.join(token.scopes)}{rate}{ends}"


def _table(found: list[Token]) -> str:
    if not found:
        return "no tokens; `shelflife tokens create NAME --role viewer` makes one"
    lines = []
    for token in found:
        state = "revoked" if token.revoked else f"used {token.used:%Y-%m-%d}" if token.used else "–"
        lines.append(f"{token.id}  {state:15}  {_told(token).partition(' for ')[2]}")
    return "\n".join(lines)
