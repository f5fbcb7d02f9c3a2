"""The promise: false alarms as rare as the one number says, by simulation; and shifts still found.

Rates are simulated at error rates high enough to be counted in seconds; the bounds are stated.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from core.spec import Kind
from monitor.measure import dispersion, drift, thresholds
from monitor.measure.profile import ColumnProfile, Values, profile_column, read_values
from monitor.measure.thresholds import Calibration, ColumnCalibration
from monitor.results import ColumnDrift

HOUR = timedelta(hours=1)
KINDS: dict[str, Kind] = {f"normal{i}": "numeric" for i in range(4)}
KINDS |= {f"lognormal{i}": "numeric" for i in range(3)}
KINDS |= {f"category{i}": "categorical" for i in range(3)}
SHARES = [np.random.default_rng(9).dirichlet(np.ones(k)) for k in (2, 5, 40)]


def frame(rng: np.random.Generator, n: int, shift: float = 0.0) -> pd.DataFrame:
    """Ten iid columns; `shift`, in sd, moves the first."""
    columns: dict[str, object] = {f"normal{i}": rng.normal(size=n) for i in range(4)}
    columns["normal0"] = rng.normal(shift, 1, size=n)
    columns |= {f"lognormal{i}": rng.lognormal(0, 1.5, size=n) for i in range(3)}
    for i, shares in enumerate(SHARES):
        columns[f"category{i}"] = rng.choice([f"v{j}" for j in range(len(shares))], n, p=shares)
    return pd.DataFrame(columns)


class Monitor:
    """A calibrated baseline and the measuring of windows against it."""

    def __init__(self, baseline: pd.DataFrame, window_rows: int | None) -> None:
        values = self.read(baseline)
        self.profiles: list[ColumnProfile] = [
            profile_column(str(name), "input", KINDS[str(name)], values[f"input:{name}"])
            for name in baseline
        ]
        self.calibration: Calibration = dispersion.calibrate(
            self.profiles, values, order=np.arange(len(baseline)), window_rows=window_rows
        )
        self.sorted = {
            p.key: np.sort(values[p.key].values) for p in self.profiles if p.numeric
        }  # fmt: skip
        self.tests = sum(drift.tests_of(profile) for profile in self.profiles)

    @staticmethod
    def read(window: pd.DataFrame) -> dict[str, Values]:
        return {f"input:{name}": read_values(KINDS[str(name)], window[name]) for name in window}

    def check(self, window: pd.DataFrame, promise: float) -> tuple[ColumnDrift, ...]:
        """`promise`: false alarms tolerated per check of all columns."""
        return drift.measure(
            self.profiles,
            self.calibration.columns,
            self.sorted,
            self.read(window),
            alpha=promise / self.tests,
            min_rows=50,
        )


def test_alpha_divides_the_budget_by_checks_and_tests() -> None:
    assert thresholds.alpha(1.0, HOUR, 20) == pytest.approx(1 / (90 * 24 * 20))
    assert thresholds.alpha(2.0, HOUR, 20) == pytest.approx(2 / (90 * 24 * 20))
    assert thresholds.alpha(100.0, timedelta(days=30), 1) == 0.05
    assert thresholds.alpha(1.0, timedelta(days=400), 50) == pytest.approx(1 / 50)
    assert thresholds.alpha(1e-9, HOUR, 10_000) == 1e-12
    assert thresholds.alpha(1.0, HOUR, 0) > 0


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


def test_design_effect_carries_over_dispersion_to_other_windows() -> None:
    calibration = ColumnCalibration(window_rows=101, ks=2.0, chi2=1.0, missing=3.0)
    assert calibration.at(101).ks == pytest.approx(2.0)
    assert calibration.at(1001).ks == pytest.approx(11.0)
    assert calibration.at(51).ks == pytest.approx(1.5)
    assert calibration.at(1001).chi2 == 1.0
    assert calibration.at(0).missing >= 1.0


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


@pytest.mark.parametrize(("windows", "blocks", "said"), [
    (3, 8, "holds 3 windows of 1,000 rows"),
    (8, 8, ""),
    (80, 0, "no time blocks"),
])  # fmt: skip
def test_thresholds_from_a_short_baseline_are_provisional(
    windows: int, blocks: int, said: str
) -> None:
    calibration = Calibration(rows=windows * 1000, blocks=blocks, columns={})
    why = thresholds.provisional(calibration, 1000)
    assert (said in why) if said else why == ""


def test_blocks_are_as_long_as_a_window_where_eight_fit() -> None:
    assert dispersion.blocks_of(10_000, 500) == 20
    assert dispersion.blocks_of(3000, 1000) == 8
    assert dispersion.blocks_of(159, 10) == 0
    assert dispersion.blocks_of(10**6, 100) == 200


@pytest.mark.parametrize("n", [200, 1000])
def test_false_alarms_of_the_whole_check_keep_the_promise(n: int) -> None:
    """Ten iid columns, baseline of 3,000: between 0.2 and 1.3 times the promised rate.

    Bonferroni over dependent tests and a floor of 1 on φ make it less than promised.
    """
    rng = np.random.default_rng(100 + n)
    promise, alarms, checks = 0.2, 0, 0
    for _ in range(10):
        monitor = Monitor(frame(rng, 3000), n)
        for _ in range(30):
            alarms += any(c.drifted for c in monitor.check(frame(rng, n), promise))
            checks += 1
    assert 0.2 <= alarms / checks / promise <= 1.3


@pytest.mark.parametrize("cells", [2, 10, 40])
def test_the_chi_squared_tail_holds_at_one_in_a_thousand(cells: int) -> None:
    """Within 0.3 to 2 times, n = 200 and m = 3,000, uneven shares, thin cells pooled."""
    rng = np.random.default_rng(cells)
    shares = rng.dirichlet(np.ones(cells))
    alarms, draws = 0, 12_000
    windows, baselines = rng.multinomial(200, shares, draws), rng.multinomial(3000, shares, draws)
    for window, baseline in zip(windows, baselines, strict=True):
        value, df, variance = drift.chi_squared(*drift.pool_thin(window, baseline))
        alarms += value > thresholds.chi2_line(df, variance, 1e-3)
    assert 0.3 <= alarms / draws / 1e-3 <= 2.0


def test_a_shift_of_half_a_sigma_is_found_in_a_thousand_rows() -> None:
    """At one false alarm a quarter, hourly checks, ten columns; and the right column is named."""
    rng = np.random.default_rng(4)
    monitor = Monitor(frame(rng, 3000), 1000)
    promise = 1 / (90 * 24)
    found = [monitor.check(frame(rng, 1000, shift=0.5), promise) for _ in range(20)]
    assert [column.column for column in found[0] if column.drifted] == ["normal0"]
    assert sum(columns[0].drifted for columns in found) == 20


def wandering(rng: np.random.Generator, windows: int, n: int) -> pd.DataFrame:
    """Means that differ from window to window (0.15 sd) and categories that do, too."""
    means = np.repeat(rng.normal(0, 0.15, size=(windows, 4)), n, axis=0)
    columns: dict[str, object] = {
        f"normal{i}": means[:, i] + rng.normal(size=windows * n) for i in range(4)
    }
    odds = np.repeat(1 / (1 + np.exp(-rng.normal(0, 0.3, size=windows))), n)
    columns["category0"] = np.where(rng.uniform(size=windows * n) < odds, "a", "b")
    return pd.DataFrame(columns)


def test_natural_variation_of_the_baseline_is_no_drift() -> None:
    """Blockwise wandering: at most 1.5 times the promise, where an iid null gives over 5 times."""
    rng = np.random.default_rng(6)
    promise, calibrated, naive, checks = 0.1, 0, 0, 0
    for _ in range(5):
        monitor = Monitor(wandering(rng, 40, 200), 200)
        assert monitor.calibration.blocks == 40
        windows = wandering(rng, 40, 200)
        blind = Monitor(wandering(rng, 40, 200), None)
        blind.calibration = Calibration(rows=8000, blocks=0, columns={})
        for start in range(0, 8000, 200):
            window = windows.iloc[start : start + 200]
            calibrated += any(c.drifted for c in monitor.check(window, promise))
            naive += any(c.drifted for c in blind.check(window, promise))
            checks += 1
    assert calibrated / checks / promise <= 1.5
    assert naive / checks / promise >= 5


def test_the_tail_line_is_exact_for_exchangeable_rows() -> None:
    """Never more often than promised; one row beyond a longer baseline is ordinary."""
    rng = np.random.default_rng(12)
    line = thresholds.tail_line(200, 600, 0.02)
    # (200/800)(199/799)... falls under 0.02 with the third row.
    assert line == pytest.approx(2 / 200)
    alarms = 0
    for _ in range(4000):
        rows = rng.normal(size=800)
        alarms += (rows[:200] > rows[200:].max()).mean() > line
    assert 0.5 <= alarms / 4000 / (200 * 199 * 198 / (800 * 799 * 798)) <= 1.5
    assert thresholds.tail_line(200, 600, 0.02, phi=10.0) > 5 * line
    assert thresholds.tail_line(50, 10, 1e-9, phi=40.0) == 1.0


def test_a_column_that_kept_growing_drifts_when_it_grows_on() -> None:
    """A trend of the baseline is no natural variation: its going on is found."""
    rng = np.random.default_rng(14)
    growing = pd.DataFrame(
        {
            "normal0": rng.normal(np.linspace(0, 1, 4000), 1),
            "normal1": rng.normal(size=4000),
        }
    )
    monitor = Monitor(growing, 400)
    assert monitor.calibration.columns["input:normal0"].ks < 2  # 11 without the line
    later = pd.DataFrame({"normal0": rng.normal(1.4, 1, 400), "normal1": rng.normal(size=400)})
    first, second = monitor.check(later, 1 / (90 * 24))
    assert first.drifted
    assert not second.drifted


def test_a_window_longer_than_a_block_varies_more_than_a_block() -> None:
    rng = np.random.default_rng(15)
    rows = wandering(rng, 10, 300)
    blocks, window = Monitor(rows, 375), Monitor(rows, 1500)
    assert blocks.calibration.blocks == window.calibration.blocks == 8
    short, long = (m.calibration.columns["input:normal0"] for m in (blocks, window))
    assert long.ks - 1 == pytest.approx(2 * (short.ks - 1))
    assert (short.window_rows, long.window_rows) == (375, 1500)


def test_wasserstein_line_of_a_normal_column() -> None:
    """Within 0.3 to 2.5 times at one in a hundred; it is shown, and decides nothing."""
    rng = np.random.default_rng(8)
    null = dispersion.wasserstein_null(rng.normal(size=3000), 1.0)
    assert null is not None
    line = thresholds.wasserstein_line(300, 3000, 1e-2, *null)
    assert line is not None
    alarms = sum(
        drift.wasserstein(np.sort(rng.normal(size=3000)), np.sort(rng.normal(size=300))) > line
        for _ in range(2000)
    )
    assert 0.3 <= alarms / 2000 / 1e-2 <= 2.5
    assert dispersion.wasserstein_null(np.full(10, 1.0), 0.0) is None
    assert thresholds.wasserstein_line(300, 3000, 1e-2, None, None) is None
