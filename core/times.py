"""Moments and durations, the same everywhere: moments are timezone-aware UTC `datetime`s,
durations are written `90s`, `30m`, `12h`, `7d`, `4w`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from core.errors import InputError

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
DURATION = r"^(\d+(?:\.\d+)?)(ms|s|m|h|d|w)$"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration(text: str) -> timedelta:
    """`"7d"` as a timedelta.

    Raises:
        InputError: the text is not a number followed by one of ms, s, m, h, d, w.
    """
    found = re.match(DURATION, text)
    if found is None:
        raise InputError("duration", text, "a number and a unit, such as 90s, 30m, 12h, 7d, 4w")
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


def spell(span: timedelta) -> str:
    """A duration for people: `3 d`, `5 h`, `40 s`; the largest unit that is at least one."""
    seconds = abs(span.total_seconds())
    for unit in ("w", "d", "h", "m"):
        # Weeks only when they are whole: "30 d" reads better than "4.3 w".
        if seconds >= _UNITS[unit] and (unit != "w" or seconds % _UNITS["w"] == 0):
            count = seconds / _UNITS[unit]
            shown = f"{count:,.0f}" if count >= 100 else f"{count:.3g}"
            return f"{shown} {'min' if unit == 'm' else unit}"
    return f"{seconds:.3g} s"


def utc(moment: datetime) -> datetime:
    """The same moment, timezone-aware in UTC; a naive one is taken to be UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def parse_time(text: str, *, field: str = "time") -> datetime:
    """An ISO 8601 moment (`2010-10-09T00:00:00Z`) in UTC.

    Raises:
        InputError: the text is not ISO 8601.
    """
    try:
        return utc(datetime.fromisoformat(text))
    except (TypeError, ValueError, OverflowError):
        expected = "an ISO 8601 time such as 2026-01-31T08:00:00Z"
        raise InputError(field, text, expected) from None


def plausible(moment: datetime, *, now: datetime, ahead: timedelta, field: str) -> datetime:
    """The event time itself, if it may be one: since 1970, and at most a little ahead of now.

    A time ahead by at most `ahead` is kept as it is (clocks differ a little). A later one would sit
    in windows that are not over yet, so it is refused, not bent to now.

    Raises:
        InputError: it may not.
    """
    if moment > now + ahead:
        expected = f"at most {iso(now + ahead)} ({spell(ahead)} ahead of our clock)"
        raise InputError(field, iso(moment), expected)
    if moment < EPOCH:
        raise InputError(field, iso(moment), f"{iso(EPOCH)} or later")
    return moment


def iso(moment: datetime) -> str:
    """`2010-10-09T00:00:00Z`; microseconds only where there are any."""
    return utc(moment).isoformat().replace("+00:00", "Z")


def micros(moment: datetime) -> int:
    """Whole microseconds since 1970-01-01 UTC: how moments are stored."""
    return (utc(moment) - EPOCH) // timedelta(microseconds=1)


def from_micros(count: int) -> datetime:
    """The inverse of `micros`."""
    return EPOCH + timedelta(microseconds=count)
