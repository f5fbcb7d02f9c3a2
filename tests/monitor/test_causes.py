"""What carries the loss: what was planted is named, and nobody without a rise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from core.spec import Feature, ModelSpec
from monitor.measure.causes import Sample, explain, sample
from monitor.measure.cells import numbers, psi
from monitor.measure.repairs import reweighted
from monitor.results import Causes

FEATURES = (
    *(Feature(name=name, kind="numeric", nullable=True) for name in ("a", "b", "c", "d", "idle")),
    Feature(name="region", kind="categorical", nullable=True),
)
NUMBER = ModelSpec(name="m", task="regression", target="y", features=FEATURES, metric="mae")
BINARY = ModelSpec(
    name="m", task="binary", target="y", features=FEATURES, metric="brier", classes=(0, 1)
)
EFFECT = {"north": -1.5, "south": 0.0, "west": 1.5}
Window = tuple[pd.DataFrame, np.ndarray]


def signal(x: pd.DataFrame) -> np.ndarray:
    """What the model knows; missing values count as zero, unseen regions too."""
    a, b, c = (x[name].fillna(0.0).to_numpy(float) for name in ("a", "b", "c"))
    region = x["region"].map(EFFECT).fillna(0.0).to_numpy(float)
    total: np.ndarray = 2 * a + 1.5 * np.tanh(b) + np.where(c > 0, 1.0, -1.0) + region
    return total


def predict_number(x: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"prediction": signal(x)})


def predict_binary(x: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"probability": expit(signal(x))})


def inputs(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = pd.DataFrame(rng.normal(size=(n, 5)), columns=["a", "b", "c", "d", "idle"])
    x["d"] = 0.8 * x["b"] + 0.6 * x["d"]  # goes with b
    x["region"] = rng.choice(list(EFFECT), n)
    return x


def rows(n: int, seed: int, binary: bool = False) -> Window:
    x = inputs(n, seed)
    rng = np.random.default_rng(seed + 1000)
    if binary:
        return x, (rng.random(n) < predict_binary(x)["probability"].to_numpy()).astype(float)
    return x, signal(x) + np.exp(0.6 * x["b"].to_numpy()) * rng.normal(size=n)


def told(x: pd.DataFrame, y: np.ndarray, binary: bool = False) -> Sample:
    spec, predict = (BINARY, predict_binary) if binary else (NUMBER, predict_number)
    return sample(spec, x, predict(x), y)


def ask(window: Window, *, binary: bool = False, model: bool = True, seed: int = 0) -> Causes:
    spec, predict = (BINARY, predict_binary) if binary else (NUMBER, predict_number)
    reference = told(*rows(4000, 1, binary), binary)
    return explain(spec, reference, told(*window, binary), predict if model else None, seed=seed)


def shifted() -> Window:
    x, y = rows(12_000, 2)
    odds = np.exp(1.2 * x["b"].to_numpy())
    picked = np.random.default_rng(3).choice(len(x), 3000, replace=False, p=odds / odds.sum())
    return x.iloc[picked].reset_index(drop=True), y[picked]


def spoilt(change: Callable[[pd.DataFrame], None], binary: bool = False) -> Window:
    x, y = rows(4000, 2, binary)
    change(x)
    x["idle"] += 1.0  # a decoy in every one
    return x, y


def unit(x: pd.DataFrame) -> None:
    x["a"] *= 100.0


def offset(x: pd.DataFrame) -> None:
    x["a"] += 1.0


def half_missing(x: pd.DataFrame) -> None:
    x.loc[::2, "a"] = np.nan


def all_missing(x: pd.DataFrame) -> None:
    x["a"] = np.nan


def constant(x: pd.DataFrame) -> None:
    x["a"] = 3.0


def renamed(x: pd.DataFrame) -> None:
    x["region"] = x["region"].str.upper()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("change", "column"),
    [
        (unit, "a"),
        (offset, "a"),
        (half_missing, "a"),
        (all_missing, "a"),
        (constant, "a"),
        (renamed, "region"),
    ],
)
def test_a_broken_column_is_named(
    change: Callable[[pd.DataFrame], None], column: str, binary: bool
) -> None:
    found = ask(spoilt(change, binary), binary=binary)
    first = found.causes[0]
    assert (first.kind, first.columns) == ("broken", (column,))
    assert first.low > 0
    assert first.low < first.gain < first.high
    assert 0.5 < first.share < 1.3
    assert "idle" not in {name for cause in found.causes for name in cause.columns}


def test_a_population_that_moved_is_named_and_not_what_went_along() -> None:
    first = ask(shifted()).causes[0]
    assert (first.kind, first.columns) == ("shift", ("b",))
    assert "b moved: median" in first.text


def test_a_segment_is_named_without_passengers() -> None:
    x, y = rows(5000, 2)
    where = ((x["a"] > 0.3) & (x["region"] == "west")).to_numpy()
    y[where] += 6
    first = ask((x, y)).causes[0]
    assert (first.kind, first.columns) == ("segment", ("a", "region"))
    assert "a >" in first.text
    assert "west" in first.text


def test_the_label_mix_is_named() -> None:
    x, y = rows(30_000, 2, binary=True)
    # The model leans towards no, so that more yes costs it.
    spec = BINARY

    def predict(part: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"probability": expit(signal(part) - 1.5)})

    odds = np.where(y == 1, 6.0, 1.0)
    picked = np.random.default_rng(3).choice(len(x), 4000, replace=False, p=odds / odds.sum())
    window = x.iloc[picked].reset_index(drop=True), y[picked]
    x0, y0 = rows(4000, 1, binary=True)
    found = explain(
        spec,
        sample(spec, x0, predict(x0), y0),
        sample(spec, window[0], predict(window[0]), window[1]),
        predict,
    )
    assert found.causes[0].kind == "prior"
    assert found.causes[0].columns == ("y",)


def test_two_causes_are_both_named() -> None:
    x, y = spoilt(constant)
    where = (x["b"] > 0.5).to_numpy()
    y[where] -= 6  # further from what the model now says
    named = {(cause.kind, cause.columns) for cause in ask((x, y)).causes}
    assert named == {("broken", ("a",)), ("segment", ("b",))}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_accused_unless_the_loss_rose(seed: int, binary: bool) -> None:
    x, y = rows(3000, 50 + seed, binary)
    x["idle"] += 3.0  # drifts far, and harms nobody
    found = ask((x, y), binary=binary)
    assert found.causes == ()
    assert found.why
    assert found.rise is not None


def test_the_same_rows_and_seed_give_the_same_answer_and_stay_as_they_are() -> None:
    x, y = spoilt(half_missing)
    before = x.copy(), y.copy()
    assert ask((x, y), seed=4) == ask((x, y), seed=4)
    pd.testing.assert_frame_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_without_a_model_what_needs_none_is_still_found() -> None:
    found = ask(shifted(), model=False)
    assert found.causes[0].columns == ("b",)
    assert "no model to ask" in found.notes[0]


def test_a_model_that_fails_is_asked_once() -> None:
    calls = []

    def fails(x: pd.DataFrame) -> pd.DataFrame:
        calls.append(len(x))
        raise ValueError("no such column")

    reference, window = told(*rows(4000, 1)), told(*shifted())
    found = explain(NUMBER, reference, window, fails)
    assert len(calls) == 1
    assert "no such column" in found.notes[0]
    assert found.causes[0].columns == ("b",)


def test_few_rows_are_said() -> None:
    x, y = rows(50, 2)
    found = ask((x, y + 100))
    assert found.causes == ()
    assert found.why == "50 rows of the window have a loss, fewer than the 100 this needs"
    assert found.rise is None


def test_a_rise_everywhere_has_no_culprit() -> None:
    x, y = rows(4000, 2)
    found = ask((x, y + 5 * np.sign(y - signal(x))))
    assert found.causes == ()
    assert "everywhere alike" in found.why


def hostile(name: str) -> Window:
    x, y = rows(1500, 2)
    y = y + 4
    if name == "all null":
        x[["a", "b", "c", "d", "idle"]] = np.nan
        x["region"] = None
    elif name == "constant":
        x[["a", "b", "c", "d", "idle"]] = 1.0
    elif name == "unseen":
        x["region"] = [f"r{i}" for i in range(len(x))]
    elif name == "labels missing":
        y[::3] = np.nan
    elif name == "infinite":
        x.loc[::5, "a"] = np.inf
        x.loc[::7, "b"] = -1e300
    elif name == "texts":
        x["a"] = "ten"
    elif name == "column gone":
        x = x.drop(columns="d")
    return x, y


@pytest.mark.parametrize(
    "name",
    ["all null", "constant", "unseen", "labels missing", "infinite", "texts", "column gone"],
)
def test_hostile_rows_are_answered(name: str) -> None:
    x, y = hostile(name)
    reference = told(*rows(1500, 1))
    outputs = predict_number(rows(1500, 2)[0])
    found = explain(NUMBER, reference, sample(NUMBER, x, outputs, y), predict_number)
    assert found.causes or found.why
    assert all(np.isfinite([c.gain, c.low, c.high, c.share]).all() for c in found.causes)


def test_one_class_only_is_answered() -> None:
    x, y = rows(1500, 2, binary=True)
    found = ask((x, np.ones_like(y)), binary=True)
    assert found.causes or found.why
    quiet = ask((x, np.full_like(y, np.nan)), binary=True)
    assert quiet.causes == ()
    assert quiet.n == 0


def test_many_columns_are_answered_and_what_was_left_out_is_said() -> None:
    rng = np.random.default_rng(0)
    wide = tuple(Feature(name=f"w{i}", kind="numeric") for i in range(300))
    spec = ModelSpec(name="m", task="regression", target="y", features=wide, metric="mae")
    base = pd.DataFrame(rng.normal(size=(1000, 300)), columns=spec.columns)
    now = pd.DataFrame(rng.normal(1.0, 1.0, (1000, 300)), columns=spec.columns)

    def predict(x: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"prediction": 3 * x["w0"].to_numpy()})

    y, y_now = 3 * base["w0"] + rng.normal(size=1000), 3 * (now["w0"] - 1) + rng.normal(size=1000)
    found = explain(
        spec,
        sample(spec, base, predict(base), y.to_numpy()),
        sample(spec, now, predict(now), y_now.to_numpy()),
        predict,
    )
    assert any("40 farthest" in note for note in found.notes)
    assert found.causes or found.why


def test_cells_keep_what_the_baseline_never_saw_apart() -> None:
    column = numbers("a", np.arange(100.0), np.array([-5.0, 0.0, 99.0, 200.0, np.nan]))
    assert column.now_cells[0] == 0
    assert column.now_cells[3] == column.size - 2
    assert column.now_cells[4] == column.missing
    assert column.base_shares()[[0, -2, -1]].tolist() == [0.0, 0.0, 0.0]
    assert psi(column.base_shares(), column.base_shares()) == 0.0


def test_weights_give_cells_their_baseline_shares() -> None:
    base, now = np.array([0] * 50 + [1] * 50), np.array([0] * 20 + [1] * 80)
    loss = np.where(now == 1, 2.0, 1.0)
    found = reweighted(base, now, 2, loss, np.ones(100))
    assert found is not None
    gain, influence, weights = found
    assert gain == pytest.approx(1.8 - 1.5)
    assert influence.mean() == pytest.approx(0.0, abs=1e-12)
    assert weights[:20].sum() == pytest.approx(weights[20:].sum())
