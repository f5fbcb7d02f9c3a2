"""The seeded ledger as a fixture, and the environment the pages read."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.ledger import Ledger


def _load_seed() -> Any:
    # Tests are no package: the module is loaded by its path.
    path = Path(__file__).with_name("seed.py")
    spec = importlib.util.spec_from_file_location("dashboard_seed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def keep_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit puts its scripts in place of `__main__`; processes spawned later would run them."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(scope="session")
def seed() -> Any:
    """The module `tests/dashboard/seed.py`."""
    return _load_seed()


@pytest.fixture(scope="session")
def home(seed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the seeded ledger, the hostile model included, and one report."""
    folder = tmp_path_factory.mktemp("home")
    ledger = seed.fill(folder / "ledger.db")
    seed.hostile(ledger)
    ledger.close()
    (folder / "reports").mkdir()
    (folder / "reports" / "incident-42.html").write_text("<html><p>drift</p></html>")
    return folder


@pytest.fixture(scope="session")
def ledger(home: Path) -> Iterator[Ledger]:
    """The seeded ledger."""
    found = Ledger(f"sqlite:///{home / 'ledger.db'}")
    yield found
    found.close()


@pytest.fixture
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the dashboard reads from its environment, pointing at the seeded home."""
    monkeypatch.setenv("SHELFLIFE_LEDGER", f"sqlite:///{home / 'ledger.db'}")
    monkeypatch.setenv("SHELFLIFE_HOME", str(home))
    monkeypatch.setenv("SHELFLIFE_MLFLOW_UI", "http://127.0.0.1:5000/")
    monkeypatch.setenv("SHELFLIFE_CLOCK", "ledger")
    return home
