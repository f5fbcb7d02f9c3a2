"""Clones, windows' fits, and blends that the next run takes apart again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core.errors import TrainerFailed
from core.spec import Feature, ModelSpec
from registry.loading import load_estimator, predict, save_estimator
from retrain.competition import compete, settle
from retrain.fitting import blend, fit_window, fresh
from retrain.windows import Window

T0 = datetime(2024, 1, 1, tzinfo=UTC)
X = (Feature(name="x", kind="numeric"),)
SPEC = ModelSpec(name="m", task="regression", target="y", features=X, metric="mae")
CLASSES = ModelSpec(
    name="m", task="binary", target="y", features=X, metric="brier", classes=("no", "yes")
)
FRAME = pd.DataFrame({"x": np.arange(100.0)})
RECENT = Window(name="recent", rows=20, since=T0)
ALL = Window(name="all", rows=100, since=T0)
DECAY = Window(name="decay", rows=100, since=T0, half_life=10)
BLEND = Window(name="blend", rows=100, since=T0, parts=("recent", "all"))


def test_a_window_learns_from_its_newest_rows() -> None:
    y = np.arange(100.0)
    mean = make_pipeline(StandardScaler(), DummyRegressor())
    assert fit_window(RECENT, mean, FRAME, y).predict(FRAME)[0] == pytest.approx(89.5)
    assert fit_window(None, mean, FRAME, y).predict(FRAME)[0] == pytest.approx(49.5)
    weights = 0.5 ** (np.arange(99, -1, -1) / 10)
    found = fit_window(DECAY, mean, FRAME, y).predict(FRAME)[0]
    assert found == pytest.approx((weights * y).sum() / weights.sum())
    with pytest.raises(TrainerFailed, match="KNeighborsRegressor takes no sample_weight"):
        fit_window(DECAY, KNeighborsRegressor(), FRAME, y)


def test_a_blend_answers_with_the_average_and_survives_saving(tmp_path: Path) -> None:
    y = np.arange(100.0)
    parts = [(w.name, fit_window(w, DummyRegressor(), FRAME, y)) for w in (RECENT, ALL)]
    both = blend(SPEC, parts)
    assert both.predict(FRAME)[0] == pytest.approx((89.5 + 49.5) / 2)
    again = load_estimator(save_estimator(both, tmp_path / "model.skops"))
    assert again.predict(FRAME)[0] == pytest.approx(69.5)
    # The next run refits one pipeline, not the two.
    assert isinstance(fresh(again, None), DummyRegressor)


def test_a_blend_of_classifiers_with_the_targets_own_spelling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(100) < FRAME["x"] / 100, "yes", "no")
    one, two = (
        HistGradientBoostingClassifier(max_iter=n, min_samples_leaf=5).fit(FRAME, labels)
        for n in (2, 9)
    )
    both = blend(CLASSES, [("recent", one), ("all", two)])
    found = predict(both, CLASSES, FRAME)
    expected = (predict(one, CLASSES, FRAME) + predict(two, CLASSES, FRAME)) / 2
    np.testing.assert_allclose(found, expected)
    again = load_estimator(save_estimator(both, tmp_path / "model.skops"))
    assert predict(again, CLASSES, FRAME).equals(found)
    assert set(again.predict(FRAME)) == {"no", "yes"}
    third = HistGradientBoostingClassifier(max_iter=1).fit(FRAME, np.where(FRAME["x"] < 9, 0, 1))
    with pytest.raises(TrainerFailed, match="know different classes"):
        blend(CLASSES, [("recent", one), ("all", third)])


def test_the_window_that_follows_the_newest_rows_wins() -> None:
    y = np.concatenate([np.zeros(60), np.full(60, 8.0)])
    frame = pd.DataFrame({"x": np.zeros(120)})

    def fit(window: Window | None, inputs: pd.DataFrame, labels: np.ndarray) -> object:
        return fit_window(window, DummyRegressor(), inputs, labels)

    found = compete(
        SPEC,
        (RECENT, ALL, BLEND),
        frame,
        y,
        y,
        fit,
        judged_rows=30,
        past=(),
        indifferent=0.0,
        metric=None,
    )
    assert found is not None
    # 90 rows before, 30 of them of the new level: all answers 8/3, recent 8, blend 16/3.
    assert {s.name: round(s.loss, 6) for s in found.scores} == {
        "recent": 0,
        "blend": round(8 - 16 / 3, 6),
        "all": round(8 - 8 / 3, 6),
    }
    assert (found.window, found.fits, found.judged_rows) == (RECENT, 2, 30)
    few = compete(
        SPEC,
        (RECENT, ALL),
        frame[:80],
        y,
        y,
        fit,
        judged_rows=30,
        past=(),
        indifferent=0.0,
        metric=None,
    )
    assert few is None  # a fourth of 80 rows decides nothing
    assert (
        compete(
            SPEC, (ALL,), frame, y, y, fit, judged_rows=30, past=(), indifferent=0.0, metric=None
        )
        is None
    )


def test_a_window_that_cannot_be_fitted_is_out(capsys: pytest.CaptureFixture[str]) -> None:
    y = np.arange(160.0)
    frame = pd.DataFrame({"x": y})

    def fit(window: Window | None, inputs: pd.DataFrame, labels: np.ndarray) -> object:
        if window == RECENT:
            raise ValueError("too few for me")
        return fit_window(window, LinearRegression(), inputs, labels)

    found = compete(
        SPEC,
        (RECENT, ALL, BLEND),
        frame,
        y,
        y,
        fit,
        judged_rows=40,
        past=(),
        indifferent=0.0,
        metric=None,
    )
    assert found is not None
    assert [score.name for score in found.scores] == ["all"]
    assert "window recent does not compete: too few for me" in capsys.readouterr().out


def test_a_blend_that_won_costs_two_fits() -> None:
    from retrain.windows import Choice

    def fit(window: Window | None) -> object:
        return fit_window(window, DummyRegressor(), FRAME, np.arange(100.0))

    choice = Choice(window=BLEND, reason="")
    model, fits = settle(choice, (RECENT, ALL, BLEND), fit, SPEC)
    assert fits == 2
    assert model.predict(FRAME)[0] == pytest.approx(69.5)
    assert settle(None, (RECENT,), fit, SPEC)[0].predict(FRAME)[0] == pytest.approx(89.5)
    assert settle(None, (RECENT, ALL), fit, SPEC)[0].predict(FRAME)[0] == pytest.approx(49.5)
