from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from core import schema
from core.errors import NotFound, ShelflifeError
from core.ledger import Ledger
from dashboard import fleet_query, queries
from dashboard.views import Fleet

DAY = timedelta(days=1)


def whole(ledger: Ledger, now: datetime) -> Fleet:
    """The fleet with the details of every row."""
    found = fleet_query.fleet(ledger, now)
    return msgspec.structs.replace(found, rows=fleet_query.detailed(ledger, found.rows))


def test_the_fleet_is_sorted_by_consequence(seed: Any, ledger: Ledger) -> None:
    fleet = whole(ledger, seed.NOW)
    states = [(row.model, row.state) for row in fleet.rows]
    assert states == [
        ("evil", "broken_feed"),
        ("repurchase", "decaying"),
        ("eta", "drifting"),
        ("churn", "unchecked"),
        ("fraud", "healthy"),
    ]
    assert fleet.checked == seed.NOW - timedelta(minutes=1)


def test_a_row_has_its_numbers(seed: Any, ledger: Ledger) -> None:
    row = next(r for r in whole(ledger, seed.NOW).rows if r.model == "repurchase")
    assert (row.metric, row.value, row.n, row.coverage) == ("brier", 0.213, 1312, 0.62)
    assert [row.low, row.high] == pytest.approx([0.205, 0.221])
    assert row.tolerated == pytest.approx(0.1903)
    assert (row.version, row.champion_since) == ("3", seed.NOW - 41 * DAY)
    assert (row.incidents, row.incident and row.incident.id) == (1, 42)
    assert row.run is not None
    assert (row.run.id, row.run.step, row.run.candidate) == ("8f3c1d2e", "gate", "4")
    assert row.every == DAY
    assert not row.overdue


def test_a_model_without_a_check_is_there(seed: Any, ledger: Ledger) -> None:
    row = next(r for r in whole(ledger, seed.NOW).rows if r.model == "churn")
    assert (row.state, row.version, row.checked, row.value) == ("unchecked", "1", None, None)
    assert row.spark.values == ()


def test_the_sparkline_is_the_mean_of_equal_parts(seed: Any, any_ledger: Ledger) -> None:
    end = seed.NOW
    # Twelve hours are one part: the first two checks share one, the third has its own.
    for hours, value in ((720 - 3, 0.1), (720 - 4, 0.3), (1, 0.5), (0, None)):
        found = seed.check("m", "1", end - timedelta(hours=hours), value=value)
        seed.write(any_ledger, [found])
    (row,) = whole(any_ledger, end).rows
    assert len(row.spark.values) == fleet_query.SPARK_POINTS
    assert row.spark.values[0] == pytest.approx(0.2)
    assert row.spark.values[-1] == pytest.approx(0.5)
    assert [v for v in row.spark.values if v is not None] == [
        pytest.approx(0.2),
        pytest.approx(0.5),
    ]
    assert row.value is None


def test_since_is_the_first_check_of_the_unbroken_state(seed: Any, any_ledger: Ledger) -> None:
    states = ("decaying", "healthy", "decaying", "decaying")
    at = [seed.NOW - (3 - i) * DAY for i in range(4)]
    seed.write(
        any_ledger,
        [seed.check("m", "1", t, state=s) for t, s in zip(at, states, strict=True)],
    )
    (row,) = whole(any_ledger, seed.NOW).rows
    assert row.since == at[2]


@pytest.mark.parametrize(("late", "overdue"), [(2.9, False), (3.1, True)])
def test_a_model_that_nobody_checks_is_overdue(
    seed: Any, any_ledger: Ledger, late: float, overdue: bool
) -> None:
    last = seed.NOW - late * timedelta(hours=1)
    checks = [seed.check("m", "1", last - i * timedelta(hours=1)) for i in range(5)]
    seed.write(any_ledger, checks)
    (row,) = whole(any_ledger, seed.NOW).rows
    assert row.every == timedelta(hours=1)
    assert row.overdue is overdue


