"""The ledger's engine: one SQL database (SQLite or PostgreSQL), its transactions and its leases.

SQLite runs in WAL mode with `synchronous=FULL`: what a transaction committed survives `kill -9`
and a power cut. Writers begin IMMEDIATE, so that two of them queue instead of failing half-way, and
wait for one another in short steps, so that none starves.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from core import schema
from core.errors import LeaseLost, ShelflifeError
from core.upgrade import add_missing

_BUSY_MS = 20_000  # how long a writer waits for another before it gives up
_STEP = 0.001  # seconds between two tries for the write lock, give or take half
_LONGEST_STEP = 0.005
#: Event ids are often random, so that an append touches a page of the key's index per row: a cache
#: that holds the index (16 MB) and a rarer checkpoint (4,000 pages) write each page less often.
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",  # what was deleted is overwritten, see `scrub`
    "cache_size=-16000",
    "wal_autocheckpoint=4000",
)


class Ledger:
    """A database that follows `core.schema`.

    Args:
        url: an SQLAlchemy URL, `sqlite:////path/ledger.db` or `postgresql+psycopg://…`.
        busy: how long a SQLite writer waits for the lock.
    """

    def __init__(self, url: str, *, busy: timedelta = timedelta(milliseconds=_BUSY_MS)) -> None:
        self.url = sa.make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"connect_args": {"timeout": busy.total_seconds()}}
        self.engine = sa.create_engine(self.url, **(options if self.sqlite else {}))
        self._busy = busy.total_seconds()
        event.listen(self.engine, "connect", _configure if self.sqlite else _configure_postgres)
        if self.sqlite:
            event.listen(self.engine, "begin", self._begin)
        self._writer = self.engine.execution_options(shelflife_write=True)
        # Connections of `write_raw`: on SQLite they never wait inside a statement.
        self._raw = sa.create_engine(self.url, **(options if self.sqlite else {}))
        event.listen(self._raw, "connect", _configure_raw if self.sqlite else _configure_postgres)

    def create(self) -> Ledger:
        """Create what is missing of the schema; safe to call at every start, by several at once.

        A ledger of an older shelflife is brought up to the present schema (`core.upgrade`).

        Raises:
            ShelflifeError: the database was written by a newer shelflife.
        """
        with self.write() as tx:
            if not self.sqlite:  # CREATE TABLE IF NOT EXISTS races between processes there
                tx.execute(sa.text("SELECT pg_advisory_xact_lock(7305437)"))
            schema.meta.create(tx, checkfirst=True)
            found = tx.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "schema"))
            if found is not None and int(found) < schema.VERSION:
                add_missing(tx, schema.metadata)
                mine = schema.meta.c.key == "schema"
                tx.execute(schema.meta.update().where(mine).values(value=str(schema.VERSION)))
            schema.metadata.create_all(tx)
            if found is None:
                tx.execute(schema.meta.insert().values(key="schema", value=str(schema.VERSION)))
            elif int(found) > schema.VERSION:
                raise ShelflifeError(
                    f"the ledger has schema {found}, this shelflife knows up to {schema.VERSION}; "
                    "upgrade shelflife or point `ledger` at another database"
                )
        return self

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that commits as a whole when the block ends, or not at all."""
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent read transaction."""
        with self.engine.connect() as connection:
            if not self.sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write_raw(self) -> Iterator[Any]:
        """`write` for the one statement that must be fast: yields the driver's own cursor.

        SQLAlchemy's share of a transaction (0.1 ms) is half of what an append costs.

        Raises:
            sqlalchemy.exc.DBAPIError: whatever the driver raises, as `write` would raise it.
        """
        connection: sa.PoolProxiedConnection | None = None
        try:
            connection = self._raw.raw_connection()
            cursor = connection.cursor()
            if self.sqlite:
                self._wait_for_lock(connection.driver_connection)
            yield cursor
            connection.commit()
        except BaseException as error:
            if connection is not None:
                self._undo(connection, error)
            driver = self.engine.dialect.loaded_dbapi.Error
            if isinstance(error, driver):
                raise self._translated(error) from error
            raise
        finally:
            if connection is not None:
                connection.close()

    def _undo(self, connection: sa.PoolProxiedConnection, error: BaseException) -> None:
        dialect = self.engine.dialect
        lost = isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(
            error, connection.dbapi_connection, None
        )
        if lost:
            connection.invalidate(error if isinstance(error, Exception) else None)
            self._raw.dispose()  # the others in the pool were lost with it
        else:
            connection.rollback()

    def _translated(self, error: BaseException) -> BaseException:
        dialect = self.engine.dialect
        return sa.exc.DBAPIError.instance(
            None, None, error, dialect.loaded_dbapi.Error, dialect=dialect
        )

    def _begin(self, connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("shelflife_write", False):
            connection.exec_driver_sql("BEGIN")
            return
        try:
            self._begin_immediate(connection.connection.driver_connection)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _begin_immediate(self, connection: Any) -> None:
        # BEGIN itself must not wait; other statements keep the driver's timeout.
        connection.execute("PRAGMA busy_timeout=0")
        try:
            self._wait_for_lock(connection)
        finally:
            connection.execute(f"PRAGMA busy_timeout={int(self._busy * 1000)}")

    def _wait_for_lock(self, connection: Any) -> None:
        """Take SQLite's write lock, or wait for it: at most `busy`, in short random steps.

        SQLite's own busy handler waits longer with each try (up to 0.1 s), so that who has waited
        longest looks least often; among steady writers some starve until they time out.
        """
        give_up, step = None, _STEP
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                give_up = give_up or monotonic() + self._busy
                if monotonic() > give_up:
                    raise
            else:
                return
            sleep(step * random.uniform(0.5, 1.5))  # noqa: S311
            step = min(step * 1.05, _LONGEST_STEP)

    def insert_ignore(self, table: sa.Table) -> Any:
        """An INSERT that skips rows whose key is already there."""
        return self._insert(table).on_conflict_do_nothing()

    def _insert(self, table: sa.Table) -> Any:
        if self.sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        return insert(table)

    def count(self, name: str, by: int = 1, *, model: str = "") -> None:
        """Add to a named counter in a transaction of its own."""
        with self.write() as tx:
            self.count_in(tx, {(model, name): by})

    def count_in(self, tx: sa.Connection, amounts: dict[tuple[str, str], int]) -> None:
        """Add amounts to counters, keyed by (model, name), in the caller's transaction."""
        table = schema.counters
        statement: Any = self._insert(table)
        statement = statement.on_conflict_do_update(
            index_elements=[table.c.model, table.c.name],
            set_={"value": table.c.value + statement.excluded.value},
        )
        # In one order everywhere: two workers that count the same things must not deadlock.
        rows = [
            {"model": model, "name": name, "value": by}
            for (model, name), by in sorted(amounts.items())
        ]
        if rows:
            tx.execute(statement, rows)

    def scrub(self, *, whole: bool = False) -> bool:
        """Take deleted rows out of the database's files as far as that is in our hands.

        SQLite: pages are overwritten as rows are deleted; here the write-ahead log, which holds
        older pages, is emptied. PostgreSQL: dead rows stay until VACUUM, which `whole` runs.

        Args:
            whole: rewrite the whole SQLite file too; every writer waits as long.

        Returns whether nothing is left to be done; a reader may keep SQLite's log in use.
        """
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw = connection.connection.driver_connection
            if raw is None:
                return False
            if whole:
                raw.execute("VACUUM")
            if not self.sqlite:
                return whole
            busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()
        self._raw.dispose()


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are ours (see `_begin`), not the driver's
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _configure_raw(connection: sqlite3.Connection, record: object) -> None:
    _configure(connection, record)
    connection.execute("PRAGMA busy_timeout=0")  # whoever begins, waits: see `_wait_for_lock`


