"""How good a window's answers turned out, and what carries the loss. Pure.

Everything here rests on a check's evidence and the version's baseline: realised metrics of the rows
whose labels became known (`performance`, `measured`) and the causes of a loss (`carries`). What
they will turn out is `monitor.estimating`, the proof that may be looked at any time
`monitor.proving`.
"""

from __future__ import annotations

import hashlib
import itertools
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np

from core.settings import ModelSettings, span
from core.spec import METRICS, Metric, ModelSpec
from monitor.baseline import Baseline
from monitor.carried import carried
from monitor.figures import Measured, Segment, Source
from monitor.kept import kept
from monitor.log.records import Rows
from monitor.measure import labels, metrics
from monitor.measure.estimate import reference_parts
from monitor.measure.metrics import Choices, Value
from monitor.measure.performance import realised
from monitor.results import Causes, Performance

if TYPE_CHECKING:
    import pandas as pd

    from monitor.measure.suspects import Predict

_LEVELS, _COLUMNS = 6, 3  # segments shown of a column, columns chosen when nobody names any
_DAY = timedelta(days=1)


def chosen_metric(spec: ModelSpec, settings: ModelSettings) -> Metric:
    """The metric of the settings where the task has it, else the model's own."""
    wanted = settings.metric
    return wanted if wanted is not None and wanted in METRICS[spec.task] else spec.metric


def score_width(settings: ModelSettings) -> timedelta:
    """Width of the event-time windows that are scored: a day, or the check window if shorter."""
    if settings.score_width:
        return span(settings.score_width)
    return min(span(settings.window), _DAY)


def picked(rows: Rows, mine: np.ndarray) -> Rows:
    """Some of the rows, bool (n,), numbered anew."""
    return Rows(
        meta=rows.meta[mine].reset_index(drop=True),
        inputs=rows.inputs[mine].reset_index(drop=True),
        outputs=rows.outputs[mine].reset_index(drop=True),
        segments=rows.segments,
        problems=rows.problems,
    )


def only_version(rows: Rows, version: str) -> Rows:
    """The rows that this version answered."""
    return picked(rows, (rows.meta["version"] == version).to_numpy(dtype=bool))


def source(rows: Rows, version: str, *, known: tuple[datetime, datetime] | None = None) -> Source:
    """What numbers from these rows rest on."""
    times = rows.meta["time"]
    return Source(
        version=version,
        rows=len(rows),
        since=times.min().to_pydatetime() if len(rows) else None,
        until=times.max().to_pydatetime() if len(rows) else None,
        known_after=known[0] if known else None,
        known_at=known[1] if known else None,
        digest=hashlib.blake2b("\n".join(rows.meta["id"]).encode(), digest_size=16).hexdigest(),
    )


def performance(
    baseline: Baseline, labelled: Rows, settings: ModelSettings, *, coverage: float | None
) -> Performance:
    """The watched metric on labelled rows of one version, judged; late and bad labels are named."""
    spec, early = baseline.spec, labels.before_prediction(labelled.meta)
    sound = picked(labelled, ~early)
    metric = chosen_metric(spec, settings)
    times = sound.meta["time"]
    found = realised(
        spec,
        metric,
        sound.outputs,
        sound.meta["label"].tolist(),
        expected=baseline.expected.of(metric) if baseline.expected else None,
        tolerance=settings.tolerance,
        min_rows=settings.min_rows,
        coverage=coverage,
        since=times.min().to_pydatetime() if len(times) else None,
        until=times.max().to_pydatetime() if len(times) else None,
    )
    if not early.any():
        return found
    text = f"{int(early.sum()):,} labels are older than their prediction and were left out"
    why = "; ".join(part for part in (found.why, text) if part)
    bad = found.bad_labels + int(early.sum())
    return msgspec.structs.replace(found, why=why, bad_labels=bad)


def measured(
    baseline: Baseline,
    reference: pd.DataFrame,
    labelled: Rows,
    settings: ModelSettings,
    found: Performance,
    *,
    version: str,
    known: tuple[datetime, datetime],
) -> Measured:
    """Every metric of labelled rows of one version, beside what the baseline's rows gave.

    Args:
        found: `performance` of the same rows; its own metric is taken from there.
        known: the labels became known in this stretch.
    """
    spec, choices = baseline.spec, choices_of(settings)
    y, _ = labels.usable(spec, labelled.meta)
    then = expected(baseline, reference, settings)
    now = metrics.measure(spec, labelled.outputs, y, choices=choices)
    return Measured(
        source=source(labelled, version, known=known),
        coverage=found.coverage,
        figures=tuple(
            metrics.figure(
                name,
                value,
                expected=then.get(name),
                tolerance=settings.tolerance,
                min_rows=settings.min_rows,
            )
            for name, value in now.items()
        ),
        segments=_segments(baseline, reference, labelled, y, settings),
        bad_labels=found.bad_labels,
    )


