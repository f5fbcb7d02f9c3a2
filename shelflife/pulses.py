"""When each recurring job last worked: what tells a monitor that works from one that is only up.

Jobs report to memory; a few times a minute what is new goes to the ledger's `jobs` in one
transaction. Several schedulers write the same rows: the newest success of any of them counts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger

#: The job whose success says that a scheduler lives, and the row that says since when.
PULSE, START = "pulse", "start"


class Pulse(Struct, frozen=True, kw_only=True):
    """The last success and the last failure of a job, by the wall clock."""

    job: str
    succeeded: datetime | None
    failed: datetime | None
    error: str = ""  # the type of the last failure


class Pulses:
    """The jobs of one process."""

    def __init__(self) -> None:
        self._news: dict[str, dict[str, object]] = {}
        self._lock = threading.Lock()

    def begin(self, ledger: Ledger, jobs: Iterable[str], at: datetime) -> None:
        """A scheduler starts with these jobs; what is known of others is forgotten."""
        with ledger.write() as tx:
            known = {*jobs, PULSE, START}
            tx.execute(schema.jobs.delete().where(schema.jobs.c.job.not_in(known)))
            _put(tx, START, {"succeeded": at})

    def worked(self, job: str, at: datetime) -> None:
        """A job came to its end."""
        with self._lock:
            self._news.setdefault(job, {})["succeeded"] = at

    def failed(self, job: str, at: datetime, error: str) -> None:
        """A job raised an error of this type."""
        with self._lock:
            self._news.setdefault(job, {}).update(failed=at, error=error)

    def save(self, ledger: Ledger) -> None:
        """Write down what is new. What cannot be written now is kept for the next time."""
        with self._lock:
            news, self._news = self._news, {}
        try:
            with ledger.write() as tx:
                for job, values in sorted(news.items()):
                    _put(tx, job, values)
        except BaseException:
            with self._lock:
                for job, values in news.items():
                    self._news[job] = values | self._news.get(job, {})
            raise


def read(tx: sa.Connection) -> dict[str, Pulse]:
    """Every job that ever ran, by name."""
    rows = tx.execute(sa.select(schema.jobs))
    return {row.job: Pulse(**row._mapping) for row in rows}


def _put(tx: sa.Connection, job: str, values: dict[str, object]) -> None:
    table = schema.jobs
    update = table.update().where(table.c.job == job).values(**values)
    if tx.execute(update).rowcount:
        return
    try:
        with tx.begin_nested():
            tx.execute(table.insert().values(job=job, **values))
    except sa.exc.IntegrityError:  # another process was faster
        tx.execute(update)
