"""The inference log: nothing lost, nothing doubled, labels joined as of any moment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logrows import HOUR, T0, label, row

from core.ledger import Ledger
from monitor.log.log import InferenceLog


@pytest.fixture
def log(any_ledger: Ledger, tmp_path: Path) -> InferenceLog:
    return InferenceLog(any_ledger, tmp_path / "segments")


@pytest.mark.parametrize("sealed", [False, True])
def test_rows_come_back_as_they_went_in(log: InferenceLog, sealed: bool) -> None:
    assert log.append([row(i) for i in range(10)], received=T0) == 10
    if sealed:
        assert log.seal(before=T0 + HOUR) == 10
    found = log.read("m", start=T0 + 2 * HOUR, end=T0 + 5 * HOUR)
    assert found.meta["id"].tolist() == ["p2", "p3", "p4"]
    assert found.meta["time"].tolist() == [T0 + i * HOUR for i in (2, 3, 4)]
    assert found.inputs["x"].tolist() == [1.0, 1.5, 2.0]
    assert found.inputs["k"].tolist() == [2, 3, 4]
    assert [v if isinstance(v, str) else None for v in found.inputs["c"]] == ["a", None, "a"]
    assert found.inputs["b"].tolist() == [True, False, True]
    assert found.outputs["probability"].tolist() == [0.25] * 3
    assert len(found.segments) == (1 if sealed else 0)


def test_an_event_is_logged_once_even_after_sealing(log: InferenceLog) -> None:
    assert log.append([row(1), row(2)], received=T0) == 2
    assert log.append([row(2), row(3)], received=T0) == 1
    log.seal(before=T0 + HOUR)
    assert log.append([row(1), row(4)], received=T0) == 1
    assert log.read("m").meta["id"].tolist() == ["p1", "p2", "p3", "p4"]
    assert log.counts("m").predictions == 4


def test_the_same_id_from_another_source_is_another_event(log: InferenceLog) -> None:
    log.append([row(1), row(1, source="shadow", role="shadow")], received=T0)
    assert len(log.read("m")) == 1
    assert len(log.read("m", roles=("shadow",))) == 1


def test_the_last_label_by_label_time_wins_as_of_any_moment(log: InferenceLog) -> None:
    log.append([row(1)], received=T0)
    late, early = label(1, 0, days=40), label(1, 1, days=30)
    assert log.append_labels([late], received=T0).new == 1
    assert log.append_labels([early], received=T0).changed == 1
    assert log.read("m").meta["label"].tolist() == [0]
    then = T0 + timedelta(days=35)
    assert log.read("m", known_at=then).meta["label"].tolist() == [1]
    assert log.read("m", known_at=T0).meta["label"].tolist() == [None]
    assert log.append_labels([label(1, 1, days=40)], received=T0).changed == 1
    assert log.read("m").meta["label"].tolist() == [1]


def test_a_label_for_an_unknown_prediction_is_kept_and_counted(log: InferenceLog) -> None:
    receipt = log.append_labels([label(1), label(2)], received=T0)
    assert (receipt.new, receipt.unknown) == (0, 2)
    assert log.counts("m").unknown_labels == 2
    log.append([row(1)], received=T0)  # the prediction arrives after its label
    assert log.read("m", labelled=True).meta["id"].tolist() == ["p1"]
    log.seal(before=T0 + HOUR)
    assert log.counts("m").unknown_labels == 1


@pytest.mark.parametrize("sealed", [False, True])
def test_rows_by_when_their_label_became_known(log: InferenceLog, sealed: bool) -> None:
    log.append([row(i) for i in range(10)], received=T0)
    log.append_labels([label(i) for i in range(8)], received=T0)
    if sealed:
        log.seal(before=T0 + HOUR)
    since, until = T0 + timedelta(days=30, hours=2), T0 + timedelta(days=30, hours=5)
    found = log.read("m", known_after=since, known_at=until)
    assert found.meta["id"].tolist() == ["p3", "p4", "p5"]
    assert log.read("m", labelled=True, newest=2).meta["id"].tolist() == ["p6", "p7"]
    assert log.read("m", newest=2).meta["id"].tolist() == ["p8", "p9"]


def test_a_segment_with_a_flipped_bit_is_quarantined(log: InferenceLog) -> None:
    log.append([row(i) for i in range(5)], received=T0)
    log.seal(before=T0 + HOUR)
    log.append([row(i) for i in range(5, 8)], received=T0)
    [path] = log.storage.root.rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = log.read("m")
    assert found.meta["id"].tolist() == ["p5", "p6", "p7"]
    assert "does not match its sha256" in found.problems[0]
    assert log.counts("m").quarantined == 1
    [problem] = log.read("m").problems  # left out, and said so at every read
    assert "(5 rows) is quarantined" in problem


def test_mixed_types_in_a_column_survive_sealing(log: InferenceLog) -> None:
    log.append([row(1, inputs={"x": 1.5}), row(2, inputs={"x": "oops"})], received=T0)
    log.seal(before=T0 + HOUR)
    assert log.read("m").inputs["x"].tolist() == [1.5, "oops"]


def test_an_empty_log_reads_as_no_rows(log: InferenceLog) -> None:
    found = log.read("m", known_after=T0, version="1")
    assert len(found) == 0
    assert log.counts("m").newest is None


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(st.integers(0, 20), max_size=8), max_size=6),
    seals=st.sets(st.integers(0, 5)),
)
def test_any_order_of_appends_and_seals_keeps_each_event_once(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], seals: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    ledger = Ledger(f"sqlite:///{folder / 'l.db'}").create()
    log = InferenceLog(ledger, folder)
    for step, batch in enumerate(batches):
        log.append([row(i) for i in batch], received=T0)
        if step in seals:
            log.seal(before=T0 + HOUR)
    wanted = {f"p{i}" for batch in batches for i in batch}
    found = log.read("m").meta["id"].tolist()
    assert sorted(found) == sorted(wanted)
    assert log.counts("m").predictions == len(wanted)
    ledger.close()
