"""Numbers as a tired person reads them: three digits, the line beside them, n, and a day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from core.times import spell
from monitor.measure.drift import DECIDING
from monitor.measure.performance import METRIC_NAMES
from monitor.results import Cause, ColumnDrift, Performance, Statistic

_NAMED = 3  # columns a title names
STATISTICS = {"psi": "PSI", "js": "JS", "hellinger": "Hellinger", "tv": "TV", "wasserstein": "W1",
    "ks": "KS", "chi2": "χ²", "location": "location z", "spread": "spread z", "shape": "shape z",
    "correlation": "correlation z", "rank_correlation": "rank correlation",
    "classifier": "classifier z", "auc": "area under the curve",
    "evidently_above": "value", "evidently_below": "value",
    "tail": "tail z", "missing": "missing z", "levels": "categories z", "level": "one category z",
}  # fmt: skip


def ranked_columns(drift: Sequence[ColumnDrift]) -> list[ColumnDrift]:
    """The drifted columns, farthest beyond their line first."""
    return sorted((c for c in drift if c.drifted), key=strength, reverse=True)


def strength(column: ColumnDrift) -> float:
    return max((_ratio(s) for s in column.statistics if s.name in DECIDING), default=0.0)


def _ratio(statistic: Statistic) -> float:
    if statistic.value is None or not statistic.threshold:
        return 1.0 if statistic.alarm else 0.0
    if statistic.name.startswith("evidently_"):  # lines of either side and sign
        return 1.0 if statistic.alarm else 0.0
    return statistic.value / statistic.threshold


def drift_title(drift: Sequence[ColumnDrift]) -> str:
    """`4 of 11 columns drifted: age (location z 7.1, line 5.0, over the last 4 h), …`, the farthest
    first."""
    ranked = ranked_columns(drift)
    measured = sum(not column.why for column in drift)
    named = ", ".join(f"{c.column} ({told(_strongest(c))})" for c in ranked[:_NAMED])
    more = f" and {len(ranked) - _NAMED} more" if len(ranked) > _NAMED else ""
    return f"{len(ranked)} of {measured} columns drifted: {named}{more}"


def drift_text(ranked: Sequence[ColumnDrift]) -> str:
    """Every statistic of the five farthest columns, each beside its line."""
    lines = []
    for column in ranked[:5]:
        numbers = ", ".join(told(s) for s in column.statistics if s.value is not None)
        lines.append(f"{column.column}: {numbers}, n {column.n:,}")
    return ". ".join(lines)


def _strongest(column: ColumnDrift) -> Statistic:
    return max((s for s in column.statistics if s.name in DECIDING), key=_ratio)


def told(statistic: Statistic) -> str:
    """`location z 7.10, line 5.00, over the last 4 h`."""
    name = STATISTICS.get(statistic.name, statistic.name)
    line = f"line {figure(statistic.threshold)}" if statistic.threshold is not None else ""
    text = ", ".join(
        part for part in (f"{name} {figure(statistic.value)}", line or statistic.why) if part
    )
    if statistic.over_s is None:
        return text
    return f"{text}, over the last {spell(timedelta(seconds=statistic.over_s))}"


def loss_title(performance: Performance) -> str:
    """`Brier score 0.213 [0.205, 0.221], tolerance 0.190, n 1,312`."""
    name = METRIC_NAMES.get(performance.metric, performance.metric)
    title = f"{name} {figure(performance.value)}"
    if performance.low is not None and performance.high is not None:
        title += f" [{figure(performance.low)}, {figure(performance.high)}]"
    if performance.tolerated is not None:
        title += f", tolerance {figure(performance.tolerated)}"
    return f"{title}, n {performance.n:,}"


def carried_line(causes: Sequence[Cause]) -> str:
    """`carried by: income broken (82 % of the rise), the label mix (12 %)`, the largest first."""
    told = []
    for index, cause in enumerate(causes):
        share = f"{100 * cause.share:.0f} %" + (" of the rise" if index == 0 else "")
        told.append(f"{_culprit(cause)} ({share})")
    return f"carried by: {', '.join(told)}"


def _culprit(cause: Cause) -> str:
    names = " or ".join(cause.columns)
    if cause.kind == "prior":
        return "the label mix"
    if cause.kind == "segment":
        return f"a segment of {' and '.join(cause.columns)}"
    return f"{names} {'broken' if cause.kind == 'broken' else 'shifted'}"


def figure(value: float | None) -> str:
    """Three significant digits, a dash for no value."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def day(moment: datetime, at: datetime) -> str:
    """`9 Oct`, with the year when it is not this one."""
    return f"{moment.day} {moment:%b}" + ("" if moment.year == at.year else f" {moment.year}")
