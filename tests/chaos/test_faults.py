"""A locked database, a full disk, an I/O error, a database that is away, under a served model.

In each of them answers go on, what is shed is counted exactly, and when the fault ends everything
recovers by itself: asked == committed + queued and then committed + shed.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def make_shop(home: Path, serving_tools: Any, versions: Any, shop_module: Any) -> Any:
    def make(url: str) -> Any:
        return shop_module.Shop(home, url, serving_tools, versions)

    return make


def through(shop: Any, fault: Any, seconds: float) -> None:
    """Answers before, during and after a fault; at least 20 requests are shed in it."""
    start = shop.words()
    shop.wait_for(lambda: shop.words()["committed"] >= start["committed"] + 10)
    with fault:
        before = shop.words()
        end = time.monotonic() + seconds
        shop.wait_for(lambda: shop.words()["shed"] > before["shed"] + 20, seconds=seconds + 60)
        shop.wait_for(lambda: time.monotonic() > end, seconds=seconds + 60)
        during = shop.words()
        assert during["queued"] > before["queued"]
    shop.wait_for(lambda: shop.words()["committed"] >= during["committed"] + 10)
    # Who asked when the fault began waited once, and nobody waits for a log known to be away.
    assert sum(caller.slow for caller in shop.callers) <= 4 * len(shop.callers)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another process holds what a writer needs."""
    if url.startswith("sqlite"):
        other: Any = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        import psycopg

        other = psycopg.connect(url.replace("+psycopg", ""))
        other.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
    try:
        yield
    finally:
        other.rollback() if not isinstance(other, sqlite3.Connection) else other.execute("ROLLBACK")
        other.close()


@contextmanager
def short_files(process: Any) -> Iterator[None]:
    """Every write of the process, and of the one that commits for it, to a file fails (EFBIG, which
    SQLite reports as an I/O error)."""
    pids = [process.pid, *children(process.pid)]
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def children(pid: int) -> list[int]:
    """The processes that a process forked."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in found.split()]


def test_a_lock_and_io_errors(
    home: Path, make_shop: Any, start_process: Any, read: Any, long: bool
) -> None:
    url = f"sqlite:///{home / 'ledger.db'}"
    shop = make_shop(url)
    with shop.run(start_process) as process:
        shop.call()
        through(shop, locked(url), 60.0 if long else 3.0)
        through(shop, short_files(process), 20.0 if long else 0.5)
        shop.stop(process)
    shop.check(read(url, home / "segments"))


@pytest.mark.postgres
def test_a_lock_and_postgres_going_away(
    home: Path, own_postgres: Any, make_shop: Any, start_process: Any, read: Any, long: bool
) -> None:
    shop = make_shop(own_postgres.url)
    with shop.run(start_process) as process:
        shop.call()
        through(shop, locked(own_postgres.url), 60.0 if long else 3.0)
        through(shop, own_postgres.away(), 20.0 if long else 0.5)
        shop.stop(process)
    shop.check(read(own_postgres.url, home / "segments"))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 MB: an empty PostgreSQL database takes 20."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place = Path(tempfile.mkdtemp(prefix="shelflife-small-"))
    place.chmod(0o755)  # PostgreSQL's user must reach it
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
    place.rmdir()


@contextmanager
def full(place: Path) -> Iterator[None]:
    """Not a byte is left."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


def test_a_full_disk(
    small_disk: Path, home: Path, make_shop: Any, start_process: Any, read: Any, long: bool
) -> None:
    url = f"sqlite:///{small_disk / 'ledger.db'}"
    shop = make_shop(url)
    with shop.run(start_process) as process:
        shop.call()
        through(shop, full(small_disk), 20.0 if long else 0.5)
        shop.stop(process)
    shop.check(read(url, home / "segments"))


@pytest.mark.postgres
def test_a_full_disk_under_postgres(
    small_disk: Path,
    home: Path,
    postgres: str,
    make_shop: Any,
    start_process: Any,
    read: Any,
    long: bool,
) -> None:
    if not long:
        pytest.skip("a minute more: make chaos")
    place = small_disk / "tables"
    place.mkdir()
    place.chmod(0o700)
    if os.geteuid() == 0:
        subprocess.run(["chown", "nobody", str(place)], check=True)
    admin = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE TABLESPACE small LOCATION '{place}'"))
            connection.execute(sa.text("CREATE DATABASE small TABLESPACE small"))
        url = postgres.replace("/postgres?", "/small?")
        shop = make_shop(url)
        with shop.run(start_process) as process:
            shop.call()
            through(shop, full(small_disk), 20.0 if long else 0.5)
            shop.stop(process)
        shop.check(read(url, home / "segments"))
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text("DROP DATABASE IF EXISTS small WITH (FORCE)"))
            connection.execute(sa.text("DROP TABLESPACE IF EXISTS small"))
        admin.dispose()


def test_a_second_signal_loses_nothing_that_was_accepted(
    any_url: str, home: Path, make_shop: Any, start_process: Any, read: Any
) -> None:
    url = any_url
    shop = make_shop(url)
    with shop.run(start_process, durability="relaxed", commit_within="20s") as process:
        shop.call(1)
        shop.wait_for(lambda: shop.words()["accepted"] >= 50)
        shop.close()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.05)
        process.wait(40)
    found = read(url, home / "segments")
    assert set(shop.words()) == {"accepted"}
    assert len(found.events) == 3 * len(shop.said)
    assert not found.doubled()


def test_relaxed_loses_at_most_its_bound_to_kill_9(
    any_url: str, home: Path, make_shop: Any, start_process: Any, read: Any
) -> None:
    url, bound = any_url, 1.0
    shop = make_shop(url)
    with shop.run(start_process, durability="relaxed", commit_within=f"{bound}s") as process:
        shop.call()
        shop.wait_for(lambda: shop.words()["accepted"] >= 200)
        killed, [committer] = time.monotonic(), children(process.pid)
        process.kill()
        process.wait(20)
        shop.wait_for(lambda: not Path(f"/proc/{committer}").exists())  # it ends by itself
    there = {event.rpartition(":")[0] for _, event in read(url, home / "segments").events}
    promised = {
        name
        for name, (word, moment) in shop.said.items()
        if word == "committed" or (word == "accepted" and moment < killed - bound)
    }
    assert promised
    assert promised <= there
