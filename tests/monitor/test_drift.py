"""Statistics against SciPy and by hand; outliers; one broken column spoils only itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from monitor.measure import drift, effects
from monitor.measure.calibration import Reference, calibrate
from monitor.measure.profile import ColumnProfile, Values, profile_column, read_values
from monitor.measure.pvalues import level_statistic
from monitor.results import ColumnDrift

RNG = np.random.default_rng(17)
SAMPLES = {
    "normal": (RNG.normal(size=800), RNG.normal(0.3, 1, size=331)),
    "ties": (RNG.poisson(3, 800).astype(float), RNG.poisson(3.2, 331).astype(float)),
    "heavy": (RNG.lognormal(0, 2, 800), RNG.lognormal(0.2, 2, 331)),
    "constant": (np.full(50, 2.0), np.full(7, 2.0)),
    "one row": (RNG.normal(size=800), np.array([0.1])),
    "apart": (RNG.normal(size=80), RNG.normal(size=90) + 100),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_ks_and_wasserstein_are_scipys(name: str) -> None:
    reference, window = map(np.sort, SAMPLES[name])
    assert effects.ks(reference, window) == pytest.approx(
        stats.ks_2samp(reference, window, method="asymp").statistic, abs=1e-9
    )
    assert effects.wasserstein(reference, window) == pytest.approx(
        stats.wasserstein_distance(reference, window), rel=1e-9, abs=1e-9
    )


def test_jensen_shannon_is_scipys_distance() -> None:
    for _ in range(20):
        window, baseline = RNG.poisson(3, 12), RNG.poisson(40, 12)
        assert effects.jensen_shannon(window, baseline) == pytest.approx(
            jensenshannon(window, baseline), abs=1e-9
        )
    assert effects.jensen_shannon(np.array([5, 0]), np.array([0, 9])) == pytest.approx(
        math.sqrt(math.log(2))
    )


def test_psi_by_hand() -> None:
    # q = (.5, .3, .2), p = (.4, .4, .2): .1 ln 1.25 + (-.1) ln .75 + 0
    value = effects.psi(np.array([50, 30, 20]), np.array([400, 400, 200]))
    assert value == pytest.approx(0.1 * math.log(1.25) + 0.1 * math.log(4 / 3), abs=1e-12)
    # An empty cell counts as 1e-4: (.5 - 1e-4) ln(.5 / 1e-4) + (.5 - 1) ln .5
    value = effects.psi(np.array([50, 50, 0]), np.array([0, 100, 0]))
    assert value == pytest.approx(0.4999 * math.log(5000) + 0.5 * math.log(2), abs=1e-12)


def test_chi_squared_is_scipys_contingency_test() -> None:
    window, baseline = RNG.poisson(12, 9), RNG.poisson(90, 9)
    theirs = stats.chi2_contingency(np.array([window, baseline]), correction=False)
    value, df, variance = level_statistic(window, baseline)
    assert value == pytest.approx(theirs.statistic, rel=1e-9)
    assert df == theirs.dof
    assert variance >= 2 * df


def test_chi_squared_variance_is_the_simulated_one_where_cells_are_thin() -> None:
    shares = RNG.dirichlet(np.full(40, 0.4))
    found = []
    for _ in range(3000):
        window, baseline = RNG.multinomial(60, shares), RNG.multinomial(500, shares)
        value, df, variance = level_statistic(window, baseline)
        found.append((value - df, variance))
    values, variances = np.array(found).T
    assert values.var() == pytest.approx(variances.mean(), rel=0.25)


BUDGET = drift.Budget(
    false_alarms=1.0, every=timedelta(hours=1), window=timedelta(hours=1), min_rows=50
)


def measured(
    kind: str, baseline: Sequence[object] | np.ndarray, window: Sequence[object] | np.ndarray
) -> ColumnDrift:
    profile, values = prepared(kind, baseline)
    return compared([profile], {profile.key: values}, {"input:x": window})[0]


def prepared(
    kind: str, baseline: Sequence[object] | np.ndarray, name: str = "x"
) -> tuple[ColumnProfile, Values]:
    values = read_values(kind, pd.Series(baseline))  # type: ignore[arg-type]
    return profile_column(name, "input", kind, values), values  # type: ignore[arg-type]


def compared(
    profiles: list[ColumnProfile],
    baseline: dict[str, Values],
    window: dict[str, Sequence[object] | np.ndarray],
    *,
    sample: bool = True,
) -> tuple[ColumnDrift, ...]:
    """A window of one part against a baseline without times."""
    reference = Reference(
        profiles, calibrate(profiles, baseline, seconds=None, part=None, window=None)
    )
    kinds = {profile.key: profile.kind for profile in profiles}
    read = {key: read_values(kinds[key], pd.Series(values)) for key, values in window.items()}
    rows = max((values.rows for values in read.values()), default=0)
    ordered = {p.key: np.sort(baseline[p.key].values) for p in profiles if p.numeric}
    moments = np.zeros(rows)
    window_ = drift.window_of(reference, read, moments + 60, moments, BUDGET)
    return drift.measure(reference, profiles, ordered if sample else {}, window_, BUDGET)


def statistic(column: ColumnDrift, name: str) -> float:
    found = next(s.value for s in column.statistics if s.name == name)
    assert found is not None
    return found


def test_a_shift_with_one_wild_value_is_still_drift_and_a_wild_value_alone_is_none() -> None:
    baseline, same = RNG.normal(size=3000), RNG.normal(size=500)
    shifted = measured("numeric", baseline, np.append(same + 1, 1e6))
    assert shifted.drifted
    assert statistic(shifted, "psi") > 0.5
    assert statistic(shifted, "js") > 0.2
    quiet = measured("numeric", baseline, np.append(same, 1e6))
    assert not quiet.drifted
    assert statistic(quiet, "psi") < 0.1
    assert statistic(quiet, "wasserstein") > 1000  # which is why it decides nothing
    in_baseline = measured("numeric", np.append(baseline, 1e6), same + 1)
    assert in_baseline.drifted
    assert statistic(in_baseline, "psi") > 0.5


def test_wasserstein_is_normed_by_the_baselines_sd() -> None:
    baseline, window = RNG.normal(0, 3, size=2000), RNG.normal(1, 3, size=500)
    value = statistic(measured("numeric", baseline, window), "wasserstein")
    assert value == pytest.approx(
        stats.wasserstein_distance(baseline, window) / baseline.std(), rel=1e-9
    )


def test_each_kind_has_its_statistics() -> None:
    names = [
        s.name for s in measured("integer", RNG.poisson(5, 500), RNG.poisson(5, 90)).statistics
    ]
    shown = ["psi", "js", "hellinger", "tv", "wasserstein", "ks", "chi2"]
    assert names[:-1] == shown
    assert names[-1] in drift.DECIDING
    letters = RNG.choice(list("abc"), 500)
    names = [s.name for s in measured("categorical", letters, letters[:90]).statistics]
    assert names[:-1] == ["psi", "js", "hellinger", "tv", "chi2"]
    assert names[-1] in ("levels", "level", "missing")


@pytest.mark.parametrize(("kind", "old", "new"), [
    ("categorical", ["a"] * 300 + ["b"] * 300, ["a"] * 150 + ["b"] * 30),
    ("categorical", ["a"] * 300 + ["b"] * 300, ["a"] * 60 + ["b"] * 60 + ["new"] * 60),
    ("boolean", [True, False] * 300, [True] * 90),
    ("numeric", [1.0] * 600, [2.0] * 100),
    ("numeric", np.arange(600.0), [300.0] * 100),
])  # fmt: skip
def test_plain_shifts_are_found(kind: str, old: list[object], new: list[object]) -> None:
    assert measured(kind, old, new).drifted


@pytest.mark.parametrize(("kind", "old", "new", "why"), [
    ("numeric", [1.0, 2.0] * 100, [None] * 80, "all 80 values are missing"),
    ("numeric", [1.0, 2.0] * 100, [math.inf] * 80, "80 of 80 values are no numeric values"),
    ("numeric", [1.0, 2.0] * 100, ["1"] * 80, "80 of 80 values are no numeric values"),
    ("categorical", ["a", "b"] * 100, [1, 2] * 40, "80 of 80 values are no categorical values"),
    ("numeric", [1.0, 2.0] * 100, [1.0] * 49, "49 values, fewer than the 50"),
    ("numeric", [None, None], [1.0] * 80, "the baseline has no value"),
    ("numeric", [1.0, 2.0] * 100, [], "0 values, fewer than"),
])  # fmt: skip
def test_a_broken_column_says_why(
    kind: str, old: list[object], new: list[object], why: str
) -> None:
    column = measured(kind, old, new)
    assert why in column.why
    assert not column.drifted
    assert column.statistics == ()


def test_one_broken_column_spoils_only_itself() -> None:
    good, values = prepared("numeric", RNG.normal(size=1000))
    gone, others = prepared("numeric", [1.0] * 1000, "y")
    results = compared(
        [good, gone], {good.key: values, gone.key: others}, {good.key: RNG.normal(2, 1, 200)}
    )
    assert results[0].drifted
    assert results[1].why == "the window does not have this column"
    assert not results[1].drifted


def test_a_constant_baseline_and_huge_values_have_no_wasserstein() -> None:
    constant = measured("numeric", [3.0] * 200, [3.0] * 100)
    assert not constant.drifted
    assert {s.name: s.why for s in constant.statistics}["wasserstein"] == "the baseline is constant"
    huge = measured("numeric", [-1.7e308, 1.7e308, 0.0] * 100, [0.0, 1e308] * 50)
    assert {s.name: bool(s.why) for s in huge.statistics}["wasserstein"]


def test_no_line_for_psi_where_it_would_lie() -> None:
    column = measured("numeric", RNG.normal(size=3000), RNG.normal(size=60))
    found = {s.name: s for s in column.statistics}
    assert found["psi"].threshold is found["js"].threshold is None
    assert found["psi"].value is not None
    assert found["ks"].threshold is not None


def test_a_reference_sample_without_the_column_still_has_counts() -> None:
    profile, values = prepared("numeric", RNG.normal(size=1000))
    window = {profile.key: RNG.normal(3, 1, 400)}
    (column,) = compared([profile], {profile.key: values}, window, sample=False)
    assert column.drifted
    assert {s.name for s in column.statistics if s.why} == {"tv", "wasserstein", "ks"}


def test_hellinger_and_total_variation_by_hand() -> None:
    window, baseline = np.array([50, 50, 0]), np.array([10, 30, 60])
    overlap = math.sqrt(0.5 * 0.1) + math.sqrt(0.5 * 0.3)
    assert effects.hellinger(window, baseline) == pytest.approx(math.sqrt(1 - overlap))
    assert effects.total_variation(window, baseline) == pytest.approx(0.6)


def test_the_test_that_decided_names_the_change() -> None:
    """Each kind of change is found by the test that is for it."""
    base = RNG.normal(size=5000)
    same = RNG.normal(size=1000)
    changed = {
        "location": same + 0.4,
        "spread": same * 1.5,
        "shape": np.where(RNG.random(1000) < 0.5, -1, 1) * 0.92 + same * 0.39,
        "tail": np.concatenate([same[:-20], np.full(20, 9.0)]),
        "missing": [None if i % 10 == 0 else v for i, v in enumerate(same)],
    }
    for name, window in changed.items():
        column = measured("numeric", base, window)
        assert column.drifted, name
        assert column.statistics[-1].name == name
    letters = np.array(list("abcdefghij"))
    shares = np.full(10, 0.1)
    one = np.array([0.19, *np.full(9, 0.09)])
    grown = measured(
        "categorical", RNG.choice(letters, 5000, p=shares), RNG.choice(letters, 1000, p=one)
    )
    assert grown.drifted
    assert grown.statistics[-1].name in ("level", "levels")
