"""Losses against scikit-learn, intervals by simulation, hostile labels counted and left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    root_mean_squared_error,
)

from core.spec import Feature, Metric, ModelSpec, Task
from monitor.measure.performance import (
    aggregate,
    encode_labels,
    mean_interval,
    metric_interval,
    realised,
    row_loss,
)

RNG = np.random.default_rng(3)


def spec(task: Task, metric: Metric, classes: tuple[Any, ...] = ()) -> ModelSpec:
    feature = Feature(name="x", kind="numeric")
    return ModelSpec(
        name="m", task=task, target="y", features=(feature,), metric=metric, classes=classes
    )


BINARY = spec("binary", "brier", (0, 1))
SEVERAL = spec("multiclass", "log_loss", ("a", "b", "c"))
NUMBER = spec("regression", "mae")


@pytest.mark.parametrize("metric", ["brier", "log_loss"])
def test_binary_losses_are_scikit_learns(metric: Metric) -> None:
    p, y = RNG.uniform(size=400), RNG.integers(0, 2, 400)
    losses = row_loss(BINARY, pd.DataFrame({"probability": p}), y, metric)
    theirs = brier_score_loss(y, p) if metric == "brier" else log_loss(y, p)
    assert aggregate(metric, losses) == pytest.approx(theirs, abs=1e-12)


def test_multiclass_losses() -> None:
    p = RNG.dirichlet([1, 2, 3], size=300)
    y = RNG.integers(0, 3, 300)
    outputs = pd.DataFrame(p, columns=SEVERAL.outputs)
    assert aggregate("log_loss", row_loss(SEVERAL, outputs, y)) == pytest.approx(
        log_loss(y, p, labels=[0, 1, 2]), abs=1e-12
    )
    assert aggregate("brier", row_loss(SEVERAL, outputs, y, "brier")) == pytest.approx(
        float(((p - np.eye(3)[y]) ** 2).sum(axis=1).mean()), abs=1e-12
    )


def test_regression_losses_are_scikit_learns() -> None:
    y, p = RNG.normal(size=200), RNG.normal(size=200)
    outputs = pd.DataFrame({"prediction": p})
    mae, mse = row_loss(NUMBER, outputs, y), row_loss(NUMBER, outputs, y, "rmse")
    assert aggregate("mae", mae) == pytest.approx(mean_absolute_error(y, p))
    assert aggregate("rmse", mse) == pytest.approx(root_mean_squared_error(y, p))


def test_a_certain_wrong_answer_costs_much_but_not_infinity() -> None:
    losses = row_loss(BINARY, pd.DataFrame({"probability": [0.0]}), np.array([1.0]), "log_loss")
    assert losses[0] == pytest.approx(-math.log(1e-15))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    covered = 0
    for _ in range(2000):
        low, high = mean_interval(RNG.exponential(size=200))
        covered += low <= 1.0 <= high
    assert 0.925 <= covered / 2000 <= 0.965  # skewed losses cost about a point


def test_rmse_interval_is_the_root_of_the_squares_interval() -> None:
    squares = RNG.exponential(size=100)
    low, high = mean_interval(squares)
    assert metric_interval("rmse", squares) == pytest.approx((math.sqrt(low), math.sqrt(high)))
    low, high = metric_interval("rmse", np.array([0.0, 0.0, 9.0]))
    assert low == 0.0
    assert high > math.sqrt(3)


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_has_no_interval(rows: int) -> None:
    assert all(math.isnan(end) for end in mean_interval(np.ones(rows)))


def test_labels_are_encoded_and_bad_ones_counted() -> None:
    raw = [0, 1, "1", True, 2, "no", None, float("nan"), [1], np.int64(1), np.float64(0), {"a": 1}]
    encoded, bad = encode_labels(BINARY, raw)
    expected = [0, 1, 1, 1, *[math.nan] * 5, 1, 0, math.nan]
    np.testing.assert_array_equal(encoded, np.array(expected))
    assert bad == 5  # 2, "no", NaN, a list and a mapping; None is no label at all


def test_regression_labels() -> None:
    raw = [1, 2.5, "3", True, math.inf, 10**400, None, np.float32(0.5), pd.NA]
    encoded, bad = encode_labels(NUMBER, raw)
    np.testing.assert_array_equal(encoded[[0, 1, 7]], [1, 2.5, 0.5])
    assert np.isnan(encoded[[2, 3, 4, 5, 6, 8]]).all()
    assert bad == 5


def test_equal_values_of_different_types_are_told_apart() -> None:
    encoded, bad = encode_labels(spec("binary", "brier", ("0", "1")), [1, True, "1", 1.0])
    assert encoded[0] == encoded[2] == 1
    assert bad == np.isnan(encoded).sum()


def judged(p: np.ndarray, labels: Sequence[object], **changes: Any) -> Any:
    arguments = {"expected": 0.2, "tolerance": 0.1, "min_rows": 50} | changes
    return realised(BINARY, "brier", pd.DataFrame({"probability": p}), labels, **arguments)


def test_worse_only_when_the_whole_interval_is() -> None:
    p = np.full(400, 0.5)
    result = judged(p, [0, 1] * 200)  # every loss is 0.25
    assert result.value == result.low == result.high == 0.25
    assert result.tolerated == pytest.approx(0.22)
    assert result.worse is True
    assert result.n == 400
    noisy = judged(np.tile([0.1, 0.9], 30), [0, 1] * 24 + [1, 0] * 6)
    assert noisy.low < 0.22 < noisy.high
    assert noisy.worse is False


def test_few_rows_have_a_number_but_no_judgement() -> None:
    result = judged(np.full(49, 0.9), [0] * 49)
    assert result.value == pytest.approx(0.81)
    assert result.worse is None
    assert "49 labelled rows, fewer than the 50" in result.why


@pytest.mark.parametrize("labels", [[], [None] * 60, ["?"] * 60, [math.nan] * 60])
def test_nothing_to_measure_says_so_and_is_never_zero(labels: list[object]) -> None:
    result = judged(np.full(len(labels), 0.5), labels)
    assert result.value is result.low is result.high is result.worse is None
    assert result.n == 0
    assert result.why


def test_unusable_outputs_and_labels_are_left_out_and_named() -> None:
    p = np.array([0.5] * 100 + [np.nan, np.inf])
    result = judged(p, [1] * 98 + ["x", 7, 1, 1])
    assert (result.n, result.bad_labels) == (98, 2)
    assert result.value == 0.25
    assert "2 labels are no value of the target" in result.why
    assert "2 rows have no usable output" in result.why


def test_one_class_only_is_an_ordinary_loss() -> None:
    assert judged(np.full(60, 0.9), [1] * 60).worse is False


def test_no_expected_value_means_no_judgement() -> None:
    result = judged(np.full(60, 0.9), [1] * 60, expected=None)
    assert result.tolerated is result.worse is None
    assert "no expected value" in result.why


def test_absent_and_text_outputs_do_not_crash() -> None:
    for outputs in (pd.DataFrame(index=range(60)), pd.DataFrame({"probability": ["x"] * 60})):
        result = realised(
            BINARY, "brier", outputs, [1] * 60, expected=0.2, tolerance=0.1, min_rows=5
        )
        assert result.value is None
        assert "60 rows have no usable output" in result.why


def test_overflow_is_no_loss() -> None:
    losses = row_loss(NUMBER, pd.DataFrame({"prediction": [1e308, 1.0]}), np.array([-1e308, 0.0]))
    assert math.isnan(losses[0])
    assert losses[1] == 1.0
