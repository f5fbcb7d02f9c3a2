"""Scales and round tick marks for the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from core.times import EPOCH, parse_time

_MOST = 9  # labels on the time axis
#: Steps of the time axis up to a day, in days.
_SHORT = (1 / 1440, 5 / 1440, 15 / 1440, 1 / 24, 3 / 24, 6 / 24, 12 / 24, 1, 2, 7, 14)
_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120)


class Scale(Struct, frozen=True):
    """Maps first..last to start..end, in pixels."""

    first: float
    last: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The place of a value."""
        width = (self.last - self.first) or 1.0
        return self.start + (value - self.first) / width * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """The place of a value, at the edge if it lies outside."""
        return self.at(min(max(value, self.first), self.last))


class Axis(Struct, frozen=True):
    """A vertical axis with round numbers."""

    scale: Scale
    step: float

    @classmethod
    def around(cls, values: Sequence[float], bottom: float, top: float) -> Axis:
        """An axis that holds all values, with about five steps."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if high <= low:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
        first, last = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(Scale(first, last, bottom, top), step)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their texts."""
        count = round((self.scale.last - self.scale.first) / self.step)
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        places += f"{self.step:e}".startswith("2.5")
        found = []
        for i in range(count + 1):
            value = self.scale.first + i * self.step
            value = 0.0 if abs(value) < self.step / 1e6 else value
            found.append((value, f"{value:,.{places}f}"))
        return found


def days(moment: str) -> float:
    """An ISO 8601 moment in days since 1970."""
    return (parse_time(moment) - EPOCH) / timedelta(days=1)


def ticks(scale: Scale) -> list[tuple[float, str]]:
    """Round moments within a time scale, and their texts."""
    length = scale.last - scale.first
    for step in _SHORT:
        if length / step <= _MOST:
            return _regular(scale, step)
    return _by_month(scale, next((m for m in _MONTHS if length / (m * 30.4) <= _MOST), 240))


def _regular(scale: Scale, step: float) -> list[tuple[float, str]]:
    first = math.ceil(scale.first / step - 1e-9)
    found = []
    for i in range(first, math.floor(scale.last / step + 1e-9) + 1):
        moment = EPOCH + timedelta(days=i * step)
        found.append((i * step, f"{moment:%H:%M}" if step < 1 else f"{moment:%d %b %Y}"))
    return found


def _by_month(scale: Scale, step: int) -> list[tuple[float, str]]:
    start = EPOCH + timedelta(days=scale.first)
    number = start.year * 12 + start.month - 1
    number += -number % step
    found: list[tuple[float, str]] = []
    while True:
        moment = datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)
        at = (moment - EPOCH) / timedelta(days=1)
        if at > scale.last:
            return found
        if at >= scale.first:
            text = f"{moment:%Y}" if step >= 12 else f"{moment:%b %Y}"
            found.append((at, text))
        number += step
