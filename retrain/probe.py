"""Is the model stale, or has the task become harder? Ask before paying for a fit. Pure.

A tiny model of the champion's residuals, learned from *earlier* labelled parts of the stream, is
scored on the newest one. What correcting the champion with it would have saved is an honest
estimate of the loss that a fit would recover: noise and difficulty cannot be learned from earlier
rows, so they save nothing. One part of the stream is what one check window brings; each part is
learned from once, at about a hundredth of what a fit costs.

    part ──learn──► lesson ─┐
                            ├─► observe(lessons, line, next part) ──► Observation, kept
    next part ──────────────┘

The live service, `shelflife backtest` and the benchmarks run these very functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from msgspec import Struct, field

from core.spec import Feature, Metric, ModelSpec
from monitor.measure.performance import row_loss
from monitor.measure.sequential import Line, growth

if TYPE_CHECKING:
    import pandas as pd

#: How many of the newest lessons each memory averages: a jump is seen with the newest alone first.
MEMORIES = {"newest": 1, "middle": 4, "long": 8}
KEPT = max(MEMORIES.values())  # lessons that anybody asks for
ROUNDS = 5  # of boosting, on one part
_RATE = 0.3
_BINS = 8
_PRIOR_ROWS = 20  # rows' worth of "no correction" in a bin
_CODES = 251  # of categories without known levels
_MOST_OUTPUTS = 8  # outputs of a multiclass model that get trees; recalibration has no limit


class Part(Struct, kw_only=True):
    """Labelled rows of one stretch of the stream, answered by one version; every loss finite."""

    features: np.ndarray  # float32 (n, d), NaN where missing
    outputs: np.ndarray  # float64 (n, k), as served
    truth: np.ndarray  # float64 (n, k): the label, for several classes one-hot
    y: np.ndarray  # float64 (n,), encoded
    losses: np.ndarray  # float64 (n,), of the outputs as served

    def __len__(self) -> int:
        return len(self.y)


class Lesson(Struct, kw_only=True):
    """What one part says about the champion's residuals."""

    sums: np.ndarray  # of residuals by bin of the output, (bins, k)
    counts: np.ndarray  # rows by bin, (bins, k)
    trees: tuple[Any, ...]  # one small booster per output, None where there is none
    rows: int


class Observation(Struct, frozen=True, kw_only=True):
    """What one part of the stream said about the champion; the policy's only food.

    All numbers are losses per row. `windows` is the stretch the part answers for, in check windows,
    so that a policy fed four parts a window decides as one fed one.
    """

    at: datetime  # when it was made
    windows: float
    rows: int
    loss: float
    expected: float  # what counted as normal when it was made
    gains: dict[str, float] = field(default_factory=dict)  # loss saved, by memory; none yet: empty
    errors: dict[str, float] = field(default_factory=dict)  # their standard errors
    growth: tuple[float, ...] = ()  # see `monitor.measure.sequential`
    # What its predecessor would have lost more, per row it answered so far; None: unknown.
    brought: float | None = None
    work: float = 0.0  # rows x boosting rounds spent, to be compared with a fit's
    since: datetime | None = None  # the part's labels became known after this moment, until `at`
    until: datetime | None = None  # event time of its newest row


class Probe(Struct, frozen=True, kw_only=True):
    """What stays the same while one champion serves."""

    spec: ModelSpec
    metric: Metric
    cuts: tuple[tuple[float, ...], ...]  # edges of the output's bins, one tuple per output


def probe(spec: ModelSpec, outputs: np.ndarray, metric: Metric | None = None) -> Probe:
    """A probe whose bins are the quantiles of the champion's reference outputs, (n, k)."""
    shares = np.linspace(0, 1, _BINS + 1)[1:-1]
    finite = outputs[np.isfinite(outputs).all(axis=1)]
    cuts = tuple(
        tuple(float(cut) for cut in np.unique(np.quantile(column, shares))) if len(column) else ()
        for column in finite.T
    )
    return Probe(spec=spec, metric=metric or spec.metric, cuts=cuts)


def part(
    probe: Probe, inputs: pd.DataFrame | np.ndarray, outputs: np.ndarray, y: np.ndarray
) -> Part:
    """Labelled rows as the probe takes them; rows without a finite loss are left out.

    Args:
        inputs: one column per feature of the spec, as logged; or numbers already, (n, d).
        outputs: as served, (n, k) or (n,).
        y: encoded labels (`ModelSpec.encode_label`), shape (n,), NaN where there is none.
    """
    answers = np.asarray(outputs, dtype=np.float64).reshape(len(y), -1)
    y = np.asarray(y, dtype=np.float64)
    losses = _losses(probe, answers, y)
    keep = np.isfinite(losses)
    features = inputs if isinstance(inputs, np.ndarray) else encode(probe.spec, inputs)
    truth = y[keep, None]
    if probe.spec.task == "multiclass":
        truth = (y[keep, None] == np.arange(answers.shape[1])).astype(np.float64)
    return Part(
        features=np.asarray(features, dtype=np.float32)[keep],
        outputs=answers[keep],
        truth=truth,
        y=y[keep],
        losses=losses[keep],
    )


