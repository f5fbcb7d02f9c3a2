"""Holding a lease while work goes on: renewed from a thread, given back at the end."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from core.errors import LeaseLost
from core.ledger import Lease, Ledger, release_lease, renew_lease, take_lease
from shelflife.service import wall_clock

LASTS = timedelta(seconds=30)
#: This process, as the ledger names it.
HOLDER = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


@contextmanager
def held(ledger: Ledger, name: str, *, lasts: timedelta = LASTS) -> Iterator[Lease | None]:
    """Hold the lease `name` for the block; yields None when somebody else has it.

    The lease outlives a crash by at most `lasts`; a thread renews it at a third of that.
    """
    lease = take_lease(ledger, name, HOLDER, now=wall_clock(), lasts=lasts)
    if lease is None:
        yield None
        return
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(ledger, lease, lasts, done), daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        done.set()
        keeper.join()
        release_lease(ledger, lease)


def _keep(ledger: Ledger, lease: Lease, lasts: timedelta, done: threading.Event) -> None:
    while not done.wait(lasts.total_seconds() / 3):
        try:
            renew_lease(ledger, lease, now=wall_clock(), lasts=lasts)
        except LeaseLost:
            return  # the guard in the writing transaction will say so
