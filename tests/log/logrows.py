"""Rows and labels that the log's tests share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd

from monitor.log.records import Label, Prediction, Rows

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LATER = T0 + timedelta(days=1000)


def row(i: int, **changes: object) -> Prediction:
    values: dict = {
        "model": "m",
        "id": f"p{i}",
        "version": "1",
        "time": T0 + i * HOUR,
        "inputs": {"x": i / 2, "k": i, "c": None if i % 3 == 0 else "a", "b": i % 2 == 0},
        "outputs": {"probability": 0.25},
    }
    return Prediction(**(values | changes))


def label(i: int, value: object = 1, days: float = 30, **changes: object) -> Label:
    values: dict = {
        "model": "m",
        "id": f"p{i}",
        "value": value,
        "time": T0 + i * HOUR + timedelta(days=days),
    }
    return Label(**(values | changes))


def seen(rows: Rows) -> list[dict]:
    """Rows as plain values, columns without any value left out: what two logs must agree on."""
    columns: dict[str, list] = {}
    for prefix, frame in (("", rows.meta), ("in.", rows.inputs), ("out.", rows.outputs)):
        for name, column in frame.items():
            values = column.astype(object).where(column.notna(), None).tolist()
            columns[prefix + str(name)] = values
    return [
        {name: value for name, values in columns.items() if (value := values[i]) is not None}
        for i in range(len(rows))
    ]


def dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}
