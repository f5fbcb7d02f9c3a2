"""Requests and responses that wait for each other, in a table of the ledger.

A half is committed before its sender is answered. When both are there, whoever notices logs the
rows (which the log keeps once, by their event id) and marks the halves; a crash in between leaves
two waiting halves that the next sweep finds. A half whose counterpart does not come in time is
counted as lost and its mark kept for as long again, so that a late counterpart is known for
what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger, one_of

Key = tuple[str, str, str]  # model, source, event id
_SWEPT = 500  # pairs that one sweep completes at a time
_OVER = ("paired", "refused", "lost")


class Half(Struct, frozen=True, kw_only=True):
    """One event of a pair."""

    model: str
    source: str
    event_id: str
    part: str
    body: str
    version: str
    role: str
    time: datetime
    received: datetime

    @property
    def key(self) -> Key:
        """What both halves have in common."""
        return self.model, self.source, self.event_id


class Pair(Struct, frozen=True, kw_only=True):
    """Both halves."""

    request: Half
    response: Half


class Kept(Struct, frozen=True, kw_only=True):
    """What became of halves."""

    new: frozenset[tuple[Key, str]]  # those that had not come before, with their part
    late: int  # new ones whose counterpart was refused, or given up before they came
    duplicate: int


class Pairs:
    """The table of halves."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def keep(self, halves: Sequence[Half]) -> Kept:
        """Commit halves in one transaction; those that had come before are left as they are."""
        if not halves:
            return Kept(new=frozenset(), late=0, duplicate=0)
        table = schema.event_halves
        statement = self._ledger.insert_ignore(table).returning(table.c.part)
        new, late = set[tuple[Key, str]](), 0
        with self._ledger.write() as tx:
            # In order of the key, so that two writers never wait for each other in a circle.
            for half in sorted(halves, key=lambda each: (each.key, each.part)):
                values = {name: getattr(half, name) for name in half.__struct_fields__}
                if not tx.execute(statement.values(**values, state="waiting")).first():
                    continue
                mine = _of(half.key)
                over = tx.scalar(
                    sa.select(table.c.state).where(
                        mine, table.c.part != half.part, table.c.state.in_(("refused", "lost"))
                    )
                )
                if over:
                    me = table.update().where(mine, table.c.part == half.part)
                    tx.execute(me.values(state=over, body=""))
                    late += 1
                else:
                    new.add((half.key, half.part))
        duplicate = len(halves) - len(new) - late
        return Kept(new=frozenset(new), late=late, duplicate=duplicate)

    def complete(self, *, keys: Collection[Key] = (), model: str = "") -> list[Pair]:
        """Pairs whose halves both wait: those of the keys, or a model's (some hundreds of them)."""
        table = schema.event_halves
        other = table.alias()
        both = (
            (table.c.model == other.c.model)
            & (table.c.source == other.c.source)
            & (table.c.event_id == other.c.event_id)
            & (other.c.part == "response")
            & (other.c.state == "waiting")
        )
        query = (
            sa.select(*table.c, *(column.label(f"o_{column.name}") for column in other.c))
            .join(other, both)
            .where(table.c.part == "request", table.c.state == "waiting")
        )
        with self._ledger.read() as tx:
            if model:
                found = list(tx.execute(query.where(table.c.model == model).limit(_SWEPT)))
            else:
                wanted = set(keys)
                for i, column in enumerate((table.c.model, table.c.source, table.c.event_id)):
                    query = query.where(one_of(tx, column, sorted({key[i] for key in wanted})))
                found = [row for row in tx.execute(query) if tuple(row[:3]) in wanted]
        fields = Half.__struct_fields__
        return [
            Pair(
                request=Half(**{name: row._mapping[name] for name in fields}),
                response=Half(**{name: row._mapping[f"o_{name}"] for name in fields}),
            )
            for row in found
        ]

    def settle(self, ended: Sequence[tuple[Key, str]]) -> dict[tuple[str, str], int]:
        """Mark pairs as `paired` or `refused`; returns how many were not marked before, by model
        and mark."""
        if not ended:
            return {}
        table, marked = schema.event_halves, Counter[tuple[str, str]]()
        with self._ledger.write() as tx:
            for key, state in sorted(ended):
                waiting = table.update().where(_of(key), table.c.state == "waiting")
                done = tx.execute(waiting.values(state=state, body=""))
                marked[key[0], state] += done.rowcount // 2
        return dict(marked)

    def give_up(self, before: datetime, forget: datetime, count: Callable[..., None]) -> int:
        """Halves received before a moment and still waiting are lost: marked, counted in the same
        transaction, and returned as a number. Marks older than `forget` go.

        Args:
            count: called with the transaction and {(model, counter): n}.
        """
        table = schema.event_halves
        other = table.alias()
        paired = (
            sa.select(other.c.part)
            .where(
                other.c.model == table.c.model,
                other.c.source == table.c.source,
                other.c.event_id == table.c.event_id,
                other.c.part != table.c.part,
                other.c.state == "waiting",
            )
            .exists()
        )
        with self._ledger.write() as tx:
            lost = tx.execute(
                table.update()
                .where(table.c.state == "waiting", table.c.received < before, ~paired)
                .values(state="lost", body="")
                .returning(table.c.model, table.c.part)
            ).all()
            if lost:
                totals = Counter((model, f"events:lost_{_missing(part)}") for model, part in lost)
                count(tx, dict(totals))
            old = (table.c.state.in_(_OVER)) & (table.c.received < forget)
            tx.execute(table.delete().where(old))
        return len(lost)

    def waiting(self) -> dict[str, int]:
        """Halves that wait, by model."""
        table = schema.event_halves
        query = sa.select(table.c.model, sa.func.count()).where(table.c.state == "waiting")
        with self._ledger.read() as tx:
            return {model: n for model, n in tx.execute(query.group_by(table.c.model))}


def _missing(part: str) -> str:
    return "response" if part == "request" else "request"


def _of(key: Sequence[str]) -> sa.ColumnElement[bool]:
    table = schema.event_halves.c
    return (table.model == key[0]) & (table.source == key[1]) & (table.event_id == key[2])
