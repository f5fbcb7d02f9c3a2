"""A small shop whose model decays when told to: data, settings and traffic for the tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from monitor.log.records import Label, Prediction
from shelflife.service import Service

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DELAY = timedelta(days=1)
SETTINGS = """\
home: home
defaults:
  owner: risk team
  check_every: 1d
  window: 7d
  label_delay: 1d
  retrain:
    min_new_labels: 100
    cooldown: 1d
    gate: {min_rows: 50, max_rows: 200}
"""


def customers(n: int, *, seed: int, start: datetime, turned: bool = False) -> pd.DataFrame:
    """Rows whose label follows `age` and `spent`; `turned` reverses what `spent` means."""
    rng = np.random.default_rng(seed)
    age, spent = rng.normal(40, 10, n), rng.gamma(2, 50, n)
    signal = (age - 40) / 10 + (-1 if turned else 1) * (spent - 100) / 50
    bought = rng.random(n) < 1 / (1 + np.exp(-2 * signal))
    return pd.DataFrame(
        {
            "age": age,
            "spent": spent,
            "bought": bought.astype(int),
            "at": [start + i * HOUR / 2 for i in range(n)],
            "id": [f"s{seed}-{i}" for i in range(n)],
        }
    )


def ask(service: Service, version: str, frame: pd.DataFrame, estimator: object) -> None:
    """Log the rows as answered by a version, and their labels a day later."""
    answers = estimator.predict_proba(frame[["age", "spent"]])[:, 1]  # type: ignore[attr-defined]
    rows = [
        Prediction(
            model="shop",
            id=row.id,
            version=version,
            time=row.at,
            inputs={"age": row.age, "spent": row.spent},
            outputs={"probability": float(answer)},
            source="serving/shop",
        )
        for row, answer in zip(frame.itertuples(), answers, strict=True)
    ]
    service.log.append(rows, received=NOW)
    labels = [
        Label(model="shop", id=row.id, value=row.bought, time=row.at + DELAY)
        for row in frame.itertuples()
    ]
    service.log.append_labels(labels, received=NOW)