def choices_of(settings: ModelSettings) -> Choices:
    return Choices(threshold=settings.threshold, quantile=settings.quantile)


def expected(
    baseline: Baseline, reference: pd.DataFrame, settings: ModelSettings
) -> dict[str, Value]:
    """The metrics on the baseline's rows; those the baseline itself holds, from all its rows."""
    spec = baseline.spec

    def made() -> dict[str, Value]:
        _, outputs, y = reference_parts(spec, reference)
        found = metrics.measure(spec, outputs, y, choices=choices_of(settings))
        for name in METRICS[spec.task]:
            known = baseline.expected.of(name) if baseline.expected else None
            if known is not None:
                found[name] = Value(known, n=baseline.expected.n if baseline.expected else 0)
        return found

    key = ("expected", settings.threshold, settings.quantile, spec.name, baseline.created)
    return kept(reference, key, made)


def _segments(
    baseline: Baseline,
    reference: pd.DataFrame,
    labelled: Rows,
    y: np.ndarray,
    settings: ModelSettings,
) -> tuple[Segment, ...]:
    """The watched metric of the largest segments, each against the same part of the baseline."""
    spec, metric = baseline.spec, chosen_metric(baseline.spec, settings)
    inputs, outputs, truth = reference_parts(spec, reference)
    wanted = settings.segments or settings.retrain.gate.segments or _few_levels(spec)
    found = []
    for column in wanted:
        if column not in inputs or column not in labelled.inputs:
            continue
        then, now = parts(inputs[column]), parts(labelled.inputs[column], inputs[column])
        for level in sorted(now, key=lambda each, now=now: -int(now[each].sum()))[:_LEVELS]:  # type: ignore[misc]
            mine, old = now[level], then.get(level)
            value = metrics.measure(spec, labelled.outputs[mine], y[mine], names=[metric])[metric]
            before = (
                metrics.measure(spec, outputs[old], truth[old], names=[metric])[metric]
                if old is not None
                else None
            )
            figure = metrics.figure(
                metric,
                value,
                expected=before if before is not None and before.n >= settings.min_rows else None,
                tolerance=settings.tolerance,
                min_rows=settings.min_rows,
            )
            found.append(
                Segment(column=column, level=level, rows=int(mine.sum()), figures=(figure,))
            )
    return tuple(found)


def _few_levels(spec: ModelSpec) -> list[str]:
    few = [f for f in spec.features if f.kind == "boolean" or 1 < len(f.levels) <= 2 * _LEVELS]
    return [feature.name for feature in few[:_COLUMNS]]


def parts(column: pd.Series, like: pd.Series | None = None) -> dict[str, np.ndarray]:
    """Rows by level, bool (n,); numbers by the quarters of `like` (of themselves when None)."""
    import pandas as pd

    base = column if like is None else like
    numbers = pd.to_numeric(base, errors="coerce")
    distinct = base.dropna().nunique()
    if numbers.notna().sum() < 0.5 * max(base.notna().sum(), 1) or distinct <= _LEVELS:
        text = column.astype(object).map(lambda value: "missing" if pd.isna(value) else str(value))
        return {level: (text == level).to_numpy(bool) for level in text.unique()}
    edges = np.unique(np.quantile(numbers.dropna(), [0.25, 0.5, 0.75]))
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    place = np.searchsorted(edges, values, side="left")
    names = [f"≤ {edges[0]:.4g}"]
    names += [f"{a:.4g} to {b:.4g}" for a, b in itertools.pairwise(edges)]
    names.append(f"> {edges[-1]:.4g}")
    known = np.isfinite(values)
    found = {name: known & (place == index) for index, name in enumerate(names)}
    found["missing"] = ~known
    return {name: rows for name, rows in found.items() if rows.any()}


def carries(
    baseline: Baseline,
    reference: pd.DataFrame,
    labelled: Rows,
    found: Performance,
    predict: Predict | None,
    hidden: tuple[str, ...],
) -> Causes:
    """What carries the loss, where it is worse than tolerated; nothing is looked for elsewhere."""
    if found.worse is not True:
        return Causes()
    rows = picked(labelled, ~labels.before_prediction(labelled.meta))
    metric = cast("Metric", found.metric)
    return carried(baseline, reference, rows, metric, predict=predict, hidden=frozenset(hidden))
