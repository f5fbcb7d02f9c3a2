"""What enters the log: every row passes here on its way in, whatever way it came.

Privacy rules are applied, rows outside the sample are left out, and both what was offered and what
was kept are counted in the transaction that keeps it, so that `seen / kept` is exact for each hour
and rate. A repeated offer of an event counts as seen again and, if it is in the sample, as kept
again: the ratio stays right, and `LogCounts.predictions` counts events once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from core.times import micros
from monitor.log.privacy import Privacy
from monitor.log.records import Label, LeftOut, Prediction
from monitor.log.sample import kept

_HOUR = timedelta(hours=1) // timedelta(microseconds=1)
_COLUMNS = ("model", "hour", "rate", "seen", "kept", "labels_seen", "labels_kept")
#: model, hour (µs) and rate -> seen, kept, labels seen, labels kept.
Tallies = dict[tuple[str, int, float], tuple[int, int, int, int]]


class Rule(Struct, frozen=True, kw_only=True):
    """How one model's rows are admitted."""

    rate: float = 1.0
    privacy: Privacy | None = None


class Admitted(Struct, frozen=True):
    """The rows that are kept, as they may be kept, and the counts that go with them."""

    rows: Sequence[Prediction]
    tallies: Tallies


class Admission:
    """The rules of every model.

    Args:
        rule: the rule of a model by name.
    """

    def __init__(self, rule: Callable[[str], Rule] = lambda model: Rule()) -> None:
        self._rule = rule

    def admit(
        self, rows: Sequence[Prediction], left_out: Mapping[LeftOut, int] | None = None
    ) -> Admitted:
        """Rows as they may be kept. `history` was never served: it is kept whole, not counted.

        Args:
            left_out: rows that were left out before, which count as seen.
        """
        rules = {model: self._rule(model) for model in {row.model for row in rows}}
        seen, held = Counter[tuple[str, int, float]](), Counter[tuple[str, int, float]]()
        for (model, moment, rate), n in (left_out or {}).items():
            seen[model, _hour(moment), rate] += n
        admitted = []
        for row in rows:
            rule = rules[row.model]
            inside = True
            if row.role != "history":
                inside = kept(row.id, rule.rate)
                key = (row.model, _hour(row.time), rule.rate)
                seen[key] += 1
                held[key] += inside
            if inside:
                admitted.append(_private(row, rule.privacy))
        return Admitted(admitted, {key: (n, held[key], 0, 0) for key, n in seen.items()})

    def labels(
        self, labels: Sequence[Label], known: Callable[[str, Sequence[str]], set[str]]
    ) -> tuple[list[Label], Tallies]:
        """The labels whose predictions are in the sample, or in the log whatever the sample is.

        Args:
            known: those of a model's prediction ids that the log holds; asked for the others only.
        """
        rules = {model: self._rule(model) for model in {label.model for label in labels}}
        outside: dict[str, list[str]] = {}
        for label in labels:
            if not kept(label.id, rules[label.model].rate):
                outside.setdefault(label.model, []).append(label.id)
        there = {model: known(model, ids) for model, ids in outside.items()}
        seen, held = Counter[tuple[str, int, float]](), Counter[tuple[str, int, float]]()
        admitted = []
        for label in labels:
            rate = rules[label.model].rate
            inside = kept(label.id, rate) or label.id in there.get(label.model, ())
            key = (label.model, _hour(label.time), rate)
            seen[key] += 1
            held[key] += inside
            if inside:
                admitted.append(label)
        return admitted, {key: (0, 0, n, held[key]) for key, n in seen.items()}


def _hour(moment: datetime) -> int:
    return micros(moment) // _HOUR * _HOUR


def _private(row: Prediction, privacy: Privacy | None) -> Prediction:
    if privacy is None:
        return row
    return msgspec.structs.replace(row, inputs=privacy.apply(row.inputs))


def tally(
    cursor: Any, tallies: Mapping[tuple[str, int, float], Iterable[int]], sqlite: bool
) -> None:
    """Add counts on the driver's own cursor, in the transaction that keeps the rows."""
    if not tallies:
        return
    mark = "?" if sqlite else "%s"
    sums = ", ".join(f"{name} = sampling.{name} + excluded.{name}" for name in _COLUMNS[3:])
    statement = (
        f"INSERT INTO sampling ({', '.join(_COLUMNS)})"  # noqa: S608
        f" VALUES ({', '.join([mark] * len(_COLUMNS))})"
        f" ON CONFLICT (model, hour, rate) DO UPDATE SET {sums}"
    )
    # In one order always: two workers that add to the same hours must not deadlock.
    cursor.executemany(statement, [(*key, *tallies[key]) for key in sorted(tallies)])
