"""The evidence and the rule, with numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from retrain.gate_rule import ahead, correlation_time, evidence


def test_independent_rows_give_students_interval() -> None:
    values = np.array([1.0, -1.0] * 50) + 0.1  # alternating: never positively correlated
    found = evidence(values, 0.9)
    assert found.worth == 100
    assert found.gain == pytest.approx(0.1)
    error = values.std(ddof=1) / 10
    assert found.z == pytest.approx(0.1 / error)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.8)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def test_rows_that_come_in_fours_are_worth_a_fourth() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=500), 4)
    # Triangular autocorrelation 1, 3/4, 1/2, 1/4: tau = 1 + 2 (3/4 + 1/2 + 1/4) = 4.
    assert correlation_time(values) == pytest.approx(4, rel=0.15)
    assert evidence(values).worth == pytest.approx(500, rel=0.15)


def test_an_autocorrelated_series_misses_about_as_often_as_stated() -> None:
    rng, missed, naive = np.random.default_rng(1), 0, 0
    for _ in range(400):
        steps = rng.normal(size=600)
        series = np.zeros(600)
        for index in range(1, 600):
            series[index] = 0.6 * series[index - 1] + steps[index]
        low = evidence(series[100:], 0.9).low
        missed += low is not None and low > 0
        naive += series[100:].mean() > 1.283 * series[100:].std() / np.sqrt(500)
    assert 20 < missed < 62  # 10 % of 400, within three standard errors
    assert naive > 90  # what taking the rows as independent would do


def test_newer_rows_weigh_more() -> None:
    values = np.concatenate([np.full(60, 0.5), np.full(60, -0.4)])
    values += np.tile([1.0, -1.0], 60)
    found = evidence(values)
    assert found.gain == pytest.approx(0.05)
    assert found.newest_z is not None
    assert found.newest_z < 0 < (found.z or 0)
    assert not ahead(found.gain, found.z, found.n, newest_z=found.newest_z)
    assert ahead(found.gain, found.z, found.n)  # without the order of time


@pytest.mark.parametrize(
    ("rule", "z", "newest", "passes"),
    [
        ("ahead", 0.1, 0.68, True),
        ("ahead", 5.0, 0.67, False),  # 75 % one-sided is 0.6745
        ("ahead", 0.01, None, True),
        ("ahead", -0.01, None, False),
        ("superior", 1.29, -9.0, True),
        ("superior", 1.28, 9.0, False),  # 90 % one-sided is 1.2816
        ("not_worse", -1.28, -9.0, True),
        ("not_worse", -1.29, 9.0, False),
    ],
)
def test_the_rules(rule: str, z: float, newest: float | None, passes: bool) -> None:
    assert ahead(z, z, 100, newest_z=newest, rule=rule) is passes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gain", "z", "n"),
    [(None, 3.0, 9), (1.0, None, 9), (np.nan, 3.0, 9), (1.0, np.inf, 9), (1.0, 3.0, 0)],
)
@pytest.mark.parametrize("rule", ["ahead", "superior", "not_worse"])
def test_what_was_not_measured_is_never_enough(
    gain: float | None, z: float | None, n: int, rule: str
) -> None:
    assert not ahead(gain, z, n, newest_z=3.0, rule=rule)  # type: ignore[arg-type]


def test_no_rows_one_row_and_constant_differences() -> None:
    assert evidence(np.empty(0)).gain is None
    assert evidence(np.array([2.0])).z is None
    same = evidence(np.full(50, 0.25))
    assert (same.gain, same.low, same.z, same.newest_z) == (0.25, None, None, None)
    assert evidence(np.array([1.0, np.nan, np.inf, 3.0])).n == 2
