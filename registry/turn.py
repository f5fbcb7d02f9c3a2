"""Whose turn it is to move a model's aliases: one lease in the ledger, `alias:<model>`.

A holder that died on this machine is recognised by its process id, so that a restart need not wait
for the lease to run out; one that died elsewhere is waited for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from core import schema
from core.errors import NotReady
from core.ledger import Lease, Ledger, release_lease, take_lease

Clock = Callable[[], datetime]

LASTS = timedelta(seconds=120)  # longer than MLflow's client tries one call (3 × 30 s)
_TRIES, _PAUSE = 150, 0.1  # another promotion of the same model takes well below these 15 s


def wall_clock() -> datetime:
    """Now, in UTC: the clock of leases, whatever clock the events have."""
    return datetime.now(UTC)


@contextmanager
def alone(
    ledger: Ledger, model: str, clock: Clock = wall_clock, *, patience: int | None = None
) -> Iterator[Lease]:
    """Hold the lease for the block.

    Args:
        patience: tries after the first, a tenth of a second apart; 15 s when not given. With 0 a
            lease that somebody else has is given as one with token 0, which writes nothing.

    Raises:
        NotReady: somebody else had it all the time.
    """
    patience = _TRIES if patience is None else patience
    lease = _take(ledger, model, clock)
    for _ in range(patience):
        if lease is not None:
            break
        time.sleep(_PAUSE)
        lease = _take(ledger, model, clock)
    if lease is None:
        if patience:
            raise NotReady(f"another promotion of {model} is under way; try again in a minute")
        yield Lease(_name(model), "", 0)
        return
    try:
        yield lease
    finally:
        release_lease(ledger, lease)


def renew(
    ledger: Ledger,
    lease: Lease,
    clock: Clock,
    guard: Callable[[sa.Connection], None] = lambda tx: None,
) -> None:
    """Assert that the lease is ours and the guard content, and begin its time anew.

    Raises:
        LeaseLost: it is not, or it is not.
    """
    table = schema.leases
    with ledger.write() as tx:
        lease.guard(tx)
        guard(tx)
        fresh = table.update().where(table.c.name == lease.name)
        tx.execute(fresh.values(expires=clock() + LASTS))


def _take(ledger: Ledger, model: str, clock: Clock) -> Lease | None:
    name, holder = _name(model), _holder()
    lease = take_lease(ledger, name, holder, now=clock(), lasts=LASTS)
    if lease is None and _free_the_dead(ledger, name):
        lease = take_lease(ledger, name, holder, now=clock(), lasts=LASTS)
    return lease


def _free_the_dead(ledger: Ledger, name: str) -> bool:
    """Whether the lease was held by a process of this machine that is no more, and is free now."""
    table = schema.leases
    query = sa.select(table.c.holder, table.c.token).where(table.c.name == name)
    with ledger.read() as tx:
        row = tx.execute(query).first()
    if row is None or row.holder is None or not _dead(row.holder):
        return False
    same = (table.c.name == name) & (table.c.holder == row.holder) & (table.c.token == row.token)
    with ledger.write() as tx:
        freed = tx.execute(table.update().where(same).values(holder=None, expires=None))
    return bool(freed.rowcount)


def _dead(holder: str) -> bool:
    place, _, rest = holder.rpartition("#")
    number = rest.partition(":")[0]
    if place != _place() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _name(model: str) -> str:
    return f"alias:{model}"


def _holder() -> str:
    return f"{_place()}#{os.getpid()}:{threading.get_ident()}"


def _place() -> str:
    """This machine and, in a container, its own numbering of processes."""
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    return f"{socket.gethostname()[:60]}/{space}"
