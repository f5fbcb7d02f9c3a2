"""How old everything is: plain ages at one moment; `monitor.lateness` says which are too old."""

from __future__ import annotations

from datetime import datetime, timedelta

from monitor.results import Staleness


def ages(
    *,
    at: datetime,
    registered: datetime | None,
    promoted: datetime | None,
    trained_until: datetime | None,
    newest_prediction: datetime | None,
    newest_label: datetime | None,
    label_lag: timedelta | None = None,
    baseline: datetime | None = None,
    checked: datetime | None = None,
    received: datetime | None = None,
    arrival: float | None = None,
) -> Staleness:
    """Ages in seconds at `at`; None where there is nothing to age.

    An age is never negative: what an event time puts into the future is zero seconds old.
    `label_lag` is the median time from prediction to label of rows whose label arrived; `checked`
    the moment of the check before this one; `received` when the newest row arrived, and `arrival`
    the median delay in seconds of those that arrived since that check.
    """
    return Staleness(
        model=_age(at, registered),
        training_row=_age(at, trained_until),
        prediction=_age(at, newest_prediction),
        label=_age(at, newest_label),
        promotion=_age(at, promoted),
        label_lag=None if label_lag is None else max(label_lag.total_seconds(), 0.0),
        baseline=_age(at, baseline),
        monitor=_age(at, checked),
        received=_age(at, received),
        arrival=arrival,
    )


def _age(at: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else max((at - moment).total_seconds(), 0.0)
