"""Which rows teach, which rows judge, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from core.settings import GateSettings, RetrainSettings
from core.spec import ModelSpec
from monitor.log.log import InferenceLog
from monitor.log.records import Label, Prediction
from retrain.dataset import Exclusions, TooLittle, assemble

START = datetime(2020, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=30)
END = START + timedelta(days=60)
HISTORY_UNTIL = START + 599 * STEP
Open = Callable[..., InferenceLog]


def settings(**changes: int) -> RetrainSettings:
    rows = changes.pop("rows", 0)
    return RetrainSettings(rows=rows, gate=GateSettings(min_rows=100, **changes))


def row(number: int, at: datetime, **inputs: object) -> Prediction:
    values = {"x": 0.0, "k": 1, "c": "red"} | inputs
    return Prediction(
        model="toy",
        id=f"extra{number}",
        version="1",
        time=at,
        inputs=values,  # type: ignore[arg-type]
        outputs={"probability": 0.5},
    )


def test_the_holdout_is_newest_and_newer_than_every_training_row(
    open_log: Open, spec: ModelSpec
) -> None:
    data = assemble(open_log(), spec, settings(), known_at=END)
    assert (len(data.train), len(data.holdout)) == (1275, 225)  # 15 % of 1,500
    assert max(data.train.times) < min(data.holdout.times)
    assert list(data.train.times) == sorted(data.train.times)
    assert list(data.train.inputs.columns) == ["x", "k", "c"]
    assert set(data.train.y) == {0.0, 1.0}
    assert data.account.trained_until == data.train.times[-1] == START + 1274 * STEP
    assert data.account.left_out == {}


def test_only_labels_known_at_the_moment_exist(open_log: Open, spec: ModelSpec) -> None:
    moment = START + 1000 * STEP
    data = assemble(open_log(), spec, settings(), known_at=moment)
    assert len(data.train) + len(data.holdout) == 1000 - 48 + 1  # labels are 48 rows late
    assert data.account.holdout_until == moment - timedelta(days=1)


def test_no_row_the_champion_learned_from_judges_it(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    moment = HISTORY_UNTIL + timedelta(days=1) + 150 * STEP
    data = assemble(log, spec, settings(), known_at=moment, after=HISTORY_UNTIL)
    assert data.account.new_rows == 150
    assert (len(data.train), len(data.holdout)) == (650, 100)
    assert min(data.holdout.times) > HISTORY_UNTIL
    early = HISTORY_UNTIL + timedelta(days=1) + 99 * STEP
    with pytest.raises(TooLittle, match="99 usable labelled rows newer than the champion's"):
        assemble(log, spec, settings(), known_at=early, after=HISTORY_UNTIL)


def test_at_most_half_of_the_new_rows_are_held_out(open_log: Open, spec: ModelSpec) -> None:
    log, moment = open_log(), HISTORY_UNTIL + timedelta(days=1) + 300 * STEP
    fifteen = assemble(log, spec, settings(), known_at=moment, after=HISTORY_UNTIL)
    assert len(fifteen.holdout) == 135  # 15 % of 900
    half = RetrainSettings(gate=GateSettings(min_rows=100, holdout_share=0.5))
    wide = assemble(log, spec, half, known_at=moment, after=HISTORY_UNTIL)
    assert len(wide.holdout) == 150  # not 450: half of the 300 new ones


def test_bounds_of_the_holdout_and_of_the_rows(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    assert len(assemble(log, spec, settings(max_rows=120), known_at=END).holdout) == 120
    limited = assemble(log, spec, settings(rows=300), known_at=END)
    assert len(limited.train) == 300
    assert limited.train.times[-1] == START + 1274 * STEP  # the newest of them


def test_ties_go_to_the_holdout(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    moment = START + 1275 * STEP  # when the first held out row is from
    extra = [row(i, moment) for i in range(5)]
    log.append(extra, received=END)
    log.append_labels(
        [Label(model="toy", id=r.id, value="no", time=moment) for r in extra], received=END
    )
    data = assemble(log, spec, settings(max_rows=227), known_at=END)
    assert min(data.holdout.times) == moment
    assert len(data.holdout) == 230  # 227 were wanted; three more share the timestamp
    assert max(data.train.times) < moment


def test_unusable_rows_are_left_out_and_counted(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    at = START + 2000 * STEP
    extra = [row(0, at), row(1, at, x=None, k=None, c=None), row(2, at, x=None)]
    log.append(extra, received=END)
    truths = ["maybe", "no", "no"]
    log.append_labels(
        [
            Label(model="toy", id=r.id, value=truth, time=at)
            for r, truth in zip(extra, truths, strict=True)
        ],
        received=END,
    )
    again = Prediction(
        model="toy",
        id="r7",
        version="1",
        time=START + 7 * STEP,
        inputs={"x": 0.0, "k": 1, "c": "red"},
        outputs={"probability": 0.5},
        source="import",
    )
    log.append([again], received=END)
    data = assemble(log, spec, settings(), known_at=END)
    assert data.account.left_out == {
        "bad label": 1,
        "all inputs missing": 1,
        "repeated prediction id": 1,
    }
    assert len(data.train) + len(data.holdout) == 1501


def test_shadow_rows_teach_nothing(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    shadow = Prediction(
        model="toy",
        id="s",
        version="2",
        time=START,
        inputs={"x": 0.0, "k": 1, "c": "red"},
        outputs={"probability": 0.5},
        role="shadow",
    )
    log.append([shadow], received=END)
    log.append_labels([Label(model="toy", id="s", value="no", time=START)], received=END)
    data = assemble(log, spec, settings(), known_at=END)
    assert len(data.train) + len(data.holdout) == 1500


def test_too_little_says_what_is_missing(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    with pytest.raises(TooLittle, match="no usable labelled row is known at 2019"):
        assemble(log, spec, settings(), known_at=datetime(2019, 1, 1, tzinfo=UTC))
    with pytest.raises(TooLittle, match="left to train on beside the holdout; at least 100"):
        assemble(log, spec, settings(), known_at=START + (150 + 48) * STEP)


def test_a_class_that_no_training_row_has(open_log: Open, spec: ModelSpec) -> None:
    import msgspec

    other = msgspec.structs.replace(spec, task="multiclass", classes=("maybe", "no", "yes"))
    with pytest.raises(TooLittle, match="has answer = maybe"):
        assemble(open_log(), other, settings(), known_at=END)


def test_the_identity_names_the_rows_and_their_labels(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    first = assemble(log, spec, settings(), known_at=END)
    again = assemble(log, spec, settings(), known_at=END)
    assert again.account.identity == first.account.identity
    other = "no" if first.train.y[3] == 1 else "yes"
    correction = Label(model="toy", id="r3", value=other, time=START + timedelta(days=3))
    log.append_labels([correction], received=END)
    corrected = assemble(log, spec, settings(), known_at=END)
    assert corrected.train.y[3] != first.train.y[3]
    assert corrected.account.identity != first.account.identity
    log.seal(before=END + timedelta(days=1))
    sealed = assemble(log, spec, settings(), known_at=END)
    assert len(sealed.account.segments) == 1
    assert sealed.train.y.tolist() == corrected.train.y.tolist()
    assert sealed.account.identity != corrected.account.identity


def test_broken_feeds_and_impossible_values_are_left_out_and_counted(
    open_log: Open, spec: ModelSpec
) -> None:
    broken = ((START + 10 * STEP, START + 20 * STEP), (START + 15 * STEP, START + 22 * STEP))
    exclude = Exclusions(broken=broken, ranges={"x": (-2.5, 2.5), "absent": (0, 1)})
    log = open_log()
    everything = assemble(log, spec, settings(), known_at=END)
    both = [*everything.train.inputs["x"], *everything.holdout.inputs["x"]]
    wild = [i for i, x in enumerate(both) if abs(x) > 2.5 and not 10 < i <= 22]
    data = assemble(log, spec, settings(), known_at=END, exclude=exclude)
    assert data.account.left_out == {"broken feed": 12, "impossible value": len(wild)}
    assert len(wild) > 5
    assert len(data.train) + len(data.holdout) == 1500 - 12 - len(wild)
    assert not {f"r{i}" for i in [*range(11, 23), *wild]} & {*data.train.ids, *data.holdout.ids}


def test_the_account_proposes_windows(open_log: Open, spec: ModelSpec) -> None:
    log = open_log()
    data = assemble(log, spec, settings(), known_at=END)
    named = {window.name: window for window in data.account.windows}
    assert named["recent"].rows == 600  # as many as the first version was registered with
    assert named["all"].rows == 1275
    assert named["blend"].parts == ("recent", "all")
    # The stream turns at row 600: from there the served loss is clearly higher.
    assert data.account.change is not None
    assert abs(data.account.change - HISTORY_UNTIL) < 40 * STEP
    gate = GateSettings(min_rows=100)
    capped = RetrainSettings(recent_rows=200, windows=("recent", "all"), gate=gate)
    few = assemble(log, spec, capped, known_at=END)
    assert [window.rows for window in few.account.windows] == [200, 1275]
