"""The inference log itself: hot rows in the ledger's database, sealed segments beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from core import schema
from core.errors import CorruptSegment
from core.ledger import Ledger
from monitor.log import hot, labels, segments
from monitor.log.append import Columns, commit, encode, encode_columns
from monitor.log.records import Label, LabelReceipt, LogCounts, Prediction, Role, Rows
from monitor.log.segments import Written

if TYPE_CHECKING:
    import pandas as pd

_SEGMENT_ROWS = 100_000  # most rows a segment holds
_DELETED = 5_000  # rows one statement deletes


class InferenceLog:
    """`records.SampleLog` over a ledger and a folder of segments.

    Args:
        ledger: the database that holds hot rows, labels and the manifest.
        folder: where segments lie; `<folder>/<model>/<first time>-<random>.parquet`.
    """

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder

    def append(self, rows: Sequence[Prediction], *, received: datetime) -> int:
        """See `SampleLog.append`."""
        if not rows:
            return 0
        return commit(self.ledger, encode(rows, received))

    def append_columns(self, columns: Columns, *, received: datetime) -> int:
        """`append` for rows that come as columns (Arrow, Parquet): no struct is made per row."""
        if not columns.ids:
            return 0
        return commit(self.ledger, encode_columns(columns, received))

    def append_labels(self, labels_: Sequence[Label], *, received: datetime) -> LabelReceipt:
        """See `SampleLog.append_labels`."""
        if not labels_:
            return LabelReceipt(new=0, changed=0, unknown=0)
        with self.ledger.write() as tx:
            return labels.insert(tx, self.ledger, labels_, received)

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
        inputs: bool = True,
    ) -> Rows:
        """See `SampleLog.read`."""
        import pandas as pd

        from monitor.log import flat

        with self.ledger.read() as tx:  # manifest, hot rows and labels of one moment
            truth, within = None, None
            if known_after is not None:
                labelled = True
                truth = labels.learned_between(tx, model, known_after, known_at)
                within = hot.segments_of(tx, model, truth)
            live = flat.flatten(
                hot.select(
                    tx,
                    model,
                    start=start,
                    end=end,
                    roles=roles,
                    version=version,
                    ids=truth,
                    inputs=inputs,
                )
            )
            sealed, used, problems = self._sealed(tx, model, start, end, within, inputs)
            old = flat.matching(sealed, start, end, roles, version, truth)
            frame = pd.concat([part for part in (old, live) if len(part)] or [live])
            frame = frame.sort_values("time", kind="stable", ignore_index=True)
            if newest is not None and not labelled:
                frame = frame.tail(newest).reset_index(drop=True)
            if truth is None:
                truth = labels.winning(tx, model, frame["id"].tolist(), known_at)
        frame = flat.join(frame, truth)
        if labelled:
            frame = frame[frame["label_time"].notna()]
            frame = frame.tail(newest) if newest is not None else frame
        if problems:
            self._quarantine(problems)
        return flat.apart(frame.reset_index(drop=True), used, [text for _, text in problems])

    def _sealed(
        self,
        tx: sa.Connection,
        model: str,
        start: datetime | None,
        end: datetime | None,
        within: set[int] | None,
        inputs: bool,
    ) -> tuple[pd.DataFrame, list[str], list[tuple[int, str]]]:
        import pandas as pd

        from monitor.log import flat

        parts, used, problems = [], list[str](), list[tuple[int, str]]()
        for segment in segments.listed(tx, model, start=start, end=end, ids=within):
            try:
                parts.append(segments.read(self.folder, segment, inputs=inputs))
                used.append(segment.sha256)
            except CorruptSegment as error:
                problems.append((segment.id, str(error)))
        whole = pd.concat(parts, ignore_index=True) if parts else flat.empty()
        return whole, used, problems

    def _quarantine(self, problems: Sequence[tuple[int, str]]) -> None:
        table = schema.segments
        with self.ledger.write() as tx:
            ids = [identity for identity, _ in problems]
            tx.execute(table.update().where(table.c.id.in_(ids)).values(state="quarantined"))

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
        )

    def segments(self, model: str) -> list[str]:
        """See `SampleLog.segments`."""
        with self.ledger.read() as tx:
            return [segment.sha256 for segment in segments.listed(tx, model)]

    def seal(self, *, before: datetime, min_rows: int = 1) -> int:
        """See `SampleLog.seal`."""
        table, moved = schema.predictions, 0
        with self.ledger.read() as tx:
            query = (
                sa.select(table.c.model, sa.func.count())
                .where(table.c.received < before)
                .group_by(table.c.model)
            )
            models = [name for name, n in tx.execute(query).all() if n >= min_rows]
        for model in models:
            while count := self._seal_one(model, before):
                moved += count
        return moved

    def _seal_one(self, model: str, before: datetime) -> int:
        from monitor.log import flat

        table = schema.predictions
        with self.ledger.read() as tx:
            query = (
                sa.select(
                    table.c.prediction_id,
                    table.c.version,
                    table.c.role,
                    table.c.source,
                    table.c.event_id,
                    sa.type_coerce(table.c.time, sa.BigInteger),
                    table.c.inputs,
                    table.c.outputs,
                    table.c.id,
                )
                .where(table.c.model == model, table.c.received < before)
                .order_by(table.c.id)
                .limit(_SEGMENT_ROWS)
            )
            rows = tx.execute(query).all()
        if not rows:
            return 0
        written = segments.write(self.folder, model, flat.flatten(rows))
        if not self._swap_in(model, written, rows, before):
            (self.folder / written.path).unlink()  # another sealer was faster
            return 0
        return len(rows)

    def _swap_in(
        self,
        model: str,
        written: Written,
        rows: Sequence[Any],
        before: datetime,
    ) -> bool:
        """One transaction: the manifest row and the keys in, the hot rows out."""
        ids = [row[8] for row in rows]
        with self.ledger.write() as tx:
            gone = 0
            for start in range(0, len(ids), _DELETED):
                mine = schema.predictions.c.id.in_(ids[start : start + _DELETED])
                gone += tx.execute(schema.predictions.delete().where(mine)).rowcount
            if gone != len(ids):
                tx.rollback()
                return False
            added = tx.execute(
                schema.segments.insert().values(
                    model=model,
                    path=written.path,
                    rows=written.rows,
                    sha256=written.sha256,
                    min_time=written.min_time,
                    max_time=written.max_time,
                    columns=written.columns,
                    state="active",
                    created=before,
                )
            )
            segment = added.inserted_primary_key[0] if added.inserted_primary_key else None
            keys = [
                {
                    "event": hot.key(str(row[3]), str(row[4])),
                    "prediction": hot.key(model, str(row[0])),
                    "segment": segment,
                }
                for row in rows
            ]
            tx.execute(schema.sealed_keys.insert(), keys)
        return True
