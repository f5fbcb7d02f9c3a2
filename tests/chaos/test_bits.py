"""A sealed segment with a flipped bit is refused, or reads as it was; never anything else."""

from __future__ import annotations

import logging
import random
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from core.ledger import Ledger
from monitor.log.log import InferenceLog
from monitor.log.records import Prediction

_log = logging.getLogger("chaos")
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def rows(start: int, n: int) -> list[Prediction]:
    rng = random.Random(start)
    return [
        Prediction(
            model="m",
            id=f"p{i}",
            version="1",
            time=T0 + timedelta(seconds=i),
            inputs={"x": rng.random(), "c": rng.choice(["a", "b"])},
            outputs={"probability": rng.random()},
        )
        for i in range(start, start + n)
    ]


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, long: bool) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    log = InferenceLog(ledger, tmp_path / "segments")
    log.append(rows(0, 60), received=T0)
    log.seal(before=T0 + timedelta(seconds=1))
    log.append(rows(60, 5), received=T0 + timedelta(days=1))
    whole = log.read("m")
    [path] = (tmp_path / "segments").rglob("*.parquet")
    data = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(1000 if long else 60):
        flipped = bytearray(data)
        place = rng.randrange(8 * len(data))
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        found = log.read("m")
        if found.problems:
            refused += 1
            assert found.meta["id"].tolist() == [f"p{i}" for i in range(60, 65)]  # the hot ones
            _release(tmp_path)
        else:
            same(found, whole)
    _log.info("%d of %d flips refused, 0 wrong", refused, 1000 if long else 60)
    assert refused  # every one of them, as it is: the hash is of all bytes
    path.write_bytes(data)
    same(log.read("m"), whole)
    ledger.close()


def same(found: Any, whole: Any) -> None:
    pd.testing.assert_frame_equal(found.meta, whole.meta)
    pd.testing.assert_frame_equal(found.inputs, whole.inputs)
    pd.testing.assert_frame_equal(found.outputs, whole.outputs)


def _release(folder: Path) -> None:
    """Out of quarantine, for the next try."""
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute("UPDATE segments SET state = 'active'")
    connection.close()
