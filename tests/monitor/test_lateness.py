"""Late data, late labels, a monitor that slept and a life near its end, each told as itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from core.ledger import Ledger
from core.settings import ModelSettings
from monitor import lateness
from monitor.figures import Arrivals, Forecast, ShelfLife, Within
from monitor.log.arrivals import arrivals
from monitor.log.log import InferenceLog
from monitor.log.records import Prediction
from monitor.measure.staleness import ages
from monitor.results import CheckResult, Performance

AT = datetime(2026, 3, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SETTINGS = ModelSettings(check_every="1h", window="7d", min_rows=50)
FAST = Arrivals(rows=100, newest=AT, delay=1.0)
SLOW = Arrivals(rows=100, newest=AT, delay=9 * 86400.0, late=0.6)


def test_rows_that_miss_their_window_are_late_data() -> None:
    assert lateness.data(None, AT, AT, SETTINGS) == []
    assert lateness.data(FAST, AT, AT, SETTINGS) == []
    (found,) = lateness.data(SLOW, AT - DAY, AT, SETTINGS)
    assert (found.cause, found.severity) == ("late_data", "ticket")
    assert "60 % of them later than 1 w" in found.text
    few = msgspec.structs.replace(SLOW, rows=20)
    assert lateness.data(few, AT, AT, SETTINGS) == []
    (page,) = lateness.data(SLOW, AT - 9 * DAY, AT, SETTINGS)
    assert page.severity == "page"  # nothing else comes: no check sees a row
    patient = msgspec.structs.replace(SETTINGS, late_data_after="30d")
    assert lateness.late_after(patient) == 30 * DAY


def aged(label: timedelta | None, prediction: timedelta = HOUR) -> list[str]:
    found = ages(
        at=AT, registered=None, promoted=None, trained_until=None,
        newest_prediction=AT - prediction, newest_label=None if label is None else AT - label,
    )  # fmt: skip
    return [each.title for each in lateness.labels(found, AT, SETTINGS)]


def test_labels_that_stop_while_predictions_go_on_are_late_labels() -> None:
    assert aged(13 * DAY) == []
    assert aged(None) == []  # there never was one: that is told elsewhere
    assert aged(15 * DAY) == ["no label for 15 d, expected within 2 w"]
    assert aged(15 * DAY, prediction=16 * DAY) == []  # nobody asked since
    delayed = msgspec.structs.replace(SETTINGS, label_delay="30d")
    assert lateness.no_labels_after(delayed) == 44 * DAY


def check(at: datetime) -> CheckResult:
    none = Performance(
        metric="brier", value=None, low=None, high=None, n=0, coverage=None, expected=None,
        tolerated=None, worse=None,
    )  # fmt: skip
    return CheckResult(
        model="m", version="1", at=at, window_start=at - DAY, window_end=at, rows=0, labelled=0,
        state="healthy", reason="", quality=(), drift=(), performance=none, findings=(),
        staleness=ages(
            at=at, registered=None, promoted=None, trained_until=None, newest_prediction=None,
            newest_label=None,
        ),
    )  # fmt: skip


def test_a_gap_in_the_checks_is_the_monitors_own_finding() -> None:
    hourly = [check(AT - (5 + n) * HOUR) for n in range(6)]
    (found,) = lateness.monitor(hourly, AT, SETTINGS)
    assert found.cause == "unwatched"
    assert found.title == "nobody watched for 5 h: no check since 2026-02-28T19:00:00Z"
    assert lateness.monitor(hourly, AT - 4 * HOUR, SETTINGS) == []
    daily = [check(AT - (1 + n) * DAY) for n in range(6)]
    assert lateness.monitor(daily, AT, SETTINGS) == []  # looked at by hand once a day
    assert lateness.monitor(hourly[:1], AT, SETTINGS) == []


def life(probability: float, *, why: str | None = None, provisional: str = "") -> ShelfLife:
    def told(yardstick: str, chance: float) -> Forecast:
        return Forecast(
            yardstick=yardstick, tolerance=0.1, age=20, points=9, missing=0, lives=2, rows=900,  # type: ignore[arg-type]
            within=(Within(days=7, probability=chance, answer="yes"),), median=4.0, why=why,
        )  # fmt: skip

    absolute, relative = told("absolute", 0.1), told("relative", probability)
    return ShelfLife(
        at=AT, metric="brier", absolute=absolute, relative=relative, unit=0.2,
        provisional=provisional,
    )  # fmt: skip


def test_a_life_that_ends_within_a_week_is_a_ticket_that_does_not_flap() -> None:
    (found,) = lateness.shelf_life(life(0.86), "3", None, AT)
    assert (found.cause, found.severity, found.clearing) == ("shelf_life", "ticket", False)
    assert found.title == "v3's shelf life ends soon: within 7 d with P 0.86, median 4 d"
    assert lateness.shelf_life(life(0.7), "3", None, AT) == []
    (held,) = lateness.shelf_life(life(0.7), "3", found, AT + DAY)
    assert (held.clearing, held.since) == (True, AT)
    assert lateness.shelf_life(life(0.4), "3", found, AT) == []
    assert lateness.shelf_life(life(0.9, provisional="back-tested"), "3", None, AT) == []
    assert lateness.shelf_life(life(0.9, why="no window"), "3", None, AT) == []
    assert lateness.shelf_life(None, "3", None, AT) == []


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    yield ledger
    ledger.close()


def test_arrivals_are_counted_by_receipt_without_history(ledger: Ledger, tmp_path: Path) -> None:
    log = InferenceLog(ledger, tmp_path / "segments")

    def rows(name: str, n: int, time: datetime, role: str = "champion") -> list[Prediction]:
        return [
            Prediction(
                model="m", id=f"{name}{i}", version="1", time=time, inputs={}, outputs={},
                role=role,  # type: ignore[arg-type]
            )
            for i in range(n)
        ]  # fmt: skip

    log.append(rows("old", 3, AT - DAY), received=AT - 5 * HOUR)
    log.append(rows("new", 3, AT - 2 * HOUR), received=AT - HOUR)
    log.append(rows("late", 1, AT - 10 * DAY), received=AT - HOUR)
    log.append(rows("past", 9, AT - 99 * DAY, role="history"), received=AT)
    found = arrivals(ledger, "m", after=AT - 2 * HOUR, until=AT, late=DAY)
    assert found == Arrivals(rows=4, newest=AT - HOUR, delay=3600.0, late=0.25)
    assert arrivals(ledger, "m", after=AT, until=AT + DAY, late=DAY) == Arrivals(rows=0)
