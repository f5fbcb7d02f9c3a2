"""One worker as a process of its own: `python worker.py HOME` prints its port and serves.

With `SERVING_IMPORTS=1` it prints, after each line it reads, the heavy modules it has imported.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from core.ledger import Ledger
from core.settings import ServingSettings, Settings
from monitor.log.log import InferenceLog
from serving.app import SERVER_OPTIONS, build

HEAVY = ("mlflow", "evidently", "streamlit", "pandas", "sklearn")


def _say_imports() -> None:
    for _ in sys.stdin:
        print(*[name for name in HEAVY if name in sys.modules], flush=True)  # noqa: T201


def main() -> None:
    home = Path(sys.argv[1])
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    log = InferenceLog(ledger, home / "segments")
    serving = build(Settings(home=str(home), serving=ServingSettings()), ledger, log, home)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    if os.environ.get("SERVING_IMPORTS"):
        threading.Thread(target=_say_imports, daemon=True).start()
    app = Starlette(routes=serving.routes, lifespan=serving.lifespan)
    config = uvicorn.Config(app, log_level="warning", **SERVER_OPTIONS)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