def _configure_postgres(connection: Any, _record: object) -> None:
    # "Committed" must mean on disk, whatever the server's default is; stronger ones are left alone.
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone() == ("off",):
            cursor.execute("SET synchronous_commit = on")
    connection.commit()


def one_of(
    connection: sa.Connection, column: sa.ColumnElement[str], values: Iterable[str]
) -> sa.ColumnElement[bool]:
    """`column IN values` for any number of strings, as one bound parameter.

    An IN list of thousands of parameters costs more to compile and parse than to answer.
    """
    wanted = list(values)
    if connection.dialect.name == "sqlite":
        each = sa.func.json_each(json.dumps(wanted)).table_valued("value")
        return column.in_(sa.select(each.c.value))
    return column == sa.any_(sa.literal(wanted, sa.ARRAY(sa.Text)))


class Lease:
    """The right to do a named piece of work for a while, fenced by a token that only grows.

    A holder that slept past its lease finds its token outdated when it writes (`guard`), so a
    paused process cannot overwrite what its successor did.
    """

    def __init__(self, name: str, holder: str, token: int) -> None:
        self.name, self.holder, self.token = name, holder, token

    def guard(self, tx: sa.Connection) -> None:
        """Assert, inside the transaction that writes the result, that the lease is still ours.

        Raises:
            LeaseLost: somebody else holds it by now.
        """
        # FOR UPDATE: on PostgreSQL a rival must wait until this transaction is over.
        query = sa.select(schema.leases.c.token).where(schema.leases.c.name == self.name)
        if tx.scalar(query.with_for_update()) != self.token:
            raise LeaseLost(f"{self.name}: another process took over from {self.holder}")


def take_lease(
    ledger: Ledger, name: str, holder: str, *, now: datetime, lasts: timedelta, due: bool = False
) -> Lease | None:
    """Take the lease `name` if it is free or expired (and, with `due`, its due time has come).

    Returns None when another holder has it or nothing is due. `now` is the shell's clock.
    """
    table = schema.leases
    free = sa.or_(table.c.holder.is_(None), table.c.expires < now)
    wanted = (table.c.name == name) & free
    if due:
        wanted &= sa.or_(table.c.due.is_(None), table.c.due <= now)
    with ledger.write() as tx:
        tx.execute(ledger.insert_ignore(table).values(name=name, token=0))
        taken = tx.execute(
            table.update()
            .where(wanted)
            .values(holder=holder, token=table.c.token + 1, expires=now + lasts)
        )
        if not taken.rowcount:
            return None
        token = tx.scalar(sa.select(table.c.token).where(table.c.name == name))
    return Lease(name, holder, int(token or 0))


def renew_lease(ledger: Ledger, lease: Lease, *, now: datetime, lasts: timedelta) -> None:
    """Extend a lease that is still ours.

    Raises:
        LeaseLost: it is not.
    """
    with ledger.write() as tx:
        lease.guard(tx)
        table = schema.leases
        tx.execute(table.update().where(table.c.name == lease.name).values(expires=now + lasts))


def release_lease(ledger: Ledger, lease: Lease, *, due: datetime | None = None) -> None:
    """Give a lease back and say when its work is due next; nothing happens if it was lost."""
    table = schema.leases
    ours = (table.c.name == lease.name) & (table.c.token == lease.token)
    with ledger.write() as tx:
        values: dict[str, Any] = {"holder": None, "expires": None}
        tx.execute(table.update().where(ours).values(**values, due=due))
