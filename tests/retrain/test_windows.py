"""Which stretch of history wins, with numbers by hand."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from core.settings import RetrainSettings
from retrain.windows import (
    Window,
    change_point,
    choose,
    fits_ahead,
    indifference,
    propose,
    settled,
    weights,
)

T0 = datetime(2024, 1, 1, tzinfo=UTC)
TIMES = [T0 + timedelta(hours=i) for i in range(1000)]
DEFAULT = RetrainSettings().windows
RECENT = Window(name="recent", rows=100, since=T0)
ALL = Window(name="all", rows=1000, since=T0)


def test_windows_that_differ_are_proposed() -> None:
    found = propose(TIMES, DEFAULT, recent_rows=300, change=600, min_rows=50)
    assert [(w.name, w.rows) for w in found] == [
        ("recent", 300),
        ("all", 1000),
        ("since_change", 400),
        ("blend", 1000),
    ]
    assert found[0].since == TIMES[700]
    assert found[3].parts == ("recent", "all")
    # 350 rows are hardly another window than 300.
    close = propose(TIMES, DEFAULT, recent_rows=300, change=650, min_rows=50)
    assert "since_change" not in [w.name for w in close]
    short = propose(TIMES[:320], DEFAULT, recent_rows=300, change=None, min_rows=50)
    assert [(w.name, w.rows) for w in short] == [("recent", 300)]


def test_a_change_just_now_still_leaves_rows_to_learn_from() -> None:
    found = propose(TIMES, ("since_change",), recent_rows=250, change=990, min_rows=200)
    assert [(w.name, w.rows) for w in found] == [("since_change", 250)]
    both = propose(TIMES, ("recent", "since_change"), recent_rows=250, change=990, min_rows=200)
    assert [(w.name, w.rows) for w in both] == [("recent", 250)]
    none = propose(TIMES, ("since_change",), recent_rows=0, change=None, min_rows=200)
    assert [(w.name, w.rows) for w in none] == [("all", 1000)]


def test_decay_halves_with_age() -> None:
    [window] = propose(TIMES, ("decay",), recent_rows=250, change=None, min_rows=50)
    found = weights(window, 501)
    assert found is not None
    assert (found[-1], found[250], found[0]) == pytest.approx((1.0, 0.5, 0.25))
    assert weights(ALL, 10) is None


def test_the_lowest_loss_wins_and_says_why() -> None:
    losses = {"recent": np.array([0.2, 0.4] * 50), "all": np.array([0.5, 0.3] * 50)}
    found = choose((RECENT, ALL), losses)
    assert found.window == RECENT
    assert found.scores[0].relative == pytest.approx(math.log(0.3 / 0.35))
    assert found.scores[1].relative == pytest.approx(math.log(0.4 / 0.35))
    assert "the newest 100 rows lost 0.300 a row on the newest rows, all 1,000 rows 0.400" in (
        found.reason
    )
    assert found.judged_rows == 100


def test_earlier_runs_weigh_in_discounted() -> None:
    losses = {"recent": np.full(50, 0.30), "all": np.full(50, 0.31)}
    past = [{"recent": 0.5, "all": -0.5}, {"recent": 0.02, "all": -0.02}]
    found = choose((RECENT, ALL), losses, past)
    assert found.window == ALL
    score = {s.name: s.score for s in found.scores}
    now = math.log(0.30 / 0.305)
    assert score["recent"] == pytest.approx(now + 0.8 * 0.02 + 0.64 * 0.5)
    assert "ahead by what it gained in 2 earlier runs" in found.reason
    assert choose((RECENT, ALL), losses, []).window == RECENT


BLEND = Window(name="blend", rows=1000, since=T0, parts=("recent", "all"))


def test_what_earlier_runs_agree_on_is_settled_and_asked_again_later() -> None:
    """`all` ahead by 0.2 each time: two competitions carry 0.288, more than one run's 0.2."""
    one = {"recent": 0.1, "all": -0.1}
    assert settled((RECENT, ALL), []) is None
    assert settled((RECENT, ALL), [one]) is None
    found = settled((RECENT, ALL), [one, one])
    assert found is not None
    assert (found.window, found.fits, found.runs, found.scores) == (ALL, 0, 2, ())
    assert "none was held" in found.reason
    # A run without one wears the lead off, 0.230, and widens what another might find, 0.25.
    assert settled((RECENT, ALL), [one, one, {}]) is None
    assert settled((RECENT, ALL), [one] * 4) is not None
    assert settled((RECENT, ALL), [*[one] * 4, {}]) is not None
    # A run that said otherwise, and a window nobody has judged yet.
    other = {"recent": -0.1, "all": 0.1}
    assert settled((RECENT, ALL), [one, one, other]) is None
    assert settled((RECENT, ALL, BLEND), [one, one]) is None
    # Two fits of 0.2 expected losses, a candidate that serves four windows: it takes a tenth of the
    # loss to pay for asking, and nobody has ever seen more than 0.02.
    unimportant = indifference(2, cost_of_fit=0.2, lasts=4.0)
    assert unimportant == pytest.approx(0.1)
    small, turned = {"recent": 0.01, "all": -0.01}, {"recent": -0.01, "all": 0.01}
    assert settled((RECENT, ALL), [small, turned]) is None
    found = settled((RECENT, ALL), [small, turned], indifferent=unimportant)
    assert found is not None
    assert found.window == RECENT
    assert settled((RECENT, ALL), [small] * 9, indifferent=None) is None  # the loss has changed
    after = [small, turned, *[{}] * 8]  # 0.02 / 0.8^8 is above a tenth
    assert settled((RECENT, ALL), after, indifferent=unimportant) is None


