"""The realised metric by when a prediction was made, not by when its label came.

A check scores the rows whose labels became known in its window: it must not wait. The same rows,
put back into the windows they were asked in, give the curve of how good the model really was; each
late or corrected label changes the past of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import numpy as np

from core.spec import Metric, ModelSpec
from core.times import from_micros, micros
from monitor.log.records import Rows
from monitor.measure.labels import lags, usable
from monitor.measure.performance import aggregate, metric_interval, row_loss
from monitor.results import WindowScore


def floor(moment: datetime, width: timedelta) -> datetime:
    """Start of the window a moment lies in: windows begin at multiples of the width since 1970."""
    step = width // timedelta(microseconds=1)
    return from_micros(micros(moment) // step * step)


def score(spec: ModelSpec, metric: Metric, rows: Rows, width: timedelta) -> tuple[WindowScore, ...]:
    """One score per window and version that rows fall into, by start and version.

    Labels that must not be averaged in (`measure.labels.usable`) are counted, not scored. A window
    without a usable label has no value.
    """
    if not len(rows):
        return ()
    meta = rows.meta
    y, _ = usable(spec, meta)
    losses = row_loss(spec, rows.outputs, y, metric)
    has = meta["label_time"].notna().to_numpy(dtype=bool)
    step = width // timedelta(microseconds=1)
    starts = meta["time"].astype("int64").to_numpy() // step * step
    versions = meta["version"].astype(str).to_numpy()
    scores = []
    for start, version in sorted(set(zip(starts.tolist(), versions.tolist(), strict=True))):
        mine = (starts == start) & (versions == version)
        spans = lags(meta[mine])
        low, high = metric_interval(metric, losses[mine])
        scores.append(
            WindowScore(
                start=from_micros(start),
                end=from_micros(start + step),
                version=version,
                metric=metric,
                value=_number(aggregate(metric, losses[mine])),
                low=_number(low),
                high=_number(high),
                n=int(np.isfinite(losses[mine]).sum()),
                rows=int(mine.sum()),
                labelled=int(has[mine].sum()),
                bad_labels=int((has[mine] & np.isnan(y[mine])).sum()),
                label_lag=float(np.median(spans)) if len(spans) else None,
            )
        )
    return tuple(scores)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def combined(scores: Iterable[WindowScore]) -> float | None:
    """The metric over several windows or versions together; None when none has a value."""
    usable_ = [s for s in scores if s.value is not None]
    n = sum(s.n for s in usable_)
    if not n:
        return None
    root = usable_[0].metric == "rmse"
    total = sum(((s.value or 0.0) ** 2 if root else (s.value or 0.0)) * s.n for s in usable_)
    return math.sqrt(total / n) if root else total / n


def matured(
    scores: Sequence[WindowScore], *, at: datetime, late: timedelta
) -> tuple[WindowScore, ...]:
    """The windows all of whose rows are at least `late` old: their coverage is what it will be."""
    return tuple(score for score in scores if score.end + late <= at)


def merged(starts: Iterable[datetime], width: timedelta) -> list[tuple[datetime, datetime]]:
    """Windows as spans without gaps, in order: neighbours are read together."""
    spans: list[tuple[datetime, datetime]] = []
    for start in sorted(set(starts)):
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], start + width)
        else:
            spans.append((start, start + width))
    return spans
