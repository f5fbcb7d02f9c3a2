"""What every inference log promises, asked of each implementation."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from logrows import HOUR, LATER, T0, dtypes, label, row, seen

from monitor.log.records import Label, Prediction, SampleLog

BIG = 2**53 + 1
#: One column of each kind: values over three rows, and the type they are read as.
COLUMNS: dict[str, tuple[list, str]] = {
    "float": ([0.1, -1e300, 5e-324], "float64"),
    "float with gaps": ([0.5, None, 2.0], "float64"),
    "whole": ([1, -2, 3], "int64"),
    "whole with gaps": ([1, None, 3], "float64"),
    "big": ([BIG, -BIG, 2**63 - 1], "int64"),
    "big with gaps": ([BIG, None, 1], "object"),
    "beyond 64 bits": ([2**63, 1, 2**64 - 1], "object"),
    "numbers": ([1, 2.5, 3], "float64"),
    "true": ([True, False, True], "bool"),
    "true with gaps": ([True, None, False], "object"),
    "text": (["", "naïve 東京 👩‍🚀", "a\nb\x00\"'"], "str"),
    "text with gaps": (["a", None, "b"], "str"),
    "mixed": (["a", 1, 2.5], "object"),
    "truth and number": ([True, 1, 0], "object"),
    "nothing": ([None, None, None], "object"),
    "quoted": (['"1"', "null", "[1]"], "str"),
}


def upkeep(log: SampleLog, sealed: str) -> None:
    if sealed != "hot":
        log.seal(before=LATER)
    if sealed == "compacted":
        log.compact("m", at=LATER)


def ids(log: SampleLog, **query: object) -> list[str]:
    return log.read("m", **query).meta["id"].tolist()  # type: ignore[arg-type]


STATES = pytest.mark.parametrize("state", ["hot", "compacted"])  # compacted was sealed before


@STATES
def test_values_of_every_kind_come_back_as_they_went_in(any_log: SampleLog, state: str) -> None:
    for i in range(3):
        inputs = {name: values[i] for name, (values, _) in COLUMNS.items()}
        any_log.append([row(i, inputs=inputs)], received=T0)
        upkeep(any_log, "sealed" if state != "hot" else "hot")
    upkeep(any_log, state)
    found = any_log.read("m")
    for name, (values, kind) in COLUMNS.items():
        got = found.inputs[name].astype(object)
        got = got.where(got.notna(), None).tolist()
        assert got == values, name
        assert [type(v) for v in got if kind == "object"] == [
            type(v) for v in values if kind == "object"
        ], name
        assert str(found.inputs[name].dtype) == kind, name
    assert str(found.meta["time"].dtype) == "datetime64[us, UTC]"
    assert str(found.meta["label_time"].dtype) == "datetime64[us, UTC]"


@STATES
def test_what_is_no_finite_number_is_missing(any_log: SampleLog, state: str) -> None:
    for i, value in enumerate([math.nan, math.inf, -math.inf, 1.0]):
        changes = {"inputs": {"x": value}, "outputs": {"probability": value}}
        any_log.append([row(i, **changes)], received=T0)
    upkeep(any_log, state)
    found = any_log.read("m")
    assert found.inputs["x"].isna().tolist() == [True, True, True, False]
    assert found.outputs["probability"].isna().tolist() == [True, True, True, False]


@STATES
def test_columns_come_and_go_and_change_their_kind(any_log: SampleLog, state: str) -> None:
    shapes = [{"a": 1}, {"a": 2.5, "b": "x"}, {"b": None, "c": True}, {"a": "text", "c": False}]
    for i, inputs in enumerate(shapes):
        any_log.append([row(i, inputs=inputs)], received=T0)
        upkeep(any_log, "sealed" if state != "hot" else "hot")
    upkeep(any_log, state)
    found = any_log.read("m")
    assert [{k: v for k, v in r.items() if k.startswith("in.")} for r in seen(found)] == [
        {f"in.{k}": v for k, v in inputs.items() if v is not None} for inputs in shapes
    ]
    # The type is that of the rows that are read, not of all there ever were.
    early = any_log.read("m", end=T0 + 2 * HOUR)
    assert early.inputs["a"].tolist() == [1.0, 2.5]
    assert dtypes(early.inputs)["a"] == "float64"


@STATES
def test_an_event_is_logged_once(any_log: SampleLog, state: str) -> None:
    assert any_log.append([row(1), row(2)], received=T0) == 2
    upkeep(any_log, state)
    assert any_log.append([row(1), row(3), row(3)], received=T0) == 1
    assert any_log.append([row(1, source="elsewhere"), row(1, event_id="e")], received=T0) == 2
    assert ids(any_log) == ["p1", "p1", "p1", "p2", "p3"]
    assert any_log.append([], received=T0) == 0


@STATES
def test_rows_of_one_moment_keep_the_order_of_their_arrival(any_log: SampleLog, state: str) -> None:
    for i in (3, 1, 2, 0):
        any_log.append([row(i, time=T0), row(10 + i, time=T0 - HOUR)], received=T0)
        upkeep(any_log, "sealed" if state != "hot" else "hot")
    upkeep(any_log, state)
    any_log.append([row(9, time=T0)], received=T0)
    assert ids(any_log) == ["p13", "p11", "p12", "p10", "p3", "p1", "p2", "p0", "p9"]


@STATES
def test_a_window_a_role_a_version(any_log: SampleLog, state: str) -> None:
    rows = [row(i, version="2" if i % 2 else "1") for i in range(8)]
    rows += [row(i, source="s", role="shadow", id=f"s{i}") for i in range(3)]
    any_log.append(rows, received=T0)
    upkeep(any_log, state)
    window = {"start": T0 + 2 * HOUR, "end": T0 + 5 * HOUR}
    assert ids(any_log, **window) == ["p2", "p3", "p4"]
    assert ids(any_log, **window, version="2") == ["p3"]
    assert ids(any_log, roles=("shadow",)) == ["s0", "s1", "s2"]
    assert ids(any_log, newest=2) == ["p6", "p7"]
    assert ids(any_log, newest=0) == []
    assert ids(any_log, start=T0 + 9 * HOUR) == ids(any_log, version="7") == []
    microsecond = timedelta(microseconds=1)
    assert ids(any_log, start=T0 + microsecond, end=T0 + HOUR + microsecond) == ["p1"]


@STATES
def test_only_the_columns_asked_for(any_log: SampleLog, state: str) -> None:
    any_log.append([row(1), row(2)], received=T0)
    upkeep(any_log, state)
    some = any_log.read("m", inputs=["k", "unheard of"])
    assert list(some.inputs.columns) == ["k"]
    assert list(some.outputs.columns) == ["probability"]
    none = any_log.read("m", inputs=False)
    assert len(none) == len(none.inputs) == 2
    assert not len(none.inputs.columns)
    assert not len(none.outputs.columns)


@STATES
def test_labels_as_of_any_moment(any_log: SampleLog, state: str) -> None:
    any_log.append([row(i) for i in range(4)], received=T0)
    upkeep(any_log, state)
    any_log.append_labels([label(0, "no", 40), label(0, "yes", 30), label(1, None)], received=T0)
    any_log.append_labels([label(2, 2**53 + 1), label(99), label(3, 0.5)], received=T0)
    assert any_log.read("m").meta["label"].tolist() == ["no", None, BIG, 0.5]
    assert ids(any_log, labelled=True) == ["p0", "p1", "p2", "p3"]
    then = T0 + timedelta(days=30)
    assert any_log.read("m", known_at=then).meta["label"].tolist() == ["yes", None, None, None]
    assert ids(any_log, known_after=then, known_at=then + 2 * HOUR) == ["p1", "p2"]
    assert ids(any_log, known_after=then + 3 * HOUR) == ["p0"]
    assert ids(any_log, labelled=True, newest=1) == ["p3"]
    counts = any_log.counts("m")
    assert (counts.labels, counts.unknown_labels) == (5, 1)


def test_what_becomes_of_labels_is_told(any_log: SampleLog) -> None:
    any_log.append([row(1), row(2)], received=T0)
    first = any_log.append_labels([label(1), label(1), label(7)], received=T0)
    again = any_log.append_labels([label(1, 0), label(2)], received=T0 + HOUR)
    assert (first.new, first.changed, first.unknown) == (1, 0, 1)
    assert (again.new, again.changed, again.unknown) == (1, 1, 0)
    assert any_log.read("m").meta["label"].tolist() == [0, 1]


@STATES
def test_the_forgotten_are_gone_and_the_others_untouched(any_log: SampleLog, state: str) -> None:
    any_log.append([row(i) for i in range(6)], received=T0)
    any_log.append([row(2, source="shadow", role="shadow")], received=T0)
    any_log.append_labels([label(2), label(2, 0, 40), label(3)], received=T0)
    upkeep(any_log, state)
    before = seen(any_log.read("m"))
    gone = any_log.forget("m", ["p2", "p5", "nobody"], at=T0)
    assert (gone.rows, gone.labels) == (3, 2)
    assert seen(any_log.read("m")) == [r for r in before if r["id"] not in ("p2", "p5")]
    assert len(any_log.read("m", roles=("shadow",))) == 0
    assert any_log.counts("m").labels == 1
    assert any_log.forget("m", ["p2", "p5"], at=T0).rows == 0
    assert any_log.forget("other", ["p1"], at=T0).rows == 0
    # Nothing is known of the event any more: the same one is a new one.
    assert any_log.append([row(2)], received=T0) == 1
    assert any_log.read("m", start=T0 + 2 * HOUR).meta["label"].tolist()[0] is None


@STATES
def test_nobody_is_left_to_remember(any_log: SampleLog, state: str) -> None:
    any_log.append([row(1)], received=T0)
    upkeep(any_log, state)
    assert any_log.forget("m", ["p1"], at=T0).rows == 1
    assert len(any_log.read("m")) == 0
    assert any_log.counts("m").predictions == 0


@STATES
def test_rows_beyond_the_retention_go_with_their_labels(any_log: SampleLog, state: str) -> None:
    any_log.append([row(i) for i in range(3)], received=T0)
    upkeep(any_log, "sealed" if state != "hot" else "hot")
    any_log.append([row(i) for i in range(3, 6)], received=T0)
    any_log.append([row(1, source="late", time=T0 + 5 * HOUR)], received=T0)
    upkeep(any_log, "sealed" if state != "hot" else "hot")
    any_log.append_labels([label(0), label(1), label(4)], received=T0)
    gone = any_log.retain("m", since=T0 + 3 * HOUR, at=T0)
    assert (gone.rows, gone.labels) == (3, 1)  # p1 has a newer row that needs its label
    assert ids(any_log) == ["p3", "p4", "p5", "p1"]
    assert ids(any_log, labelled=True) == ["p4", "p1"]
    assert any_log.append([row(0)], received=T0) == 1


def test_models_do_not_mix(any_log: SampleLog) -> None:
    any_log.append([row(1), row(1, model="n", source="n")], received=T0)
    any_log.append_labels([label(1, model="n")], received=T0)
    any_log.seal(before=LATER)
    assert any_log.read("m").meta["label"].tolist() == [None]
    assert any_log.read("n").meta["label"].tolist() == [1]
    any_log.forget("n", ["p1"], at=T0)
    assert (any_log.counts("m").predictions, any_log.counts("n").predictions) == (1, 0)


def test_an_empty_log(any_log: SampleLog) -> None:
    found = any_log.read("m", known_after=T0, version="1", newest=3)
    assert len(found) == len(found.inputs) == 0
    assert any_log.counts("m").oldest is None
    assert any_log.seal(before=LATER) == any_log.compact("m", at=T0) == 0
    assert any_log.retain("m", since=LATER, at=T0).rows == 0
    assert any_log.segments("m") == []
    assert any_log.append_labels([], received=T0).new == 0


def test_counts(any_log: SampleLog) -> None:
    any_log.append([row(i) for i in range(4)], received=T0)
    any_log.seal(before=LATER)
    any_log.append([row(7)], received=T0)
    counts = any_log.counts("m")
    assert (counts.predictions, counts.oldest, counts.newest) == (5, T0, T0 + 7 * HOUR)


def test_before_1970_and_far_away(any_log: SampleLog) -> None:
    times = [T0.replace(year=1969), T0.replace(year=2200, microsecond=1)]
    rows = [row(i, time=time) for i, time in enumerate(times)]
    any_log.append(rows, received=T0)
    any_log.append_labels([Label(model="m", id="p0", value=1, time=times[0])], received=T0)
    any_log.seal(before=LATER)
    found = any_log.read("m")
    assert [moment.to_pydatetime() for moment in found.meta["time"]] == times
    assert found.meta["label_time"][0].to_pydatetime() == times[0]


def test_names_of_columns_are_anybodys(any_log: SampleLog) -> None:
    inputs = {"": 1, "in.x": 2, "time": 3, "id": "i", "a.b c/ü": 4}
    any_log.append([Prediction(**{**_fields(row(1)), "inputs": inputs})], received=T0)
    any_log.seal(before=LATER)
    found = any_log.read("m").inputs
    assert {name: found[name][0] for name in found} == inputs


def _fields(each: Prediction) -> dict:
    return {name: getattr(each, name) for name in each.__struct_fields__}
