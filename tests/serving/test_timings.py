"""How long answers took: cells that add up, and what a worker tells the ledger of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from dashboard.serving_query import serving_view
from serving.heartbeat import Heartbeat
from serving.timings import Tally, Timings

NOW = datetime(2026, 10, 12, 14, 30, tzinfo=UTC)


def test_quantiles_are_right_to_a_tenth_however_counts_were_added_up() -> None:
    seconds = np.random.default_rng(1).lognormal(-5, 1.2, 5000)
    whole, parts = Timings(), [Timings(), Timings()]
    whole.batch(list(seconds), 5000)
    for index, part in enumerate(np.array_split(seconds, 2)):
        parts[index].batch(list(part), len(part))
    together = Tally(cells={})
    for part in parts:
        together.add(part.take())
    assert together == Tally(requests=5000, rows=5000, batches=2, cells=whole.take().cells)
    for share in (0.5, 0.9, 0.99):
        real = float(np.quantile(seconds, share))
        assert together.quantile(share) == pytest.approx(real, rel=0.11)


def test_what_is_taken_is_not_counted_again() -> None:
    timings = Timings()
    assert timings.take().quantile(0.5) is None
    timings.batch([0.001, 1e-9, 1e9], 7)
    first = timings.take()
    assert (first.requests, first.rows, first.batches) == (3, 7, 1)
    assert timings.take().requests == 0


def test_a_worker_tells_each_hour_whole(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    timings = Timings()
    loaded = SimpleNamespace(
        target=SimpleNamespace(version="3"), batcher=SimpleNamespace(timings=timings)
    )
    slots: Any = SimpleNamespace(all=lambda: [SimpleNamespace(model="shop", current=loaded)])
    beat = Heartbeat(ledger, slots, "w", clock=lambda: NOW)
    for seconds in ([0.002, 0.002], [0.004]):
        timings.batch(seconds, len(seconds))
        beat._tell_traffic()
    beat._tell_traffic()  # nothing new
    with ledger.read() as tx:
        rows = tx.execute(sa.select(schema.traffic).order_by(schema.traffic.c.model)).all()
    assert [(r.model, r.version, r.requests, r.batches) for r in rows] == [
        ("", "", 3, 2), ("shop", "3", 3, 2),
    ]  # fmt: skip
    found = serving_view(ledger, NOW, model="shop", span=NOW - NOW.replace(hour=0)).traffic
    assert found["p99"].iloc[0] == pytest.approx(4.0, rel=0.11)
    assert found["p50"].iloc[0] == pytest.approx(2.0, rel=0.11)
    ledger.close()
