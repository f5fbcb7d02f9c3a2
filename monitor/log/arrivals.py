"""When rows arrived, beside when they were asked: what tells late data from no data."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from monitor.figures import Arrivals

_MOST = 2000  # newest rows that are looked at


def arrivals(
    ledger: Ledger, model: str, *, after: datetime, until: datetime, late: timedelta
) -> Arrivals:
    """The newest 2,000 rows that arrived in (after, until], training history apart.

    Only hot rows know when they arrived; those that were sealed since are not seen.

    Args:
        late: the delay beyond which a row counts as late.
    """
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
    if not rows:
        return Arrivals(rows=0)
    delays = np.array([max((row.received - row.time).total_seconds(), 0.0) for row in rows])
    return Arrivals(
        rows=len(rows),
        newest=max(row.received for row in rows),
        delay=float(np.median(delays)),
        late=float((delays > late.total_seconds()).mean()),
    )
