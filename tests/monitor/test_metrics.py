"""Every metric against scikit-learn, its interval against repetition, what cannot be computed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from core.spec import Feature, ModelSpec
from monitor.figures import Figure
from monitor.measure.metrics import NAMES, OF, Choices, Value, figure, measure, tolerated


def spec_of(task: str, classes: tuple[object, ...] = ()) -> ModelSpec:
    metric = {"binary": "brier", "multiclass": "log_loss", "regression": "mae"}[task]
    return ModelSpec(
        name="m", task=task, target="y", metric=metric, classes=classes,  # type: ignore[arg-type]
        features=(Feature(name="a", kind="numeric"),),
    )  # fmt: skip


BINARY = spec_of("binary", ("no", "yes"))
THREE = spec_of("multiclass", ("a", "b", "c"))
NUMBER = spec_of("regression")


def binary(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    p = rng.beta(1, 2, n).round(2).clip(0.01, 0.99)  # with ties
    return p, (rng.random(n) < p).astype(float)


def three(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    p = rng.dirichlet([1.0, 2.0, 0.7], n)
    return p, np.array([rng.choice(3, p=row) for row in p], dtype=float)


def number(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    y = rng.normal(3, 2, n)
    return (y + rng.normal(0.2, 1, n))[:, None], y


@pytest.mark.parametrize("n", [30, 700])
def test_binary_values_are_scikit_learns(n: int) -> None:
    p, y = binary(np.random.default_rng(n), n)
    found = measure(BINARY, pd.DataFrame({"probability": p}), y, choices=Choices(threshold=0.4))
    said = p >= 0.4
    share, mean = calibration_curve(y, p, n_bins=10, strategy="uniform")
    count = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p), minlength=10)
    expected = {
        "brier": sk.brier_score_loss(y, p),
        "log_loss": sk.log_loss(y, p),
        "roc_auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        "accuracy": sk.accuracy_score(y, said),
        "f1": sk.f1_score(y, said),
        "precision": sk.precision_score(y, said),
        "recall": sk.recall_score(y, said),
        "calibration_error": np.average(np.abs(share - mean), weights=count[count > 0]),
    }
    assert set(expected) == set(OF["binary"]) == set(found)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name
        assert found[name].low <= value <= found[name].high, name


def test_multiclass_values_are_scikit_learns() -> None:
    p, y = three(np.random.default_rng(1), 600)
    found = measure(THREE, p, y)
    said, truth = p.argmax(axis=1), y.astype(int)
    every = {"average": "macro"}
    top = measure(BINARY, p.max(axis=1)[:, None], (said == truth).astype(float))
    expected = {
        "log_loss": sk.log_loss(truth, p),
        "brier": ((p - np.eye(3)[truth]) ** 2).sum(axis=1).mean(),
        "roc_auc": sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
        "average_precision": sk.average_precision_score(np.eye(3)[truth], p, average="macro"),
        "accuracy": sk.accuracy_score(truth, said),
        "f1": sk.f1_score(truth, said, **every),
        "precision": sk.precision_score(truth, said, **every),
        "recall": sk.recall_score(truth, said, **every),
        "calibration_error": top["calibration_error"].value,
    }
    assert set(expected) == set(OF["multiclass"])
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name


def test_regression_values_are_scikit_learns() -> None:
    answers, y = number(np.random.default_rng(2), 500)
    found = measure(NUMBER, answers, y, choices=Choices(quantile=0.9))
    said = answers[:, 0]
    expected = {
        "mae": sk.mean_absolute_error(y, said),
        "rmse": sk.root_mean_squared_error(y, said),
        "mape": sk.mean_absolute_percentage_error(y, said),
        "r2": sk.r2_score(y, said),
        "pinball": sk.mean_pinball_loss(y, said, alpha=0.9),
    }
    assert set(expected) == set(OF["regression"])
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name
    assert set(NAMES) == {name for names in OF.values() for name in names}


@pytest.mark.parametrize(
    ("spec", "draw"), [(BINARY, binary), (THREE, three), (NUMBER, number)]
)  # fmt: skip
def test_intervals_hold_the_truth_about_as_often_as_they_say(spec: ModelSpec, draw: object) -> None:
    rng = np.random.default_rng(3)
    truth = {k: v.value for k, v in measure(spec, *_as(draw(rng, 60_000))).items()}  # type: ignore[operator]
    truth["calibration_error"] = 0.0  # what the draws are made of
    runs, inside = 120, dict.fromkeys(truth, 0)
    for _ in range(runs):
        for name, value in measure(spec, *_as(draw(rng, 400))).items():  # type: ignore[operator]
            inside[name] += value.low <= truth[name] <= value.high
    # 95 % of 120: 114 with a standard deviation of 2.4. Heavy tails (MAPE) hold less often.
    inside.pop("mape", None)
    inside.pop("calibration_error", None)  # wide by construction, checked on its own
    assert min(inside.values()) >= 105, inside


def _as(drawn: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    answers, y = drawn
    return (answers[:, None] if answers.ndim == 1 else answers), y


def test_a_metric_that_cannot_be_computed_says_why_and_is_not_zero() -> None:
    p = np.linspace(0.1, 0.4, 40)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(BINARY, p, np.zeros(40))
        none = measure(BINARY, p, np.full(40, np.nan))
        alike = measure(NUMBER, p, np.zeros(40))
        gone = measure(THREE, np.tile([0.2, 0.5, 0.3], (40, 1)), np.tile([0.0, 1.0], 20))
    assert found["roc_auc"].why == "one class only: every label is 'no'"
    assert found["precision"].why == "no row is answered with 'yes'"
    assert found["recall"].why == "no row is labelled 'yes'"
    assert found["brier"].value > 0
    assert {value.why for value in none.values()} == {"no row has both a label and an answer"}
    assert "no variance" in alike["r2"].why
    assert "every label is 0" in alike["mape"].why
    assert gone["roc_auc"].why == "no label is 'c'"
    assert gone["precision"].why == "no row is answered with 'a'"
    for value in (found["roc_auc"], found["recall"], *none.values(), alike["r2"], gone["roc_auc"]):
        assert math.isnan(value.value)
        assert figure("x", value, tolerance=0.1, min_rows=1).value is None


def test_rows_without_a_usable_answer_or_label_are_left_out() -> None:
    p, y = binary(np.random.default_rng(4), 200)
    hostile = np.concatenate([p, [np.nan, np.inf, 0.5, 0.5]])[:, None]
    labels = np.concatenate([y, [1.0, 0.0, np.nan, 7.0]])
    assert measure(BINARY, hostile, labels) == measure(BINARY, p[:, None], y)


def test_zero_labels_have_no_percentage_error() -> None:
    found = measure(NUMBER, np.array([[1.0], [2.0], [4.0]]), np.array([0.0, 1.0, 2.0]))["mape"]
    assert (found.value, found.n) == (1.0, 2)
    assert found.why == "1 rows whose label is 0 were left out"


def test_which_way_is_worse_depends_on_the_metric() -> None:
    def judged(name: str, value: float, low: float, high: float, n: int = 100) -> Figure:
        expected = Value(0.8, n=500)
        return figure(
            name, Value(value, low, high, n), expected=expected, tolerance=0.1, min_rows=50
        )

    assert judged("roc_auc", 0.6, 0.55, 0.65).worse is True
    assert judged("roc_auc", 0.9, 0.85, 0.95).worse is False
    assert judged("log_loss", 0.6, 0.55, 0.65).worse is False
    assert judged("log_loss", 1.0, 0.95, 1.05).worse is True
    few = judged("log_loss", 1.0, 0.95, 1.05, n=20)
    assert few.worse is None
    assert few.value == 1.0
    assert "20 rows, fewer than the 50" in few.why
    assert tolerated("r2", 0.9, 0.1) == pytest.approx(0.89)
    assert tolerated("r2", -0.5, 0.1) < -0.5
