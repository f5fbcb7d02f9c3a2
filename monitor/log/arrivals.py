"""When rows arrived, beside when they were asked: what tells late data from no data."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger

_MOST = 2000  # newest rows that are looked at


class Arrivals(Struct, frozen=True, kw_only=True):
    """Rows that arrived in some stretch, the newest 2,000 of them; training history apart."""

    rows: int
    newest: datetime | None = None  # when the last one arrived
    delays: tuple[float, ...] = ()  # seconds from event time to arrival, ascending

    @property
    def median(self) -> float | None:
        """Median delay in seconds."""
        return float(np.median(self.delays)) if self.delays else None

    def share(self, seconds: float) -> float:
        """Share of the rows that arrived later than this after their event time."""
        return float(np.mean(np.array(self.delays) > seconds)) if self.delays else 0.0


def arrivals(ledger: Ledger, model: str, *, after: datetime, until: datetime) -> Arrivals:
    """The hot rows that arrived in (after, until]; rows that were sealed since are not seen."""
    table = schema.predictions.c
    query = (
        sa.select(table.time, table.received)
        .where(
            table.model == model,
            table.received > after,
            table.received <= until,
            table.role != "history",
        )
        .order_by(table.id.desc())
        .limit(_MOST)
    )
    with ledger.read() as tx:
        rows = tx.execute(query).all()
    delays = sorted(max((row.received - row.time).total_seconds(), 0.0) for row in rows)
    newest = max((row.received for row in rows), default=None)
    return Arrivals(rows=len(rows), newest=newest, delays=tuple(delays))
