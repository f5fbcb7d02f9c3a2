"""Decoders against hostile bodies: every one is either read or refused by name, within bounds."""

from __future__ import annotations

import io
import json
import math
import os
import random
import resource
import struct
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.spec import Feature, ModelSpec
from shelflife.web import arrowrows, events, jsonrows, outputs, payloads, rows
from shelflife.web.limits import Limits, Refused
from shelflife.web.wire import LabelIn, PredictionIn

#: `make fuzz` asks for many more.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
LIMITS = Limits(
    body=1_000_000, rows=1000, future=timedelta(minutes=10), read_within=30.0,
    pair_within=timedelta(hours=1),
)  # fmt: skip
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SPEC = ModelSpec(
    name="m", task="multiclass", target="y", metric="log_loss", classes=("a", "b", 3),
    features=(
        Feature(name="x", kind="numeric", nullable=True),
        Feature(name="n", kind="integer"),
        Feature(name="c", kind="categorical", nullable=True),
    ),
)  # fmt: skip
CONTEXT = rows.Context(
    spec=SPEC, promotions=rows.Promotions(), now=NOW, future=timedelta(minutes=10)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
GOOD = {"inputs": {"x": 1.5, "n": 2, "c": "a:b"}, "outputs": {"a": 0.2, "b": 0.3, "3": 0.5}}
VALUE = st.sampled_from([None, True, 1, -0.0, 1e308, math.nan, "a", "\0", "é", [1.0], {}, 2**64])
ROW = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.dictionaries(st.sampled_from(["x", "n", "c", "z"]), VALUE) | JSON,
        "outputs": st.sampled_from(["a", 3, "3", 0.5, [0.2, 0.3, 0.5], {"prediction": "b"}]) | JSON,
        "id": st.text(max_size=5) | JSON,
        "time": st.datetimes().map(datetime.isoformat) | JSON,
        "role": st.sampled_from(["champion", "king"]),
        "odd:key": JSON,
    },
)


def through(body: bytes, kind: Any = PredictionIn) -> Any:
    """Decode and assemble; whatever comes out fits the log."""
    found, problems = jsonrows.rows(body, kind, LIMITS.rows)
    if kind is PredictionIn:
        made = rows.assemble(found, CONTEXT)
        assert len(made.rows) + len(made.problems) == len(found)
        for row in made.rows:
            assert set(row.inputs) == {"x", "n", "c"}
            assert math.isclose(sum(row.outputs.values()), 1, abs_tol=2e-3)
            assert 0 < len(row.id) <= 256
            assert "\0" not in row.id + row.source + row.version + row.event_id
            json.dumps(row.inputs, allow_nan=False)
    return found, problems


