"""Estimates without labels: NannyML's on its own example data, what came true, and honest limits.

The rows and NannyML 0.13.1's numbers in `tests/data/nannyml` are made by
`benchmarks/nannyml_golden.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core import schema
from core.ledger import Ledger
from core.spec import Feature, ModelSpec
from monitor import estimates
from monitor.estimates import EstimateRow, tracked
from monitor.measure import cbpe
from monitor.measure.estimate import Estimator, learn
from monitor.measure.metrics import Choices, Value, measure

FOLDER = Path(__file__).parent.parent / "data" / "nannyml"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())
CLASSES = ("prepaid_card", "highstreet_card", "upmarket_card")
INPUTS = ["car_age", "km_driven", "price_new", "accident_count", "door_count", "fuel"]
INPUTS.append("transmission")


def spec_of(task: str, names: list[str], classes: tuple[Any, ...], metric: str) -> ModelSpec:
    text = ("fuel", "transmission")
    features = tuple(
        Feature(name=name, kind="categorical" if name in text else "numeric") for name in names
    )
    return ModelSpec(
        name="m", task=task, target="y", metric=metric, classes=classes, features=features,  # type: ignore[arg-type]
    )  # fmt: skip


Case = tuple[ModelSpec, pd.DataFrame, pd.DataFrame, np.ndarray, np.ndarray, Choices]


def case(task: str, metric: str) -> Case:
    """Spec, inputs, outputs, labels, which rows are the analysis, and the answers' threshold."""
    rows = pd.read_parquet(FOLDER / f"{task}.parquet")
    analysis = (rows["analysis"] == 1).to_numpy()
    none = pd.DataFrame({"a": np.zeros(len(rows))})
    if task == "binary":
        threshold = float(rows["p"][rows["said"] == 1].min())
        spec = spec_of(task, ["a"], (0, 1), metric)
        outputs = pd.DataFrame({"probability": rows["p"]})
        return (
            spec,
            none,
            outputs,
            rows["y"].to_numpy(float),
            analysis,
            Choices(threshold=threshold),
        )
    if task == "multiclass":
        spec = spec_of(task, ["a"], CLASSES, metric)
        outputs = pd.DataFrame({f"probability:{name}": rows[name] for name in CLASSES})
        y = rows["y"].map({name: index for index, name in enumerate(CLASSES)}).to_numpy(float)
        return spec, none, outputs, y, analysis, Choices()
    spec = spec_of(task, INPUTS, (), metric)
    outputs = pd.DataFrame({"prediction": rows["said"]})
    return spec, rows[INPUTS], outputs, rows["y"].to_numpy(float), analysis, Choices()


def estimated(task: str, metric: str) -> list[tuple[dict[str, Value], dict[str, Value]]]:
    """Estimate and realised metrics of each analysis chunk."""
    spec, inputs, outputs, y, analysis, choices = case(task, metric)
    old = ~analysis
    known = learn(spec, inputs[old], outputs[old], y[old], metric, choices=choices)  # type: ignore[arg-type]
    found = []
    for start in range(int(old.sum()), len(y), GOLDEN["chunk"]):
        part = slice(start, start + GOLDEN["chunk"])
        told = measure(spec, outputs[part], y[part], choices=choices)
        found.append((known.whole(inputs[part], outputs[part]), told))
    return found


@pytest.mark.parametrize(
    ("task", "metric", "apart"),
    [("binary", "brier", 0.015), ("multiclass", "log_loss", 0.01), ("regression", "mae", 25.0),
     ("regression", "rmse", 25.0)],
)  # fmt: skip
def test_estimates_are_as_right_as_nannymls_on_its_own_data(
    task: str, metric: str, apart: float
) -> None:
    chunks = estimated(task, metric)
    names = [name for name in GOLDEN[task] if name in chunks[0][0]]
    assert names
    for name in names:
        theirs = np.array(GOLDEN[task][name]["estimate"])
        truth = np.array(GOLDEN[task][name]["realised"])
        mine = np.array([found[name].value for found, _ in chunks])
        told = np.array([realised[name].value for _, realised in chunks])
        assert told == pytest.approx(truth, abs=1e-9), name  # the same rows, the same question
        assert np.abs(mine - theirs).max() < apart, name
        # Never farther off than NannyML by more than a tenth of its sampling error.
        slack = 0.1 * float(np.mean(GOLDEN[task][name]["error"]))
        assert np.abs(mine - told).mean() <= np.abs(theirs - truth).mean() + slack, name


def test_what_comes_true_lies_inside_the_interval() -> None:
    for task, metric in (("binary", "brier"), ("regression", "mae")):
        inside = [
            found[metric].low <= told[metric].value <= found[metric].high
            for found, told in estimated(task, metric)
        ]
        assert np.mean(inside) >= 0.8, task


