"""Work folders of finished runs are kept for a while, then removed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger

_LAST = 3  # of each model: what somebody may want to look into, however old


def clean_runs(ledger: Ledger, home: Path, *, now: datetime, keep: timedelta) -> list[str]:
    """Remove the folders of runs that finished longer ago than `keep`; returns their names.

    The last three runs of each model stay, and so does every unfinished one. A folder without a
    run goes by its own age.

    Args:
        now: wall clock; folders are judged by when they were last changed, because a replayed
            run's own times are of another decade.
    """
    root, table = home / "runs", schema.runs
    if not root.is_dir():
        return []
    query = sa.select(table.c.id, table.c.model, table.c.active).order_by(table.c.started.desc())
    kept, seen = set[str](), dict[str, int]()
    with ledger.read() as tx:
        for row in tx.execute(query):
            seen[row.model] = seen.get(row.model, 0) + 1
            if row.active is not None or seen[row.model] <= _LAST:
                kept.add(row.id)
    removed = []
    for folder in sorted(root.iterdir()):
        if folder.name in kept or not folder.is_dir() or folder.is_symlink():
            continue
        if now - _changed(folder) > keep:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed


def _changed(folder: Path) -> datetime:
    """When something directly in the folder was last written."""
    times = [folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.iterdir())]
    return datetime.fromtimestamp(max(times), tz=UTC)
