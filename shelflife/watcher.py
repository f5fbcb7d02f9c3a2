"""`shelflife watch`: the scheduler in a process of its own."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from shelflife.log_lines import Lines
from shelflife.scheduler import Scheduler
from shelflife.service import Service


def watch(service: Service) -> int:
    """Run the scheduler until SIGINT or SIGTERM."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("alembic", "mlflow", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a beat skipped is no news
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    Scheduler(service).run_forever(stop)
    service.close()
    return 0