@settings(deadline=None, max_examples=EXAMPLES)
@given(body=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
@example(body=b'{"predictions": [' + b'{"inputs":' * 2000)
@example(body=b"\xef\xbb\xbf{}")
def test_any_body_is_read_or_refused(body: bytes) -> None:
    for kind in (PredictionIn, LabelIn):
        for read in (jsonrows.rows, jsonrows.lines):
            with suppress(InputError):
                read(body, kind, LIMITS.rows)


@settings(deadline=None, max_examples=EXAMPLES)
@given(given_rows=st.lists(ROW, max_size=4), escaped=st.booleans())
def test_any_rows_are_taken_or_refused_one_by_one(given_rows: list[Any], escaped: bool) -> None:
    """One bad row or two, NDJSON or JSON, fast or slowly: every row has the same fate."""
    try:
        texts = [json.dumps(row, ensure_ascii=escaped).encode() for row in given_rows]
    except UnicodeEncodeError:
        return
    whole = b'{"predictions": [' + b", ".join([*texts, json.dumps(GOOD).encode()]) + b"]}"
    found, problems = through(whole)
    assert len(found) + len(problems) == len(given_rows) + 1
    lines = b"\n".join([*texts, json.dumps(GOOD).encode()])
    by_line, problems_by_line = jsonrows.lines(lines, PredictionIn, LIMITS.rows)
    assert [position for position, _ in by_line] == [position for position, _ in found]
    assert [(p.row, p.reason) for p in problems_by_line] == [(p.row, p.reason) for p in problems]
    for (_, one), (_, other) in zip(by_line, found, strict=True):
        assert one == other


@settings(deadline=None, max_examples=EXAMPLES)
@given(given_value=JSON, task=st.sampled_from(["binary", "multiclass", "regression"]))
def test_any_output_is_mapped_or_refused(given_value: Any, task: Any) -> None:
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", 3), "regression": ()}[task]
    spec = ModelSpec(
        name="m", task=task, target="y", metric="mae", classes=classes, features=SPEC.features
    )
    try:
        found = outputs.mapped(spec, given_value)
    except Refused:
        pass
    else:
        assert list(found) == spec.outputs
        assert all(type(value) is float and math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("task", "classes", "said", "wanted"),
    [
        ("binary", (0, 1), 1, [1.0]),
        ("binary", (0, 1), 0.7, [0.7]),
        ("binary", (1, 2), 1, [0.0]),
        ("binary", ("no", "yes"), "yes", [1.0]),
        ("binary", ("no", "yes"), {"no": 0.3, "yes": 0.7}, [0.7]),
        ("binary", ("no", "yes"), {"prediction": "no", "probability": 0.4}, [0.4]),
        ("binary", (False, True), {"prediction": True}, [1.0]),
        ("binary", ("no", "yes"), [0.3, 0.7], [0.7]),
        ("binary", ("no", "yes"), "maybe", None),
        ("binary", ("no", "yes"), [0.3, 0.6], None),
        ("binary", ("no", "yes"), {"probability": True}, None),
        ("binary", ("no", "yes"), {"probability": -0.1}, None),
        ("multiclass", ("a", "b"), "b", [0.0, 1.0]),
        ("multiclass", ("a", "b"), {"probability": {"b": 0.6, "a": 0.4}}, [0.4, 0.6]),
        ("multiclass", ("a", "b"), {"probability:a": 1, "probability:b": 0}, [1.0, 0.0]),
        ("multiclass", ("a", "b"), 0.5, None),
        ("regression", (), 3, [3.0]),
        ("regression", (), {"prediction": 2.5}, [2.5]),
        ("regression", (), [2.5], [2.5]),
        ("regression", (), {"prediction": "2.5"}, None),
        ("regression", (), 10**400, None),
    ],
)
def test_what_a_model_said(task: Any, classes: Any, said: Any, wanted: Any) -> None:
    spec = ModelSpec(
        name="m", task=task, target="y", metric="mae", classes=classes, features=SPEC.features
    )
    if wanted is None:
        with pytest.raises(Refused):
            outputs.mapped(spec, said)
    else:
        assert list(outputs.mapped(spec, said).values()) == wanted


# --- Arrow --------------------------------------------------------------------------------------


def ipc(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table(n: int = 4) -> pa.Table:
    return pa.table(
        {
            "id": [f"p{i}" for i in range(n)],
            "time": pa.array([1_770_000_000 + i for i in range(n)], pa.timestamp("s")),
            "inputs.x": [i / 2 for i in range(n)],
            "inputs.n": list(range(n)),
            "inputs.c": pa.array(["a", None] * (n // 2)).dictionary_encode(),
            "outputs": pa.array([{"a": 0.2, "b": 0.3, "3": 0.5}] * n),
        }
    )


def read(body: bytes) -> Any:
    try:
        found, problems = arrowrows.rows(body, PredictionIn, LIMITS)
    except InputError:
        return None
    rows.assemble(found, CONTEXT)
    return found, problems


def test_arrow_cut_short_at_every_byte() -> None:
    body = ipc(table())
    whole = read(body)[0]
    assert len(whole) == 4
    for end in range(0, len(body), 7):
        found = read(body[:end])
        # A stream without its end mark is still a stream; its rows are never others.
        assert found is None or found[0] in ([], whole)


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_arrow_with_flipped_bytes(codec: str | None) -> None:
    """Whatever a damaged header or offset says, nothing outside of the body is read or grown."""
    body, chance = ipc(table(), compression=codec), random.Random(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(EXAMPLES * 10):
        damaged = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 127, 128, 255))
        read(bytes(damaged))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_arrow_that_declares_more_than_it_holds() -> None:
    # Few bytes, many rows: a column of nulls has no buffers at all.
    many = ipc(pa.table({"id": pa.nulls(10**9)}))
    assert len(many) < 1000
    with pytest.raises(Refused, match="1000000000 rows"):
        arrowrows.rows(many, PredictionIn, LIMITS)
    # Few bytes, many more once they are unfolded.
    zeros = pa.table({"inputs.x": np.zeros(900), "id": ["x" * 100_000] * 900})
    folded = ipc(zeros, compression="zstd")
    assert len(folded) < 100_000
    with pytest.raises(Refused, match="once decompressed"):
        arrowrows.rows(folded, PredictionIn, LIMITS)
    # A size that a buffer only claims to have.
    honest = ipc(pa.table({"inputs.x": np.zeros(900)}), compression="zstd")
    at = honest.index(struct.pack("<q", 7200))
    lying = honest[:at] + struct.pack("<q", 2**40) + honest[at + 8 :]
    with pytest.raises(Refused, match="1099511627776 bytes"):
        arrowrows.rows(lying, PredictionIn, LIMITS)
    # One long text said often: by a dictionary, and by views.
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 900, pa.int32()), ["x" * 9000])
    views = pa.array(["x" * 9000] * 100).cast(pa.string_view())
    with pytest.raises(Refused, match="spelled out"):
        arrowrows.rows(ipc(pa.table({"inputs.c": long})), PredictionIn, LIMITS)
    small = Limits(**{f: getattr(LIMITS, f) for f in LIMITS.__struct_fields__} | {"body": 10_000})
    with pytest.raises(Refused, match="spelled out"):
        arrowrows.rows(ipc(pa.table({"inputs.c": views})), PredictionIn, small)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0]]),
        pa.array([{"x": {"y": 1}}]),
        pa.array([b"bytes"]),
        pa.array([datetime(2026, 1, 1, tzinfo=UTC)]),
        pa.array([1]).cast(pa.decimal128(38, 2)),
        pa.array([1], pa.duration("s")),
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    ],
)
def test_arrow_types_that_no_column_has(column: pa.Array) -> None:
    with pytest.raises(Refused, match="integers, floats, booleans or strings"):
        arrowrows.rows(ipc(pa.table({"inputs.x": column})), PredictionIn, LIMITS)


