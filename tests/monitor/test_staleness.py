"""Ages are plain differences, none where there is nothing to age, never negative."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from monitor.measure.staleness import ages

AT = datetime(2010, 10, 9, tzinfo=UTC)
DAY = 86_400.0


def test_ages_in_seconds() -> None:
    result = ages(
        at=AT,
        registered=AT - timedelta(days=41),
        promoted=AT - timedelta(days=40),
        trained_until=AT - timedelta(days=71),
        newest_prediction=AT - timedelta(minutes=3),
        newest_label=AT - timedelta(hours=2),
        label_lag=timedelta(days=30),
    )
    assert (result.model, result.promotion, result.training_row) == (41 * DAY, 40 * DAY, 71 * DAY)
    assert (result.prediction, result.label, result.label_lag) == (180.0, 7200.0, 30 * DAY)


def test_nothing_to_age_and_the_future() -> None:
    result = ages(
        at=AT,
        registered=AT + timedelta(days=1),
        promoted=None,
        trained_until=None,
        newest_prediction=None,
        newest_label=None,
    )
    assert result.model == 0.0
    assert result.promotion is result.training_row is result.prediction is None
    assert result.label is result.label_lag is None
