"""Labels of one model in memory: one array slot per prediction id, more only where it was said
more than once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from core.times import micros

_NEVER = np.iinfo(np.int64).max


class Statements:
    """Every distinct statement of a truth, by the number (`code`) of its prediction id."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}
        self._when = np.zeros(0, np.int64)  # of the only statement; _NEVER where there is none
        self._value = np.empty(0, object)
        self._heard = np.zeros(0, np.int64)  # when it was received
        # Where there are several: time -> (received, value).
        self._many: dict[int, dict[int, tuple[int, object]]] = {}
        self._several = np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self._code)

    def known(self, name: str) -> bool:
        """Whether the id has a number."""
        return name in self._code

    def codes(self, ids: Sequence[str]) -> np.ndarray:
        """The numbers of ids, int64 of shape (n,); new ids are given the next ones."""
        table = self._code
        found = np.fromiter((table.setdefault(i, len(table)) for i in ids), np.int64, len(ids))
        if len(table) > len(self._when):
            size = max(len(table), 2 * len(self._when))
            more = size - len(self._when)
            self._when = np.concatenate([self._when, np.full(more, _NEVER)])
            self._value = np.concatenate([self._value, np.full(more, None, object)])
            self._heard = np.concatenate([self._heard, np.zeros(more, np.int64)])
            self._several = np.concatenate([self._several, np.zeros(more, bool)])
        return found

    def has(self, code: np.ndarray) -> np.ndarray:
        """Which ids have a label, as a boolean array."""
        found: np.ndarray = self._when[code] != _NEVER
        return found

    def say(
        self, code: np.ndarray, values: Sequence[object], times: np.ndarray, received: int
    ) -> None:
        """Keep statements; of two about the same moment the one received last wins (µs; of one
        batch the later, of two in the same microsecond the greater JSON text)."""
        if len(np.unique(code)) == len(code) and not self.has(code).any():
            self._when[code], self._heard[code] = times, received
            self._value[code] = np.array([*values, None], dtype=object)[:-1]
            return
        batch = {
            (each, when): value
            for each, value, when in zip(code.tolist(), values, times.tolist(), strict=True)
        }
        for (each, when), value in batch.items():
            self._one(each, value, when, received)

    def _one(self, code: int, value: object, when: int, received: int) -> None:
        before = int(self._when[code])
        if before != _NEVER and before != when and code not in self._many:
            self._many[code] = {before: (int(self._heard[code]), self._value[code])}
            self._several[code] = True
        said = self._many.get(code)
        if said is not None:
            if _later(said.get(when), received, value):
                said[when] = (received, value)
            return
        held = (int(self._heard[code]), self._value[code]) if before == when else None
        if _later(held, received, value):
            self._when[code], self._value[code], self._heard[code] = when, value, received

    def winning(
        self, code: np.ndarray, known_at: datetime | None, after: datetime | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The statement in force at `known_at`, of those that became known after `after`.

        Returns three arrays of shape (n,): whether there is one, its time (µs), its value.
        """
        until = _NEVER - 1 if known_at is None else micros(known_at)
        since = np.iinfo(np.int64).min if after is None else micros(after)
        when, value = self._when[code], self._value[code]
        for i in np.flatnonzero(self._several[code]).tolist():
            said = self._many[int(code[i])]
            last = max((t for t in said if since < t <= until), default=_NEVER)
            when[i], value[i] = last, said[last][1] if last != _NEVER else None
        has = (when <= until) & (when > since)
        value[~has] = None
        return has, when, value

    def drop(self, code: np.ndarray) -> int:
        """Forget what was said of these ids; returns the statements dropped."""
        count = 0
        for each in np.unique(code).tolist():
            several = self._many.pop(each, None)
            said = self._when[each] != _NEVER
            count += int(said) if several is None else len(several)
            self._when[each], self._value[each], self._several[each] = _NEVER, None, False
        return count


def _later(held: tuple[int, object] | None, received: int, value: object) -> bool:
    if held is None:
        return True
    return (received, json.dumps(value)) > (held[0], json.dumps(held[1]))