def test_arrow_columns_by_name() -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["inputs.x", "inputs.x"])
    with pytest.raises(Refused, match="each column once"):
        arrowrows.rows(ipc(twice), PredictionIn, LIMITS)
    with pytest.raises(Refused, match="colour"):
        arrowrows.rows(ipc(pa.table({"colour": ["red"]})), PredictionIn, LIMITS)
    wide = pa.table({f"inputs.c{i}": [1] for i in range(20_001)})
    with pytest.raises(Refused, match="20001 columns"):
        arrowrows.rows(ipc(wide), PredictionIn, LIMITS)
    odd = pa.table(
        {
            "id": ["a", "b", "c", None],
            "time": pa.array([0, 2**62, -(2**62), None], pa.timestamp("us")),
            "inputs.x": [math.nan, 1.0, 1.0, math.inf],
            "inputs.n": pa.array([1, 2, 3, 2**64 - 1], pa.uint64()),
            "inputs.c": pa.array(["x", None, "y", "z"], pa.large_string()),
            "outputs": ["a", "b", "3", "a"],
        }
    )
    found, problems = arrowrows.rows(ipc(odd), PredictionIn, LIMITS)
    made = rows.assemble(found, CONTEXT)
    assert problems == []
    assert [(p.row, p.reason) for p in sorted(made.problems, key=lambda p: p.row)] == [
        (1, "time"), (2, "time"), (3, "value"),
    ]  # fmt: skip
    assert made.rows[0].inputs == {"x": None, "n": 1, "c": "x"}
    assert made.rows[0].outputs == {
        "probability:a": 1.0,
        "probability:b": 0.0,
        "probability:3": 0.0,
    }


# --- events -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    attributes=st.dictionaries(
        st.sampled_from(["id", "source", "type", "specversion", "time", "component", "annotations",
                         "data", "data_base64", "inferenceservicename"]),
        st.sampled_from(["1.0", "e1", *events.TYPES, "{", '{"shelflife/version": 3}', "%ff", "\0"])
        | JSON,
    ),
)  # fmt: skip
def test_any_event_is_read_or_refused(attributes: dict[str, Any]) -> None:
    media = [events.STRUCTURED, events.BATCHED]
    for value, kind in ((attributes, media[0]), ([attributes], media[1])):
        try:
            body = json.dumps(value).encode()
            events.read({}, kind, body, 10)
        except InputError:
            pass
    try:
        given_headers = {f"ce-{name}": str(value) for name, value in attributes.items()}
        events.read(given_headers, "application/json", json.dumps(value).encode(), 10)
    except InputError:
        pass


PAYLOAD = JSON | st.fixed_dictionaries(
    {},
    optional={
        "instances": st.lists(st.lists(VALUE, max_size=3) | JSON, max_size=3),
        "predictions": st.lists(VALUE | st.lists(st.floats(0, 1), max_size=3), max_size=3),
        **{
            name: st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["x", "n", "c", "predict"]),
                        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
                        "data": st.lists(VALUE, max_size=4) | JSON,
                    }
                ),
                max_size=3,
            )
            for name in ("inputs", "outputs")
        },
    },
)


@settings(deadline=None, max_examples=EXAMPLES)
@given(request=PAYLOAD, response=PAYLOAD)
def test_any_payloads_are_rows_or_refused(request: Any, response: Any) -> None:
    if not isinstance(request, dict) or not isinstance(response, dict):
        return
    try:
        found = payloads.rows(SPEC, request, response, event="e", most=10, time="", source="s")
        made = rows.assemble(list(enumerate(found)), CONTEXT)
    except InputError:
        return
    assert len(made.rows) + len(made.problems) == len(found)
