"""What a replay does with histories whose truth is known."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from streams import stepped, times

import shelflife
from core.errors import InputError
from shelflife.backtest.face import Backtest

#: Fits in milliseconds, so that a test may fit often.
FAST = LogisticRegression()
ROWS = {"target": "y", "time": "at", "train_rows": 1500, "batch_rows": 250, "estimator": FAST}
SUMMARY = {
    "mean_loss", "metric", "fits", "promotions", "rejected", "alarms", "rollbacks", "cost",
    "gain_vs_never", "regret_vs_every", "probe_fits",
}  # fmt: skip
WINDOW = {
    "start", "end", "rows", "labelled", "version", "loss", "metric", "verdict", "alarm",
    "decision", "reason", "fit", "promoted",
}  # fmt: skip


def run(frame: pd.DataFrame, **options: Any) -> Backtest:
    return shelflife.backtest(frame, **(ROWS | options))


@pytest.fixture(scope="module")
def turned() -> Backtest:
    """A step change at row 3000, which is where window 6 begins."""
    return run(stepped(5250, at=3000), policies=["default", "never", "every:5"])


def test_the_default_policy_answers_a_step_change_soon(turned: Backtest) -> None:
    windows = turned.policies["default"].windows
    fitted = [i for i, window in enumerate(windows) if window.fit]
    promoted = [i for i, window in enumerate(windows) if window.promoted]
    assert min(i for i in fitted if i >= 6) <= 8
    assert min(i for i in promoted if i >= 6) <= 12
    assert turned.summary["default"]["mean_loss"] < turned.summary["never"]["mean_loss"]
    assert turned.summary["default"]["gain_vs_never"] > 0.12
    assert any(window.alarm for window in windows[6:9])
    assert not any(window.alarm for window in windows[:6])


def test_a_version_answers_from_the_window_after_its_promotion(turned: Backtest) -> None:
    windows = turned.policies["default"].windows
    for before, after in pairwise(windows):
        assert (before.version != after.version) == (before.promoted or before.rolled_back)


def test_summaries_add_up(turned: Backtest) -> None:
    for name, found in turned.policies.items():
        summary, windows = found.summary, found.windows
        assert summary.fits == sum(window.fit for window in windows)
        assert summary.promotions == sum(window.promoted for window in windows)
        assert summary.rejected == sum(window.rejected for window in windows)
        losses, rows = zip(*((w.loss, w.labelled) for w in windows), strict=True)
        assert summary.mean_loss == pytest.approx(np.average(losses, weights=rows), rel=1e-9)
        never = turned.summary["never"]["mean_loss"]
        assert summary.gain_vs_never == pytest.approx((never - summary.mean_loss) / never)
        every = turned.summary["every:1"]["mean_loss"]
        assert summary.regret_vs_every == pytest.approx((summary.mean_loss - every) / every)
        expected = turned.facts.expected_loss
        assert expected is not None
        fits = summary.fits + summary.probe_fits
        cost = summary.mean_loss * len(windows) + fits * 0.2 * expected
        assert summary.cost == pytest.approx(cost), name


def test_never_and_every(turned: Backtest) -> None:
    never, every = turned.policies["never"], turned.policies["every:5"]
    assert (never.summary.fits, never.summary.promotions) == (0, 0)
    assert never.summary.gain_vs_never == 0
    assert {window.version for window in never.windows} == {"1"}
    runs = [i for i, window in enumerate(every.windows, 1) if window.fit]
    assert runs == [5, 10, 15]
    assert every.summary.promotions + every.summary.rejected == 3
    assert turned.references["every:1"].summary.regret_vs_every == 0


def test_the_json_is_what_the_contract_says(turned: Backtest) -> None:
    found = json.loads(turned.to_json())
    assert list(found["policies"]) == ["default", "never", "every:5"]
    for one in found["policies"].values():
        assert set(one["summary"]) == SUMMARY
        assert len(one["windows"]) == 15
        assert all(set(window) >= WINDOW for window in one["windows"])


def test_the_same_seed_gives_the_same_bytes() -> None:
    frame = stepped(3000, at=2500)
    options: dict[str, Any] = {"estimator": None, "batch_rows": 500, "seed": 3}
    assert run(frame, **options).to_json() == run(frame, **options).to_json()


def test_a_stream_that_stays_the_same_costs_little() -> None:
    found = run(stepped(4500, at=None))
    summary = found.summary["default"]
    assert summary["fits"] <= 8
    assert summary["alarms"] == 0
    assert summary["cost"] <= 1.03 * found.summary["never"]["cost"]


def test_no_label_is_used_before_its_time() -> None:
    """A column tells the label of rows whose label is known late: using it early would be perfect.

    From row 2000 on `b` decides the label and nothing else does, so whoever learns from those
    labels is nearly perfect. They become known 100 days later, after the last window.
    """
    frame = stepped(4250, at=None)
    late = np.arange(4250) >= 2000
    frame.loc[late, "y"] = (frame.loc[late, "b"] < 0).astype(int)
    frame["known"] = frame["at"] + pd.to_timedelta(np.where(late, 100, 0), unit="D")
    found = run(frame, label_time="known", policies=["default", "every:1"])
    first = found.references["never"].windows
    for one in found.policies.values():
        assert [window.loss for window in one.windows] == pytest.approx(
            [window.loss for window in first], rel=0.2
        )
        assert all(window.known == 0 for window in one.windows[2:])
        assert all(window.labelled == window.rows for window in one.windows)
    assert found.summary["every:1"]["mean_loss"] > 0.3
    assert (
        run(frame.drop(columns="known"), policies=["every:1"]).summary["every:1"]["mean_loss"]
        < 0.28
    )


def test_a_label_delay_counts_to_the_microsecond() -> None:
    """Rows are 864 s apart; windows end when the next row is asked."""
    frame = stepped(2250, at=None)
    second = timedelta(seconds=864)

    def known(delay: timedelta) -> list[int]:
        found = run(frame, label_delay=delay, policies=["never"])
        return [window.known for window in found.policies["never"].windows]

    assert known(second)[0] == 250  # the last row's label arrives with the window's end
    assert known(second + timedelta(microseconds=1))[:2] == [249, 250]
    assert known(100 * second)[:2] == [151, 250]
    assert known(251 * second)[:2] == [0, 250]


def test_label_time_and_label_delay_agree() -> None:
    frame = stepped(2500, at=2000)
    delay = timedelta(days=2)
    given = run(frame.assign(known=frame["at"] + delay), label_time="known")
    delayed = run(frame, label_delay=delay)
    assert [w.loss for w in given.policies["default"].windows] == [
        w.loss for w in delayed.policies["default"].windows
    ]


def test_windows_of_time_and_of_rows_agree_where_rows_are_even() -> None:
    frame = stepped(2900, at=2000)
    rows = run(frame)
    spans = run(frame, batch_rows=0, window="60h")
    assert [w.loss for w in rows.policies["default"].windows] == [
        w.loss for w in spans.policies["default"].windows
    ]


def test_regression() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000))
    turn = np.where(np.arange(4000) < 2500, 1, -1)
    frame = pd.DataFrame({"a": a, "b": b, "at": times(4000)})
    frame["y"] = 3 * a + 4 * turn * b + rng.normal(size=4000)
    found = run(frame, estimator=Ridge(), policies=["default"])
    assert found.facts.task == "regression"
    assert found.summary["default"]["metric"] == "mae"
    assert found.summary["default"]["gain_vs_never"] > 0.01
    other = run(frame[:2250], estimator=Ridge(), metric="rmse", policies=["never"])
    first = other.references["never"].windows[0]
    assert first.metric == "rmse"
    assert first.loss == pytest.approx(1.0, abs=0.15)


def test_multiclass_with_categories_and_missing_values() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=4000), "at": times(4000)})
    frame["city"] = rng.choice(["Ulm", "Rom", "Oslo"], 4000)
    frame.loc[rng.random(4000) < 0.2, "city"] = None
    frame.loc[rng.random(4000) < 0.2, "a"] = np.nan
    score = frame["a"].fillna(0) + (frame["city"] == "Rom") * np.where(
        np.arange(4000) < 2500, 2, -2
    )
    noisy = score + rng.normal(0, 0.5, 4000)
    frame["y"] = pd.cut(noisy, [-9, -0.5, 0.7, 9], labels=["low", "mid", "high"]).astype(str)
    frame.loc[3500:, "city"] = frame.loc[3500:, "city"].replace("Oslo", "Lima")  # never seen
    found = run(frame, estimator=None, batch_rows=500)
    assert (found.facts.task, found.facts.metric) == ("multiclass", "log_loss")
    assert found.summary["default"]["mean_loss"] < found.summary["never"]["mean_loss"]
    assert all(window.labelled == window.rows for window in found.policies["default"].windows)


def test_a_class_that_appears_later_is_counted_and_said() -> None:
    frame = stepped(4000, at=None).assign(y=np.resize(["a", "b", "d"], 4000))
    frame.loc[3000:3099, "y"] = "c"
    found = run(frame, policies=["never"], batch_rows=625)
    windows = found.policies["never"].windows
    assert [w.rows - w.labelled for w in windows if w.rows != w.labelled] == [100]
    assert any("100 labels are of a class" in note for note in found.facts.notes)


def test_unlabelled_rows_count_in_no_loss() -> None:
    frame = stepped(2500, at=None)
    frame["y"] = frame["y"].astype(float)
    frame.loc[2000:2249, "y"] = np.nan
    found = run(frame, policies=["never"])
    window = found.policies["never"].windows[2]
    assert (window.rows, window.labelled, window.loss) == (250, 0, None)


def test_an_estimator_that_fails_is_an_error_of_its_own() -> None:
    from core.errors import TrainerFailed

    frame = stepped(3000)
    frame.loc[5, "a"] = np.nan
    with pytest.raises(TrainerFailed, match="NaN"):
        run(frame)
    with pytest.raises(InputError, match="--estimator"):
        run(stepped(3000), estimator="no.such:thing")
    with pytest.raises(InputError, match="--estimator"):
        run(stepped(3000), estimator="json:dumps")
    with pytest.raises(InputError, match="binary task"):
        run(stepped(3000), estimator=Ridge())


def test_wrong_options_are_refused() -> None:
    frame = stepped(3000)
    with pytest.raises(InputError, match="--policy"):
        run(frame, policies=["every_5"])
    with pytest.raises(InputError, match="--metric"):
        run(frame, metric="mae")
    with pytest.raises(InputError, match="--window"):
        run(frame, batch_rows=0, window="a week")
    with pytest.raises(InputError, match="either it or"):
        run(frame, window="7d")
    with pytest.raises(InputError, match="--cost-of-fit"):
        run(frame, cost_of_fit=0.0)


def test_a_broken_feed_pages_and_never_retrains() -> None:
    frame = stepped(3250, at=None)
    frame.loc[2500:3249, "b"] = np.nan
    found = run(frame, estimator=None, policies=["default"])
    broken = found.policies["default"].windows[4:7]
    assert {window.verdict for window in broken} == {"broken_feed"}
    assert [window.alarm for window in broken] == [True, False, False]
    assert not any(window.fit for window in broken)


def test_the_module_and_the_function_share_a_name() -> None:
    import shelflife.backtest.history

    assert callable(shelflife.backtest)
    assert shelflife.backtest.history.Columns
    frame = run(stepped(2250), policies="never").to_frame()
    assert list(frame["policy"].unique()) == ["never", "every:1"]
    assert str(frame["end"].dtype).startswith("datetime64")
