"""Bounds on what a caller may send, and the error that says which one was crossed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from core.errors import InputError, shown
from core.settings import Settings, span
from core.times import parse_time, plausible
from shelflife.web.wire import Problem

MAX_ID = 256  # characters, as the log's keys
MAX_SOURCE = 120
MAX_VERSION = 64
MAX_LABEL = 10_000  # characters of a label
MAX_COLUMNS = 20_000  # of an Arrow body
MAX_PROBLEMS = 100  # refusals that an answer lists
_TIME = 64  # characters of a time
_SHOWN = 200  # characters of a value that an answer repeats


class Limits(Struct, frozen=True, kw_only=True):
    """What `IngestSettings` allows."""

    body: int  # bytes, before and after decompression
    rows: int
    future: timedelta
    read_within: float  # seconds
    pair_within: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that the settings choose."""
        chosen = settings.ingest
        return cls(
            body=int(chosen.max_body_mb * 1e6),
            rows=chosen.max_rows,
            future=span(chosen.future),
            read_within=span(chosen.read_within).total_seconds(),
            pair_within=span(chosen.pair_within),
        )


class Refused(InputError):
    """Data that cannot be used, with a short reason to count it by."""

    def __init__(self, reason: str, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.reason = reason


def problem(row: int, error: InputError, *, at: str = "") -> Problem:
    """A refusal as an answer lists it.

    Args:
        at: where the row is in the body, put before the field's name.
    """
    return Problem(
        row=row,
        reason=error.reason if isinstance(error, Refused) else "value",
        field=f"{at}.{error.field}" if at else error.field,
        value=plain(error.value),
        expected=error.expected,
    )


def plain(value: object) -> object:
    """The value itself where JSON can hold it and it is short; otherwise as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return shown(value) if isinstance(value, int) and abs(value) >= 2**63 else value
    if isinstance(value, str) and len(value) <= _SHOWN:
        return value
    return shown(value)


def identifier(given: str, field: str, most: int = MAX_ID) -> str:
    """A key of the log: some characters, not too many, none of them a control character.

    PostgreSQL's text cannot hold NUL; a line break in an id is a mistake.

    Raises:
        Refused: it is not.
    """
    if not given or len(given) > most:
        raise Refused("id", field, given, f"1 to {most} characters")
    if not printable(given):
        raise Refused("id", field, given, "no control characters")
    return given


def printable(given: str) -> bool:
    """Whether a text is free of control characters (C0, DEL, C1)."""
    return given.isprintable() or not any(char < " " or "\x7f" <= char <= "\x9f" for char in given)


def moment(given: str, field: str, now: datetime, future: timedelta) -> datetime:
    """An event time: ISO 8601, UTC when it names no zone, since 1970 and not ahead of our clock.

    Raises:
        Refused: it is not such a time; see `core.times.plausible`.
    """
    if len(given) > _TIME:
        raise Refused("time", field, given, "an ISO 8601 time such as 2026-01-31T08:00:00Z")
    try:
        found = parse_time(given, field=field)
    except InputError as error:
        raise Refused("time", error.field, error.value, error.expected) from None
    try:
        return plausible(found, now=now, ahead=future, field=field)
    except InputError as error:
        reason = "past" if found < now else "future"
        raise Refused(reason, error.field, error.value, error.expected) from None


def first(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Those problems that an answer lists, in the order of the body."""
    return tuple(sorted(problems, key=lambda each: each.row)[:MAX_PROBLEMS])


def by_reason(problems: Sequence[Problem]) -> dict[str, int]:
    """How often each reason occurs."""
    counts: dict[str, int] = {}
    for each in problems:
        counts[each.reason] = counts.get(each.reason, 0) + 1
    return counts
