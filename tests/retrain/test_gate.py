"""A better candidate passes; one that cannot be measured never does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.settings import GateSettings
from core.spec import Feature, ModelSpec
from retrain.gate import GateResult, compare, paired

BINARY = ModelSpec(
    name="m",
    task="binary",
    target="t",
    features=(Feature(name="x", kind="numeric"),),
    metric="brier",
    classes=(0, 1),
)
REGRESSION = ModelSpec(
    name="m", task="regression", target="t", features=BINARY.features, metric="rmse"
)
THREE = ModelSpec(
    name="m",
    task="multiclass",
    target="t",
    features=BINARY.features,
    metric="log_loss",
    classes=("a", "b", "c"),
)
RULES = GateSettings(min_rows=100)


def answers(p: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"probability": p})


def rows(n: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.95, n)
    return p, (rng.random(n) < p).astype(float)


def named(result: GateResult) -> dict[str, bool]:
    return {check.name: check.passed for check in result.checks}


def test_a_better_candidate_passes_with_its_numbers() -> None:
    p, y = rows()
    result = compare(BINARY, y, answers(np.sqrt(p)), answers(p), settings=RULES, reproduces=True)
    assert result.passed
    assert all(named(result).values())
    old, new = (np.sqrt(p) - y) ** 2, (p - y) ** 2
    assert result.gain == pytest.approx((old - new).mean())
    reference = stats.ttest_rel(old, new).confidence_interval(0.8)
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high))
    assert result.reason.startswith("the candidate is ahead by ")
    assert "on 1,000 rows" in result.reason


def test_a_worse_candidate_does_not() -> None:
    p, y = rows()
    result = compare(BINARY, y, answers(p), answers(np.sqrt(p)), settings=RULES, reproduces=True)
    assert not result.passed
    assert named(result)["better"] is False
    assert "behind at 75% confidence with newer rows weighing more" in result.reason


def test_the_same_model_proves_nothing() -> None:
    p, y = rows()
    result = compare(BINARY, y, answers(p), answers(p), settings=RULES, reproduces=True)
    assert not result.passed
    assert result.reason.startswith("nothing is proven")
    assert result.low is None


@pytest.mark.parametrize(("rule", "low", "high"), [("superior", 15, 58), ("ahead", 70, 131)])
def test_equal_models_pass_at_most_as_often_as_stated(rule: Any, low: int, high: int) -> None:
    passed = 0
    rules = GateSettings(min_rows=100, rule=rule)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        p, y = rows(300, seed)
        left, right = (np.clip(p + rng.normal(0, 0.1, 300), 0, 1) for _ in range(2))
        result = compare(BINARY, y, answers(left), answers(right), settings=rules, reproduces=True)
        passed += result.passed
    # 10 % or 25 % each; 400 draws stay within with probability 0.998.
    assert low < passed < high


def test_too_few_rows() -> None:
    p, y = rows(99)
    result = compare(BINARY, y, answers(1 - p), answers(p), settings=RULES, reproduces=True)
    assert not result.passed
    assert "only 99 rows could be compared, 100 are needed" in result.reason


@pytest.mark.parametrize("reproduces", [False, None])
def test_a_model_that_does_not_survive_saving(reproduces: bool | None) -> None:
    p, y = rows()
    result = compare(BINARY, y, answers(1 - p), answers(p), settings=RULES, reproduces=reproduces)
    assert [name for name, ok in named(result).items() if not ok] == ["reproduces"]
    assert not result.passed


def test_a_champion_that_cannot_be_evaluated_is_named() -> None:
    p, y = rows()
    broken = np.full_like(p, np.nan)
    result = compare(BINARY, y, answers(broken), answers(p), settings=RULES, reproduces=True)
    assert not result.passed
    assert "the champion cannot be evaluated" in result.reason
    assert result.gain is None
    assert result.n == 0


def test_outputs_out_of_range() -> None:
    p, y = rows()
    p[:3] = 1.2
    result = compare(BINARY, y, answers(1 - y), answers(p), settings=RULES, reproduces=True)
    assert named(result)["in_range"] is False
    assert "3 outputs of the candidate lie outside" in result.reason


def test_probabilities_that_do_not_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 500).astype(float)
    good = pd.DataFrame(rng.dirichlet([1, 1, 1], 500), columns=THREE.outputs)
    bad = good * 0.9
    result = compare(THREE, y, good, bad, settings=RULES, reproduces=True)
    assert named(result)["in_range"] is False


def test_lost_calibration_refuses_a_candidate_with_a_better_loss() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(4000) < 0.5).astype(float)
    # The champion is unbiased and noisy, the candidate sharp and clearly too high.
    champion = np.clip(0.5 + rng.choice([-0.45, 0.45], 4000), 0, 1)
    candidate = np.clip(np.where(y == 1, 0.8, 0.6) + rng.normal(0, 0.01, 4000), 0, 1)
    result = compare(
        BINARY, y, answers(champion), answers(candidate), settings=RULES, reproduces=True
    )
    assert named(result)["better"]
    assert [name for name, ok in named(result).items() if not ok] == ["calibrated"]


def test_rmse_is_compared_in_its_own_units() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(0, 1, 800)
    old, new = (pd.DataFrame({"prediction": y + rng.normal(0, s, 800)}) for s in (0.5, 0.3))
    result = compare(REGRESSION, y, old, new, settings=RULES, reproduces=True)
    assert result.passed
    assert result.champion is not None
    assert result.candidate is not None
    assert result.champion == pytest.approx(0.5, abs=0.05)
    assert result.gain == pytest.approx(result.champion - result.candidate)


hostile = st.sampled_from([np.nan, np.inf, -np.inf, 0.5, 0.0, 1.0, 1e300])


@settings(max_examples=150, deadline=None)
@given(
    champion=st.lists(hostile, min_size=120, max_size=120),
    candidate=st.lists(hostile, min_size=120, max_size=120),
    constant=st.booleans(),
)
def test_nan_and_constants_never_pass(
    champion: list[float], candidate: list[float], constant: bool
) -> None:
    _, y = rows(120)
    ours = np.full(120, candidate[0]) if constant else np.array(candidate)
    result = compare(
        BINARY, y, answers(np.array(champion)), answers(ours), settings=RULES, reproduces=True
    )
    if constant or not np.isfinite(ours).all() or (ours > 1).any():
        assert not result.passed
    if not np.isfinite(np.array(champion)).all():
        assert not result.passed
    for number in (result.champion, result.candidate, result.gain, result.low, result.high):
        assert number is None or np.isfinite(number)


def test_paired_ignores_rows_that_one_side_lacks() -> None:
    found = paired(np.array([1.0, 2.0, np.nan, 4.0]), np.array([0.0, 2.5, 1.0, np.inf]), 0.9)
    assert found.n == 2
    assert found.gain == pytest.approx(0.25)


def test_no_rows_at_all() -> None:
    none = answers(np.empty(0))
    result = compare(BINARY, np.empty(0), none, none, settings=RULES, reproduces=True)
    assert not result.passed
    assert result.n == 0
