"""The life of an incident: a pure state machine over what checks saw and what people said.

    (nothing) ── sign ──► noticed ── N of the last M checks found it ──► open ⇄ acknowledged
                             │                                            │
                        clear checks                              enough clear checks
                             ▼                                            ▼
                         (forgotten)                                   resolved

Nobody is told of what is merely noticed. It takes N of M checks to open and `clears` clear ones in
a row to resolve, where "clear" itself is a lower line than the one that opened (`held` lies between
the two). What flaps is held longer: every rise within the last `memory` checks, those of incidents
that ended a moment ago included, asks for `clears` more. A flap is so one incident, and a slow one
few, whatever its rhythm. Compare RFC 2439 (route flap damping): the penalty here is counted in
checks, not in time, because a check is what can be wrong.

Time only enters as an argument, and only to refuse checks older than what is known.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import msgspec
from msgspec import Struct

State = Literal["noticed", "open", "acknowledged", "resolved"]
Signal = Literal["found", "sign", "held", "clear"]
Step = Literal["noticed", "opened", "updated", "worse", "held", "clearing", "resolved", "forgotten"]
RANK = {"note": 0, "ticket": 1, "page": 2}


class Rules(Struct, frozen=True, kw_only=True):
    """When an incident opens and when it is over."""

    opens: tuple[int, int] = (1, 1)  # found by so many of the last so many checks
    clears: int = 2  # clear checks in a row
    memory: int = 24  # checks that count for flapping


class Life(Struct, frozen=True, kw_only=True):
    """What the machine remembers of one incident."""

    state: State
    severity: str  # the worst it has been, so that who was told hears the end
    updated: datetime  # the last check that judged it
    found: datetime | None = None  # the last one that found it
    seen: int = 0
    clear: int = 0  # clear checks in a row
    history: str = ""  # a character a check, newest last: 1 found, 0 clear
    relapses: int = 0  # rises of earlier incidents of the same trouble, of late


def observe(
    life: Life | None,
    signal: Signal,
    *,
    at: datetime,
    rules: Rules,
    severity: str = "note",
    relapses: int = 0,
) -> tuple[Life | None, Step | None]:
    """What a check does to an incident: its life afterwards, and the transition.

    A check that is not newer than the last one changes nothing (None), and neither does one that
    is clear, or held, of something nobody knows.

    Args:
        life: None when there is no unresolved incident.
        severity: of what was found.
        relapses: see `Life`; taken over by a new one.
    """
    if life is not None and (life.state == "resolved" or at <= life.updated):
        return life, None
    if signal == "found":
        return _found(life, at, rules, severity, relapses)
    if life is None:
        if signal != "sign":
            return None, None
        return Life(state="noticed", severity="note", updated=at, relapses=relapses), "noticed"
    if signal == "clear":
        return _clear(life, at, rules)
    return msgspec.structs.replace(life, clear=0, updated=at), "held"


def _found(
    life: Life | None, at: datetime, rules: Rules, severity: str, relapses: int
) -> tuple[Life, Step]:
    before = life or Life(state="noticed", severity=severity, updated=at, relapses=relapses)
    worse = RANK[severity] > RANK[before.severity]
    after = msgspec.structs.replace(
        before,
        severity=severity if worse else before.severity,
        updated=at,
        found=at,
        seen=before.seen + 1,
        clear=0,
        history=(before.history + "1")[-rules.memory :],
    )
    if before.state == "noticed":
        needed, of = rules.opens
        if after.history[-of:].count("1") < needed:
            return after, "noticed" if life is None else "held"
        return msgspec.structs.replace(after, state="open"), "opened"
    if worse:  # an acknowledgement was given to the lesser trouble
        return msgspec.structs.replace(after, state="open"), "worse"
    return after, "updated"


def _clear(life: Life, at: datetime, rules: Rules) -> tuple[Life, Step]:
    after = msgspec.structs.replace(
        life, updated=at, clear=life.clear + 1, history=(life.history + "0")[-rules.memory :]
    )
    if life.state == "noticed":
        over = after.clear >= rules.clears and "1" not in after.history[-rules.opens[1] :]
        return after, "forgotten" if over else "clearing"
    if after.clear < needed_clears(life, rules):
        return after, "clearing"
    return msgspec.structs.replace(after, state="resolved"), "resolved"


def needed_clears(life: Life, rules: Rules) -> int:
    """Clear checks in a row that resolve an incident with this past."""
    return min(rules.clears * max(1, rises(life)), max(rules.memory, rules.clears))


def rises(life: Life) -> int:
    """How often it went from clear to found, within memory; at least once if it was ever found."""
    return life.relapses + sum(1 for part in life.history.split("0") if part)


def acknowledge(life: Life) -> Life:
    """Somebody looks after it; only what is open can be acknowledged."""
    return msgspec.structs.replace(life, state="acknowledged") if life.state == "open" else life


def resolve(life: Life) -> Life:
    """Ended by decision."""
    return msgspec.structs.replace(life, state="resolved")


def reminds(*, told: datetime, at: datetime, every: timedelta) -> bool:
    """Whether those who were told last at `told` are told again."""
    return at - told > every


def escalates(
    *,
    state: State,
    severity: str,
    told: datetime | None,
    escalated: datetime | None,
    at: datetime,
    after: timedelta | None,
) -> bool:
    """Whether a page goes further up: told, unacknowledged for so long, and not gone up before."""
    if after is None or told is None or escalated is not None:
        return False
    return state == "open" and severity == "page" and at - told >= after
