"""A baseline holds what it was built from, is small, and survives JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from core.errors import InputError
from core.spec import ModelSpec, infer_spec
from monitor.baseline import build, dump, load, reference_of, reference_sample, sorted_reference
from monitor.measure.performance import row_loss

RNG = np.random.default_rng(31)
N = 2000
START = datetime(2010, 1, 1, tzinfo=UTC)
TIMES = [START + timedelta(hours=i) for i in range(N)]
INPUTS = pd.DataFrame({
    "age": RNG.normal(40, 10, N),
    "visits": RNG.poisson(3, N),
    "country": RNG.choice(["UK", "DE", "FR"], N),
    "member": RNG.choice([True, False], N),
})  # fmt: skip
P = RNG.uniform(size=N)
Y = (RNG.uniform(size=N) < P).astype(float)
OUTPUTS = pd.DataFrame({"probability": P})
SPEC = infer_spec("shop", INPUTS, target="bought", task="binary", classes=(0, 1))


def built(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "inputs": INPUTS, "outputs": OUTPUTS, "y": Y, "times": TIMES, "created": START,
        "how": "out-of-fold", "trained_until": TIMES[-1],
        "every": timedelta(hours=1), "window": timedelta(days=2),
    } | changes  # fmt: skip
    return build(SPEC, **arguments)


def test_a_baseline_holds_columns_and_expected_performance() -> None:
    baseline = built()
    assert [c.key for c in baseline.columns] == [
        "input:age", "input:visits", "input:country", "input:member", "output:probability",
    ]  # fmt: skip
    assert (baseline.rows, baseline.since, baseline.until) == (N, TIMES[0], TIMES[-1])
    expected = baseline.expected
    loss = row_loss(SPEC, OUTPUTS, Y)
    assert expected.value == pytest.approx(loss.mean())
    assert expected.low < expected.value < expected.high
    assert expected.auc == pytest.approx(roc_auc_score(Y, P))
    assert expected.of("log_loss") == pytest.approx(row_loss(SPEC, OUTPUTS, Y, "log_loss").mean())
    assert expected.of("mae") is None
    # 41 blocks of 49 iid losses: their means wander by sd / 7.
    assert expected.block_sd == pytest.approx(loss.std() / 7, rel=0.4)
    assert baseline.calibration.blocks == 63  # of 32 hours: an hour holds one row


def test_a_baseline_survives_json_and_is_small() -> None:
    baseline = built()
    assert load(dump(baseline)) == baseline
    wide = pd.DataFrame(
        {f"n{i}": RNG.lognormal(size=N) for i in range(30)}
        | {f"c{i}": RNG.choice([f"level {j}" for j in range(50)], N) for i in range(10)}
    )
    spec = infer_spec("wide", wide, target="y", task="regression")
    many = build(spec, wide, None, None, None, created=START, how="reference", trained_until=None)
    assert len(dump(many)) <= 100_000
    assert load(dump(many)) == many
    rows = pd.concat([wide] * 12, ignore_index=True)  # 90 days of hours, 48 strata
    times = [START + timedelta(minutes=5.4) * i for i in range(len(rows))]
    timed = build(
        spec, rows, None, None, times, created=START, how="reference", trained_until=None,
        every=timedelta(hours=1), window=timedelta(days=7),
    )  # fmt: skip
    assert timed.calibration.scheme == "quarter_weekend"
    assert len(dump(timed)) <= 100_000
    assert load(dump(timed)) == timed
    with pytest.raises(InputError, match="baseline"):
        load(b"{}")


def test_rows_without_outputs_or_labels_are_left_out_of_performance_alone() -> None:
    outputs, y = OUTPUTS.copy(), Y.copy()
    outputs.iloc[:500] = np.nan
    y[1500:] = np.nan
    baseline = built(outputs=outputs, y=y)
    assert baseline.expected.n == 1000
    assert baseline.expected.value == pytest.approx(row_loss(SPEC, OUTPUTS, Y)[500:1500].mean())
    assert {c.column: c.n for c in baseline.columns}["probability"] == 1500
    assert {c.column: c.n for c in baseline.columns}["age"] == N


def test_without_outputs_labels_or_times_it_says_what_is_missing() -> None:
    baseline = built(outputs=None, y=None, times=None)
    assert baseline.expected is None
    assert "no expected performance" in baseline.note
    assert baseline.calibration.blocks == 0
    assert baseline.since is None
    empty = built(y=np.full(N, np.nan))
    assert empty.expected is None


def test_times_in_any_order_and_zone_give_the_same_baseline() -> None:
    mixed = [
        t.astimezone(timezone(timedelta(hours=i % 5))) if i % 3 else t.replace(tzinfo=None)
        for i, t in enumerate(TIMES)
    ]
    assert built(times=mixed) == built()
    turned = np.arange(N)[::-1]
    baseline = build(
        SPEC, INPUTS.iloc[turned], OUTPUTS.iloc[turned], Y[turned], TIMES[::-1], created=START,
        how="out-of-fold", trained_until=TIMES[-1],
        every=timedelta(hours=1), window=timedelta(days=2),
    )  # fmt: skip
    assert baseline.calibration.variation == built().calibration.variation
    assert baseline.calibration.strata == built().calibration.strata


def test_columns_that_hold_nothing_are_noted() -> None:
    inputs = INPUTS.assign(age=np.nan)
    baseline = build(
        SPEC, inputs, OUTPUTS, Y, TIMES, created=START, how="holdout", trained_until=None
    )
    assert "age: the baseline has no value in this column" in baseline.note
    assert "input:age" not in {p.key for p in reference_of(baseline).layout.profiles}


@pytest.mark.parametrize(("changes", "field"), [
    ({"inputs": INPUTS.iloc[:0]}, "inputs"),
    ({"inputs": INPUTS.drop(columns="age")}, "inputs"),
    ({"y": Y[:-1]}, "y"),
    ({"times": TIMES[:5]}, "times"),
    ({"outputs": OUTPUTS.iloc[:7]}, "outputs"),
])  # fmt: skip
def test_what_cannot_be_a_baseline_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        built(**changes)
    assert refused.value.field == field


def regression() -> ModelSpec:
    return infer_spec("price", INPUTS, target="price", task="regression")


def test_a_regression_baseline_has_both_metrics() -> None:
    outputs = pd.DataFrame({"prediction": RNG.normal(size=N)})
    baseline = build(
        regression(), INPUTS, outputs, RNG.normal(size=N), TIMES, created=START, how="holdout",
        trained_until=None,
    )  # fmt: skip
    assert baseline.expected is not None
    assert baseline.expected.of("mae") == pytest.approx(2 / np.sqrt(np.pi), rel=0.1)
    assert baseline.expected.of("rmse") == pytest.approx(np.sqrt(2), rel=0.1)
    assert baseline.expected.auc is None


def test_the_reference_sample_is_seeded_aligned_and_parquet(tmp_path: Any) -> None:
    shuffled = INPUTS.set_axis(RNG.permutation(N))
    sample = reference_sample(shuffled, OUTPUTS, Y, TIMES, rows=500)
    assert list(sample.columns) == [
        "in:age", "in:visits", "in:country", "in:member", "out:probability", "y", "time",
    ]  # fmt: skip
    assert len(sample) == 500
    assert sample["time"].is_monotonic_increasing
    rows = ((sample["time"] - pd.Timestamp(START)) // timedelta(hours=1)).to_numpy()
    np.testing.assert_array_equal(sample["y"], Y[rows])
    np.testing.assert_array_equal(sample["in:age"], INPUTS["age"].to_numpy()[rows])
    assert sample.equals(reference_sample(shuffled, OUTPUTS, Y, TIMES, rows=500))
    assert not sample.equals(reference_sample(shuffled, OUTPUTS, Y, TIMES, rows=500, seed=1))
    sample.to_parquet(tmp_path / "reference.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "reference.parquet"), sample)


def test_a_sample_without_anything_but_inputs() -> None:
    sample = reference_sample(INPUTS, None, None, None)
    assert len(sample) == N
    assert sample["y"].isna().all()
    assert sample["time"].isna().all()
    assert str(sample["time"].dtype) == "datetime64[us, UTC]"


def test_the_sorted_reference_holds_the_numeric_columns() -> None:
    baseline = built()
    found = sorted_reference(baseline, reference_sample(INPUTS, OUTPUTS, Y, TIMES))
    assert set(found) == {"input:age", "input:visits", "output:probability"}
    assert all((np.diff(values) >= 0).all() for values in found.values())
    assert sorted_reference(baseline, pd.DataFrame()) == {}
