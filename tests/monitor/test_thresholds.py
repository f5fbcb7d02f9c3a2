"""The lines beside effect sizes are the quantiles they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from monitor.measure import effects, thresholds


def test_lines_are_the_quantiles_they_say() -> None:
    ks = thresholds.ks_line(500, 3000, 1e-4)
    assert ks == pytest.approx(stats.kstwobign.isf(1e-4) * np.sqrt(1 / 500 + 1 / 3000))
    assert thresholds.chi2_line(9, 18.0, 1e-4) == pytest.approx(stats.chi2.isf(1e-4, 9))
    psi = thresholds.psi_line(500, 3000, 20, 1e-4)
    assert psi == pytest.approx((1 / 500 + 1 / 3000) * stats.chi2.isf(1e-4, 19))
    assert psi is not None
    assert thresholds.js_line(psi) == pytest.approx(np.sqrt(psi / 8))
    assert thresholds.psi_line(199, 3000, 20, 1e-4) is None


def test_lines_rise_with_over_dispersion_and_with_doubt_about_it() -> None:
    for line in (
        [thresholds.ks_line(500, 3000, 1e-5, phi, df) for phi, df in ((1, 1e6), (3, 1e6), (3, 10))],
        [thresholds.chi2_line(9, 18, 1e-5, phi, df) for phi, df in ((1, 1e6), (3, 1e6), (3, 10))],
    ):
        assert line == sorted(line)
        assert line[1] > 1.4 * line[0]


def test_moderation_shares_what_is_chance_and_keeps_what_is_not() -> None:
    rng = np.random.default_rng(2)
    alike = 2 * rng.chisquare(20, size=30) / 20
    squeezed, df = thresholds.moderate(alike, 20)
    assert squeezed.std() < 0.3 * alike.std()
    assert df > 100
    apart = np.array([1.0, 1.0, 1.1, 30.0, 60.0, 0.9])
    squeezed, _ = thresholds.moderate(apart, 200)
    assert squeezed[3:5] == pytest.approx(apart[3:5], rel=0.1)
    assert squeezed.min() == 1.0


def test_wasserstein_line_of_a_normal_column() -> None:
    """Within 0.3 to 2.5 times at one in a hundred; it is shown, and decides nothing."""
    rng = np.random.default_rng(8)
    null = thresholds.wasserstein_null(rng.normal(size=3000), 1.0)
    assert null is not None
    line = thresholds.wasserstein_line(300, 3000, 1e-2, *null)
    assert line is not None
    alarms = sum(
        effects.wasserstein(np.sort(rng.normal(size=3000)), np.sort(rng.normal(size=300))) > line
        for _ in range(2000)
    )
    assert 0.3 <= alarms / 2000 / 1e-2 <= 2.5
    assert thresholds.wasserstein_null(np.full(10, 1.0), 0.0) is None
    assert thresholds.wasserstein_line(300, 3000, 1e-2, None, None) is None
