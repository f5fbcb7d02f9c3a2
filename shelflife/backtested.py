"""Lives on day one: clones fitted on sliding halves of the training rows, scored onwards.

A new deployment has neither a path of its own nor predecessors. What its first forecast learns from
is how clones of it would have aged within the rows it was registered with.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from core.frames import to_frame
from core.spec import ModelSpec
from monitor.measure.lives import Path, backtested_lives
from monitor.measure.performance import aggregate, encode_labels, row_loss
from shelflife.reference import Reference, clonable, refit

BLOCKS = 8  # of the rows, in order of time; each clone learns from half of them
_LEAST = 400  # rows
_MOST = 20_000  # rows that clones are fitted on and scored with, evenly thinned
_SECONDS = 20.0  # after which no further clone is fitted


def lives(spec: ModelSpec, estimator: Any, rows: Reference) -> tuple[Path, ...]:
    """Back-tested lives by both yardsticks; none without times, rows or a model that can be cloned.

    A clone that cannot be fitted or asked is left out.
    """
    from registry.loading import predict

    n = len(rows.inputs)
    if not rows.timed or n < _LEAST or not clonable(estimator):
        return ()
    picked = np.arange(n) if n <= _MOST else np.linspace(0, n - 1, _MOST).astype(np.intp)
    parts = np.array_split(picked, BLOCKS)
    labels = np.array(rows.labels, dtype=object if spec.task != "regression" else np.float64)
    y, _ = encode_labels(spec, rows.labels)
    inputs = to_frame(spec, {name: rows.inputs[name].to_numpy() for name in spec.columns})
    half, began = BLOCKS // 2, time.monotonic()
    losses = np.full((BLOCKS - half, BLOCKS), np.nan)
    expected = np.full(BLOCKS - half, np.nan)
    for first in range(BLOCKS - half):
        if time.monotonic() - began > _SECONDS:
            break
        train = np.concatenate(parts[first : first + half])
        try:
            fitted = refit(estimator, inputs.iloc[train], labels[train])
            for block in range(first + half, BLOCKS) if fitted is not None else ():
                where = parts[block]
                outputs = predict(fitted, spec, inputs.iloc[where])
                found = row_loss(spec, outputs, y[where], spec.metric)
                losses[first, block] = aggregate(spec.metric, found)
        except Exception:  # noqa: S112 - a user's estimator may raise anything; it only informs
            continue
        expected[first] = losses[first, first + half]
    ends = [rows.times[int(part[-1])] for part in parts]
    if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
        return ()
    known = np.isfinite(expected)
    if not known.any():
        return ()
    counts = [len(part) for part in parts]
    hoped = np.where(known, expected, 1.0).tolist()
    both = (
        backtested_lives(losses, ends=ends, expected=hoped, rows=counts, yardstick=yardstick)
        for yardstick in ("absolute", "relative")
    )
    return tuple(path for found in both for path in found.paths)
