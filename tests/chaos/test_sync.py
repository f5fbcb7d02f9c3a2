"""A power cut keeps what was synced: every acknowledgement follows a sync of what was written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CODE = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from core.ledger import Ledger
from monitor.log.log import InferenceLog
from monitor.log.records import Prediction
folder, now = Path(sys.argv[1]), datetime(2026, 1, 1, tzinfo=UTC)
log = InferenceLog(Ledger(f"sqlite:///{folder / 'ledger.db'}").create(), folder / "segments")
for batch in range(20):
    rows = [Prediction(model="m", id=f"{batch}-{i}", version="1", time=now, inputs={"x": i},
                       outputs={"probability": 0.5}) for i in range(1 + 10 * batch)]
    log.append(rows, received=now)
    os.write(1, b"ACKNOWLEDGED")
log.seal(before=datetime.now(UTC))
os.write(1, b"ACKNOWLEDGED")
"""


def test_nothing_is_acknowledged_before_it_is_synced(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    calls = "openat,pwrite64,write,fsync,fdatasync,rename,renameat,renameat2"
    traced = [strace, "-f", "-y", "-e", f"trace={calls}", "-o", str(tmp_path / "calls")]
    done = subprocess.run(
        [*traced, sys.executable, "-c", CODE, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    acknowledged, dirty = 0, set[str]()
    for line in (tmp_path / "calls").read_text().splitlines():
        call = re.search(r"(\w+)\(\d+<([^>]*)>", line)
        moved = re.search(r'rename\w*\(.*"([^"]+)".*"([^"]+)"', line)
        if moved is not None:
            dirty.add(str(Path(moved[2]).parent))  # a rename lasts when its folder is synced
        if call is None:
            continue
        name, path = call.groups()
        if name in {"fsync", "fdatasync"}:
            dirty.discard(path)
        elif "ACKNOWLEDGED" in line:
            acknowledged += 1
            assert not {p for p in dirty if p.endswith(("-wal", ".tmp", "segments", "m"))}
        elif str(tmp_path) in path and not path.endswith(("-shm", "ledger.db")):
            dirty.add(path)
    assert acknowledged == 21
