"""One check over a real log: what it reads, that it is pure, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings, PrivacySettings
from core.spec import infer_spec
from monitor.baseline import Baseline, build, reference_sample
from monitor.check import Evidence, ModelFacts, gather, recent, record, run_check
from monitor.log.log import InferenceLog
from monitor.log.records import Label, Prediction
from monitor.results import CheckResult

START = datetime(2010, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LAG = 5 * DAY
SETTINGS = ModelSettings(check_every="1d", window="7d", min_rows=50)
FACTS = ModelFacts(version="1", registered=START, promoted=START)


def rows(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[pd.DataFrame, np.ndarray]:
    """Inputs, and the probability of the positive class that they truly imply."""
    age = rng.normal(shift, 1, size=n)
    country = rng.choice(["UK", "DE"], n, p=[0.8, 0.2])
    return pd.DataFrame({"age": age, "country": country}), 1 / (1 + np.exp(-age))


@pytest.fixture(scope="module")
def made() -> tuple[Baseline, pd.DataFrame]:
    rng = np.random.default_rng(1)
    inputs, p = rows(rng, 3000)
    y = (rng.uniform(size=3000) < p).astype(float)
    times = [START - 30 * DAY + i * timedelta(minutes=10) for i in range(3000)]
    spec = infer_spec("shop", inputs, target="bought", task="binary", classes=(0, 1))
    outputs = pd.DataFrame({"probability": p})
    baseline = build(
        spec, inputs, outputs, y, times, created=START, how="holdout", trained_until=START,
        every=DAY, window=7 * DAY,
    )  # fmt: skip
    return baseline, reference_sample(inputs, outputs, y, times)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    yield ledger
    ledger.close()


@pytest.fixture
def log(ledger: Ledger, tmp_path: Path) -> InferenceLog:
    return InferenceLog(ledger, tmp_path / "segments")


def fill(
    log: InferenceLog, *, days: range, version: str = "1", shift: float = 0.0, harm: float = 0.0,
    per_day: int = 40, labels: bool = True, seed: int = 2, broken: bool = False,
) -> None:  # fmt: skip
    """Rows of some days and their labels five days later; `harm` moves the truth away from p."""
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for number in days:
        inputs, p = rows(rng, per_day, shift)
        for i in range(per_day):
            time = START + number * DAY + i * timedelta(minutes=30)
            key = f"{version}-{number}-{i}"
            values: dict[str, Any] = {
                "age": None if broken else float(inputs["age"][i]),
                "country": str(inputs["country"][i]),
            }
            predictions.append(
                Prediction(
                    model="shop", id=key, version=version, time=time, inputs=values,
                    outputs={"probability": float(p[i])},
                )
            )  # fmt: skip
            chance = p[i] * (1 - harm) + (1 - p[i]) * harm
            if labels:
                value = int(rng.uniform() < chance)
                truths.append(Label(model="shop", id=key, value=value, time=time + LAG))
    log.append(predictions, received=START)
    log.append_labels(truths, received=START)


def run(
    log: InferenceLog,
    made: tuple[Baseline, pd.DataFrame],
    at: datetime,
    history: list[CheckResult] | None = None,
    facts: ModelFacts = FACTS,
    settings: ModelSettings = SETTINGS,
) -> CheckResult:
    evidence = gather(log, "shop", facts.version, at=at, settings=settings)
    return run_check(*made, evidence, history or [], facts, settings, at=at)


def test_gather_reads_what_was_known_then(log: InferenceLog) -> None:
    fill(log, days=range(20))
    at = START + 14 * DAY
    evidence = gather(log, "shop", "1", at=at, settings=SETTINGS)
    assert len(evidence.rows) == 7 * 40
    assert (evidence.window_start, evidence.window_end) == (at - 7 * DAY, at)
    # Labels that became known in (7, 14] days are of rows of (2, 9] days.
    times = evidence.labelled.meta["time"]
    assert times.min() > START + 2 * DAY
    assert times.max() <= START + 9 * DAY
    assert evidence.newest_prediction == START + 13 * DAY + 39 * timedelta(minutes=30)
    assert evidence.newest_label is not None
    assert evidence.newest_label <= at
    assert evidence.label_lag == LAG
    assert evidence.matured == evidence.matured_labelled == 7 * 40


def test_gather_tells_versions_apart(log: InferenceLog) -> None:
    fill(log, days=range(10))
    fill(log, days=range(10, 12), version="2", seed=3)
    evidence = gather(log, "shop", "2", at=START + 12 * DAY, settings=SETTINGS)
    assert len(evidence.rows) == 7 * 40
    assert len(evidence.labelled) == 0
    assert evidence.label_lag == LAG  # known from the other version's labels
    assert evidence.matured == 0


def test_gather_of_an_empty_log_and_after_a_silence(log: InferenceLog) -> None:
    empty = gather(log, "shop", "1", at=START, settings=SETTINGS)
    assert len(empty.rows) == len(empty.labelled) == 0
    assert empty.newest_prediction is None
    assert empty.newest_label is None
    assert empty.matured is None
    fill(log, days=range(2))
    for later in (30, 300):  # the second is beyond the horizon of the first look
        silent = gather(log, "shop", "1", at=START + later * DAY, settings=SETTINGS)
        assert silent.newest_prediction == START + DAY + 39 * timedelta(minutes=30)


def test_a_healthy_week(log: InferenceLog, made: tuple[Baseline, pd.DataFrame]) -> None:
    fill(log, days=range(14))
    result = run(log, made, START + 14 * DAY)
    assert result.state == "healthy"
    assert (result.rows, result.labelled) == (280, 280)
    assert result.quality == ()
    assert result.findings == ()
    assert result.performance.coverage == 1.0
    assert result.performance.worse is False
    assert [c.column for c in result.drift] == ["age", "country", "probability"]
    assert result.provisional == (
        "the baseline spans 3 check windows, fewer than the 8 that thresholds need; its natural "
        "variation is extrapolated from shorter blocks"
    )
    assert result.staleness.label_lag == LAG.total_seconds()
    assert result.staleness.model == 14 * 86400


def test_a_check_is_pure_and_survives_json(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(14), shift=0.4)
    at = START + 14 * DAY
    first, again = run(log, made, at), run(log, made, at)
    assert first == again
    # What happens later changes nothing about then.
    fill(log, days=range(14, 20), shift=3.0, seed=9)
    assert run(log, made, at) == first
    assert msgspec.json.decode(msgspec.json.encode(first), type=CheckResult) == first


def test_drift_without_loss_pages_nobody(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(20), shift=0.8)
    first = run(log, made, START + 14 * DAY)
    second = run(log, made, START + 15 * DAY, [first])
    assert second.state == "drifting"
    assert [(f.cause, f.severity) for f in second.findings] == [("drift", "ticket")]
    assert {c.column for c in second.drift if c.drifted} == {"age", "probability"}


def test_decay_pages(log: InferenceLog, made: tuple[Baseline, pd.DataFrame]) -> None:
    fill(log, days=range(20), harm=0.8)
    result = run(log, made, START + 14 * DAY)
    assert result.state == "decaying"
    assert result.findings[0].severity == "page"
    assert not any(c.drifted for c in result.drift)


def test_a_broken_feed_pages_and_is_not_called_drift(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(7))
    fill(log, days=range(7, 14), broken=True, version="1", seed=4)
    result = run(log, made, START + 14 * DAY)
    assert result.state == "broken_feed"
    assert "age is missing in 100 % of 280 rows" in result.reason
    assert [f.cause for f in result.findings] == ["broken_feed"]
    age = result.drift[0]
    assert "all 280 values are missing" in age.why


def test_silence_pages_after_two_windows(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(7))
    early = run(log, made, START + 15 * DAY)
    assert early.state == "insufficient_data"
    late = run(log, made, START + 22 * DAY)
    assert late.state == "broken_feed"
    assert [f.cause for f in late.findings] == ["no_data"]


def test_another_versions_outputs_say_nothing_of_this_one(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(8, 13), shift=1.5)
    fill(log, days=range(13, 14), version="2", seed=3)
    facts = ModelFacts(version="2", registered=START, promoted=START + 13 * DAY)
    result = run(log, made, START + 14 * DAY, facts=facts)
    found = {c.column: c for c in result.drift}
    assert found["age"].drifted  # inputs are everybody's
    assert found["probability"].n == 40
    assert "fewer than the 50" in found["probability"].why
    assert "labels for v2 are due from 19 Apr" in result.reason


def test_the_settings_metric_is_watched_where_the_task_has_it(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(14))
    at = START + 14 * DAY
    chosen = run(log, made, at, settings=msgspec.structs.replace(SETTINGS, metric="log_loss"))
    expected = made[0].expected
    assert expected is not None
    assert chosen.performance.metric == "log_loss"
    assert chosen.performance.expected == expected.of("log_loss")
    foreign = run(log, made, at, settings=msgspec.structs.replace(SETTINGS, metric="mae"))
    assert foreign.performance.metric == "brier"


def test_a_short_baseline_is_said_to_be_provisional(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(14))
    daily = msgspec.structs.replace(SETTINGS, window="2d")
    assert run(log, made, START + 14 * DAY, settings=daily).provisional == ""
    weekly = run(log, made, START + 14 * DAY)
    assert weekly.provisional.startswith("the baseline spans 3 check windows, fewer than the 8")


HOSTILE: list[dict[str, Any]] = [
    {"age": "12", "country": 3},
    {"age": True, "country": None},
    {"age": 1e308, "country": ""},
    {"age": 0.0, "country": "UK"},
    {},
    {"age": None, "country": "\ud7ff" * 50, "extra": 1},
]


@pytest.mark.parametrize("inputs", HOSTILE)
def test_hostile_rows_get_a_result(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame], inputs: dict[str, Any]
) -> None:
    log.append(
        [
            Prediction(
                model="shop", id=str(i), version="1", time=START + i * timedelta(minutes=1),
                inputs=inputs, outputs={"probability": 0.5} if i % 2 else {},
            )
            for i in range(200)
        ],
        received=START,
    )  # fmt: skip
    labels: list[Any] = ["?", None, 7, "1", 1.0]
    log.append_labels(
        [
            Label(model="shop", id=str(i), value=labels[i % 5], time=START + i * timedelta(hours=1))
            for i in range(200)
        ],
        received=START,
    )
    result = run(log, made, START + DAY)
    assert msgspec.json.decode(msgspec.json.encode(result), type=CheckResult) == result
    assert result.state == "broken_feed"
    assert result.performance.bad_labels > 0


def test_a_check_is_recorded_once_and_read_back(
    log: InferenceLog, ledger: Ledger, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(20))
    results = [run(log, made, START + day * DAY) for day in (12, 13, 14)]
    with ledger.write() as tx:
        ids = [record(tx, result) for result in results]
    with ledger.write() as tx:
        assert [record(tx, result, created=START) for result in results] == ids
    assert len(set(ids)) == 3
    assert recent(ledger, "shop", START + 14 * DAY, 5) == results[1::-1]
    assert recent(ledger, "shop", START + 15 * DAY, 1) == results[2:]
    assert recent(ledger, "other", START + 15 * DAY, 5) == []
    with ledger.read() as tx:
        row = tx.execute(schema.checks.select().order_by(schema.checks.c.at)).first()
    assert row is not None
    assert (row.state, row.metric, row.rows) == ("healthy", "brier", 280)
    assert row.value == results[0].performance.value


def test_evidence_without_labels_or_outputs(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(14), labels=False)
    evidence: Evidence = gather(log, "shop", "1", at=START + 14 * DAY, settings=SETTINGS)
    result = run_check(*made, evidence, [], FACTS, SETTINGS, at=START + 14 * DAY)
    assert result.state == "healthy"
    assert result.performance.value is None
    assert result.performance.coverage is None
    assert "no label for v1 has arrived yet" in result.reason


def test_labels_are_described_and_hostile_ones_left_out(
    made: tuple[Baseline, pd.DataFrame], log: InferenceLog
) -> None:
    fill(log, days=range(10))
    at = START + 10 * DAY
    hostile = [("1-2-0", "maybe"), ("1-2-1", float("nan")), ("1-2-2", None), ("1-2-3", True)]
    log.append_labels(
        [Label(model="shop", id=key, value=value, time=at - DAY) for key, value in hostile],  # type: ignore[arg-type]
        received=at,
    )
    early = Prediction(
        model="shop", id="early", version="1", time=at - 3 * DAY, inputs={"age": 0.0},
        outputs={"probability": 0.0},
    )  # fmt: skip
    log.append([early], received=at)
    log.append_labels([Label(model="shop", id="early", value=1, time=at - 5 * DAY)], received=at)
    found = run(log, made, at=at)
    assert found.labels is not None
    kinds = {problem.kind: problem.count for problem in found.labels.problems}
    assert kinds == {"null": 1, "not_finite": 1, "unknown_class": 1, "before_prediction": 1}
    assert found.performance.bad_labels == 4
    assert "1 labels are older than their prediction" in found.performance.why
    assert dict(found.labels.lag)[0.5] == LAG.total_seconds()
    assert found.labels.arrived == found.performance.n + 4
    # Rows of the last seven days: labels are five days late, so those of two days have them.
    assert found.labels.coverage == pytest.approx(2 / 7, abs=0.02)
    assert found.labels.matured_coverage == 1.0


def test_what_may_not_be_logged_is_not_missing(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    """A denied column is null in every row: no broken feed, and called what it is."""
    fill(log, days=range(14), broken=True)
    at = START + 14 * DAY
    assert run(log, made, at).state == "broken_feed"
    denied = msgspec.structs.replace(SETTINGS, privacy=PrivacySettings(deny=("age",)))
    found = run(log, made, at, settings=denied)
    assert found.state == "healthy"
    assert found.not_logged == ("age",)
    assert [column.column for column in found.drift] == ["country", "probability"]


def test_a_check_says_how_good_it_was_will_be_and_whether_decay_is_proven(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(20))
    hostile: list[Any] = ["yes", 2, float("nan"), None, True]
    wrong = [
        Label(model="shop", id=f"1-3-{i}", value=value, time=START + 12 * DAY)
        for i, value in enumerate(hostile)
    ]
    wrong.append(Label(model="shop", id="1-3-9", value=1, time=START + 2 * DAY))
    log.append_labels(wrong, received=START + 12 * DAY)
    at = START + 14 * DAY
    result = run(log, made, at)
    found, watched = result.measured, result.performance
    assert found is not None
    assert found.bad_labels == watched.bad_labels > 0
    by_name = {figure.name: figure for figure in found.figures}
    assert (by_name["brier"].value, by_name["brier"].low) == (watched.value, watched.low)
    assert by_name["roc_auc"].expected is not None
    assert by_name["roc_auc"].worse is False
    assert found.source.rows == len(run_evidence(log, at).labelled)
    assert found.source.known_at == at
    assert {s.level for s in found.segments if s.column == "country"} == {"UK", "DE"}
    assert all(s.figures[0].expected is not None for s in found.segments)

    expected = result.estimated
    assert expected is not None
    assert expected.method == "CBPE"
    assert expected.figures[0].name == "brier"
    assert expected.figures[0].n == result.rows
    assert [w.start for w in expected.windows] == [START + d * DAY for d in range(7, 14)]

    proof = result.proof
    assert proof is not None
    assert not proof.proven
    # The next check takes on only the labels that are new, and a copy in JSON is the same.
    stored = msgspec.json.decode(msgspec.json.encode(result), type=CheckResult)
    assert stored == result
    later = run(log, made, at + DAY, [stored])
    assert later.proof is not None
    assert later.proof.looks == 2
    assert proof.n < later.proof.n <= proof.n + 41
    assert run(log, made, at, [stored]).proof != later.proof


def run_evidence(log: InferenceLog, at: datetime) -> Evidence:
    return gather(log, "shop", "1", at=at, settings=SETTINGS)


def test_a_window_without_labels_has_estimates_and_no_zero(
    log: InferenceLog, made: tuple[Baseline, pd.DataFrame]
) -> None:
    fill(log, days=range(10), labels=False)
    result = run(log, made, START + 10 * DAY)
    assert result.measured is not None
    assert {figure.value for figure in result.measured.figures} == {None}
    assert {figure.why for figure in result.measured.figures} == {
        "no row has both a label and an answer"
    }
    assert result.proof is None
    assert result.estimated is not None
    assert result.estimated.figures[0].value is not None
