"""Bad input through a whole check: a result per column that says what is wrong, and no crash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from core.settings import ModelSettings
from core.spec import infer_spec
from monitor.baseline import Baseline, build, reference_sample
from monitor.check import Evidence, ModelFacts, run_check
from monitor.log.records import Rows
from monitor.results import CheckResult, ColumnDrift

START = datetime(2026, 3, 2, tzinfo=UTC)
AT = START + timedelta(days=20)
N = 400


def reference(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "bad": rng.normal(size=n),
            "level": rng.choice(["a", "b", "c"], n),
            "same": np.full(n, 7.0),
        }
    )


@pytest.fixture(scope="module")
def made() -> tuple[Baseline, pd.DataFrame]:
    frame = reference(3000, 1)
    times = [START + i * timedelta(minutes=4) for i in range(3000)]
    spec = infer_spec("m", frame, target="y", task="regression")
    p = pd.DataFrame({"prediction": frame["x"] * 2})
    baseline = build(
        spec, frame, p, None, times, created=START, how="reference", trained_until=START,
        every=timedelta(hours=6), window=timedelta(days=2),
    )  # fmt: skip
    return baseline, reference_sample(frame, p, None, times)


def check(
    made: tuple[Baseline, pd.DataFrame], inputs: pd.DataFrame, times: Any = None
) -> CheckResult:
    n = len(inputs)
    moments = times or [AT - timedelta(minutes=7 * i) for i in range(n)]
    meta = pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "version": ["1"] * n,
            "time": pd.to_datetime(pd.Series(moments, dtype=object), utc=True).astype(
                "datetime64[us, UTC]"
            ),
            "label": pd.Series([None] * n, dtype=object),
            "label_time": pd.Series([], dtype="datetime64[us, UTC]").reindex(range(n)),
        }
    )
    answers = np.random.default_rng(2).normal(0, 2, n)
    rows = Rows(meta=meta, inputs=inputs, outputs=pd.DataFrame({"prediction": answers}))
    none = Rows(meta=meta[:0], inputs=inputs[:0], outputs=rows.outputs[:0])
    evidence = Evidence(
        window_start=AT - timedelta(days=2), window_end=AT, rows=rows, labelled=none,
        newest_prediction=AT if n else None, newest_label=None, label_lag=None,
    )  # fmt: skip
    facts = ModelFacts(version="1", registered=START, promoted=START)
    settings = ModelSettings(check_every="6h", window="2d", no_data_after="400d")
    result = run_check(*made, evidence, [], facts, settings, at=AT)
    text = msgspec.json.encode(result)
    again = msgspec.json.decode(text, type=CheckResult)
    assert again == result, [
        (name, getattr(again, name), getattr(result, name))
        for name in result.__struct_fields__
        if getattr(again, name) != getattr(result, name)
    ]
    return result


def of(result: CheckResult, name: str) -> ColumnDrift:
    return next(c for c in result.drift if c.column == name)


BROKEN: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "all null": (lambda f: f.assign(bad=None), "all 400 values are missing"),
    "infinite": (lambda f: f.assign(bad=np.inf), "400 of 400 values are no numeric values"),
    "text": (lambda f: f.assign(bad="7"), "400 of 400 values are no numeric values"),
    "lists": (lambda f: f.assign(bad=[[1]] * N), "400 of 400 values are no numeric values"),
    "gone": (lambda f: f.drop(columns="bad"), "the window does not have this column"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_column_says_why_and_the_others_are_measured(
    made: tuple[Baseline, pd.DataFrame], name: str
) -> None:
    spoil, why = BROKEN[name]
    result = check(made, spoil(reference(N, 3)))
    assert why in of(result, "bad").why
    assert not of(result, "bad").drifted
    assert all(not c.why and c.statistics for c in result.drift if c.column not in ("bad", "same"))
    assert result.state == "broken_feed"  # which is never a reason to retrain
    assert any(issue.column == "bad" and issue.broken for issue in result.quality)


def test_constant_mixed_and_new_columns(made: tuple[Baseline, pd.DataFrame]) -> None:
    frame = reference(N, 4)
    frame["new"] = 1.0
    frame["bad"] = [v if i % 50 else "x" for i, v in enumerate(frame["bad"])]
    result = check(made, frame)
    assert [c.column for c in result.drift if c.drifted] == ["bad"]  # 2 % without a usable value
    assert of(result, "bad").statistics[-1].name == "missing"
    assert "new" not in {c.column for c in result.drift}
    assert of(result, "bad").n == N - 8
    stuck = check(made, reference(N, 4).assign(bad=5.0))
    [issue] = [i for i in stuck.quality if i.kind == "constant"]
    assert issue.text == "bad is 5.0 in all 400 rows that have a value"


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_rows_are_a_state_of_their_own(
    made: tuple[Baseline, pd.DataFrame], rows: int
) -> None:
    result = check(made, reference(rows, 5))
    assert result.state == "insufficient_data"
    assert not any(c.drifted for c in (*result.drift, *result.joint))


def test_times_out_of_order_and_in_mixed_zones_change_nothing(
    made: tuple[Baseline, pd.DataFrame],
) -> None:
    frame = reference(N, 6)
    frame.loc[: N // 8, "x"] += 3  # the newest rows moved
    times = [AT - timedelta(minutes=7 * i) for i in range(N)]
    plain = check(made, frame, times)
    order = np.random.default_rng(7).permutation(N)
    zones = [UTC, timezone(timedelta(hours=9)), timezone(-timedelta(hours=3, minutes=30))]
    mixed = [times[i].astimezone(zones[i % 3]) for i in order]
    shuffled = check(made, frame.iloc[order].reset_index(drop=True), mixed)
    assert of(plain, "x").drifted
    # The output is drawn by position, not by row: only inputs are the same rows.
    assert [c for c in shuffled.drift if c.role == "input"] == [
        c for c in plain.drift if c.role == "input"
    ]


def test_one_wild_value_neither_hides_a_shift_nor_makes_one(
    made: tuple[Baseline, pd.DataFrame],
) -> None:
    frame = reference(N, 8)
    frame.loc[0, "bad"] = 1e6
    assert not of(check(made, frame), "bad").drifted
    frame["bad"] += 1
    assert of(check(made, frame), "bad").drifted
