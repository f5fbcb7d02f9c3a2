"""What the serving processes answered, hour by hour, and what they hold."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from serving.heartbeat import FRESH
from serving.timings import Tally

if TYPE_CHECKING:
    import pandas as pd

_HOURS = 14 * 24  # drawn one by one; longer spans are drawn by day


class Loaded(Struct, frozen=True, kw_only=True):
    """A model in a serving process."""

    worker: str
    model: str
    version: str
    loaded: datetime
    seen: datetime
    alive: bool
    error: str
    challenger: str
    challenger_error: str
    more: dict[str, str] = {}  # whatever else the worker tells: interpreter, memory


class ServingView(Struct, frozen=True, kw_only=True):
    """Attributes:
    traffic: one row per model version and hour (or day): `at`, `model`, `version`, `requests`,
        `rows`, `batches`, `p50`, `p99` (milliseconds), oldest first.
    counters: of models, what was shed, refused or failed, since the beginning.
    """

    workers: tuple[Loaded, ...]
    traffic: pd.DataFrame
    by_day: bool
    counters: dict[str, dict[str, int]]


def serving_view(
    ledger: Ledger, now: datetime, *, model: str | None, span: timedelta
) -> ServingView:
    """The serving processes over the last `span` of wall-clock time, of one model or all."""
    with ledger.read() as tx:
        workers = _workers(tx, now, model)
        by_day = span > timedelta(hours=_HOURS)
        traffic = _traffic(tx, now - span, model, by_day=by_day)
        counters = _counters(tx, model)
    return ServingView(workers=workers, traffic=traffic, by_day=by_day, counters=counters)


def _workers(tx: sa.Connection, now: datetime, model: str | None) -> tuple[Loaded, ...]:
    table = schema.workers
    query = sa.select(table).order_by(table.c.model, table.c.worker)
    if model is not None:
        query = query.where(table.c.model == model)
    names = set(Loaded.__struct_fields__) - {"alive", "more"}
    return tuple(
        Loaded(**{name: row._mapping[name] for name in names}, alive=row.seen >= now - FRESH)
        for row in tx.execute(query)
    )


def _traffic(
    tx: sa.Connection, since: datetime, model: str | None, *, by_day: bool
) -> pd.DataFrame:
    import pandas as pd

    table = schema.traffic
    mine = table.c.model == (model or "")  # the empty name's rows are of all models together
    query = sa.select(table).where(table.c.hour >= since, mine)
    found: dict[tuple[datetime, str, str], Tally] = defaultdict(lambda: Tally(cells={}))
    for row in tx.execute(query):
        at = row.hour.replace(hour=0) if by_day else row.hour
        found[at, row.model, row.version or "all"].add(
            Tally(
                requests=row.requests,
                rows=row.rows,
                batches=row.batches,
                cells=_cells(row.cells),
            )
        )
    rows = [
        (
            *key, tally.requests, tally.rows, tally.batches,
            _ms(tally.quantile(0.5)), _ms(tally.quantile(0.99)),
        )
        for key, tally in sorted(found.items())
    ]  # fmt: skip
    names = ["at", "model", "version", "requests", "rows", "batches", "p50", "p99"]
    frame = pd.DataFrame(rows, columns=names)
    frame["at"] = pd.to_datetime(frame["at"], utc=True)
    return frame


def _cells(text: str) -> dict[int, int]:
    try:
        return msgspec.json.decode(text, type=dict[int, int])
    except msgspec.MsgspecError:
        return {}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


_TOLD = ("shed", "failed", "late", "unsampled", "canary_failed", "shadow_failed", "shadow_shed")


def _counters(tx: sa.Connection, model: str | None) -> dict[str, dict[str, int]]:
    table = schema.counters
    query = sa.select(table).where(table.c.value > 0)
    if model is not None:
        query = query.where(table.c.model == model)
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in tx.execute(query):
        if row.model and (row.name in _TOLD or row.name.startswith("refused:")):
            found[row.model][row.name] = int(row.value)
    return dict(found)
