"""Rows of the log as frames: flat while they are read, taken apart when they are handed out.

A flat frame has the columns of `META`, `time` (whole microseconds), `in.<name>` and `out.<name>`;
it is what a sealed segment holds. This module needs pandas, so the appending side, which runs in
serving workers, never imports it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from core.times import micros
from monitor.log.hot import META
from monitor.log.records import Rows


def empty() -> pd.DataFrame:
    """A flat frame without rows."""
    return pd.DataFrame(columns=[*META, "time"])


def flatten(rows: Sequence[Any]) -> pd.DataFrame:
    """Rows with JSON inputs and outputs as one column each."""
    if not rows:
        return empty()
    frame = pd.DataFrame([row[:6] for row in rows], columns=[*META, "time"])
    if len(rows[0]) < 8:
        return frame
    # One decode over one joined array is several times faster than one per row.
    inputs = msgspec.json.decode("[" + ",".join(row[6] for row in rows) + "]")
    outputs = msgspec.json.decode("[" + ",".join(row[7] for row in rows) + "]")
    return pd.concat(
        [
            frame,
            pd.DataFrame(inputs).add_prefix("in."),
            pd.DataFrame(outputs).add_prefix("out."),
        ],
        axis=1,
    )


def matching(
    frame: pd.DataFrame,
    start: datetime | None,
    end: datetime | None,
    roles: Sequence[str],
    version: str | None,
    ids: Collection[str] | None,
) -> pd.DataFrame:
    """Those rows of a flat frame that a read asks for."""
    keep = frame["role"].isin(list(roles))
    if start is not None:
        keep &= frame["time"] >= micros(start)
    if end is not None:
        keep &= frame["time"] < micros(end)
    if version is not None:
        keep &= frame["version"] == version
    if ids is not None:
        keep &= frame["id"].isin(set(ids))
    return frame[keep]


def apart(frame: pd.DataFrame, used: Sequence[str], problems: Sequence[str]) -> Rows:
    """The frames that a read returns, from a flat frame with its labels."""
    meta = frame[["id", "version", "role", "source"]].copy()
    meta["time"] = _moments(frame["time"])
    meta["label"] = frame["label"].astype(object).where(frame["label_time"].notna(), None)
    meta["label_time"] = _moments(frame["label_time"])
    inputs = frame[[c for c in frame.columns if c.startswith("in.")]]
    outputs = frame[[c for c in frame.columns if c.startswith("out.")]]
    return Rows(
        meta=meta,
        inputs=inputs.rename(columns=lambda name: name[3:]),
        outputs=outputs.rename(columns=lambda name: name[4:]).astype(np.float64),
        segments=tuple(used),
        problems=tuple(problems),
    )


def _moments(counts: pd.Series) -> pd.Series:
    whole = pd.to_numeric(counts).astype("Int64")
    moments = pd.to_datetime(whole, unit="us", utc=True)
    return moments.astype("datetime64[us, UTC]")


def join(frame: pd.DataFrame, truth: Mapping[str, tuple[object, int]]) -> pd.DataFrame:
    """The flat frame with columns `label` (as given) and `label_time` (µs, NaN where missing)."""
    found = [truth.get(name) for name in frame["id"]]
    frame["label"] = pd.Series([f[0] if f else None for f in found], dtype=object)
    frame["label_time"] = pd.Series([f[1] if f else None for f in found], dtype="Int64")
    return frame