def test_the_fits_of_the_next_run_are_known_before() -> None:
    one = {"recent": 0.1, "all": -0.1, "blend": -0.05}
    assert fits_ahead(DEFAULT, []) == 3.0  # recent, all, and the candidate
    assert fits_ahead(DEFAULT, [one]) == 3.0
    assert fits_ahead(DEFAULT, [one] * 5) == 1.0  # all, unasked
    both = {"recent": 0.1, "all": 0.1, "blend": -0.1}
    assert fits_ahead(DEFAULT, [both] * 2) == 2.0  # a blend is two models
    assert fits_ahead(("all",), [], trials=20) == 21.0


def test_windows_that_cannot_be_judged_are_out() -> None:
    losses = {"recent": np.array([np.nan, 1.0]), "all": np.array([1.0, 2.0])}
    assert choose((RECENT, ALL), losses).window == ALL
    assert choose((RECENT, ALL), {"recent": np.array([np.nan])}).window == RECENT
    perfect = choose((RECENT, ALL), {"recent": np.zeros(9), "all": np.zeros(9)})
    assert all(math.isfinite(score.score) for score in perfect.scores)


def test_a_step_in_the_loss_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.exponential(1, 1200), rng.exponential(1.6, 800)])
    found = change_point(losses)
    assert found is not None
    assert abs(found - 1200) < 120
    twice = np.concatenate([losses, rng.exponential(3, 1000)])
    again = change_point(twice)
    assert again is not None
    assert abs(again - 2000) < 150  # the newest rise
    sparse = np.full(4000, np.nan)
    sparse[::2] = losses
    found = change_point(sparse)
    assert found is not None
    assert abs(found - 2400) < 240


def test_noise_a_fall_and_few_rows_are_no_change() -> None:
    rng = np.random.default_rng(1)
    assert sum(change_point(rng.exponential(1, 1500)) is not None for _ in range(100)) <= 5
    fall = np.concatenate([rng.exponential(2, 900), rng.exponential(1, 900)])
    assert change_point(fall) is None
    assert change_point(rng.exponential(1, 100)) is None
    assert change_point(np.full(500, np.nan)) is None
    assert change_point(np.ones(2000)) is None
