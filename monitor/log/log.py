"""The inference log itself: hot rows in the ledger's database, sealed segments beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from monitor.log import forgetting, hot, labels, lineage, sealing, segments, upkeep
from monitor.log.admission import Admission, tally
from monitor.log.append import commit, encode
from monitor.log.lineage import SegmentEvent
from monitor.log.records import (
    Forgotten,
    Label,
    LabelReceipt,
    LeftOut,
    LogCounts,
    Prediction,
    Role,
    Rows,
    Sampled,
)
from monitor.log.storage import Storage, open_storage
from monitor.log.upkeep import Verdict


class InferenceLog:
    """`records.SampleLog` over a ledger and a store of segments.

    Args:
        ledger: the database that holds hot rows, labels and the manifest.
        store: where segments lie, as `<model>/<first time>-<random>.parquet`: a folder, or what
            `storage.open_storage` opened.
        admission: sampling and privacy of each model; everything is kept as it is without one.
        clock: says when a segment was found not to match; nothing is decided by it.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Path | Storage,
        *,
        admission: Admission | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.ledger, self._clock = ledger, clock
        self.admission = admission or Admission()
        self.storage = open_storage(store) if isinstance(store, Path) else store

    def append(
        self,
        rows: Sequence[Prediction],
        *,
        received: datetime,
        left_out: Mapping[LeftOut, int] | None = None,
    ) -> int:
        """See `SampleLog.append`."""
        if not rows and not left_out:
            return 0
        admitted = self.admission.admit(rows, left_out)
        sqlite = self.ledger.sqlite
        return commit(
            self.ledger,
            encode(admitted.rows, received),
            beside=lambda cursor: tally(cursor, admitted.tallies, sqlite),
        )

    def append_labels(self, labels_: Sequence[Label], *, received: datetime) -> LabelReceipt:
        """See `SampleLog.append_labels`."""
        if not labels_:
            return LabelReceipt(new=0, changed=0, unknown=0)
        with self.ledger.write() as tx:
            admitted, tallies = self.admission.labels(
                labels_, lambda model, ids: hot.known(tx, model, ids)
            )
            receipt = LabelReceipt(new=0, changed=0, unknown=0)
            if admitted:
                receipt = labels.insert(tx, self.ledger, admitted, received)
            tally(_cursor(tx), tallies, self.ledger.sqlite)
        return msgspec.structs.replace(receipt, unsampled=len(labels_) - len(admitted))

    def read(
        self,
        model: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        known_at: datetime | None = None,
        known_after: datetime | None = None,
        roles: Sequence[Role] = ("champion", "challenger"),
        version: str | None = None,
        labelled: bool = False,
        newest: int | None = None,
        inputs: bool | Collection[str] = True,
    ) -> Rows:
        """See `SampleLog.read`."""
        from monitor.log import reading

        query = reading.Query(
            model=model,
            start=start,
            end=end,
            known_at=known_at,
            known_after=known_after,
            roles=roles,
            version=version,
            labelled=labelled,
            newest=newest,
            inputs=inputs,
        )
        rows, corrupt = reading.read(self.ledger, self.storage, query)
        if corrupt:
            upkeep.quarantine(self.ledger, model, corrupt, self._clock())
        return rows

    def counts(self, model: str) -> LogCounts:
        """See `SampleLog.counts`."""
        live, files, truth = schema.predictions, schema.segments, schema.labels
        with self.ledger.read() as tx:
            n, first, last = tx.execute(
                sa.select(sa.func.count(), sa.func.min(live.c.time), sa.func.max(live.c.time))
                .select_from(live)
                .where(live.c.model == model)
            ).one()
            sealed, pieces, oldest, newest = tx.execute(
                sa.select(
                    sa.func.coalesce(sa.func.sum(files.c.rows), 0),
                    sa.func.count(),
                    sa.func.min(files.c.min_time),
                    sa.func.max(files.c.max_time),
                ).where(files.c.model == model, files.c.state == "active")
            ).one()
            bad = tx.scalar(
                sa.select(sa.func.count())
                .select_from(files)
                .where(files.c.model == model, files.c.state == "quarantined")
            )
            ids = tx.scalars(
                sa.select(truth.c.prediction_id).where(truth.c.model == model).distinct()
            ).all()
            unknown = len(ids) - len(hot.known(tx, model, ids))
            offered = schema.sampling
            seen, kept, said, held = tx.execute(
                sa.select(
                    *(
                        sa.func.coalesce(sa.func.sum(offered.c[name]), 0)
                        for name in ("seen", "kept", "labels_seen", "labels_kept")
                    )
                ).where(offered.c.model == model)
            ).one()
        moments = [moment for moment in (first, oldest) if moment is not None]
        ends = [moment for moment in (last, newest) if moment is not None]
        return LogCounts(
            predictions=n + int(sealed),
            hot=n,
            segments=pieces,
            quarantined=int(bad or 0),
            labels=len(ids),
            unknown_labels=unknown,
            oldest=min(moments, default=None),
            newest=max(ends, default=None),
            seen=int(seen),
            kept=int(kept),
            unsampled_labels=int(said) - int(held),
        )

    def segments(self, model: str) -> list[str]:
        """See `SampleLog.segments`."""
        with self.ledger.read() as tx:
            return [segment.sha256 for segment in segments.listed(tx, model)]

    def models(self) -> list[str]:
        """Every model that the log holds rows or labels of."""
        tables = (schema.predictions, schema.segments, schema.labels)
        with self.ledger.read() as tx:
            found = [tx.scalars(sa.select(table.c.model).distinct()).all() for table in tables]
        return sorted({name for names in found for name in names})

    def segment_bytes(self, model: str) -> int:
        """Bytes of the model's segments."""
        table = schema.segments
        query = sa.select(sa.func.coalesce(sa.func.sum(table.c.bytes), 0))
        with self.ledger.read() as tx:
            return int(tx.scalar(query.where(table.c.model == model)) or 0)

    def events(self, model: str) -> list[SegmentEvent]:
        """What became of the model's segments: merged, rewritten, deleted, quarantined."""
        return lineage.events(self.ledger, model)

    def seal(self, *, before: datetime, min_rows: int = 1) -> int:
        """See `SampleLog.seal`."""
        return sealing.seal(self.ledger, self.storage, before=before, min_rows=min_rows)

    def compact(self, model: str, *, at: datetime, rows: int = 100_000) -> int:
        """See `SampleLog.compact`."""
        return upkeep.compact(self.ledger, self.storage, model, at=at, rows=rows)

    def forget(
        self, model: str, ids: Collection[str], *, at: datetime, reason: str = "", by: str = ""
    ) -> Forgotten:
        """See `SampleLog.forget`, and `log.forgetting` for what is guaranteed."""
        return forgetting.forget(self.ledger, self.storage, model, ids, at=at, reason=reason, by=by)

    def retain(self, model: str, *, since: datetime, at: datetime) -> Forgotten:
        """See `SampleLog.retain`."""
        return forgetting.retain(self.ledger, self.storage, model, since=since, at=at)

    def verify(self, model: str, *, at: datetime) -> list[Verdict]:
        """See `upkeep.verify`."""
        return upkeep.verify(self.ledger, self.storage, model, at=at)

    def sweep(self, *, at: datetime, grace: timedelta = upkeep.GRACE) -> list[str]:
        """See `upkeep.sweep`."""
        return upkeep.sweep(self.ledger, self.storage, at=at, grace=grace)

    def sampled(self, model: str) -> list[Sampled]:
        """What was offered and kept, by hour of event time and rate, oldest first."""
        table, names = schema.sampling, Sampled.__struct_fields__
        query = sa.select(*(table.c[name] for name in names)).where(table.c.model == model)
        with self.ledger.read() as tx:
            rows = tx.execute(query.order_by(table.c.hour, table.c.rate)).all()
        return [Sampled(**row._mapping) for row in rows]


def _cursor(tx: sa.Connection) -> Any:
    """The driver's cursor inside a transaction."""
    raw: Any = tx.connection.driver_connection
    return raw.cursor()
