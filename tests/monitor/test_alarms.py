"""The promise: false alarms as rare as the one number says, by simulation on counts; and shifts
still found. Rates are simulated at error rates high enough to be counted; bounds are stated."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from core.errors import InputError
from monitor.measure import alarms, pvalues, strata, tally, variation
from monitor.measure.calibration import Reference, calibrate, provisional
from monitor.measure.profile import ColumnProfile, Values, profile_column, read_values

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)


def values(rows: np.ndarray) -> Values:
    return read_values("numeric" if rows.dtype.kind == "f" else "categorical", pd.Series(rows))


def profiled(columns: dict[str, np.ndarray]) -> tuple[list[ColumnProfile], dict[str, Values]]:
    read = {f"input:{name}": values(rows) for name, rows in columns.items()}
    kinds = {
        n: "numeric" if rows.dtype.kind == "f" else "categorical" for n, rows in columns.items()
    }
    profiles = [profile_column(n, "input", kinds[n], read[f"input:{n}"]) for n in columns]  # type: ignore[arg-type]
    return profiles, read


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    rng = np.random.default_rng(1)
    columns = {"x": rng.normal(size=900), "c": rng.choice(list("abcd"), 900).astype(object)}
    columns["x"][::7] = np.nan
    profiles, read = profiled(columns)
    layout = tally.Layout.of(profiles)
    whole = tally.tally(layout, read, 900)
    pieces = [
        tally.tally(layout, {k: values(columns[k[6:]][i::3]) for k in read}, 300) for i in (2, 0, 1)
    ]
    merged = tally.merge(pieces).total()
    blocks = tally.tally_blocks(layout, read, np.arange(900) % 5, 5).total()
    for other in (merged, blocks):
        assert (other.numeric == whole.numeric).all()
        assert all((a == b).all() for a, b in zip(other.levels, whole.levels, strict=True))
        assert (other.missing == whole.missing).all()
    assert whole.numeric[0, 0, : len(profiles[0].counts)].tolist() == list(profiles[0].counts)
    assert whole.missing[0].tolist() == [129, 0]
    with pytest.raises(InputError, match="tallies"):
        tally.merge([])


def test_the_exact_tests_are_scipys() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        n, m = (int(v) for v in rng.integers(5, 3000, 2))
        k, others = rng.binomial(n, 0.1), rng.binomial(m, 0.05)
        low = stats.hypergeom.cdf(k, n + m, k + others, n)
        high = stats.hypergeom.sf(k - 1, n + m, k + others, n)
        wanted = min(1.0, 2 * min(low, high) - stats.hypergeom.pmf(k, n + m, k + others, n))
        found = pvalues.p_share(*(np.array([float(v)]) for v in (k, n, others, m)))[0]
        assert found == pytest.approx(wanted, rel=1e-6) if wanted < 1e-3 else found > 5e-4
    chance = pvalues.p_beyond(np.array([3.0]), np.array([200.0]), np.array([600.0]))[0]
    three = 200 * 199 * 198 / (800 * 799 * 798)
    assert chance == pytest.approx((three + three * 197 / 797) / 2)


@pytest.mark.parametrize(("n", "m"), [(60, 500), (200, 500), (1000, 5000)])
def test_p_values_are_as_small_as_they_say(n: int, m: int) -> None:
    """At one in a hundred, with the baseline's noise in them: 0.6 to 1.5 times."""
    rng = np.random.default_rng(n)
    draws = 4000
    edges = stats.norm.ppf(np.arange(1, 32) / 32)
    w, r = (
        np.stack([np.bincount(np.searchsorted(edges, rng.normal(size=k)), minlength=32)
                  for _ in range(draws)]).astype(float)
        for k in (n, m)
    )  # fmt: skip
    scores = pvalues.mid_ranks(r)
    cells = pvalues.coarse_cells(r, n)
    remainder = pvalues.shape_remainder(pvalues.folded(w, cells), pvalues.folded(r, cells))
    for p in (
        pvalues.p_normal(pvalues.z_score(w, r, scores)),
        pvalues.p_normal(pvalues.z_score(w, r, pvalues.spread_scores(r, scores))),
        pvalues.p_chi_squared(*remainder),
    ):
        assert 0.6 <= (p < 0.01).mean() / 0.01 <= 1.5


@pytest.mark.parametrize("levels", [2, 10, 40])
def test_the_tail_of_categories_holds_at_one_in_a_hundred(levels: int) -> None:
    """n = 200 and m = 3,000, uneven shares, thin levels pooled: 0.5 to 1.6 times."""
    rng = np.random.default_rng(levels)
    shares = rng.dirichlet(np.ones(levels))
    w, r = (rng.multinomial(k, shares, 6000).astype(float) for k in (200, 3000))
    p = pvalues.p_chi_squared(*pvalues.level_statistic(w, r))
    assert 0.5 <= (p < 0.01).mean() / 0.01 <= 1.6


