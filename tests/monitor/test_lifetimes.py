"""Lives kept point by point, and what a check forecasts from them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from core.ledger import Ledger
from core.settings import ModelSettings
from monitor.lifetimes import Born, Known, LifePoint, due, forecast, listed, record, served
from monitor.measure.lives import Path as Life
from monitor.results import WindowScore

START, DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=1)
SETTINGS = ModelSettings(tolerance=0.2, min_rows=50)


def score(day: int, value: float | None, version: str = "1", n: int = 100) -> WindowScore:
    start = START + day * DAY
    return WindowScore(
        start=start, end=start + DAY, version=version, metric="brier", value=value, low=None,
        high=None, n=n, rows=n, labelled=n, bad_labels=0, label_lag=None,
    )  # fmt: skip


def point(version: str, day: int, value: float, fresh: float | None = None) -> LifePoint:
    start = START + day * DAY
    return LifePoint(
        version=version, start=start, end=start + DAY, metric="brier", value=value, n=100,
        fresh=fresh, how="shadow" if fresh else "served",
    )  # fmt: skip


def test_only_windows_whose_labels_are_due_become_points() -> None:
    scores = [score(0, 0.2), score(1, None), score(2, 0.3, n=3), score(3, 0.2), score(6, 0.2)]
    found = served(scores, at=START + 9 * DAY, late=5 * DAY, least=5)
    assert [p.start for p in found] == [START, START + 3 * DAY]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    yield ledger
    ledger.close()


def test_points_are_corrected_by_later_labels_and_never_by_an_earlier_look(ledger: Ledger) -> None:
    def keep(value: float, day: int, fresh: float | None = None) -> None:
        with ledger.write() as tx:
            record(tx, ledger, "m", [point("1", 0, value, fresh)], at=START + day * DAY)

    keep(0.2, 5, fresh=0.1)
    keep(0.3, 7)
    keep(0.3, 8)  # nothing new
    keep(0.9, 4)
    (found,) = listed(ledger, "m", metric="brier")
    assert (found.value, found.fresh) == (0.3, 0.1)
    (then,) = listed(ledger, "m", until=START + 7 * DAY)
    assert then.value == 0.2  # a forecast of that day is what it was
    assert listed(ledger, "m", until=START + 4 * DAY) == []


def test_replaced_versions_are_asked_about_the_champions_windows_they_lack() -> None:
    points = [point("3", 0, 0.2), point("3", 1, 0.2), point("2", 0, 0.3, fresh=0.2)]
    found = due(points, "3", ["3", "2", "1"])
    assert found == {"2": {START + DAY}, "1": {START, START + DAY}}
    many = due(points, "3", ["3", "8", "7", "6", "5", "2"])
    assert "2" not in many  # only the four newest


def lives(decay: float, days: int = 40) -> Known:
    """A champion and four predecessors that all decay alike, the champion for `days` so far."""
    rng = np.random.default_rng(0)
    born, points = {}, []
    for number in range(5):
        version, began = str(number), number * 40
        born[version] = Born(began=START + began * DAY, expected=0.2)
        for day in range(began, 160 + days):
            worse = np.exp(decay * (day - began) + rng.normal(0, 0.03))
            fresh = 0.2 * np.exp(decay * ((day - 40) % 40)) if day >= began + 40 else None
            points.append(point(version, day, float(0.2 * worse), fresh))
    return Known(version="4", metric="brier", born=born, points=tuple(points))


def test_a_steady_decay_ends_when_it_reaches_the_tolerance() -> None:
    known = lives(0.004)  # 20 % after 46 days
    found = forecast(known, SETTINGS, at=START + 202 * DAY)
    assert found is not None
    told = found.absolute
    assert told.why is None
    assert not told.expired
    assert told.lives == 4
    week, month = told.within
    assert (week.days, month.days) == (7.0, 30.0)
    assert month.probability > week.probability
    assert month.answer == "yes"
    assert told.median is not None
    assert 1 <= told.median <= 20  # four days from now in truth
    assert told.band[0].days == pytest.approx(1 - 2, abs=1.01)  # counted from the check
    assert found.unit == 0.2
    assert "within 7 d" in found.text[0]


def test_a_healthy_model_is_not_said_to_end() -> None:
    found = forecast(lives(0.0), SETTINGS, at=START + 200 * DAY)
    assert found is not None
    assert [each.answer for each in found.absolute.within] == ["no", "no"]
    gone = forecast(lives(0.02), SETTINGS, at=START + 200 * DAY)
    assert gone is not None
    assert gone.absolute.expired
    assert "over: +" in gone.text[0]


def test_on_day_one_back_tested_lives_stand_in_and_say_so() -> None:
    tested = tuple(
        Life(
            began=START - 60 * DAY, ages=(10.0, 20.0, 30.0, 40.0),
            ratios=(1.0, 1.05 + k / 50, 1.1, 1.2 + k / 50), rows=(99, 99, 99, 99),
            yardstick="absolute",
        )
        for k in range(3)
    )  # fmt: skip
    born = {"1": Born(began=START, expected=0.2)}
    known = Known(version="1", metric="brier", born=born, tested=tested)
    found = forecast(known, SETTINGS, at=START + DAY)
    assert found is not None
    assert found.absolute.within
    assert found.provisional
    assert any("provisional" in line for line in found.text)
    assert found.relative.why is not None
    nothing = forecast(Known(version="1", metric="brier", born=born), SETTINGS, at=START)
    assert nothing is not None
    assert "cannot be told" in nothing.text[0]
    unknown = Known(version="1", metric="brier", born={"1": Born(began=START, expected=None)})
    assert forecast(unknown, SETTINGS, at=START) is None
