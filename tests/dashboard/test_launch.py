from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import msgspec

import dashboard
from core.settings import DashboardSettings, Settings
from dashboard import launch

FOLDER = Path(dashboard.__file__).parent


def test_the_command_is_safe_wherever_it_is_started() -> None:
    settings = Settings(dashboard=DashboardSettings(port=8777))
    argv = launch.command(settings)
    assert argv[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(argv[4]) == FOLDER / "app.py"
    for flag in (
        "--server.address=127.0.0.1",
        "--server.port=8777",
        "--server.headless=true",
        "--server.fileWatcherType=none",
        "--browser.gatherUsageStats=false",
    ):
        assert flag in argv
    assert launch.address(settings) == "http://127.0.0.1:8777"


def test_streamlit_knows_every_flag() -> None:
    from streamlit.config import get_config_options

    known = get_config_options()
    flags = [flag[2:].split("=")[0] for flag in launch.command(Settings())[5:]]
    assert set(flags) <= set(known)


def test_the_environment_names_ledger_home_and_links() -> None:
    settings = Settings(home="/srv/shelflife")
    found = launch.environment(settings, mlflow_ui="http://127.0.0.1:5000", replay=True)
    assert found["SHELFLIFE_LEDGER"] == "sqlite:////srv/shelflife/ledger.db"
    assert found["SHELFLIFE_HOME"] == "/srv/shelflife"
    assert found["SHELFLIFE_MLFLOW_UI"] == "http://127.0.0.1:5000"
    assert found["SHELFLIFE_CLOCK"] == "ledger"
    assert found["PYTHONPATH"].split(":")[0] == str(FOLDER.parent)
    plain = launch.environment(msgspec.structs.replace(settings, ledger="sqlite:////x.db"))
    assert (plain["SHELFLIFE_LEDGER"], plain["SHELFLIFE_CLOCK"]) == ("sqlite:////x.db", "wall")


def test_no_module_hides_another() -> None:
    # `streamlit run` puts this folder first on sys.path.
    ours = {"core", "monitor", "registry", "retrain", "serving", "dashboard", "shelflife"}
    taken = ours | set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert modules & taken == set()


def test_the_queries_know_no_streamlit() -> None:
    for name in ("queries", "history", "views", "words", "theme", "charts", "launch"):
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        assert "streamlit" not in imported, name