def traffic(
    rng: np.random.Generator, first: int, hours: int, n: int, kind: str, columns: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (hours × n, columns) and their hours: a day's and a weekend's wave, wandering means."""
    when = np.arange(first, first + hours)
    level = np.zeros((hours, columns))
    if kind != "iid":
        weekend = (when // 24 + 3) % 7 >= 5
        level += (0.5 * np.sin(2 * np.pi * when / 24) + 0.3 * weekend)[:, None]
    if kind == "wandering":
        steps = rng.normal(size=(hours + 200, columns)) * 0.1 * np.sqrt(1 - 0.81)
        path = np.zeros(columns)
        for i, step in enumerate(steps):
            path = 0.9 * path + step
            if i >= 200:
                level[i - 200] += path
    rows = rng.normal(size=(hours, n, columns)) + level[:, None, :]
    return rows.reshape(-1, columns), np.repeat(when, n) * 3600.0


def watch(
    kind: str, seed: int, budget: float, days: int = 30, n: int = 60
) -> tuple[int, Reference]:
    """Episodes in a quarter of hourly checks with nothing but natural variation."""
    rng = np.random.default_rng(seed)
    rows, seconds = traffic(rng, 0, days * 24, n, kind)
    profiles, read = profiled({f"x{j}": rows[:, j] for j in range(rows.shape[1])})
    reference = Reference(
        profiles, calibrate(profiles, read, seconds=seconds, part=HOUR, window=WEEK)
    )
    layout, hours = reference.layout, 90 * 24
    later, moments = traffic(rng, days * 24, hours, n, kind)
    read = {f"input:x{j}": values(later[:, j]) for j in range(later.shape[1])}
    counted = tally.tally_blocks(layout, read, np.repeat(np.arange(hours), n), hours)
    kinds = reference.stratum(moments[::n])
    scales = alarms.scales_for(168, n)
    alphas = [alarms.alpha(budget, hours, s, len(scales), alarms.tests_of(layout)) for s in scales]
    known = reference.over([(HOUR * s, float(n * s)) for s in scales])
    mix = np.zeros((hours, reference.kinds))
    mix[np.arange(hours), kinds] = n
    episodes, last = 0, np.full(len(profiles), -999)
    for end in range(168, hours, 4):  # every fourth check: rolling sums hardly move in between
        parts = counted.part(slice(end - 168, end))
        found = alarms.windows(parts, mix[end - 168 : end], scales)
        base = alarms.standardised(reference.sums, found.mix)
        looks = alarms.look(layout, found, base, known, alphas)
        hit = (looks.numbers < looks.alphas[:, None, None]).any((0, 2))
        episodes += int((hit & (end - last > 24)).sum())
        last[hit] = end
    return episodes, reference


@pytest.mark.parametrize(("kind", "most"), [("iid", 1.3), ("seasonal", 1.3), ("wandering", 1.6)])
def test_false_alarms_keep_the_promise(kind: str, most: float) -> None:
    """Ten are promised in a quarter, so that they can be counted: at most `most` times that."""
    found = [watch(kind, seed, budget=10.0) for seed in (1, 2)]
    assert sum(episodes for episodes, _ in found) / 20 <= most
    reference = found[0][1]
    assert reference.calibration.scheme == "hour_weekend"
    first = reference.variation[0]
    assert first.loc[0] < 1.2 if kind != "wandering" else first.loc[0] > 1.3


def test_rolling_looks_are_paid_for() -> None:
    """Rolling sums of independent parts cross as often as so many independent looks would."""
    rng = np.random.default_rng(5)
    steps, scale, alpha = 400_000, 16, 1e-4
    sums = np.convolve(rng.normal(size=steps), np.ones(scale) / np.sqrt(scale), "valid")
    beyond = np.flatnonzero(np.abs(sums) > -stats.norm.ppf(alpha / 2))
    clumps = 1 + int((np.diff(beyond) > 2 * scale).sum())
    assert clumps / alpha == pytest.approx(alarms.looks_of(steps, scale, alpha), rel=0.35)


def test_the_budget_is_divided_by_scales_looks_and_tests() -> None:
    one = alarms.alpha(1.0, 2160, 1, 8, 240)
    assert 1 / (8 * 2160 * 240) <= one <= 1.2 / (8 * 2160 * 240)
    assert alarms.alpha(1.0, 2160, 16, 8, 240) > 1.5 * one
    assert alarms.alpha(100.0, 1, 1, 1, 1) == 0.05
    assert alarms.scales_for(168, 200) == (1, 2, 4, 8, 16, 32, 64, 168)
    assert alarms.scales_for(168, 10) == (8, 16, 32, 64, 168)
    assert alarms.scales_for(1, 10) == (1,)


def test_faint_shifts_are_found_in_a_day_and_gross_ones_at_once() -> None:
    """Hourly n = 200 among 40 columns, a baseline of 10,000 rows, one false alarm a quarter."""
    rng = np.random.default_rng(6)
    base = rng.normal(size=(10_000, 40))
    profiles, read = profiled({f"x{j}": base[:, j] for j in range(40)})
    reference = Reference(profiles, calibrate(profiles, read, seconds=None, part=None, window=None))
    layout, scales = reference.layout, alarms.scales_for(168, 200)
    alphas = [alarms.alpha(1.0, 2160, s, len(scales), alarms.tests_of(layout)) for s in scales]
    known = reference.over([(HOUR * s, 200.0 * s) for s in scales])
    delays = {}
    for shift in (0.1, 0.25, 0.5):
        found = []
        for _ in range(9):
            hours = 168 + 40
            rows = rng.normal(size=(hours, 200, 40))
            rows[168:, :, 0] += shift
            flat = rows.reshape(-1, 40)
            read = {f"input:x{j}": values(flat[:, j]) for j in range(40)}
            block = np.repeat(np.arange(hours), 200)
            counted = tally.tally_blocks(layout, read, block, hours)
            delay = 99
            for end in range(169, hours + 1):
                mix = np.full((168, 1), 200.0)
                window = alarms.windows(counted.part(slice(end - 168, end)), mix, scales)
                looks = alarms.look(
                    layout, window, alarms.standardised(reference.sums, window.mix), known, alphas
                )
                if (looks.numbers[:, 0] < looks.alphas[:, None]).any():
                    delay = end - 168
                    break
            found.append(delay)
        delays[shift] = float(np.median(found))
    assert delays[0.5] == 1
    assert delays[0.25] <= 4
    assert delays[0.1] <= 22


def test_a_column_that_kept_growing_drifts_when_it_grows_on() -> None:
    """A trend of the baseline is no natural variation: its going on is found."""
    rng = np.random.default_rng(14)
    rows = {"x": rng.normal(np.linspace(0, 1, 4000), 1), "y": rng.normal(size=4000)}
    profiles, read = profiled(rows)
    seconds = np.linspace(0, 40 * 86400, 4000, endpoint=False)
    calibration = calibrate(profiles, read, seconds=seconds, part=DAY, window=WEEK)
    assert calibration.variation[0].loc[0] < 1.6  # some five without the line
    assert calibration.scheme == "weekend"


def test_more_traffic_carries_variation_by_the_design_effect() -> None:
    rng = np.random.default_rng(3)
    level = np.repeat(rng.normal(0, 0.2, 400), 50)
    profiles, read = profiled({f"x{j}": rng.normal(size=20_000) + level for j in range(3)})
    seconds = np.repeat(np.arange(400) * 86400.0, 50)
    reference = Reference(
        profiles, calibrate(profiles, read, seconds=seconds, part=DAY, window=DAY)
    )
    usual, busy = reference.at(DAY, 50.0), reference.at(DAY, 500.0)
    assert usual.loc[0] == pytest.approx(1 + 50 * 0.04 / 1.04, rel=0.25)
    assert busy.loc[0] - 1 == pytest.approx(10 * (usual.loc[0] - 1), rel=0.05)


def test_strata_are_as_fine_as_eight_blocks_allow() -> None:
    hours = np.arange(30 * 24) * 3600.0
    assert strata.choose(hours, HOUR) == "hour_weekend"
    assert strata.choose(hours[: 10 * 24], HOUR) == "hour"
    assert strata.choose(hours[::24], DAY) == "weekend"
    assert strata.choose(hours[:50], HOUR) == "none"
    assert strata.choose(hours[:0], HOUR) == "none"
    monday = np.array([4 * 86400.0])  # 5 January 1970
    assert strata.stratum("hour_weekend", monday + 13 * 3600)[0] == 26
    assert strata.stratum("weekend", monday - 86400)[0] == 1


@pytest.mark.parametrize(("days", "said"), [(30, "spans 4.29 check windows"), (90, "")])
def test_thresholds_from_a_short_baseline_are_provisional(days: int, said: str) -> None:
    rng = np.random.default_rng(9)
    profiles, read = profiled({"x": rng.normal(size=days * 48)})
    seconds = np.arange(days * 48) * 1800.0
    calibration = calibrate(profiles, read, seconds=seconds, part=HOUR, window=WEEK)
    why = provisional(calibration, WEEK)
    assert (said in why) if said else why == ""
    nothing = calibrate(profiles, read, seconds=None, part=HOUR, window=WEEK)
    assert "no time blocks" in provisional(nothing, WEEK)
    assert nothing.variation == ()
    assert variation.nothing_known(tally.Layout.of(profiles), 1).loc == (1.0,)
