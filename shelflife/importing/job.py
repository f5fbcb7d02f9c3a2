"""The import itself: batch after batch, each committed with how far it got; killed, it goes on.

What makes it safe to kill and to repeat: a row's event id is its own id, or the content's hash and
the row's number; all rows and labels of one import bear one receipt, the moment it was first
started; and the position moves only after a batch is committed. A batch that was committed, but not
its position, is offered again and adds nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import InputError, ShelflifeError, shown
from core.ledger import Ledger
from core.settings import span
from monitor.log.records import SampleLog
from shelflife.importing.mapping import Known, Mapping, Options, described, resolve
from shelflife.importing.rows import Converted, Converter
from shelflife.importing.sources import Columns, Source
from shelflife.service import Service

_FORMAT = 1  # of ids and positions: another one is another import
_SHOWN = 5  # problems a dry run shows
_TRIED = 1_000  # rows a dry run converts
Progress = Callable[[int], None]
Say = Callable[[str], None]


class Counts(msgspec.Struct, kw_only=True):
    """What became of the rows of one source."""

    rows: int = 0  # read
    logged: int = 0  # new in the log
    repeated: int = 0  # already there: imported before, or the same id twice
    labels: int = 0  # new or changed labels of logged predictions
    unknown_labels: int = 0  # labels kept for predictions the log does not hold (yet)
    unlabelled: int = 0  # rows that say no label, where labels are imported
    rejected: int = 0  # rows that could not be used
    bad_labels: int = 0  # rows kept without their label
    reject_bytes: int = 0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One source's part of the summary."""

    source: str
    import_id: str
    counts: Counts
    skipped: bool  # it was imported before, whole and in the same way
    resumed_at: int  # rows an earlier, broken attempt had dealt with
    rejects: str  # file with what could not be used, and why; empty when there is none


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a dry run found in one source."""

    source: str
    mapping: dict[str, Any]
    rows: int  # tried
    predictions: int
    labels: int
    problems: dict[str, int]  # reason -> rows
    examples: tuple[str, ...]


def known_of(service: Service, model: str) -> Known:
    """The spec and the champion of a model; nothing for one that was never promoted."""
    table = schema.promotions
    with service.ledger.read() as tx:
        version = tx.scalar(
            sa.select(table.c.version).where(table.c.model == model).order_by(table.c.id.desc())
        )
    if version is None:
        return Known()
    baseline, _ = service.baseline(service.registry.get(model, str(version)))
    delay = service.model(model).label_delay
    seconds = span(delay).total_seconds() if delay else 0.0
    return Known(spec=baseline.spec, champion=str(version), label_delay=seconds)


def preview(source: Source, options: Options, known: Known, now: datetime, say: Say) -> Preview:
    """Map and convert the first rows; writes nothing.

    Raises:
        InputError: it cannot be mapped.
    """
    mapping, lines = _mapped(source, options, known)
    for line in lines:
        say(line)
    problems, examples = dict[str, int](), list[str]()

    def bad(what: str, why: str) -> None:
        problems[why] = problems.get(why, 0) + 1
        examples.append(f"{shown(what)}: {why}")

    converter = Converter(mapping, known.spec, "0" * 64, now)
    rows = predictions = labels = 0
    for columns in source.batches(mapping.columns(), 0, bad):
        part = {name: values[:_TRIED] for name, values in columns.items()}
        found = converter.convert(part, 0)
        rows = len(next(iter(part.values())))
        predictions, labels = len(found.predictions), len(found.labels)
        for index, why in sorted((found.bad_labels | found.rejected).items()):
            reason = f"{why.partition(': ')[0]}: expected {why.rpartition('expected ')[2]}"
            problems[reason] = problems.get(reason, 0) + 1
            examples.append(f"row {index}: {why}")
        break
    return Preview(
        source=source.name,
        mapping=described(mapping),
        rows=rows,
        predictions=predictions,
        labels=labels,
        problems=problems,
        examples=tuple(examples[:_SHOWN]),
    )


def _mapped(source: Source, options: Options, known: Known) -> tuple[Mapping, tuple[str, ...]]:
    mapping, lines = resolve(options, source.columns(), known)
    if mapping.id is None and not source.stable:
        raise InputError("--id", None, "the id's column: rows of a query have no stable number")
    return mapping, lines


class Job:
    """One source, one mapping.

    Args:
        folder: where files of rejected rows go.
        now: when this attempt starts.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: SampleLog,
        source: Source,
        mapping: Mapping,
        known: Known,
        folder: Path,
        now: datetime,
    ) -> None:
        self._ledger, self._log, self._source, self._map = ledger, log, source, mapping
        self._known, self._now = known, now
        self._identity = source.identity()
        how = msgspec.json.encode([_FORMAT, self._identity, mapping], order="sorted")
        self.id = hashlib.blake2b(how, digest_size=16).hexdigest()
        self._rejects = folder / f"{self.id}.rejects.csv"
        self._counts, self._position = Counts(), 0

    def run(self, *, again: bool = False, progress: Progress = lambda rows: None) -> Done:
        """Import what is not there yet.

        Args:
            again: read it although it was imported whole before.
            progress: called with the rows dealt with so far.

        Raises:
            ShelflifeError: another process imports the very same now.
        """
        with _alone(self._rejects):
            row = self._begin(again)
            started, resumed = row.started, int(row.position)
            if row.finished is not None and not again:
                return self._done(skipped=True, resumed=0)
            self._go(started, progress)
            self._finish()
        return self._done(skipped=False, resumed=resumed)

    def _begin(self, again: bool) -> Any:
        table = schema.imports
        mine = table.c.id == self.id
        with self._ledger.write() as tx:
            tx.execute(
                self._ledger.insert_ignore(table).values(
                    id=self.id, model=self._map.model, source=self._source.name, started=self._now
                )
            )
            if again:
                tx.execute(table.update().where(mine).values(position=0, counts="", finished=None))
            row = tx.execute(sa.select(table).where(mine)).one()
        # A query may answer something else today: it is always read from its first row.
        fresh = not self._source.stable and row.finished is None
        if row.counts and not fresh:
            self._counts = msgspec.json.decode(row.counts, type=Counts)
        self._position = 0 if fresh else int(row.position)
        return row

    def _go(self, started: datetime, progress: Progress) -> None:
        converter = Converter(self._map, self._known.spec, self._identity, started)
        with _rejects_from(self._rejects, self._counts.reject_bytes) as file:

            def bad(line: str, why: str) -> None:
                self._counts.rejected += 1
                _reject(file, None, why, line)

            for columns in self._source.batches(self._map.columns(), self._position, bad):
                count = len(next(iter(columns.values())))
                found = converter.convert(columns, self._position)
                self._write(found, columns, file, started)
                self._position += count
                self._counts.rows += count
                self._keep(file)
                progress(self._position)
            self._keep(file)

    def _write(
        self, found: Converted, columns: Columns, file: IO[bytes], started: datetime
    ) -> None:
        counts = self._counts
        new = self._log.append(found.predictions, received=started)
        counts.logged += new
        counts.repeated += len(found.predictions) - new
        if found.labels:
            receipt = self._log.append_labels(found.labels, received=started)
            counts.labels += receipt.new + receipt.changed
            counts.unknown_labels += receipt.unknown
        if self._map.labels:
            all_rows = len(next(iter(columns.values())))
            lost = len(found.labels) + len(found.rejected) + len(found.bad_labels)
            counts.unlabelled += max(all_rows - lost, 0)
        counts.rejected += len(found.rejected)
        counts.bad_labels += sum(index not in found.rejected for index in found.bad_labels)
        for index in sorted(found.rejected | found.bad_labels):
            why = found.rejected.get(index) or f"label left out: {found.bad_labels[index]}"
            row = {name: values[index] for name, values in columns.items()}
            text = json.dumps(row, default=str)
            _reject(file, self._position + index, why, text)

    def _keep(self, file: IO[bytes]) -> None:
        file.flush()
        self._counts.reject_bytes = file.tell()
        with self._ledger.write() as tx:
            self._update(tx, finished=None)

    def _update(self, tx: sa.Connection, *, finished: datetime | None) -> None:
        table = schema.imports
        counts = msgspec.json.encode(self._counts).decode()
        tx.execute(
            table.update()
            .where(table.c.id == self.id)
            .values(position=self._position, counts=counts, finished=finished)
        )

    def _finish(self) -> None:
        with self._ledger.write() as tx:
            # An older receipt than what was scored meanwhile: score this model's past anew.
            marks = schema.score_marks
            tx.execute(marks.delete().where(marks.c.model == self._map.model))
            self._update(tx, finished=self._now if self._source.stable else None)

    def _done(self, *, skipped: bool, resumed: int) -> Done:
        some = self._counts.rejected + self._counts.bad_labels
        return Done(
            source=self._source.name,
            import_id=self.id,
            counts=self._counts,
            skipped=skipped,
            resumed_at=resumed if self._source.stable else 0,
            rejects=str(self._rejects) if some else "",
        )


