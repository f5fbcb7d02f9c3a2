"""The e-detector: what it promises when nothing happens, and how fast it is when something does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.measure.sequential import Following, Line, evidence, follow, growth, line, line_of

PATIENCE = 100.0


def brier(rng: np.random.Generator, n: int, noise: float = 0.0) -> np.ndarray:
    """Per-row Brier losses of a calibrated model; a share `noise` of the labels is a coin's."""
    p = rng.choice([0.1, 0.9], n)
    coin = rng.random(n) < noise
    y = rng.random(n) < np.where(coin, 0.5, p)
    losses: np.ndarray = (p - y) ** 2
    return losses


def alarms_at(losses: list[np.ndarray], reference: Line) -> int | None:
    """The first part at which the detector reaches its line."""
    parts = [(1.0, growth(reference, part)) for part in losses]
    for end in range(1, len(parts) + 1):
        if evidence(parts[:end]) >= PATIENCE:
            return end
    return None


def test_without_a_rise_alarms_are_as_rare_as_promised() -> None:
    runs, alarms = 100, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        reference = line(brier(rng, 2000), tolerance=0.0)
        alarms += alarms_at([brier(rng, 300) for _ in range(20)], reference) is not None
    # A run of 20 windows at one alarm in at least 100: at most a fifth of the runs.
    assert alarms <= 0.2 * runs


@pytest.mark.parametrize(("noise", "within"), [(0.3, 1), (0.15, 5)])
def test_a_rise_is_found_soon(noise: float, within: int) -> None:
    rng = np.random.default_rng(0)
    reference = line(brier(rng, 2000))
    found = alarms_at([brier(rng, 500, noise) for _ in range(5)], reference)
    assert found is not None
    assert found <= within


def test_a_long_quiet_life_does_not_delay_an_alarm() -> None:
    rng = np.random.default_rng(1)
    reference = line(brier(rng, 2000))
    quiet, bad = ([brier(rng, 500, noise) for _ in range(n)] for noise, n in ((0.0, 40), (0.3, 5)))
    late = alarms_at(quiet + bad, reference)
    soon = alarms_at(bad, reference)
    assert late is not None
    assert soon is not None
    assert late - len(quiet) <= soon + 1


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 59))
def test_growth_adds_up_however_a_stretch_is_cut(losses: list[float], cut: int) -> None:
    reference = line_of(0.2, 0.1, 500, 1.0)
    whole = growth(reference, np.array(losses))
    first, second = (
        growth(reference, np.array(losses[:cut])),
        growth(reference, np.array(losses[cut:])),
    )
    assert whole == pytest.approx([a + b for a, b in zip(first, second, strict=True)])


def test_cutting_finer_hardly_changes_the_evidence() -> None:
    rng = np.random.default_rng(3)
    reference = line(brier(rng, 2000))
    parts = [brier(rng, 400, 0.15) for _ in range(6)]
    coarse = evidence((1.0, growth(reference, part)) for part in parts)
    fine = evidence(
        (0.25, growth(reference, piece)) for part in parts for piece in np.array_split(part, 4)
    )
    assert abs(math.log(fine) / math.log(coarse) - 1) < 0.1


def test_one_absurd_row_proves_nothing_and_nothing_overflows() -> None:
    rng = np.random.default_rng(4)
    reference = line(rng.exponential(1.0, 2000))
    assert evidence([(1.0, growth(reference, np.array([1e12])))]) < 2.0
    many = [(1.0, growth(reference, np.full(10_000, 1e12))) for _ in range(50)]
    assert math.isfinite(evidence(many))
    assert growth(reference, np.array([np.nan])) == (0.0, 0.0, 0.0, 0.0)
    assert evidence([]) == 0.0


def test_what_counts_as_normal_can_be_raised() -> None:
    rng = np.random.default_rng(5)
    losses = brier(rng, 2000)
    harder = [brier(rng, 500, 0.25) for _ in range(5)]
    expected = float(np.concatenate(harder).mean())
    assert alarms_at(harder, line(losses)) is not None
    assert alarms_at(harder, line(losses, expected=expected)) is None


def reached(losses: list[np.ndarray], reference: Line, level: float) -> int | None:
    """The first look at which the e-process of a life reaches a level."""
    now = Following()
    for look, part in enumerate(losses):
        now = follow(now, reference, part)
        if now.evidence >= level:
            return look
    return None


def test_a_life_at_the_line_is_hardly_ever_called_decaying_however_often_one_looks() -> None:
    """Looked at after each of 150 batches; at most 5 % of lives may ever reach 20."""
    lives, alarms = 150, 0
    mean, sd = 0.09, brier(np.random.default_rng(0), 200_000).std()
    at_the_line = line_of(mean, float(sd), 10**9, 1.0, tolerance=0.0)
    for seed in range(lives):
        rng = np.random.default_rng([9, seed])
        alarms += reached([brier(rng, 50) for _ in range(150)], at_the_line, 20) is not None
    assert alarms <= 0.05 * lives


def test_a_rise_beyond_the_tolerance_is_proven_and_one_within_it_is_not() -> None:
    rng = np.random.default_rng(2)
    reference = line(brier(rng, 3000), tolerance=0.1)
    quiet = [brier(rng, 50) for _ in range(60)]
    assert reached(quiet, reference, 20) is None
    assert reached(quiet + [brier(rng, 50, 0.02) for _ in range(100)], reference, 20) is None
    found = reached(quiet + [brier(rng, 50, 0.3) for _ in range(60)], reference, 20)
    assert found is not None
    assert found <= 60 + 20


def test_the_e_process_begins_at_one_and_ignores_rows_without_a_loss() -> None:
    reference = line_of(0.2, 0.1, 500, 1.0)
    start = Following()
    assert start.evidence == 1.0
    assert follow(start, reference, np.array([np.nan])) == start
    even = follow(start, reference, np.array([reference.mean]))
    assert even.evidence == pytest.approx(1.0)
    assert (even.looks, even.rows) == (1, 1)
    absurd = start
    for _ in range(200):
        absurd = follow(absurd, reference, np.full(1000, 1e9))
    assert math.isfinite(absurd.evidence)
