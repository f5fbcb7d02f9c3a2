"""Old work folders and prepared versions go; what somebody may still want stays."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.ledger import Ledger
from retrain import run as runs
from retrain.cleaning import clean_runs
from serving import store
from serving.cleaning import clean_store
from serving.store import Manifest, Target

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def _aged(folder: Path, days: float) -> None:
    then = (NOW - days * DAY).timestamp()
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def test_old_folders_of_finished_runs_go(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    ids = []
    for i in range(7):
        run_id = runs.start(
            ledger, "m", trigger="manual", reason="", by="x", champion="1", at=NOW - (60 - i) * DAY
        )
        assert run_id is not None
        ids.append(run_id)
        folder = tmp_path / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "gate.json").write_text("{}")
        _aged(folder, 10 if i == 0 else 50)
        with ledger.write() as tx:
            if i < 6:
                runs.end_in(tx, run_id, "refused", "worse", at=NOW)
    (tmp_path / "runs" / "orphan").mkdir()
    _aged(tmp_path / "runs" / "orphan", 50)
    removed = clean_runs(ledger, tmp_path, now=NOW, keep=30 * DAY)
    # Run 0 is old but its folder is young; 4 to 6 are the last three, and 6 is unfinished.
    assert sorted(removed) == sorted([*ids[1:4], "orphan"])
    assert clean_runs(ledger, tmp_path, now=NOW, keep=30 * DAY) == []
    assert clean_runs(ledger, tmp_path / "nowhere", now=NOW, keep=DAY) == []
    ledger.close()


def _prepared(home: Path, number: int, days: float) -> Target:
    import msgspec

    name = f"{number:064x}"
    folder = store.prepared(home, name)
    folder.mkdir(parents=True)
    manifest = Manifest(model="m", backend="native", sha256="0" * 64, files={})
    (folder / store.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    _aged(folder, days)
    return Target(version=str(number), folder=name, backend="native", sha256="0" * 64)


def test_prepared_versions_that_nobody_serves_go(tmp_path: Path) -> None:
    targets = [_prepared(tmp_path, i, days=100 - i) for i in range(8)]
    scratch = store.prepared(tmp_path, ".new-abc")
    scratch.mkdir()
    _aged(scratch, 2)
    store.write_pointer(tmp_path, "m", targets[0], now=NOW, challenger=targets[1])
    removed = clean_store(tmp_path, now=NOW, keep=30 * DAY)
    assert removed == [".new-abc", *(target.folder for target in targets[2:5])]
    (store.pointers(tmp_path) / "m.json").write_text("no JSON")
    _prepared(tmp_path, 9, days=50)
    assert clean_store(tmp_path, now=NOW, keep=DAY) == []  # nobody knows what is wanted