def run_all(
    service: Service,
    sources: Sequence[Source],
    options: Options,
    known: Known,
    *,
    now: datetime,
    again: bool,
    say: Say,
    progress: Callable[[Source], Any],
) -> list[Done]:
    """Import sources one after the other, then move what is settled into segments.

    Args:
        progress: a context manager that gives the `Progress` of a source.
    """
    jobs = []
    told: tuple[str, ...] = ()
    for source in sources:  # every file is mapped before the first is written
        mapping, lines = _mapped(source, options, known)
        if lines != told:
            say(f"{source.name}:")
            for line in lines:
                say(f"  {line}")
        told = lines
        jobs.append((source, mapping))
    folder, done = service.home / "imports", []
    for source, mapping in jobs:
        job = Job(service.ledger, service.log, source, mapping, known, folder, now)
        with progress(source) as tell:
            done.append(job.run(again=again, progress=tell))
    if any(each.counts.logged and not each.skipped for each in done):
        service.log.seal(before=now + timedelta(microseconds=1))
    return done


def _reject(file: IO[bytes], row: int | None, why: str, text: str) -> None:
    fields = ["" if row is None else str(row), why, text]
    quoted = ",".join('"' + field.replace('"', '""') + '"' for field in fields)
    file.write((quoted + "\n").encode("utf-8", "backslashreplace"))


@contextmanager
def _rejects_from(path: Path, size: int) -> Iterator[IO[bytes]]:
    """The file of rejected rows, cut to what was committed with the position."""
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        if not size:
            file.write(b"row,reason,content\n")
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks here: two at once would only count rows twice
            pass
        except OSError:
            raise ShelflifeError("another process is importing the same rows now") from None
        yield
