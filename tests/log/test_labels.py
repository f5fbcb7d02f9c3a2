"""What labels mean: an oracle says which are in force and what they score, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings
from core.spec import Feature, ModelSpec
from monitor import scores
from monitor.log.labels import activity
from monitor.log.log import InferenceLog
from monitor.log.records import Label, Prediction
from monitor.measure import windows
from monitor.measure.labels import quantiles, usable

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SETTINGS = ModelSettings(window="4d", score_width="1d", label_delay="2d")
_models = count()


def spec_of(model: str, task: str = "binary") -> ModelSpec:
    return ModelSpec(
        name=model,
        task=task,  # type: ignore[arg-type]
        target="y",
        features=(Feature(name="x", kind="numeric"),),
        metric="brier" if task == "binary" else "mae",
        classes=("no", "yes") if task == "binary" else (),
    )


def asked(model: str, i: int, p: float, time: datetime, version: str = "1") -> Prediction:
    return Prediction(
        model=model, id=f"p{i}", version=version, time=time, inputs={"x": 1.0},
        outputs={"probability": p, "prediction": p}, source=f"s/{model}",
    )  # fmt: skip


@pytest.fixture
def log(any_ledger: Ledger, tmp_path: Path) -> InferenceLog:
    return InferenceLog(any_ledger, tmp_path / "segments")


class Delivery(NamedTuple):
    """One delivery of one statement; ties in `receipt` cannot happen between different ones."""

    row: int
    said: int  # label time, days after T0
    value: object
    receipt: int


deliveries = st.lists(
    st.builds(
        Delivery,
        row=st.integers(0, 5),
        said=st.integers(0, 6),
        value=st.sampled_from(["yes", "no", "maybe", 1, None, True, float("nan")]),
        receipt=st.integers(0, 10_000),
    ),
    max_size=14,
    unique_by=lambda each: each.receipt,
)
P = (0.1, 0.9, 0.5, 0.25, 0.75, 0.6)


def in_force(said: Sequence[Delivery], known: int) -> dict[int, Delivery]:
    """The oracle: greatest label time, then greatest receipt."""
    truth: dict[int, Delivery] = {}
    for each in sorted(said, key=lambda d: (d.said, d.receipt)):
        if each.said <= known:
            truth[each.row] = each
    return truth


def brier(truth: dict[int, Delivery], row: int) -> float | None:
    if row not in truth or truth[row].value not in ("yes", "no"):
        return None
    if truth[row].said < row:  # row i is asked on day i: the label is older than the question
        return None
    return (P[row] - (truth[row].value == "yes")) ** 2


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(said=deliveries, data=st.data())
def test_any_order_and_repetition_gives_the_same_labels_and_scores(
    any_ledger: Ledger, tmp_path: Path, said: list[Delivery], data: st.DataObject
) -> None:
    model = f"m{next(_models)}"
    log, spec = InferenceLog(any_ledger, tmp_path / "segments"), spec_of(model)
    repeated = said + (data.draw(st.lists(st.sampled_from(said), max_size=5)) if said else [])
    order = data.draw(st.permutations([*range(6), *repeated]))
    cuts = data.draw(st.sets(st.integers(0, len(order)), max_size=2))
    sealed = data.draw(st.integers(0, len(order)))
    for step, each in enumerate(order):
        if isinstance(each, int):
            log.append([asked(model, each, P[each], T0 + each * DAY)], received=T0)
        else:
            label = Label(model=model, id=f"p{each.row}", value=each.value,  # type: ignore[arg-type]
                          time=T0 + each.said * DAY)  # fmt: skip
            log.append_labels([label], received=T0 + each.receipt * timedelta(milliseconds=1))
        if step in cuts:  # a tick in the middle: what it scored must be corrected later
            keep(any_ledger, log, spec, at=T0 + 3 * DAY)
        if step == sealed:
            log.seal(before=T0 + HOUR)
    for known in (3, 10):
        truth = in_force(said, known)
        rows = log.read(model, known_at=T0 + known * DAY)
        found = dict(zip(rows.meta["id"], rows.meta["label"], strict=True))
        for i in range(6):
            value = truth[i].value if i in truth else None
            assert repr(found[f"p{i}"]) == repr(value)
            if i in truth:
                at = rows.meta["label_time"][rows.meta["id"] == f"p{i}"].item()
                assert at == T0 + truth[i].said * DAY
    kept = {s.start: s for s in keep(any_ledger, log, spec, at=T0 + 10 * DAY)}
    truth = in_force(said, 10)
    for i in range(6):
        score = kept[T0 + i * DAY]
        assert score.value == pytest.approx(brier(truth, i)) or (
            score.value is None and brier(truth, i) is None
        )
        assert (score.rows, score.labelled) == (1, int(i in truth))


def keep(
    ledger: Ledger, log: InferenceLog, spec: ModelSpec, *, at: datetime
) -> list[windows.WindowScore]:
    """What a tick does to the scores; returns all that is stored."""
    found = scores.rescore(ledger, log, spec, spec.metric, SETTINGS, at=at)
    if found is not None:
        with ledger.write() as tx:
            scores.record(tx, ledger, found)
    return [each for each, _ in scores.listed(ledger, spec.name)]


def test_a_window_is_scored_again_when_its_labels_arrive(log: InferenceLog) -> None:
    """Numbers by hand: Brier of p = 0.8, 0.6, 0.4 on day 0 and 0.9 on day 1."""
    spec = spec_of("hand")
    rows = [(0, 0.8, 0), (1, 0.6, 0), (2, 0.4, 0), (3, 0.9, 1)]
    log.append([asked("hand", i, p, T0 + d * DAY + HOUR) for i, p, d in rows], received=T0)

    def say(i: int, value: object, day: float, received: float) -> None:
        label = Label(model="hand", id=f"p{i}", value=value, time=T0 + day * DAY)  # type: ignore[arg-type]
        log.append_labels([label], received=T0 + received * DAY)

    say(0, "yes", 1, 1)
    first, second = keep(log.ledger, log, spec, at=T0 + 2 * DAY)
    assert (first.n, first.rows, first.coverage) == (1, 3, pytest.approx(1 / 3))
    assert first.value == pytest.approx(0.04)  # (1 - 0.8)^2
    assert first.label_lag == 23 * 3600
    assert (second.value, second.n) == (None, 0)
    say(1, "no", 1.5, 3)  # late: known on day 1.5, delivered on day 3
    [first, second] = keep(log.ledger, log, spec, at=T0 + 3 * DAY)
    assert first.value == pytest.approx((0.04 + 0.36) / 2)
    say(0, "no", 3.5, 4)  # corrected
    say(2, "perhaps", 3.5, 4)  # hostile: counted, not averaged in
    say(3, "yes", 3.5, 4)
    first, second = keep(log.ledger, log, spec, at=T0 + 4 * DAY)
    assert first.value == pytest.approx((0.64 + 0.36) / 2)
    assert (first.n, first.bad_labels, first.coverage) == (2, 1, 1.0)
    assert second.value == pytest.approx(0.01)
    assert windows.combined([first, second]) == pytest.approx((0.64 + 0.36 + 0.01) / 3)
    dated = dict(scores.listed(log.ledger, "hand"))
    assert set(dated.values()) == {T0 + 4 * DAY}
    again = scores.rescore(log.ledger, log, spec, "brier", SETTINGS, at=T0 + 5 * DAY)
    assert again is not None
    assert again.changed == ()
    assert dict(scores.listed(log.ledger, "hand")) == dated
    assert scores.rescore(log.ledger, log, spec, "brier", SETTINGS, at=T0) is None


def test_only_touched_windows_are_read_and_old_ones_dropped(log: InferenceLog) -> None:
    spec = spec_of("far")
    log.append([asked("far", i, 0.5, T0 + i * DAY) for i in range(60)], received=T0)
    log.seal(before=T0 + HOUR)
    kept = keep(log.ledger, log, spec, at=T0 + 60 * DAY)
    assert kept[0].start == T0 + 18 * DAY  # ten windows of 4 d, and the labels' 2 d
    later = Label(model="far", id="p30", value="yes", time=T0 + 50 * DAY)
    log.append([asked("far", 60, 0.5, T0 + 60 * DAY)], received=T0 + 60 * DAY)
    log.append_labels([later], received=T0 + 60 * DAY)
    found = scores.rescore(log.ledger, log, spec, "brier", SETTINGS, at=T0 + 61 * DAY)
    assert found is not None
    # The label's row is in a sealed segment: its whole span is looked at, the change is one window.
    assert [s.start for s in found.changed] == [T0 + 30 * DAY, T0 + 60 * DAY]
    with log.ledger.write() as tx:
        scores.record(tx, log.ledger, found)
    quiet = scores.rescore(log.ledger, log, spec, "brier", SETTINGS, at=T0 + 61 * DAY + HOUR)
    assert quiet is not None
    assert quiet.changed == ()
    assert keep(log.ledger, log, spec, at=T0 + 70 * DAY)[0].start == T0 + 28 * DAY


def test_incremental_scores_are_what_scoring_everything_gives(log: InferenceLog) -> None:
    rng, spec = np.random.default_rng(3), spec_of("inc", "regression")
    at = T0
    for step in range(12):
        at = T0 + step * DAY
        batch = [
            asked("inc", 10 * step + i, float(rng.normal()), at + i * HOUR, str(1 + step // 6))
            for i in range(10)
        ]
        log.append(batch, received=at)
        said = [
            Label(model="inc", id=f"p{rng.integers(0, 10 * step + 20)}", value=float(rng.normal()),
                  time=at - float(rng.random()) * DAY)
            for _ in range(8)
        ]  # fmt: skip
        log.append_labels(said, received=at)
        keep(log.ledger, log, spec, at=at + DAY)
        if step % 4 == 3:
            log.seal(before=at)
    stored = [each for each, _ in scores.listed(log.ledger, "inc")]
    everything = windows.score(spec, "mae", log.read("inc", known_at=at + DAY), DAY)
    assert stored == list(everything)
    assert {s.version for s in stored} == {"1", "2"}
    assert windows.matured(stored, at=at + DAY, late=5 * DAY) == tuple(
        s for s in stored if s.end <= at - 4 * DAY
    )


def test_another_width_or_metric_starts_anew(log: InferenceLog) -> None:
    spec = spec_of("anew", "regression")
    log.append([asked("anew", i, 1.0, T0 + i * 12 * HOUR) for i in range(4)], received=T0)
    said = [Label(model="anew", id=f"p{i}", value=3.0, time=T0 + 2 * DAY) for i in range(4)]
    log.append_labels(said, received=T0)
    assert [s.value for s in keep(log.ledger, log, spec, at=T0 + 3 * DAY)] == [2.0, 2.0]
    other = ModelSettings(window="4d", score_width="12h", label_delay="2d")
    found = scores.rescore(log.ledger, log, spec, "rmse", other, at=T0 + 3 * DAY)
    assert found is not None
    with log.ledger.write() as tx:
        scores.record(tx, log.ledger, found)
    kept = [each for each, _ in scores.listed(log.ledger, "anew", since=T0 + 12 * HOUR)]
    assert [(s.metric, s.value, s.n) for s in kept] == [("rmse", 2.0, 1)] * 3


def test_hostile_labels_are_named_and_left_out(log: InferenceLog) -> None:
    spec = spec_of("bad", "regression")
    hostile = ["12", True, float("nan"), float("inf"), None, 7.0, 8.0, 10**400]
    log.append([asked("bad", i, 1.0, T0 + i * HOUR) for i in range(9)], received=T0)
    said = [
        Label(model="bad", id=f"p{i}", value=value, time=T0 + DAY)  # type: ignore[arg-type]
        for i, value in enumerate(hostile)
    ]
    said[6] = Label(model="bad", id="p6", value=8.0, time=T0 - HOUR)  # known before it was asked
    log.append_labels(said, received=T0)
    y, problems = usable(spec, log.read("bad").meta)
    assert np.flatnonzero(~np.isnan(y)).tolist() == [5]
    assert {p.kind: p.count for p in problems} == {
        "null": 1, "text": 1, "boolean": 1, "not_finite": 3, "before_prediction": 1,
    }  # fmt: skip
    assert next(p for p in problems if p.kind == "text").text == (
        "1 labels are text where the target is a number, such as '12'"
    )
    third = spec_of("bad")
    _, problems = usable(third, log.read("bad").meta)
    assert {p.kind for p in problems} >= {"unknown_class", "not_finite"}


def test_the_one_received_last_wins_a_tie_whatever_commits_first(log: InferenceLog) -> None:
    log.append([asked("tie", 1, 0.5, T0)], received=T0)

    def say(value: object, received: datetime, *more: object) -> None:
        batch = [
            Label(model="tie", id="p1", value=v, time=T0 + DAY)  # type: ignore[arg-type]
            for v in (value, *more)
        ]
        log.append_labels(batch, received=received)

    def now() -> object:
        return log.read("tie").meta["label"][0]

    say("yes", T0 + 2 * HOUR)
    say("no", T0 + HOUR)  # stamped earlier, committed later
    assert now() == "yes"
    say("zzz", T0 + 2 * HOUR)  # the same microsecond: the greater text, in either order
    say("yes", T0 + 2 * HOUR)
    assert now() == "zzz"
    say("first", T0 + 3 * HOUR, "last")  # one batch: its last word
    assert now() == "last"


def test_activity_counts_what_labels_did(log: InferenceLog) -> None:
    log.append([asked("act", i, 0.5, T0) for i in range(3)], received=T0)
    for i, value, day in ((0, "yes", 1), (0, "yes", 5), (1, "yes", 1), (1, "no", 5), (2, "no", 5)):
        said = Label(model="act", id=f"p{i}", value=value, time=T0 + day * DAY)
        log.append_labels([said], received=T0)
    log.append_labels([Label(model="act", id="x", value="no", time=T0 + 5 * DAY)], received=T0)
    found = activity(log.ledger, "act", after=T0 + 4 * DAY, until=T0 + 6 * DAY)
    assert (found.labelled, found.repeated, found.corrected, found.unknown) == (4, 2, 1, 1)
    then = activity(log.ledger, "act", after=T0, until=T0 + 2 * DAY)
    assert (then.labelled, then.repeated, then.corrected) == (2, 0, 0)


def test_lag_quantiles() -> None:
    found = dict(quantiles(np.arange(101.0)))
    assert found == {0.05: 5.0, 0.25: 25.0, 0.5: 50.0, 0.75: 75.0, 0.95: 95.0}
    assert quantiles(np.array([])) == ()


def test_a_window_without_rows_has_no_score(log: InferenceLog) -> None:
    assert windows.score(spec_of("none"), "brier", log.read("none"), DAY) == ()
    assert windows.combined([]) is None
    with log.ledger.read() as tx:
        assert tx.scalar(sa.select(sa.func.count()).select_from(schema.window_scores)) == 0


def test_what_is_stamped_early_and_committed_late_is_seen(log: InferenceLog) -> None:
    spec = spec_of("stall")
    log.append([asked("stall", i, 0.5, T0 + i * DAY) for i in range(3)], received=T0)
    keep(log.ledger, log, spec, at=T0 + 4 * DAY)
    for i, stamped in ((1, T0 + HOUR), (0, T0 + HOUR / 2)):  # the second is the older one
        said = Label(model="stall", id=f"p{i}", value="yes", time=T0 + 3 * DAY)
        log.append_labels([said], received=stamped)
        found = scores.rescore(log.ledger, log, spec, "brier", SETTINGS, at=T0 + 4 * DAY)
        assert found is not None
        assert [s.start for s in found.changed] == [T0 + i * DAY]
        with log.ledger.write() as tx:
            scores.record(tx, log.ledger, found)
    same = scores.rescore(log.ledger, log, spec, "brier", SETTINGS, at=T0 + 4 * DAY)
    assert same is not None
    assert same.starts == ()
