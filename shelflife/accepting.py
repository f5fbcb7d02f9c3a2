"""A lasting change that a person accepts: the rows of now become what drift is measured against.

The version keeps its expected performance and everything else; only its columns, their natural
variation and the reference sample are new. It is a row of the ledger with who and why, in force
from its moment on, so that a check of an earlier moment finds what it found then.
"""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa
from msgspec import Struct, structs

from core import schema
from core.errors import InputError
from core.settings import span
from monitor.alert import incidents
from monitor.baseline import build, dump, load, reference_sample
from shelflife.actions import champion_of
from shelflife.service import Service

if TYPE_CHECKING:
    import pandas as pd

    from monitor.baseline import Baseline
    from registry.versions import Version

LEAST = 200  # rows that a baseline must hold


class Accepted(Struct, frozen=True, kw_only=True):
    """What was accepted."""

    id: int
    model: str
    version: str
    since: datetime  # event times of the rows, the last one excluded
    until: datetime
    rows: int
    by: str
    reason: str
    resolved: int | None = None  # the drift incident that this ended


def accept_now(
    service: Service,
    model: str,
    *,
    by: str,
    reason: str,
    at: datetime,
    over: timedelta | None = None,
) -> Accepted:
    """Take the champion's newest rows as what its inputs and outputs look like from now on.

    Args:
        over: how far back the rows reach; the check window when None.

    Raises:
        NotFound: no such model, or it has no champion.
        InputError: fewer than 200 rows.
    """
    champion, settings = champion_of(service, model, at=at), service.model(model)
    over = over or span(settings.window)
    baseline, sample = _made(service, champion, at=at, over=over)
    table = schema.accepted_baselines
    with service.ledger.write() as tx:
        identity = tx.execute(
            table.insert()
            .values(
                model=model,
                version=champion.version,
                at=at,
                since=at - over,
                rows=baseline.rows,
                by=by,
                reason=reason,
                baseline=dump(baseline).decode(),
                reference=sample,
            )
            .returning(table.c.id)
        ).scalar_one()
        found = incidents.find(tx, model, "drift")
        if found is not None:
            because = f": {reason}" if reason else ""
            incidents.resolve(
                tx,
                found.id,
                at=at,
                text=f"accepted as the new baseline by {by}{because}",
                context=service.context(model, champion),
            )
    return Accepted(
        id=int(identity),
        model=model,
        version=champion.version,
        since=at - over,
        until=at,
        rows=baseline.rows,
        by=by,
        reason=reason,
        resolved=found.id if found else None,
    )


def _made(
    service: Service, champion: Version, *, at: datetime, over: timedelta
) -> tuple[Baseline, bytes]:
    settings = service.model(champion.model)
    before, _ = service.baseline(champion)
    rows = service.log.read(champion.model, start=at - over, end=at, known_at=at)
    if len(rows) < LEAST:
        raise InputError("rows", f"{len(rows):,} in the last {over}", f"at least {LEAST}")
    outputs = rows.outputs.where(rows.meta["version"] == champion.version)
    times = [moment.to_pydatetime() for moment in rows.meta["time"]]
    inputs = rows.inputs.reindex(columns=before.spec.columns)
    made = build(
        before.spec,
        inputs,
        outputs,
        None,
        times,
        created=before.created,
        how="reference",
        trained_until=before.trained_until,
        every=span(settings.check_every),
        window=span(settings.window),
    )
    raw = io.BytesIO()
    truth = np.full(len(rows), np.nan)
    reference_sample(inputs, outputs, truth, times).to_parquet(raw, index=False)
    note = "; ".join(
        part
        for part in (f"accepted on {at:%Y-%m-%d %H:%M}, {len(rows):,} rows", before.note)
        if part
    )
    return structs.replace(made, expected=before.expected, note=note), raw.getvalue()


def in_force(
    service: Service, version: Version, *, at: datetime
) -> tuple[Baseline, pd.DataFrame] | None:
    """What was accepted last for this version by a moment; None when nothing was."""
    import pandas as pd

    table = schema.accepted_baselines
    mine = (table.c.model == version.model) & (table.c.version == version.version)
    query = sa.select(table.c.id).where(mine, table.c.at <= at).order_by(table.c.id.desc()).limit(1)
    with service.ledger.read() as tx:
        newest = tx.scalar(query)
        if newest is None:
            return None
        key = (version.model, f"{version.version} accepted {newest}")
        if key not in service.remembered:
            row = tx.execute(sa.select(table).where(table.c.id == newest)).one()
            sample = pd.read_parquet(io.BytesIO(row.reference))
            service.remembered[key] = (load(row.baseline.encode()), sample)
    return service.remembered[key]
