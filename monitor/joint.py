"""What a check measures beside single columns: pairs, all columns at once, texts, named metrics.

Each answers with a `ColumnDrift` of its own kind (`pair`, `rows`, `metric`, or the numbers of a
text), so that the verdict, the messages and the pages treat it like a column. A part that breaks
says so in its `why`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from core.settings import ModelSettings, span
from core.settings_monitor import EvidentlyMetric
from core.spec import ModelSpec
from monitor import named
from monitor.measure import drift
from monitor.measure.calibration import Reference, calibrate
from monitor.measure.profile import ColumnProfile, Values, profile_column, read_values
from monitor.results import ColumnDrift, Statistic

if TYPE_CHECKING:
    import pandas as pd

_TEXT_SHARE, _METRIC_SHARE, _CLASSIFIER_SHARE = 0.1, 0.1, 0.1  # of the budget, on top of it
_PIECES = 16  # of the reference sample that a metric's own variation is told from
_LEAST = 50  # rows of such a piece
_REMEMBERED = 64


@dataclass(frozen=True)
class Parts:
    """What a check has at hand."""

    spec: ModelSpec
    profiles: Sequence[ColumnProfile]
    reference: Reference
    sample: pd.DataFrame  # the version's reference sample, `in:<name>` and `out:<name>`
    values: dict[str, Values]  # of the window, by `ColumnProfile.key`
    window: drift.Window
    inputs: pd.DataFrame  # of the window
    outputs: pd.DataFrame
    ages: np.ndarray
    seconds: np.ndarray
    budget: drift.Budget


def measure(parts: Parts, settings: ModelSettings, *, at: datetime) -> tuple[ColumnDrift, ...]:
    """Everything that the settings ask for; pairs always."""
    from monitor.measure.together import judge_pairs

    found = list(judge_pairs(parts.reference, parts.window, parts.budget))
    if settings.classifier_every and due(at, span(settings.classifier_every), parts.budget.every):
        found.append(_classified(parts, span(settings.classifier_every)))
    if settings.text:
        found += _texts(parts, settings.text)
    if settings.evidently:
        found += _metrics(parts, settings.evidently)
    return tuple(found)


def due(at: datetime, every: timedelta, check_every: timedelta) -> bool:
    """Whether this check is the first one since the last multiple of `every`."""
    now, step = at.timestamp(), every.total_seconds()
    return (now - check_every.total_seconds()) // step < now // step


def _classified(parts: Parts, every: timedelta) -> ColumnDrift:
    from monitor.measure.classifier import classify
    from monitor.measure.together import judge_classifier

    budget, rows = parts.budget, max(len(parts.ages), 1)
    reference = {}
    for profile in parts.profiles:
        name = f"{'in' if profile.role == 'input' else 'out'}:{profile.column}"
        if name in parts.sample.columns:
            reference[profile.key] = read_values(profile.kind, parts.sample[name])
    # Rows share what their column wanders by; the widest wanderer is taken for all of them.
    phi = max(
        (parts.reference.spread(p.key, budget.window, rows).loc for p in parts.profiles),
        default=1.0,
    )
    looks = max(drift.QUARTER / max(every, budget.every), 1.0)
    found = classify(
        [p for p in parts.profiles if p.role == "input"], reference, parts.values, phi=phi
    )
    return judge_classifier(found, _CLASSIFIER_SHARE * budget.false_alarms / looks)


# -- texts: descriptors as numeric columns ----------------------------------------------------

_TEXTS: dict[tuple[object, ...], tuple[Reference, list[ColumnProfile], dict[str, Values]]] = {}


def _texts(parts: Parts, columns: Sequence[str]) -> list[ColumnDrift]:
    budget = drift.Budget(
        false_alarms=_TEXT_SHARE * parts.budget.false_alarms,
        every=parts.budget.every,
        window=parts.budget.window,
        min_rows=parts.budget.min_rows,
    )
    broken: list[ColumnDrift] = []
    asked: dict[str, tuple[str, str]] = {}
    window: dict[str, Values] = {}
    for column in columns:
        if column not in parts.inputs.columns or f"in:{column}" not in parts.sample.columns:
            broken.append(_unknown(column, "text", "the model has no such column"))
            continue
        for descriptor in named.DESCRIPTORS:
            name = f"{column} ({descriptor})"
            try:
                described = named.described(parts.inputs[column].tolist(), descriptor)
            except named.Unknown as error:
                broken.append(_unknown(name, "numeric", str(error)))
                continue
            asked[name] = (column, descriptor)
            window[f"input:{name}"] = _numbers(described)
    if not asked:
        return broken
    try:
        reference, profiles, old = _described_reference(parts, asked)
    except named.Unknown as error:
        return [*broken, *(_unknown(name, "numeric", str(error)) for name in asked)]
    seen = drift.window_of(reference, window, parts.ages, parts.seconds, budget)
    sample = {key: np.sort(values.values) for key, values in old.items()}
    return [*broken, *drift.measure(reference, profiles, sample, seen, budget)]


def _described_reference(
    parts: Parts, asked: dict[str, tuple[str, str]]
) -> tuple[Reference, list[ColumnProfile], dict[str, Values]]:
    """The reference sample's descriptors with their natural variation; remembered."""
    key = (parts.spec.name, id(parts.sample), tuple(asked), parts.budget.every, parts.budget.window)
    if key not in _TEXTS:
        while len(_TEXTS) >= _REMEMBERED:
            _TEXTS.pop(next(iter(_TEXTS)))
        values = {
            f"input:{name}": _numbers(named.described(parts.sample[f"in:{c}"].tolist(), descriptor))
            for name, (c, descriptor) in asked.items()
        }
        profiles = [profile_column(n, "input", "numeric", values[f"input:{n}"]) for n in asked]
        calibration = calibrate(
            profiles, values, seconds=_seconds(parts.sample),
            part=parts.budget.every, window=parts.budget.window,
        )  # fmt: skip
        _TEXTS[key] = (Reference(profiles, calibration), profiles, values)
    return _TEXTS[key]