def encode(spec: ModelSpec, inputs: pd.DataFrame) -> np.ndarray:
    """Inputs as numbers for trees, float32 (n, d): categories by their place among the levels."""
    import pandas as pd

    found = np.full((len(inputs), len(spec.features)), np.nan, dtype=np.float32)
    for index, feature in enumerate(spec.features):
        if feature.name not in inputs.columns:
            continue
        column = inputs[feature.name]
        if feature.kind == "categorical":
            codes = {value: _code(feature, value) for value in column.unique()}
            found[:, index] = column.map(codes).to_numpy(np.float32)
        else:
            numbers = pd.to_numeric(column.astype(object), errors="coerce")
            found[:, index] = numbers.to_numpy(np.float64, na_value=np.nan)
    return found


def _code(feature: Feature, value: object) -> float:
    if not isinstance(value, str):
        return float("nan")
    if feature.levels:
        return float(feature.levels.index(value)) if value in feature.levels else -1.0
    return float(crc32(value.encode()) % _CODES)


def learn(probe: Probe, part: Part) -> Lesson:
    """One part's lesson: residual sums by bin, and a few shallow boosted trees on residuals."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    residual = part.truth - part.outputs
    sums = np.zeros((_BINS, residual.shape[1]))
    counts = np.zeros_like(sums)
    for index, cuts in enumerate(probe.cuts):
        place = np.searchsorted(cuts, part.outputs[:, index])
        sums[:, index] = np.bincount(place, residual[:, index], _BINS)
        counts[:, index] = np.bincount(place, minlength=_BINS)
    trees: list[Any] = [None] * residual.shape[1]
    table = np.column_stack([part.features, part.outputs])
    for index in np.argsort(-np.abs(residual).sum(axis=0))[:_MOST_OUTPUTS]:
        if len(part) >= 2 * _PRIOR_ROWS:
            trees[index] = HistGradientBoostingRegressor(
                max_iter=ROUNDS,
                learning_rate=_RATE,
                max_leaf_nodes=8,
                min_samples_leaf=_PRIOR_ROWS,
                early_stopping=False,
                random_state=0,
            ).fit(table, residual[:, index])
    return Lesson(sums=sums, counts=counts, trees=tuple(trees), rows=len(part))


def observe(
    probe: Probe,
    lessons: Sequence[Lesson],
    line: Line | None,
    part: Part,
    *,
    at: datetime,
    windows: float,
    expected: float,
) -> Observation:
    """What a new part says, judged by lessons from earlier parts alone.

    Args:
        lessons: of this champion's earlier parts, oldest first; the newest `KEPT` are used.
        line: the e-detector's line that is in force; None keeps no evidence of harm.
        windows: how many check windows the part answers for (1 when one part comes a window).
        expected: the loss that counts as normal now.

    Raises:
        ValueError: the part has no rows.
    """
    if not len(part):
        raise ValueError("a part without a labelled row says nothing; wait for labels")
    gains, errors = {}, {}
    for name, change in _corrections(probe, lessons[-KEPT:], part).items():
        saved = part.losses - _losses(probe, _corrected(probe, part.outputs, change), part.y)
        gains[name] = float(saved.mean())
        errors[name] = float(saved.std() / np.sqrt(len(saved)))
    return Observation(
        at=at,
        windows=windows,
        rows=len(part),
        loss=float(part.losses.mean()),
        expected=expected,
        gains=gains,
        errors=errors,
        growth=growth(line, part.losses) if line is not None else (),
        work=float(len(part) * ROUNDS * min(part.outputs.shape[1], _MOST_OUTPUTS)),
    )


def _corrections(probe: Probe, lessons: Sequence[Lesson], part: Part) -> dict[str, np.ndarray]:
    """For each memory: half a shrunk recalibration, half the mean of the lessons' trees."""
    if not lessons:
        return {}
    table = np.column_stack([part.features, part.outputs])
    said = [_said(lesson, table, part.outputs.shape) for lesson in lessons]
    found = {}
    for name, size in MEMORIES.items():
        change = np.mean(said[-size:], axis=0) / 2
        sums = np.sum([lesson.sums for lesson in lessons[-size:]], axis=0)
        counts = np.sum([lesson.counts for lesson in lessons[-size:]], axis=0)
        for index, cuts in enumerate(probe.cuts):
            shift = sums[:, index] / (counts[:, index] + _PRIOR_ROWS)
            change[:, index] += shift[np.searchsorted(cuts, part.outputs[:, index])] / 2
        found[name] = change
    return found


def _said(lesson: Lesson, table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(shape)
    for index, tree in enumerate(lesson.trees):
        if tree is not None:
            found[:, index] = tree.predict(table)
    return found


def _corrected(probe: Probe, outputs: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Outputs after a correction, valid again: within [0, 1], summing to one."""
    moved: np.ndarray = outputs + change
    if probe.spec.task == "regression":
        return moved
    # Log loss punishes a certain answer without end: a correction may not make one.
    least = 0.005 if probe.metric == "log_loss" else 0.0
    moved = np.clip(moved, np.minimum(outputs, least), np.maximum(outputs, 1 - least))
    if probe.spec.task == "multiclass":
        moved = moved / np.maximum(moved.sum(axis=1, keepdims=True), 1e-12)
    return moved


def _losses(probe: Probe, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    import pandas as pd

    frame = pd.DataFrame(outputs, columns=probe.spec.outputs)
    return row_loss(probe.spec, frame, y, probe.metric)
