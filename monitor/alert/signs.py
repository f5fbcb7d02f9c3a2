"""What a check's result says to on-call: its findings with their numbers, and first signs.

Pure functions of a `CheckResult`. A first sign is what the verdict saw once and wants to see again
before it makes a finding of it: the incident begins there, under the id it keeps to the end.
"""

from __future__ import annotations

from msgspec.structs import replace

from monitor.results import CheckResult, ColumnDrift, Crossed, Finding, Statistic
from monitor.wording import drift_title, loss_title, ranked_columns

_NAMED = 5  # columns whose numbers are kept


def findings(result: CheckResult) -> tuple[Finding, ...]:
    """The check's findings, each with the numbers that crossed their lines."""
    return tuple(replace(one, crossed=crossed(result, one.cause)) for one in result.findings)


def crossed(result: CheckResult, cause: str) -> tuple[Crossed, ...]:
    """What is over its line, by how much, with interval and n; gravest first."""
    if cause == "decay":
        seen = result.performance
        if seen.value is None or seen.tolerated is None or seen.value <= seen.tolerated:
            return ()
        return (
            Crossed(
                what=seen.metric, value=seen.value, low=seen.low, high=seen.high,
                line=seen.tolerated, n=seen.n,
            ),
        )  # fmt: skip
    if cause == "drift":
        ranked = ranked_columns(result.drift)[:_NAMED]
        return tuple(one for column in ranked for one in _of(column))
    return ()


def _of(column: ColumnDrift) -> tuple[Crossed, ...]:
    """The statistic that is furthest over its line."""
    over = [s for s in column.statistics if s.alarm and s.value is not None and s.threshold]
    if not over:
        return ()
    most = max(over, key=_strength)
    value, line = most.value or 0.0, most.threshold or 0.0
    n = most.rows if most.rows is not None else column.n
    return (Crossed(what=f"{most.name} of {column.column}", value=value, line=line, n=n),)


def _strength(statistic: Statistic) -> float:
    return abs(statistic.value or 0.0) / abs(statistic.threshold or 1.0)


def first_signs(result: CheckResult) -> tuple[Finding, ...]:
    """What was seen once and is no finding yet. Of a broken feed nothing is a sign."""
    known = {finding.cause for finding in result.findings}
    if result.state == "broken_feed":
        return ()
    signs = []
    if "decay" not in known and result.performance.worse is True:
        title = loss_title(result.performance)
        signs.append(_sign("decay", title, result, columns=()))
    if "drift" not in known and any(column.drifted for column in result.drift):
        columns = tuple(column.column for column in ranked_columns(result.drift))
        signs.append(_sign("drift", drift_title(result.drift), result, columns=columns))
    return tuple(signs)


def _sign(cause: str, title: str, result: CheckResult, *, columns: tuple[str, ...]) -> Finding:
    return Finding(
        cause=cause,
        severity="note",
        title=title,
        text=f"seen once; the next checks decide: {title}",
        since=result.at,
        columns=columns,
        crossed=crossed(result, cause),
    )