def test_a_page_on_a_healthy_model_comes_before_quiet_states(seed: Any, any_ledger: Ledger) -> None:
    for model, state in (("a", "drifting"), ("b", "healthy"), ("c", "decaying")):
        seed.write(any_ledger, [seed.check(model, "1", seed.NOW, state=state)])
    with any_ledger.write() as tx:
        tx.execute(
            schema.incidents.insert().values(
                model="b",
                cause="retrain_failed",
                severity="page",
                state="open",
                opened=seed.NOW,
                updated=seed.NOW,
                title="the trainer raised",
            )
        )
    assert [row.model for row in whole(any_ledger, seed.NOW).rows] == ["b", "c", "a"]


def test_a_check_this_version_cannot_read_still_shows(seed: Any, any_ledger: Ledger) -> None:
    found = seed.row(seed.check("m", "1", seed.NOW)) | {"result": '{"of": "the future"}'}
    with any_ledger.write() as tx:
        tx.execute(schema.checks.insert().values(**found))
    (row,) = whole(any_ledger, seed.NOW).rows
    assert (row.state, row.value, row.n) == ("healthy", 0.18, None)


def test_an_empty_ledger_has_no_models(seed: Any, any_ledger: Ledger) -> None:
    assert whole(any_ledger, seed.NOW).rows == ()
    assert queries.newest(any_ledger) is None
    assert not queries.incidents(any_ledger)
    assert not queries.runs(any_ledger)


def test_the_version_changes_with_every_kind_of_news(seed: Any, any_ledger: Ledger) -> None:
    seen = [queries.version(any_ledger)]
    seed.write(any_ledger, [seed.check("m", "1", seed.NOW)])
    seen.append(queries.version(any_ledger))
    seed.promote(any_ledger, "m", "1", seed.NOW)
    seen.append(queries.version(any_ledger))
    with any_ledger.write() as tx:
        values = {"model": "m", "version": "1", "at": seed.NOW, "action": "wait"}
        tx.execute(schema.decisions.insert().values(**values))
    seen.append(queries.version(any_ledger))
    assert len(set(seen)) == len(seen)


def test_incidents_unresolved_first(ledger: Ledger) -> None:
    assert [row.id for row in queries.incidents(ledger, model="repurchase")] == [42, 41]
    assert [row.id for row in queries.incidents(ledger, state="resolved")] == [41]
    assert {row.id for row in queries.incidents(ledger, state="unresolved")} == {42, 66}


def test_an_incident_has_its_timeline_and_messages(ledger: Ledger) -> None:
    view = queries.incident(ledger, 42)
    assert [event.kind for event in view.events] == ["opened", "run", "gate"]
    told = [(m.receiver, m.state, m.status) for m in view.messages]
    assert told == [("on-call", "delivered", 204), ("data-science", "pending", 503)]
    assert view.finding is not None
    assert view.finding.columns == ("days_since_first", "lifetime_value")
    with pytest.raises(NotFound, match="no incident 7"):
        queries.incident(ledger, 7)


def test_runs_unfinished_first_with_steps_and_gate(ledger: Ledger) -> None:
    rows = queries.runs(ledger, model="repurchase")
    assert [row.id for row in rows] == ["8f3c1d2e", "2a91bb07", "c07e5512"]
    assert rows[1].gate["gain"] == 0.021
    view = queries.run(ledger, "8f3c1d2e")
    assert [(s.name, s.state) for s in view.steps] == [
        ("dataset", "done"),
        ("train", "done"),
        ("gate", "running"),
    ]
    assert view.steps[0].result["left_out"] == 12
    with pytest.raises(NotFound):
        queries.run(ledger, "nobody")


def test_a_database_without_tables_is_refused(tmp_path: Any) -> None:
    bare = Ledger(f"sqlite:///{tmp_path / 'bare.db'}")
    with pytest.raises(ShelflifeError, match="no shelflife tables"):
        queries.ready(bare)
    bare.create()
    queries.ready(bare)
    with bare.write() as tx:
        tx.execute(schema.meta.update().values(value=str(schema.VERSION + 1)))
    with pytest.raises(ShelflifeError, match="upgrade shelflife"):
        queries.ready(bare)
    bare.close()
