"""The probe tells a stale model from a harder task, and says so alike however time is cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.spec import Feature, ModelSpec
from retrain.life import Life
from retrain.probe import encode, observe, part, probe
from retrain.worth import Worth, worth

AT = datetime(2020, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
SPEC = ModelSpec(
    name="toy",
    task="binary",
    target="y",
    features=(Feature(name="a", kind="numeric"), Feature(name="b", kind="numeric")),
    metric="brier",
    classes=(0, 1),
)


def truth(inputs: np.ndarray, turned: float) -> np.ndarray:
    """P(y = 1 | inputs); `turned` from 0 (as learned) to 1 (the other input decides)."""
    score = 2.5 * ((1 - turned) * inputs[:, 0] + turned * inputs[:, 1])
    chances: np.ndarray = 1 / (1 + np.exp(-score))
    return chances


def rows(rng: np.random.Generator, n: int, *, turned: float = 0.0, coin: float = 0.0) -> Any:
    """Inputs, the champion's answers (it knows `turned` 0) and labels, a share of them a coin's."""
    inputs = rng.normal(0, 1, (n, 2))
    chance = np.where(rng.random(n) < coin, 0.5, truth(inputs, turned))
    y = (rng.random(n) < chance).astype(float)
    return inputs.astype(np.float32), truth(inputs, 0.0)[:, None], y


def life(seed: int = 0) -> tuple[Life, np.random.Generator]:
    rng = np.random.default_rng(seed)
    inputs, outputs, y = rows(rng, 2000)
    made = probe(SPEC, outputs)
    return Life(made, part(made, inputs, outputs, y).losses), rng


def run(
    parts: int, per_window: int = 1, *, windows: int = 600, seed: int = 0, **kind: float
) -> tuple[Life, float]:
    """A life of whole windows, each cut into `per_window` parts; and the cost of a run."""
    found, rng = life(seed)
    pieces = [rows(rng, windows, **kind) for _ in range(parts)]
    for number, (inputs, outputs, y) in enumerate(pieces):
        for piece in range(per_window):
            mine = slice(piece * windows // per_window, (piece + 1) * windows // per_window)
            at = AT + (number + (piece + 1) / per_window) * WEEK
            taken = part(found.probe, inputs[mine], outputs[mine], y[mine])
            found.see(taken, at=at, windows=1 / per_window)
    return found, 0.2 * found.expected


def judged(found: Life, cost: float) -> Worth:
    return worth(found.series, cost=cost, age=found.windows + 1)


def test_a_stale_model_pays_for_a_run() -> None:
    stale = judged(*run(6, turned=0.4))
    assert stale.why
    assert stale.now is not None
    # A fresh model would know `turned`; the probe recovers most of that.
    rng = np.random.default_rng(9)
    inputs, outputs, y = rows(rng, 20_000, turned=0.4)
    possible = float(((outputs[:, 0] - y) ** 2 - (truth(inputs, 0.4) - y) ** 2).mean())
    assert 0.4 * possible < stale.now < 1.3 * possible


def test_a_harder_task_does_not() -> None:
    found, cost = run(6, coin=0.5)
    assert found.series[-1].loss > 1.3 * found.expected
    harder = judged(found, cost)
    assert harder.now is not None
    # What can be learned is that answers should be less certain; a coin cannot be learned.
    raw = found.series[-1].loss - found.expected
    assert harder.now < 0.5 * raw


def test_nothing_happens_when_nothing_changed() -> None:
    wanted = [judged(*run(8, seed=seed)).why for seed in range(6)]
    assert wanted.count("harm") == 0
    assert wanted.count("stale") <= 1


@pytest.mark.parametrize("turned", [0.0, 0.25, 0.5])
def test_finer_parts_decide_within_one_window_of_each_other(turned: float) -> None:
    def first(per_window: int) -> float | None:
        found, cost = run(10, per_window, turned=turned, seed=3)
        for end in range(1, len(found.series) + 1):
            series = found.series[:end]
            age = sum(seen.windows for seen in series) + 1
            if worth(series, cost=cost, age=age).why:
                return (series[-1].at - AT) / WEEK
        return None

    coarse, fine = first(1), first(4)
    if coarse is None or fine is None:
        assert coarse == fine
    else:
        assert abs(coarse - fine) <= 1.0


def test_an_observation_learns_from_earlier_parts_alone() -> None:
    found, rng = life()
    pieces = [part(found.probe, *rows(rng, 300, turned=0.5)) for _ in range(3)]
    first = found.see(pieces[0], at=AT)
    assert first.gains == {}
    second = found.see(pieces[1], at=AT + WEEK)
    assert second.gains["newest"] == second.gains["long"]  # there is one lesson yet
    lessons = list(found.lessons)
    honest = observe(
        found.probe, lessons, None, pieces[2], at=AT, windows=1, expected=found.expected
    )
    assert all(value > 0 for value in honest.gains.values())
    # The same rows, labelled as the champion says: what was learned would spoil its answers.
    inputs = pieces[2].features
    y = (pieces[2].outputs[:, 0] > 0.5).astype(float)
    easy = part(found.probe, inputs, pieces[2].outputs, y)
    other = observe(found.probe, lessons, None, easy, at=AT, windows=1, expected=found.expected)
    assert all(value < 0 for value in other.gains.values())


def test_a_refusal_doubles_the_price_and_makes_the_loss_normal() -> None:
    found, cost = run(6, turned=0.4)
    before = judged(found, cost)
    found.refused(at=found.series[-1].at, fresh=0.3)
    after = worth(
        found.series, cost=cost, age=9, refusals=found.refusals, refused_at=found.refused_at
    )
    assert after.price == 2 * before.price
    assert (after.paused, after.why, after.windows) == (True, "", 0)
    assert found.expected == pytest.approx(0.3, abs=0.05)


def test_rows_without_a_loss_are_left_out_and_an_empty_part_says_so() -> None:
    made = probe(SPEC, np.array([[0.1], [0.5], [0.9]]))
    taken = part(made, np.zeros((3, 2)), np.array([0.1, np.nan, 0.7]), np.array([0.0, 1, np.nan]))
    assert len(taken) == 1
    empty = part(made, np.zeros((1, 2)), np.array([np.nan]), np.array([1.0]))
    with pytest.raises(ValueError, match="wait for labels"):
        observe(made, [], None, empty, at=AT, windows=1, expected=0.2)


def test_inputs_become_numbers() -> None:
    spec = ModelSpec(
        name="toy",
        task="regression",
        target="y",
        features=(
            Feature(name="n", kind="numeric", nullable=True),
            Feature(name="c", kind="categorical", nullable=True, levels=("blue", "red")),
            Feature(name="many", kind="categorical"),
            Feature(name="flag", kind="boolean"),
            Feature(name="gone", kind="numeric"),
        ),
        metric="mae",
    )
    frame = pd.DataFrame(
        {
            "n": [1.5, None],
            "c": ["red", None],
            "many": ["x", "y"],
            "flag": [True, False],
        }
    )
    found = encode(spec, frame)
    assert found.shape == (2, 5)
    assert found[0, :2].tolist() == [1.5, 1.0]
    assert np.isnan(found[1, :2]).all()
    assert found[0, 2] != found[1, 2]
    assert found[:, 3].tolist() == [1.0, 0.0]
    assert np.isnan(found[:, 4]).all()
    unseen = encode(spec, frame.assign(c="green"))
    assert unseen[0, 1] == -1.0


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_several_classes(metric: Any) -> None:
    spec = ModelSpec(
        name="toy",
        task="multiclass",
        target="y",
        features=(Feature(name="a", kind="numeric"), Feature(name="b", kind="numeric")),
        metric=metric,
        classes=("x", "y", "z"),
    )
    rng = np.random.default_rng(0)

    def piece(shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = rng.normal(0, 1, (500, 2)).astype(np.float32)
        best = np.digitize(inputs[:, 0], [-0.5, 0.5])
        outputs = np.full((500, 3), 0.1)
        outputs[np.arange(500), best] = 0.8
        y = np.where(rng.random(500) < 0.7, (best + shift) % 3, rng.integers(0, 3, 500))
        return inputs, outputs, y.astype(float)

    made = probe(spec, piece(0)[1])
    found = Life(made, part(made, *piece(0)).losses)
    for number in range(3):
        seen = found.see(part(made, *piece(1)), at=AT + number * WEEK)
    assert min(seen.gains.values()) > 0.1  # the classes moved on by one: easily learned
    assert np.isfinite(seen.loss)
