"""Synthetic histories with known truths."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd

START = datetime(2026, 1, 1, tzinfo=UTC)


def times(rows: int, *, per_day: int = 100) -> pd.DatetimeIndex:
    """Evenly spaced moments from `START` on."""
    return pd.date_range(START, periods=rows, freq=pd.Timedelta(days=1) / per_day)


def stepped(rows: int = 6000, *, at: int | None = 3000, seed: int = 0) -> pd.DataFrame:
    """A binary stream of 100 rows a day whose rule turns around at a row; None: it never does."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, rows))
    turn = np.where(np.arange(rows) < (rows if at is None else at), 1.0, -1.0)
    signal = 1.5 * a + 2.5 * turn * b + 0.5 * c
    y = (rng.random(rows) < 1 / (1 + np.exp(-signal))).astype(int)
    return pd.DataFrame({"a": a, "b": b, "c": c, "y": y, "at": times(rows)})
