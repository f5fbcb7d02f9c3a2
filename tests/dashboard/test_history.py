from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from core import schema
from core.errors import NotFound
from core.ledger import Ledger
from dashboard import history

DAY = timedelta(days=1)


def test_a_model_over_time(seed: Any, ledger: Ledger) -> None:
    view = history.model_view(ledger, "repurchase", seed.NOW)
    assert (len(view.checks), view.every) == (181, 1)
    assert view.checks["at"].is_monotonic_increasing
    assert view.checks["value"].iloc[-1] == 0.213
    assert view.checks["value"].isna().sum() == 8  # four checks after each retraining: no labels
    assert [p.version for p in view.promotions] == ["1", "2", "3"]
    assert [i.id for i in view.incidents] == [42, 41]
    assert len(view.runs) == 3
    assert [w.worker for w in view.workers] == ["worker-0"]
    assert view.latest is not None
    assert view.latest.state == "decaying"


def test_only_columns_that_crossed_are_on_the_map(seed: Any, ledger: Ledger) -> None:
    drift = history.model_view(ledger, "repurchase", seed.NOW).drift
    assert set(drift.columns) == {
        "days_since_first",
        "lifetime_value",
        "previous_invoices",
        "probability",
    }
    assert (drift.quiet, drift.folded, drift.every) == (7, 0, 2)
    assert set(drift.frame["column"]) == set(drift.columns)
    assert drift.frame["end"].max() >= view_end(drift)
    row = drift.frame.iloc[0]
    assert row["ratio"] == pytest.approx(row["value"] / row["threshold"])
    assert row["statistic"] == "location"  # PSI is higher, but decides nothing
    assert row["said"].startswith("location z ")
    assert row["said"].endswith(", line 5.00, over the last 4 h")


def view_end(drift: Any) -> Any:
    return drift.frame["start"].max()


def test_the_worst_column_of_the_last_check_comes_first(seed: Any, any_ledger: Ledger) -> None:
    before, now = {"a": 9.0, "b": 1.2, "quiet": 0.9}, {"a": 0.2, "b": 1.4, "quiet": 0.9}
    for days, drift in ((1, before), (0, now)):
        seed.write(any_ledger, [seed.check("m", "1", seed.NOW - days * DAY, drift=drift)])
    found = history.model_view(any_ledger, "m", seed.NOW).drift
    assert found.columns == ("b", "a")
    assert found.quiet == 1


def test_a_long_history_keeps_its_worst_points(seed: Any, any_ledger: Ledger) -> None:
    hour = timedelta(hours=1)
    total = history.POINTS * 2 + 501
    rows = [
        seed.row(seed.check("m", "1", seed.NOW - i * hour, value=0.9 if i == 1234 else 0.1))
        for i in range(total)
    ]
    with any_ledger.write() as tx:
        tx.execute(schema.checks.insert(), rows)
    view = history.model_view(any_ledger, "m", seed.NOW)
    assert len(view.checks) <= history.POINTS
    assert view.every == 3
    assert view.checks["value"].max() == 0.9
    assert view.drift.frame.empty


def test_a_long_history_of_many_versions_stays_below_the_limit(
    seed: Any, any_ledger: Ledger
) -> None:
    rows = [
        seed.row(seed.check("m", str(i // 2), seed.NOW - i * timedelta(hours=1)))
        for i in range(history.POINTS + 400)
    ]
    with any_ledger.write() as tx:
        tx.execute(schema.checks.insert(), rows)
    assert len(history.model_view(any_ledger, "m", seed.NOW).checks) <= history.POINTS


def test_a_range_begins_where_it_is_asked_to(seed: Any, ledger: Ledger) -> None:
    start = seed.NOW - 30 * DAY
    view = history.model_view(ledger, "repurchase", seed.NOW, start=start)
    assert view.checks["at"].min() >= start
    assert all(event.at >= start for event in view.events)
    assert len(view.promotions) == 3  # marks outside the chart are dropped by the chart


def test_what_happened_is_told_newest_first(seed: Any, ledger: Ledger) -> None:
    events = history.model_view(ledger, "repurchase", seed.NOW).events
    moments = [event.at for event in events]
    assert moments == sorted(moments, reverse=True)
    kinds = {event.kind for event in events}
    assert kinds == {"state", "incident", "resolved", "run", "finished", "promotion"}
    opened = next(event for event in events if event.kind == "incident")
    assert opened.incident_id == 42
    assert "Brier 0.213 [0.205, 0.221]" in opened.text


def test_equal_decisions_in_a_row_are_one(seed: Any, ledger: Ledger) -> None:
    decisions = history.model_view(ledger, "repurchase", seed.NOW).decisions
    assert [(d.action, d.repeated) for d in decisions] == [("retrain", 1), ("wait", 2)]
    assert decisions[0].detail["would_change"].startswith("less than 0.5 runs")


def test_a_model_without_checks_has_an_empty_chart(seed: Any, ledger: Ledger) -> None:
    view = history.model_view(ledger, "churn", seed.NOW)
    assert view.row.state == "unchecked"
    assert view.checks.empty
    assert view.drift.columns == ()
    with pytest.raises(NotFound, match="no model 'nobody'"):
        history.model_view(ledger, "nobody", seed.NOW)


def test_a_state_that_goes_to_and_fro_is_two_lines(seed: Any, ledger: Ledger) -> None:
    events = history.model_view(ledger, "eta", seed.NOW).events
    assert [event.kind for event in events] == ["run", "state", "state", "promotion"]
    events = events[1:]
    assert events[0].text.startswith("◐ drifting: ")
    assert events[1].text.endswith("between ● healthy and ◐ drifting")
