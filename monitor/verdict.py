"""One state per model, the reason for it, and what somebody should be told.

States by consequence: broken feed, decaying, stale, (insufficient data,) drifting, healthy. Loss of
performance, a broken feed and silence are pages; drift that does not hurt and old age are tickets.
What opened a finding is stricter than what closes it: in between it is `clearing`, which keeps an
open incident open and never opens one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from core.settings import ModelSettings, span
from core.times import spell
from monitor import lateness
from monitor.figure_words import proof_line
from monitor.figures import Arrivals, Proof, ShelfLife
from monitor.results import (
    Cause,
    CheckResult,
    ColumnDrift,
    Finding,
    Performance,
    QualityIssue,
    Severity,
    Staleness,
    State,
)
from monitor.wording import (
    carried_line,
    day,
    drift_text,
    drift_title,
    figure,
    loss_title,
    ranked_columns,
    strength,
)

_LOOKS = 3  # checks, this one included, of which two must agree
_NEARLY = 0.8  # a column between this share of its line and the line has not calmed down yet


class Evidence(Struct, frozen=True, kw_only=True):
    """Everything the verdict rests on."""

    version: str
    at: datetime
    rows: int  # in the window
    quality: tuple[QualityIssue, ...]
    drift: tuple[ColumnDrift, ...]
    performance: Performance
    staleness: Staleness
    causes: tuple[Cause, ...] = ()  # what carries the loss
    promoted: datetime | None = None
    label_lag: timedelta | None = None  # how late labels usually are
    proof: Proof | None = None  # of a loss above the tolerance
    shelf_life: ShelfLife | None = None
    arrivals: Arrivals | None = None  # rows that arrived since the check before
    newest: datetime | None = None  # event time of the newest prediction


def judge(
    evidence: Evidence, history: Sequence[CheckResult], settings: ModelSettings
) -> tuple[State, str, tuple[Finding, ...]]:
    """The state, one sentence that gives the reason, and the findings.

    Args:
        history: earlier checks of this model, newest first, of any version. Decay and drift look
            at those of this version alone: another one has another baseline.
    """
    same = [check for check in history if check.version == evidence.version]
    feed = _feed(evidence, history, settings)
    broken = any(finding.cause == "broken_feed" for finding in feed)
    decay = _decay(evidence, same, settings, muted=broken)
    stale = _stale(evidence, settings)
    drift = _drift(evidence, same, settings, muted=bool(feed))
    late = _late(evidence, history, same, settings, decaying=bool(decay))
    findings = (*feed, *decay, *stale, *late, *drift)
    state, reason = _state(evidence, findings, settings)
    return state, reason, findings


def _late(
    evidence: Evidence,
    history: Sequence[CheckResult],
    same: Sequence[CheckResult],
    settings: ModelSettings,
    *,
    decaying: bool,
) -> list[Finding]:
    """What is late or near its end; a life that ends is not told of a model that decays already."""
    at, ending = evidence.at, None if decaying else evidence.shelf_life
    return [
        *lateness.data(evidence.arrivals, evidence.newest, at, settings),
        *lateness.labels(evidence.staleness, at, settings),
        *lateness.monitor(history, at, settings),
        *lateness.shelf_life(ending, evidence.version, _earlier(same, "shelf_life"), at),
    ]


def judged_causes(result: CheckResult, min_rows: int) -> frozenset[str]:
    """The causes a check was able to judge, so that finding nothing means there is nothing.

    Without labels of this version decay is neither there nor gone, and a broken feed hides both
    drift and decay.
    """
    causes = {"no_data", "stale", "late_data", "late_labels", "unwatched", "shelf_life"}
    if result.performance.worse is not None and result.state != "broken_feed":
        causes.add("decay")
    if result.rows >= min_rows:
        causes.add("broken_feed")
        if result.state != "broken_feed":
            causes.add("drift")
    return frozenset(causes)


def _state(
    evidence: Evidence, findings: Sequence[Finding], settings: ModelSettings
) -> tuple[State, str]:
    titles: dict[str, str] = {}
    for finding in findings:
        titles.setdefault(finding.cause, finding.title)
    labels = _labels(evidence)
    if "broken_feed" in titles or "no_data" in titles:
        return "broken_feed", _sentence(titles.get("broken_feed") or titles["no_data"])
    if "decay" in titles:
        return "decaying", _sentence(titles["decay"])
    if "late_data" in titles and evidence.rows < settings.min_rows:
        return "broken_feed", _sentence(titles["late_data"])
    if "stale" in titles:
        return "stale", _sentence(titles["stale"], labels)
    if evidence.rows < settings.min_rows:
        few = f"{evidence.rows:,} rows in the window, fewer than the {settings.min_rows:,} needed"
        return "insufficient_data", _sentence(few, labels)
    drifted = [column for column in evidence.drift if column.drifted]
    if "drift" in titles:
        return "drifting", _sentence(titles["drift"], labels)
    if drifted:
        return "drifting", _sentence(f"{drift_title(evidence.drift)}, seen once so far", labels)
    measured = sum(not column.why for column in evidence.drift)
    return "healthy", _sentence(labels, f"no drift in {measured} columns, n {evidence.rows:,}")


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _labels(evidence: Evidence) -> str:
    """What the labels say, or when they will."""
    performance, version = evidence.performance, evidence.version
    if performance.worse is True:
        if evidence.proof is not None:
            return f"{loss_title(performance)}, {proof_line(evidence.proof)}"
        return f"{loss_title(performance)}, worse in one check, the next one decides"
    if performance.worse is False:
        return loss_title(performance)
    if performance.n:
        return f"too few labels for v{version} to judge it: {performance.n:,}"
    due = _due(evidence)
    if due is None:
        return f"no label for v{version} has arrived yet"
    late = "overdue since" if due < evidence.at else "due from"
    return f"labels for v{version} are {late} {day(due, evidence.at)}"


def _due(evidence: Evidence) -> datetime | None:
    if evidence.promoted is None or evidence.label_lag is None:
        return None
    return evidence.promoted + evidence.label_lag


def _earlier(history: Sequence[CheckResult], cause: str) -> Finding | None:
    """The finding of this cause in the check before this one."""
    found = history[0].findings if history else ()
    return next((finding for finding in found if finding.cause == cause), None)


def _feed(
    evidence: Evidence, history: Sequence[CheckResult], settings: ModelSettings
) -> list[Finding]:
    findings = []
    for cause, silent in (("no_data", True), ("broken_feed", False)):
        issues = [issue for issue in evidence.quality if (issue.kind == "no_data") == silent]
        broken = [issue for issue in issues if issue.broken]
        before = _earlier(history, cause)
        since = before.since if before else evidence.at
        if broken:
            findings.append(_broken(cause, broken, since))
        elif before and not silent:
            # The same columns still limp, or nobody can tell whether they do.
            limping = [issue for issue in issues if issue.column in before.columns]
            if limping or evidence.rows < settings.min_rows:
                title = limping[0].text if limping else before.title
                findings.append(
                    _finding(cause, "page", title, since, columns=before.columns, clearing=True)
                )
    return findings


def _broken(cause: str, issues: Sequence[QualityIssue], since: datetime | None) -> Finding:
    columns = tuple(dict.fromkeys(issue.column for issue in issues if issue.column))
    title = issues[0].text
    if len(columns) > 1:
        title += f"; and {len(columns) - 1} more columns: {', '.join(columns[1:5])}"
    text = ". ".join(f"{issue.text}; expected {issue.expected}" for issue in issues)
    return _finding(cause, "page", title, since, text=text, columns=columns)


def _decay(
    evidence: Evidence, same: Sequence[CheckResult], settings: ModelSettings, *, muted: bool
) -> list[Finding]:
    """Loss beyond the tolerance; muted by a broken feed, whose page tells of the same trouble.

    It opens when the proof is there, which may be looked at in every check without more false
    alarms; without a proof to look at, when two checks of three agree; and at once when the loss is
    far beyond the line.
    """
    performance, before = evidence.performance, _earlier(same, "decay")
    worse = performance.worse is True
    streak = [check for check in same[: _LOOKS - 1] if check.performance.worse is True]
    agreed = bool(streak) if evidence.proof is None else evidence.proof.proven
    opens = worse and not muted and (agreed or _severe(performance, settings.tolerance))
    held = muted or _still_high(performance, settings.tolerance)
    if not opens and not (before and held):
        return []
    since = before.since if before and before.since else _first_worse(evidence.at, same)
    title = f"{loss_title(performance)}, since {day(since, evidence.at)}"
    columns = tuple(column.column for column in ranked_columns(evidence.drift))
    text = _decay_text(evidence, len(streak) + worse, columns)
    return [_finding("decay", "page", title, since, text=text, columns=columns, clearing=not opens)]


def _severe(performance: Performance, tolerance: float) -> bool:
    """So far beyond the line that nobody waits for a second check."""
    if performance.low is None or performance.expected is None:
        return False
    return performance.low > performance.expected * (1 + 2 * tolerance)


def _still_high(performance: Performance, tolerance: float) -> bool:
    """Not yet back under half the tolerance, as far as one can tell."""
    if performance.worse is None or performance.value is None or performance.expected is None:
        return True
    return performance.value > performance.expected * (1 + tolerance / 2)


def _first_worse(at: datetime, same: Sequence[CheckResult]) -> datetime:
    first = at
    for check in same:
        if check.performance.worse is not True:
            break
        first = check.at
    return first


def _decay_text(evidence: Evidence, times: int, columns: Sequence[str]) -> str:
    performance, causes = evidence.performance, evidence.causes
    parts = [
        f"{loss_title(performance)}; expected {figure(performance.expected)}",
        f"worse than tolerated in {times} of the last {_LOOKS} checks",
    ]
    if evidence.proof is not None:
        parts.append(proof_line(evidence.proof))
    if performance.coverage is not None:
        parts.append(f"{100 * performance.coverage:.0f} % of the rows old enough have their label")
    if causes:
        parts.append(carried_line(causes))
    if columns:
        parts.append(f"drifted at the same time: {', '.join(columns[:5])}")
    return "; ".join([*parts, performance.why] if performance.why else parts)


def _stale(evidence: Evidence, settings: ModelSettings) -> list[Finding]:
    age = evidence.staleness.model
    if settings.max_age is None or age is None or age <= span(settings.max_age).total_seconds():
        return []
    lasts = timedelta(seconds=age)
    title = (
        f"v{evidence.version} is {spell(lasts)} old, allowed are {spell(span(settings.max_age))}"
    )
    return [_finding("stale", "ticket", title, evidence.at - lasts + span(settings.max_age))]


def _drift(
    evidence: Evidence, same: Sequence[CheckResult], settings: ModelSettings, *, muted: bool
) -> list[Finding]:
    before = _earlier(same, "drift")
    earlier = {
        c.column for check in same[: _LOOKS - 1] for c in (*check.drift, *check.joint) if c.drifted
    }
    ranked = ranked_columns(evidence.drift)
    confirmed = [column for column in ranked if column.column in earlier]
    since = before.since if before else evidence.at
    if confirmed and not muted:
        columns = tuple(column.column for column in ranked)
        text = drift_text(ranked)
        title = drift_title(evidence.drift)
        return [_finding("drift", "ticket", title, since, text=text, columns=columns)]
    if before is None:
        return []
    blind = muted or evidence.rows < settings.min_rows
    if not blind and not ranked and not any(strength(c) > _NEARLY for c in evidence.drift):
        return []
    title = drift_title(evidence.drift) if ranked and not muted else before.title
    return [
        _finding("drift", "ticket", title, since, columns=before.columns, clearing=True),
    ]


def _finding(
    cause: str,
    severity: Severity,
    title: str,
    since: datetime | None,
    *,
    text: str = "",
    columns: tuple[str, ...] = (),
    clearing: bool = False,
) -> Finding:
    return Finding(
        cause=cause,
        severity=severity,
        title=title,
        text=text or title,
        since=since,
        columns=columns,
        clearing=clearing,
    )
