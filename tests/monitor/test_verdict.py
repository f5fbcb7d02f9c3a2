"""States by consequence, pages and tickets, and what opens, holds and closes a finding."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.settings import ModelSettings
from monitor.results import (
    CheckResult,
    ColumnDrift,
    Finding,
    Performance,
    QualityIssue,
    Staleness,
    Statistic,
)
from monitor.verdict import Evidence, judge, judged_causes
from monitor.wording import day, drift_title, figure

AT = datetime(2010, 10, 9, tzinfo=UTC)
DAY = timedelta(days=1)
SETTINGS = ModelSettings(tolerance=0.1, min_rows=50)


def loss(value: float | None, *, half: float = 0.008, n: int = 1312) -> Performance:
    """Expected 0.173, so tolerated is 0.190."""
    low = None if value is None else value - half
    return Performance(
        metric="brier",
        value=value,
        low=low,
        high=None if value is None else value + half,
        n=n,
        coverage=0.62,
        expected=0.173,
        tolerated=0.1903,
        worse=None if low is None or n < 50 else low > 0.1903,
        why="" if value is not None else "no label has arrived",
    )


def column(name: str, ks: float, line: float = 0.1) -> ColumnDrift:
    statistics = (
        Statistic(name="psi", value=ks, threshold=0.05, alarm=ks > 0.05),
        Statistic(name="location", value=ks, threshold=line, alarm=ks > line),
    )
    return ColumnDrift(
        column=name, role="input", kind="numeric", n=1312, missing_share=0.0,
        statistics=statistics, drifted=ks > line,
    )  # fmt: skip


def issue(name: str = "currency", kind: str = "missing", broken: bool = True) -> QualityIssue:
    return QualityIssue(
        column="" if kind == "no_data" else name, kind=kind, value=1.0, expected="at most 20 %",
        text=f"{name} is missing in 100 % of 1,312 rows (baseline 0 %)", broken=broken,
    )  # fmt: skip


def evidence(**changes: Any) -> Evidence:
    ages = Staleness(
        model=41 * 86400.0, training_row=None, prediction=60.0, label=None, promotion=None,
        label_lag=None,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "version": "3", "at": AT, "rows": 1312, "quality": (), "staleness": ages,
        "drift": (column("age", 0.02), column("visits", 0.03)), "performance": loss(0.175),
    } | changes  # fmt: skip
    return Evidence(**arguments)


def check(
    found: Evidence,
    history: Sequence[CheckResult] = (),
    settings: ModelSettings = SETTINGS,
) -> CheckResult:
    state, reason, findings = judge(found, history, settings)
    return CheckResult(
        model="repurchase", version=found.version, at=found.at, window_start=found.at - 7 * DAY,
        window_end=found.at, rows=found.rows, labelled=found.performance.n, state=state,
        reason=reason, quality=found.quality, drift=found.drift, performance=found.performance,
        staleness=found.staleness, findings=findings,
    )  # fmt: skip


def story(*evidences: Evidence, settings: ModelSettings = SETTINGS) -> list[CheckResult]:
    """Checks a day apart, newest first, the last at AT."""
    history: list[CheckResult] = []
    for index, found in enumerate(evidences):
        moment = AT - (len(evidences) - 1 - index) * DAY
        moved = {name: getattr(found, name) for name in found.__struct_fields__} | {"at": moment}
        history.insert(0, check(Evidence(**moved), history, settings))
    return history


def finding(result: CheckResult, cause: str) -> Finding:
    return next(f for f in result.findings if f.cause == cause)


def test_healthy_says_the_metric_and_its_tolerance() -> None:
    result = check(evidence())
    assert result.state == "healthy"
    assert result.findings == ()
    assert result.reason == (
        "Brier score 0.175 [0.167, 0.183], tolerance 0.190, n 1,312; no drift in 2 columns, n 1,312"
    )


def test_decay_needs_two_of_three_checks() -> None:
    worse, fine = evidence(performance=loss(0.203)), evidence()
    once, *_ = story(fine, fine, worse)
    assert once.state == "healthy"
    assert once.findings == ()
    assert "worse in one check, the next one decides" in once.reason
    for checks in (story(worse, worse), story(worse, fine, worse)):
        assert checks[0].state == "decaying"
        page = finding(checks[0], "decay")
        assert (page.severity, page.clearing) == ("page", False)
    assert story(worse, fine, fine, worse)[0].state == "healthy"


def test_a_decay_reads_like_a_message() -> None:
    result = story(
        evidence(performance=loss(0.203)),
        evidence(performance=loss(0.213), drift=(column("age", 0.4), column("visits", 0.03))),
    )[0]
    page = finding(result, "decay")
    assert page.title == ("Brier score 0.213 [0.205, 0.221], tolerance 0.190, n 1,312, since 8 Oct")
    assert page.since == AT - DAY
    assert "expected 0.173" in page.text
    assert "62 % of the rows" in page.text
    assert "age" in page.text
    assert page.columns == ("age",)


def test_far_beyond_the_line_nobody_waits_for_a_second_check() -> None:
    # The lower end has to exceed 0.173 * 1.2 = 0.2076.
    assert check(evidence(performance=loss(0.215))).state == "healthy"
    result = check(evidence(performance=loss(0.217)))
    assert result.state == "decaying"
    assert finding(result, "decay").since == AT


def test_decay_holds_until_the_loss_is_under_half_the_tolerance() -> None:
    worse = evidence(performance=loss(0.203))
    between = evidence(performance=loss(0.185))  # tolerated 0.190, resolving at 0.1817
    held = story(worse, worse, between, between, between, between)
    assert [c.state for c in held[:4]] == ["decaying"] * 4
    assert all(finding(c, "decay").clearing for c in held[:4])
    assert finding(held[0], "decay").since == finding(held[4], "decay").since
    assert story(worse, worse, evidence(performance=loss(0.180)))[0].state == "healthy"
    unknown = story(worse, worse, evidence(performance=loss(None, n=0)))[0]
    assert finding(unknown, "decay").clearing


def test_a_new_version_begins_without_the_old_ones_decay() -> None:
    worse = evidence(performance=loss(0.203))
    promoted = evidence(
        version="4",
        performance=loss(None, n=0),
        promoted=AT - 2 * DAY,
        label_lag=30 * DAY,
    )
    result = story(worse, worse, promoted)[0]
    assert result.state == "healthy"
    assert result.findings == ()
    assert "labels for v4 are due from 6 Nov" in result.reason
    assert "decay" not in judged_causes(result, 50)
    late = evidence(performance=loss(None, n=0), promoted=AT - 40 * DAY, label_lag=30 * DAY)
    assert "labels for v3 are overdue since 29 Sep" in check(late).reason
    unknown = check(evidence(performance=loss(None, n=0)))
    assert "no label for v3 has arrived yet" in unknown.reason
    few = check(evidence(performance=loss(0.4, n=12)))
    assert few.state == "healthy"
    assert "too few labels for v3 to judge it: 12" in few.reason


def test_drift_is_one_ticket_for_all_columns_after_two_checks() -> None:
    drifted = evidence(drift=(column("age", 0.2), column("visits", 0.41), column("fine", 0.01)))
    once, *_ = story(drifted)
    assert (once.state, once.findings) == ("drifting", ())
    assert "seen once so far" in once.reason
    again = story(drifted, evidence(), drifted)[0]
    assert again.state == "drifting"
    (ticket,) = again.findings
    assert (ticket.cause, ticket.severity, ticket.clearing) == ("drift", "ticket", False)
    assert ticket.columns == ("visits", "age")
    assert ticket.title == (
        "2 of 3 columns drifted: visits (location z 0.410, line 0.100), "
        "age (location z 0.200, line 0.100)"
    )
    assert "PSI 0.410, line 0.0500" in ticket.text


def test_two_columns_that_drifted_once_each_are_no_ticket() -> None:
    first = evidence(drift=(column("age", 0.2), column("visits", 0.01)))
    second = evidence(drift=(column("age", 0.01), column("visits", 0.2)))
    assert story(first, second)[0].findings == ()


def test_drift_clears_below_most_of_its_line() -> None:
    drifted = evidence(drift=(column("age", 0.2),))
    nearly, calm = evidence(drift=(column("age", 0.09),)), evidence(drift=(column("age", 0.07),))
    assert finding(story(drifted, drifted, nearly)[0], "drift").clearing
    assert story(drifted, drifted, calm)[0].findings == ()


def test_many_drifted_columns_are_counted_not_listed() -> None:
    columns = tuple(column(f"c{i}", 0.2 + i / 100) for i in range(8))
    title = drift_title(columns)
    assert title.startswith("8 of 8 columns drifted: c7 (")
    assert title.endswith(" and 5 more")


def test_a_broken_feed_pages_at_once_and_mutes_drift() -> None:
    drifted = evidence(drift=(column("currency", 0.9),))
    broken = evidence(drift=(column("currency", 0.9),), quality=(issue(),))
    result = story(broken, broken)[0]
    assert result.state == "broken_feed"
    assert [f.cause for f in result.findings] == ["broken_feed"]
    page = result.findings[0]
    assert page.severity == "page"
    assert page.title == "currency is missing in 100 % of 1,312 rows (baseline 0 %)"
    assert page.since == AT - DAY
    assert "drift" not in judged_causes(result, 50)
    # A drift that was open before stays as it is: nobody can tell.
    assert finding(story(drifted, drifted, broken)[0], "drift").clearing


def test_several_broken_columns_are_one_page() -> None:
    names = ["a", "b", "c"]
    result = check(evidence(quality=tuple(issue(name) for name in names)))
    assert [f.cause for f in result.findings] == ["broken_feed"]
    assert "and 2 more columns: b, c" in result.findings[0].title
    assert result.findings[0].columns == ("a", "b", "c")


def test_a_limping_feed_is_not_yet_mended() -> None:
    broken = evidence(quality=(issue(),))
    limping, other = (
        evidence(quality=(issue(broken=False),)),
        evidence(quality=(issue("else", broken=False),)),
    )
    held = story(broken, limping)[0]
    assert finding(held, "broken_feed").clearing
    assert held.state == "broken_feed"
    assert story(broken, other)[0].findings == ()
    assert check(limping).state == "healthy"


def test_silence_is_a_page_of_its_own() -> None:
    silent = evidence(rows=0, drift=(), quality=(issue(kind="no_data"),))
    result = check(silent)
    assert result.state == "broken_feed"
    assert [f.cause for f in result.findings] == ["no_data"]
    short = check(evidence(rows=0, drift=(), quality=(issue(kind="no_data", broken=False),)))
    assert (short.state, short.findings) == ("insufficient_data", ())


def test_stale_is_a_ticket_whatever_else_is_known() -> None:
    settings = ModelSettings(max_age="30d")
    result = check(evidence(rows=0, drift=(), performance=loss(None, n=0)), settings=settings)
    assert result.state == "stale"
    ticket = finding(result, "stale")
    assert ticket.severity == "ticket"
    assert ticket.title == "v3 is 41 d old, allowed are 30 d"
    assert ticket.since == AT - 11 * DAY
    assert check(evidence(), settings=ModelSettings(max_age="60d")).findings == ()


def test_few_rows_are_a_state_of_their_own() -> None:
    result = check(evidence(rows=49, drift=(), performance=loss(None, n=0)))
    assert result.state == "insufficient_data"
    assert "49 rows in the window, fewer than the 50 needed" in result.reason
    assert {"no_data", "stale"} <= judged_causes(result, 50)
    assert not {"decay", "drift", "broken_feed"} & judged_causes(result, 50)


def test_consequence_orders_the_states() -> None:
    settings = ModelSettings(max_age="30d", min_rows=50)
    drifted = {"drift": (column("age", 0.5),)}
    worse = {"performance": loss(0.3)}
    broken = {"quality": (issue(),)}
    assert check(evidence(**drifted, **worse, **broken), settings=settings).state == "broken_feed"
    assert check(evidence(**drifted, **worse), settings=settings).state == "decaying"
    assert check(evidence(**drifted), settings=settings).state == "stale"
    assert check(evidence(**drifted)).state == "drifting"
    # Labels arrive for old rows: decay is known although the window is nearly empty.
    assert check(evidence(rows=3, drift=(), **worse)).state == "decaying"


@pytest.mark.parametrize(("value", "shown"), [
    (0.19, "0.190"), (0.0, "0.00"), (12.3456, "12.3"), (123.4, "123"), (1234.5, "1,234"),
    (None, "–"), (0.0001234, "0.000123"),
])  # fmt: skip
def test_figures_have_three_digits(value: float | None, shown: str) -> None:
    assert figure(value) == shown


def test_days_name_the_year_only_when_it_is_another() -> None:
    assert day(AT, AT) == "9 Oct"
    assert day(AT - 365 * DAY, AT) == "9 Oct 2009"