def _numbers(found: np.ndarray) -> Values:
    present = np.isfinite(found)
    return Values(found[present], present, int((~present).sum()), 0)


def _seconds(sample: pd.DataFrame) -> np.ndarray | None:
    if "time" not in sample.columns or sample["time"].isna().all():
        return None
    seconds: np.ndarray = (
        sample["time"].dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.float64)
    )
    return np.where(sample["time"].isna(), np.nan, seconds / 1e6)


# -- metrics that the settings name -----------------------------------------------------------


def _metrics(parts: Parts, wanted: Sequence[EvidentlyMetric]) -> list[ColumnDrift]:
    from monitor.report import readable

    before = readable(parts.spec, parts.sample)
    inputs = parts.inputs.add_prefix("in:")
    outputs = parts.outputs.add_prefix("out:")
    now = readable(parts.spec, inputs.join(outputs))
    # One empty column and Evidently refuses a metric of the whole data set.
    filled = [n for n in before if before[n].notna().any() and now[n].notna().any()]
    before, now = before[filled], now[filled]
    looks = max(drift.QUARTER / parts.budget.every, 1.0)
    alpha = min(_METRIC_SHARE * parts.budget.false_alarms / looks / len(wanted), 0.05)
    known = (parts.spec.name, id(parts.sample))
    return [_metric(each, before, now, parts, alpha, known) for each in wanted]


def _metric(
    wanted: EvidentlyMetric,
    before: pd.DataFrame,
    now: pd.DataFrame,
    parts: Parts,
    alpha: float,
    sample: tuple[str, int],
) -> ColumnDrift:
    label = f"{wanted.metric}({wanted.column})" + (f".{wanted.part}" if wanted.part else "")
    if len(now) < max(parts.budget.min_rows, 1):
        return _unknown(label, "metric", f"{len(now):,} rows, fewer than the needed")
    try:
        value = named.value(wanted, before, now)
        low, high = wanted.below, wanted.above
        if low is None and high is None:
            low, high = _lines(wanted, before, len(now), alpha, sample)
    except named.Unknown as error:
        return _unknown(label, "metric", str(error))
    under, over = low is not None and value < low, high is not None and value > high
    line = low if under or high is None or (low is not None and value < (low + high) / 2) else high
    side = "below" if line is low else "above"
    return ColumnDrift(
        column=label,
        role="input",
        kind="metric",
        n=len(now),
        missing_share=0.0,
        statistics=(
            Statistic(name=f"evidently_{side}", value=value, threshold=line, alarm=under or over),
        ),
        drifted=under or over,
    )


_LINES: dict[tuple[object, ...], tuple[float, float]] = {}


def _lines(
    wanted: EvidentlyMetric, before: pd.DataFrame, rows: int, alpha: float, sample: tuple[str, int]
) -> tuple[float, float]:
    """Where a metric's value leaves what it is in pieces of the reference sample as long as the
    window (at most half of it), in order of time: their mean ± Student's t × their sd.

    Raises:
        Unknown: too few rows, or Evidently cannot measure the pieces.
    """
    size = 1 << (max(min(rows, len(before) // 2), 1).bit_length() - 1)
    if size < _LEAST:
        raise named.Unknown(f"{len(before):,} reference rows, too few to tell a line from")
    key = (repr(wanted), *sample, len(before), size)
    known = _LINES.get(key)
    if known is None:
        starts = np.linspace(0, len(before) - size, _PIECES).astype(int)
        found = [named.value(wanted, before, before.iloc[i : i + size]) for i in starts]
        known = (float(np.mean(found)), float(np.std(found, ddof=1)))
        while len(_LINES) >= _REMEMBERED:
            _LINES.pop(next(iter(_LINES)))
        _LINES[key] = known
    mean, sd = known
    independent = max(min(_PIECES, len(before) // size), 2)  # pieces overlap where rows are few
    reach = -float(special.stdtrit(independent - 1, alpha / 2)) * sd * np.sqrt(1 + 1 / independent)
    return mean - float(reach), mean + float(reach)


def _unknown(column: str, kind: str, why: str) -> ColumnDrift:
    return ColumnDrift(
        column=column, role="input", kind=kind, n=0, missing_share=0.0, statistics=(),
        drifted=False, why=why,
    )  # fmt: skip
