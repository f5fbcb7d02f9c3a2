"""How to start the dashboard: its command line and its environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from core.settings import Settings


def command(settings: Settings) -> list[str]:
    """The argument vector of the dashboard's process.

    It listens where the settings say (127.0.0.1 unless changed), sends no usage statistics, opens
    no browser, watches no files and serves none.
    """
    options = {
        "server.headless": "true",
        "server.address": settings.dashboard.host,
        "server.port": str(settings.dashboard.port),
        "server.fileWatcherType": "none",
        "server.enableStaticServing": "false",
        "server.enableXsrfProtection": "true",
        "server.maxUploadSize": "1",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
    }
    script = str(Path(__file__).with_name("app.py"))
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", script, *flags]


def environment(settings: Settings, *, mlflow_ui: str = "", replay: bool = False) -> dict[str, str]:
    """What the dashboard reads from its environment, to be added to the process's own.

    Args:
        mlflow_ui: address of the MLflow UI; the settings' when empty.
        replay: the ledger holds a replayed history, so that "now" is its newest moment.
    """
    variables = {
        "SHELFLIFE_LEDGER": settings.ledger_url,
        "SHELFLIFE_HOME": str(settings.home_path),
        "SHELFLIFE_MLFLOW_UI": mlflow_ui or settings.mlflow.ui,
        "SHELFLIFE_CLOCK": "ledger" if replay else "wall",
    }
    # Packages are imported by their direct names; an installed shelflife needs no path.
    root = str(Path(__file__).resolve().parent.parent)
    return variables | {"PYTHONPATH": os.pathsep.join([root, *_already("PYTHONPATH")])}


def _already(name: str) -> list[str]:
    value = os.environ.get(name, "")
    return [value] if value else []


def address(settings: Settings) -> str:
    """Where people open it; messages link below it."""
    return f"http://{settings.dashboard.host}:{settings.dashboard.port}"
