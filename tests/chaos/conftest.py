"""Faults on purpose. `make test` runs a quick part, `make chaos` (SHELFLIFE_CHAOS=1) all of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"chaos_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reader = _load(HERE / "reader.py")
shop = _load(HERE / "shop.py")
serving = _load(REPOSITORY / "tests" / "serving" / "conftest.py")
versions = serving.versions  # fixtures of the serving tests: a fitted pipeline and its versions


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once SQLite and once PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    name: str = request.getfixturevalue("postgres_database")
    return name


@pytest.fixture(
    params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)][: 2 if LONG else 1]
)
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`url`, on PostgreSQL only in the long part: what is tested does not depend on the store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    name: str = request.getfixturevalue("postgres_database")
    return name


@pytest.fixture
def long() -> bool:
    """Whether the long part runs."""
    return LONG


@pytest.fixture
def read() -> Any:
    """`reader.read`: counts what lies in a log with none of our code."""
    return reader.read


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process of this repository, gone when the block ends."""
    running = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
    )
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        yield running
    finally:
        running.kill()
        running.wait(20)
        running.stdin.close()
        running.stdout.close()


@pytest.fixture
def start_process() -> Any:
    """`process`, for tests."""
    return process


@pytest.fixture
def shop_module() -> ModuleType:
    """A served model as a process, and callers."""
    return shop


class OwnPostgres:
    """A server of one test, which may be stopped."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        self._run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        prefix = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
        command = [*prefix, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-w", *arguments)

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._control("-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self) -> None:
        """At once, as a crash would: nothing is flushed, every connection is cut."""
        self._control("-m", "immediate", "stop")

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()


@pytest.fixture
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL server that this test may stop."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    folder = Path(tempfile.mkdtemp(prefix="shelflife-chaos-"))
    folder.chmod(0o777)
    server = OwnPostgres(folder, found[-1].parent)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def serving_tools() -> ModuleType:
    """The helpers of the serving tests: rows, requests, a client, a registry of folders."""
    return serving