def miscalibrated(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are twice as sure as they may be, and labels."""
    logit = rng.normal(0, 1, n)
    said = 1 / (1 + np.exp(-2 * logit))
    return said[:, None], (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)


def test_a_model_that_is_too_sure_is_calibrated_first() -> None:
    rng = np.random.default_rng(0)
    spec = spec_of("binary", ["a"], (0, 1), "log_loss")
    known = cbpe.fit(spec, *miscalibrated(rng, 3000))
    inside, errors, naive = [], [], []
    for _ in range(30):
        answers, y = miscalibrated(rng, 500)
        found = cbpe.estimate(known, answers, ["log_loss"], Choices())["log_loss"]
        truth = measure(spec, answers, y, names=["log_loss"])["log_loss"].value
        p = answers[:, 0]
        own = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()  # if it believed itself
        inside.append(found.low <= truth <= found.high)
        errors.append(abs(found.value - truth))
        naive.append(abs(own - truth))
    assert np.mean(inside) >= 0.85
    assert np.mean(errors) < 0.3 * np.mean(naive)


def test_too_little_is_said_and_not_guessed() -> None:
    spec = spec_of("binary", ["a"], (0, 1), "brier")
    frame, outputs = pd.DataFrame({"a": [0.0] * 300}), pd.DataFrame({"probability": [0.5] * 300})
    few = learn(spec, frame[:50], outputs[:50], np.zeros(50), "brier")
    assert "50 rows" in few.why
    one = learn(spec, frame, outputs, np.zeros(300), "brier")
    assert one.why == "the baseline's labels are of one class only"
    assert one.whole(frame, outputs) == {}
    sure = learn(spec, frame, pd.DataFrame({"probability": [0.0, 1.0] * 150}),
                 np.tile([0.0, 1.0], 150), "brier")  # fmt: skip
    never = sure.whole(frame, pd.DataFrame({"probability": [0.0] * 300}))
    assert "one of the classes" in never["precision"].why
    assert "one of the classes" in never["roc_auc"].why
    hostile = pd.DataFrame({"probability": [np.nan] * 300})
    known = learn(spec, frame, outputs, np.tile([0.0, 1.0], 150), "brier")
    assert known.whole(frame, hostile) == {}


def test_windows_are_estimated_by_event_time() -> None:
    rng = np.random.default_rng(1)
    answers, y = miscalibrated(rng, 2000)
    spec = spec_of("binary", ["a"], (0, 1), "brier")
    frame = pd.DataFrame({"a": np.zeros(2000)})
    outputs = pd.DataFrame({"probability": answers[:, 0]})
    known: Estimator = learn(spec, frame, outputs, y, "brier")
    day = 86_400_000_000
    times = np.repeat(np.arange(4), 500) * day + 5
    found = known.windows(
        frame, outputs, times, "1", timedelta(days=1), since=day, least=2
    )  # fmt: skip
    assert [window.start.day for window in found] == [2, 3, 4]  # the first began too early
    assert all(w.n == 500 and w.low < w.value < w.high for w in found)
    whole = known.whole(frame[500:], outputs[500:])["brier"]
    assert np.mean([window.value for window in found]) == pytest.approx(whole.value)


START = datetime(2026, 1, 1, tzinfo=UTC)


def row(day: int, value: float, realised: float | None, half: float = 0.02) -> EstimateRow:
    return EstimateRow(
        start=START + timedelta(days=day), end=START + timedelta(days=day + 1), version="1",
        metric="brier", method="CBPE", value=value, low=value - half, high=value + half, n=100,
        expected=0.2, made=START, realised=realised, first=realised,
        realised_n=None if realised is None else 90,
    )  # fmt: skip


def test_how_right_estimates_were_counts_only_windows_with_labels() -> None:
    found = tracked([row(0, 0.2, 0.21), row(1, 0.25, 0.26), row(2, 0.3, 0.35), row(3, 0.3, None)])
    assert (found.windows, found.n) == (3, 270)
    assert found.bias == pytest.approx((-0.01 - 0.01 - 0.05) / 3)
    assert found.error == pytest.approx(0.07 / 3)
    assert found.constant == pytest.approx((0.01 + 0.06 + 0.15) / 3)
    assert found.inside == pytest.approx(2 / 3)
    assert "off by 0.0233 on average over 3 windows" in found.text
    few = tracked([row(0, 0.2, 0.21)])
    assert few.error is None
    assert "1 of the 3 windows" in few.why


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    yield ledger
    ledger.close()


def test_late_labels_settle_an_estimate_and_correct_it(ledger: Ledger) -> None:
    kept, scores = schema.window_estimates, schema.window_scores
    one = row(0, 0.2, None)
    values = {name: getattr(one, name) for name in EstimateRow.__struct_fields__}
    score = {
        "model": "m", "start": one.start, "version": "1", "end": one.end, "metric": "brier",
        "value": 0.3, "low": 0.2, "high": 0.4, "n": 50, "rows": 100, "labelled": 50,
        "bad_labels": 0, "label_lag": None, "scored": START,
    }  # fmt: skip
    with ledger.write() as tx:
        tx.execute(kept.insert().values(model="m", **values))
        tx.execute(scores.insert().values(score))
        estimates.settle(tx, "m", at=START)
    assert estimates.listed(ledger, "m")[0].realised is None  # half of the labels are missing
    for value, n in ((0.22, 90), (0.24, 100)):
        with ledger.write() as tx:
            tx.execute(scores.update().values(value=value, n=n, labelled=n))
            estimates.settle(tx, "m", at=START + n * timedelta(days=1))
        (found,) = estimates.listed(ledger, "m")
        assert (found.realised, found.realised_n) == (value, n)
        assert (found.first, found.settled) == (0.22, START + 90 * timedelta(days=1))
    assert estimates.listed(ledger, "m", since=one.end) == []
    assert estimates.track(ledger, "m", "brier", at=START + timedelta(days=91)).windows == 1
    assert estimates.track(ledger, "m", "brier", at=START + timedelta(days=90)).windows == 0
