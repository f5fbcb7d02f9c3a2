"""How to start the dashboard: its command line and its environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

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
        "server.maxUploadSize": str(settings.dashboard.upload_mb),
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
        "SHELFLIFE_API": f"http://{_reached(settings.serving.host)}:{settings.serving.port}",
        "SHELFLIFE_ACCESS": msgspec.json.encode(settings.access).decode(),
    }
    # Packages are imported by their direct names; an installed shelflife needs no path.
    root = str(Path(__file__).resolve().parent.parent)
    return variables | {"PYTHONPATH": os.pathsep.join([root, *_already("PYTHONPATH")])}


def _reached(host: str) -> str:
    """The address of a server on this machine that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104


def _already(name: str) -> list[str]:
    value = os.environ.get(name, "")
    return [value] if value else []


def address(settings: Settings) -> str:
    """Where people open it; messages link below it."""
    chosen = settings.dashboard
    return chosen.url or f"http://{chosen.host}:{chosen.port}"
