"""Advances the toy model's run in forked processes, for tests that kill it on the way.

    advance_once.py HOME MLFLOW_URI AT [LEDGER_URL]

For each fail point named on a line of stdin it forks a process that resumes the run until it dies
there, and answers with that process's exit status. Imports are paid once.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path

import mlflow.pyfunc
import mlflow.sklearn  # noqa: F401

from core.ledger import Ledger
from core.settings import GateSettings, ModelSettings, RetrainSettings
from monitor.log.log import InferenceLog
from registry.versions import Registry
from retrain.run import RunContext, resume


def advance(home: Path, tracking: str, at: datetime, url: str) -> None:
    ledger = Ledger(url or f"sqlite:///{home / 'ledger.db'}")
    context = RunContext(
        registry=Registry(tracking, home / "mlartifacts", home / "cache"),
        ledger=ledger,
        log=InferenceLog(ledger, home / "segments"),
        settings=ModelSettings(retrain=RetrainSettings(gate=GateSettings(min_rows=100))),
        home=home,
        threads=1,
    )
    resume(context, "toy", at=at, wall=at)


def main(home: Path, tracking: str, at: datetime, url: str = "") -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.environ["SHELFLIFE_FAIL_POINT"] = line.strip()
            try:
                advance(home, tracking, at, url)
            finally:
                os._exit(1)  # it was not killed
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], datetime.fromisoformat(sys.argv[3]), *sys.argv[4:])
