"""One promoter of `test_run_race`: `racer.py HOME LEDGER NAME`; a line `ROUND VERSION EXPECTED` in,
`won` or `lost` out."""

from __future__ import annotations

import sys
from pathlib import Path

from core.errors import Conflict
from core.ledger import Ledger
from registry.promotion import promote
from registry.turn import wall_clock
from registry.versions import Registry


def main(home: Path, url: str, name: str) -> None:
    ledger = Ledger(url)
    registry = Registry(f"sqlite:///{home}/mlflow.db", home / "a", home / "cache")
    registry.prepare()
    _say("ready")
    for line in sys.stdin:
        round_, version, expected = line.split()
        try:
            promote(
                registry, ledger, "churn", version, expected=expected, kind="gate", by=name,
                reason="", now=wall_clock(), run_id=f"{round_}:{name}",
            )  # fmt: skip
            _say("won")
        except Conflict:
            _say("lost")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
