"""Remaining shelf life: known processes get the right answer; poor data says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from core.errors import InputError
from monitor.measure.lives import Lives, Path, backtested_lives, on_grid
from monitor.measure.shelf_life import answer, forecast

BEGAN = datetime(2010, 1, 1, tzinfo=UTC)
WEEK = 7.0


def _path(ratios: object, *, began: datetime = BEGAN, step: float = WEEK) -> Path:
    values = tuple(float(value) for value in np.asarray(ratios, dtype=np.float64))
    ages = tuple(step * (at + 1) for at in range(len(values)))
    return Path(began=began, ages=ages, ratios=values, rows=(500,) * len(values))


def _decaying(rng: np.random.Generator, windows: int, rate: float, noise: float = 0.03) -> Path:
    """Loss ratios that rise by `rate` a window on the log scale, with noise."""
    return _path(np.exp(rate * np.arange(windows) + rng.normal(size=windows) * noise))


def _truth(rate: float, seen: int, tolerance: float) -> float:
    """Windows until the mean of three noiseless ratios crosses."""
    rise = np.exp(rate * np.arange(seen + 400))
    mean = np.convolve(rise, np.ones(3) / 3, "valid")
    return float(np.flatnonzero(mean > 1 + tolerance)[0] + 3 - seen)


def _wandering(rng: np.random.Generator, windows: int, rate: float) -> np.ndarray:
    """Loss ratios of a level that drifts and moves at random, with noise."""
    walk = np.cumsum(rate + 0.03 * rng.normal(size=windows))
    return np.exp(walk + 0.02 * rng.normal(size=windows))


def test_linear_decay_is_dated() -> None:
    """200 lives of a family whose rates differ: half of the medians are within 20 %."""
    errors, told = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rates = 0.015 * np.exp(0.1 * rng.normal(size=5))
        others = Lives(paths=tuple(_decaying(rng, 24, rate, 0.01) for rate in rates[1:]))
        path = _decaying(rng, 8, rates[0], 0.01)
        got = forecast(path, others, tolerance=0.2, horizons=(21, 120), seed=seed)
        true = WEEK * _truth(rates[0], 8, 0.2)
        errors.append(np.inf if got.median is None else abs(got.median / true - 1))
        told += [
            each.answer == ("yes" if true <= each.days else "no")
            for each in got.within
            if each.answer != "cannot tell"
        ]
    assert np.median(errors) < 0.2
    assert np.mean(told) > 0.95
    assert len(told) > 300


def test_the_interval_covers_what_happens() -> None:
    """200 lives that drift and wander, each continued to its end: 80 %, rather more than less.

    The mixture is wider than this process needs, as real lives are not of one kind.
    """
    inside, early, late = [], 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rates = 0.01 + 0.01 * rng.normal(size=6)
        others = Lives(paths=tuple(_path(_wandering(rng, 40, rate)) for rate in rates[1:]))
        whole = _wandering(rng, 91, rates[0])
        over = np.flatnonzero(np.convolve(whole, np.ones(3) / 3, "valid") > 1.25)
        end = int(over[0]) + 3 if len(over) else 1000
        if end <= 10:
            continue
        got = forecast(_path(whole[:10]), others, tolerance=0.25, seed=seed)
        true = WEEK * (end - 10)
        low, high = (np.inf if each is None else each for each in (got.low, got.high))
        true = np.inf if true > 80 * WEEK else true
        early, late = early + (true < low), late + (true > high)
        inside.append(low <= true <= high)
    assert len(inside) > 150
    assert 0.75 <= np.mean(inside) <= 0.95
    assert max(early, late) < 0.2 * len(inside)


def test_a_steady_life_says_no() -> None:
    rng = np.random.default_rng(3)
    others = Lives(paths=tuple(_decaying(rng, 40, 0.0) for _ in range(4)))
    got = forecast(_decaying(rng, 30, 0.0), others, tolerance=0.2)
    assert [each.answer for each in got.within] == ["no", "no"]
    assert not got.expired
    assert got.beyond == 80 * WEEK


def test_an_expired_life_says_so() -> None:
    got = forecast(_path([1.0, 1.1, 1.3, 1.4, 1.5]), Lives(), tolerance=0.2)
    assert got.expired
    assert (got.median, got.low, got.high) == (0.0, 0.0, 0.0)
    assert [(each.probability, each.answer) for each in got.within] == [(1.0, "yes")] * 2
    assert got.level == pytest.approx(1.4)
    assert got.band[0].low < got.band[0].middle < got.band[0].high


@pytest.mark.parametrize("lives", [0, 1])
def test_few_predecessors_still_get_a_forecast(lives: int) -> None:
    rng = np.random.default_rng(7)
    others = Lives(paths=tuple(_decaying(rng, 20, 0.01) for _ in range(lives)))
    got = forecast(_decaying(rng, 8, 0.01), others, tolerance=0.2)
    assert got.why is None
    assert got.lives == lives
    assert len(got.band) == 30


def test_predecessors_narrow_the_band() -> None:
    widths = {0: 0.0, 8: 0.0}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        path = _decaying(rng, 6, 0.02)
        others = tuple(_decaying(rng, 20, 0.02) for _ in range(8))
        for count in widths:
            band = forecast(path, Lives(paths=others[:count]), tolerance=0.2).band[10]
            widths[count] += float(np.log(band.high / band.low))
    assert widths[8] < 0.95 * widths[0]


def test_two_points_need_other_lives() -> None:
    path = _path([1.0, 1.02])
    got = forecast(path, Lives(), tolerance=0.2)
    assert got.why is not None
    assert "2 of the 3 windows" in got.why
    assert got.within == got.band == ()
    assert got.median is got.low is got.high is got.beyond is None
    rng = np.random.default_rng(5)
    others = Lives(paths=tuple(_decaying(rng, 20, 0.02) for _ in range(4)))
    assert forecast(path, others, tolerance=0.2).within


def test_day_one_has_no_points_but_lives() -> None:
    rng = np.random.default_rng(9)
    others = Lives(paths=tuple(_decaying(rng, 24, 0.02) for _ in range(6)))
    got = forecast(Path(began=BEGAN), others, tolerance=0.2, horizons=(WEEK, 2 * WEEK, 30 * WEEK))
    assert got.points == 0
    assert [each.probability for each in got.within[:2]] == [0.0, 0.0]  # no three windows by then
    assert got.within[2].answer == "yes"
    assert got.median == pytest.approx(WEEK * _truth(0.02, 0, 0.2), rel=0.35)
    assert forecast(Path(began=BEGAN), Lives(), tolerance=0.2).why is not None


def test_windows_without_a_metric_are_gaps() -> None:
    rng = np.random.default_rng(13)
    clean = _decaying(rng, 12, 0.01)
    ratios = list(clean.ratios)
    ratios[3], ratios[6], ratios[7] = float("nan"), float("inf"), 0.0
    got = forecast(_path(ratios), Lives(), tolerance=0.2)
    assert (got.points, got.missing, got.rows) == (9, 3, 4500)
    whole = forecast(clean, Lives(), tolerance=0.2)
    assert abs(got.within[1].probability - whole.within[1].probability) < 0.2
    nothing = forecast(_path([np.nan] * 6), Lives(), tolerance=0.2)
    assert nothing.why is not None
    assert nothing.missing == 6
    holes = Lives(paths=(_path([1.0, np.nan, 1.1, np.nan, 1.2, 1.2, np.nan, 1.3, 1.3]),) * 2)
    assert forecast(clean, holes, tolerance=0.2).lives == 2


def test_same_arguments_same_answer_and_nothing_is_changed() -> None:
    rng = np.random.default_rng(17)
    path = _decaying(rng, 9, 0.01)
    lives = Lives(paths=tuple(_decaying(rng, 20, 0.01) for _ in range(3)))
    before = hash((path, lives))
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = forecast(path, lives, tolerance=0.2, seed=4)
    assert forecast(path, lives, tolerance=0.2, seed=4) == first
    assert forecast(path, lives, tolerance=0.2, seed=5) != first
    assert hash((path, lives)) == before
    assert (np.random.get_state()[1] == state).all()


def test_probabilities_rise_with_the_horizon_and_fall_with_the_tolerance() -> None:
    rng = np.random.default_rng(19)
    path = _decaying(rng, 9, 0.01)
    got = forecast(path, Lives(), tolerance=0.2, horizons=(1, 7, 10, 14, 30, 90))
    chances = [each.probability for each in got.within]
    assert chances == sorted(chances)
    wider = forecast(path, Lives(), tolerance=0.5, horizons=(90,))
    assert wider.within[0].probability < chances[-1]
    assert [answer(p) for p in (0.81, 0.8, 0.2, 0.19)] == ["yes", *["cannot tell"] * 2, "no"]


def test_lives_are_cut_at_the_forecasts_date() -> None:
    path = _path([1.0, 1.1, 1.2, 1.3])
    at = BEGAN + timedelta(days=21)
    assert path.until(at).ratios == (1.0, 1.1, 1.2)
    assert path.until(at, label_lag=timedelta(days=8)).ratios == (1.0,)
    later = _path([1.0], began=at)
    assert Lives.known([path, later], at=at).paths == (path.until(at),)


def test_lives_with_other_windows_are_brought_to_one_grid() -> None:
    daily = _path(np.exp(0.01 * np.arange(28)), step=1.0)
    logs, rows = on_grid(daily, WEEK)
    assert len(logs) == 5
    assert rows[1] == 7 * 500
    assert np.diff(logs)[1:-1] == pytest.approx(0.07)


def test_back_tested_lives_of_day_one() -> None:
    ends = [BEGAN + timedelta(weeks=at + 1) for at in range(6)]
    gap = np.nan
    losses = [
        [gap, gap, 0.20, 0.22, 0.24, 0.30],
        [gap, gap, gap, 0.20, 0.22, 0.25],
        [gap, gap, gap, gap, 0.20, 0.20],
    ]
    got = backtested_lives(losses, ends=ends, expected=(0.2, 0.2, 0.2), rows=(50,) * 6)
    assert len(got.paths) == 2  # the newest model is the yardstick, it has no life of its own
    assert got.paths[0].ratios == pytest.approx((1.0, 1.1, 1.2, 1.5))
    assert got.paths[0].ages == (7.0, 14.0, 21.0, 28.0)
    assert got.paths[0].began == ends[1]
    assert got.paths[1].ratios == pytest.approx((1.0, 1.1, 1.25))
    plain = backtested_lives(losses, ends=ends, expected=(0.1, 0.2, 0.2), yardstick="absolute")
    assert [path.ratios[0] for path in plain.paths] == pytest.approx([2.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Path(began=BEGAN, ages=(1.0,), ratios=()), "ratios"),
        (lambda: Path(began=BEGAN, ages=(1.0,), ratios=(1.0,), rows=(1, 2)), "rows"),
        (lambda: Path(began=BEGAN, ages=(2.0, 1.0), ratios=(1.0, 1.0)), "ages"),
        (lambda: forecast(_path([1.0]), Lives(), tolerance=0.0), "tolerance"),
        (lambda: forecast(_path([1.0]), Lives(), tolerance=0.1, horizons=(-1,)), "horizons"),
        (
            lambda: forecast(
                Path(began=BEGAN, yardstick="absolute"), Lives(paths=(_path([1.0]),)), tolerance=0.1
            ),
            "lives",
        ),
        (lambda: backtested_lives([[1.0]], ends=[], expected=(1.0,)), "losses"),
    ],
)
def test_wrong_arguments_are_named(make: object, field: str) -> None:
    with pytest.raises(InputError, match=field):
        make()  # type: ignore[operator]
