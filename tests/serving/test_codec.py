"""Columns in and out: what is accepted comes back unchanged, and nothing else is."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.spec import Feature, Kind, ModelSpec
from serving.codec import Codec, answer, refusal
from serving.columns import DATATYPE, KINDS, MAX_TEXT, column, plain

VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    "numeric": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
    "integer": st.integers(-(2**63), 2**63 - 1),
    "boolean": st.booleans(),
    "categorical": st.text(max_size=20),
}
ANY = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(), st.integers(), max_size=1)
)  # fmt: skip


def spec(kind: Kind, *, nullable: bool) -> ModelSpec:
    feature = Feature(name="x", kind=kind, nullable=nullable)
    return ModelSpec(name="m", task="regression", target="y", features=(feature,), metric="mae")


def body(data: object, datatype: str, rows: int) -> bytes:
    tensor = {"name": "x", "shape": [rows], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize("kind", list(DATATYPE))
@pytest.mark.parametrize("nullable", [False, True])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_good_values_survive_the_round_trip(kind: Kind, nullable: bool, data: Any) -> None:
    value = st.none() | VALUES[kind] if nullable else VALUES[kind]
    values = data.draw(st.lists(value, min_size=1, max_size=6))
    asked = Codec(spec(kind, nullable=nullable)).decode(body(values, DATATYPE[kind], len(values)))
    if kind == "numeric":  # an integer becomes the float that the model sees
        values = [None if value is None else float(value) for value in values]
    assert asked.values["x"] == values
    assert asked.values["x"] == values
    for given_value, got in zip(values, asked.columns["x"].tolist(), strict=True):
        if given_value is None and kind != "categorical":
            assert math.isnan(got)
        elif kind in ("numeric", "integer") and nullable:
            assert got == float(given_value)
        else:
            assert got == given_value


@pytest.mark.parametrize("kind", list(DATATYPE))
@given(values=st.lists(ANY, min_size=1, max_size=4), nullable=st.booleans())
@example(values=[math.nan], nullable=True)
@settings(deadline=None, max_examples=150)
def test_any_other_value_is_an_input_error(kind: Kind, values: list[Any], nullable: bool) -> None:
    """Vectorised or one by one, the verdict is that of `Feature.check`."""
    feature = spec(kind, nullable=nullable).features[0]
    try:
        expected = [feature.check(value) for value in values]
    except (InputError, TypeError):
        with pytest.raises(InputError) as caught:
            column(feature, DATATYPE[kind], values)
        assert caught.value.field == "x"
    else:
        checked = column(feature, DATATYPE[kind], values)
        assert plain(checked) == expected
        assert len(checked.array) == len(values)


@given(st.binary(max_size=60) | st.recursive(ANY, st.lists).map(lambda v: json.dumps(v).encode()))
@settings(deadline=None, max_examples=200)
def test_no_body_raises_anything_but_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        Codec(spec("numeric", nullable=True)).decode(data)
    json.loads(refusal(caught.value))


@given(data=ANY, shape=ANY, datatype=st.sampled_from([*KINDS, "", "FP8"]))
@settings(deadline=None, max_examples=200)
def test_no_tensor_raises_anything_but_an_input_error(
    data: object, shape: object, datatype: str
) -> None:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    try:
        Codec(spec("integer", nullable=True)).decode(json.dumps({"inputs": [tensor]}).encode())
    except InputError as error:
        json.loads(refusal(error))


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("INT8", [-128, 127], [-129, 128]),
        ("UINT8", [0, 255], [-1, 256]),
        ("INT64", [-(2**63), 2**63 - 1], [2**63]),
        ("UINT64", [0, 2**63 - 1], [-1, 2**64]),
        ("FP16", [65504], [65505]),
        ("FP32", [2**60], []),
        ("FP64", [3.0, 2**53], [0.5, 2**63]),
    ],
)
def test_ranges_of_datatypes(datatype: str, good: list[float], bad: list[float]) -> None:
    feature = Feature(name="x", kind="integer")
    for value in good:
        assert plain(column(feature, datatype, [value, 1])) == [int(value), 1]
    for value in bad:
        with pytest.raises(InputError):
            column(feature, datatype, [1, value])


def test_arrays_have_the_dtypes_frames_are_made_from() -> None:
    cases: list[tuple[Kind, bool, list[Any], str]] = [
        ("numeric", False, [1, 2.5], "float64"),
        ("numeric", True, [None], "float64"),
        ("integer", False, [1, 2.0], "int64"),
        ("integer", True, [1, None], "float64"),
        ("boolean", False, [True], "bool"),
        ("boolean", True, [True, None], "float64"),
        ("categorical", False, ["a"], "object"),
        ("categorical", True, ["a", None], "object"),
    ]
    for kind, nullable, values, dtype in cases:
        feature = Feature(name="x", kind=kind, nullable=nullable)
        assert column(feature, DATATYPE[kind], values).array.dtype == np.dtype(dtype)


def test_a_long_text_is_refused_not_shown_whole() -> None:
    with pytest.raises(InputError) as caught:
        column(Feature(name="x", kind="categorical"), "BYTES", ["y" * (MAX_TEXT + 1)])
    assert len(refusal(caught.value)) < 600


def test_thousands_of_rows() -> None:
    values = [float(i) for i in range(50_000)]
    values[-1] = math.pi
    asked = Codec(spec("numeric", nullable=False)).decode(body(values, "FP64", 50_000))
    assert asked.columns["x"][-1] == math.pi
    assert asked.ids[-1] == f"{asked.id}:49999"
    outputs = {"prediction": asked.columns["x"]}
    text, header = answer(asked, outputs, model="m", version="1", logged="shed")
    assert header is None
    reply = json.loads(text)
    assert reply["outputs"][0]["data"] == values
    assert reply["id"] == asked.id
    values[40_000] = "x"  # type: ignore[call-overload]
    with pytest.raises(InputError, match="row 40000"):
        Codec(spec("numeric", nullable=False)).decode(body(values, "FP64", 50_000))


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "a", "id": "b", "inputs": [%s]}',
        '{"inputs": [], "inputs": [%s]}',
        '{"inputs": [%s], "parameters": {"a": ":", "a": 1}}',
        '{"inputs": [{"name": "y", %s]}',
        '{"\\u0069d": "a", "id": "\\u003a", "inputs": [%s]}',
    ],
)
def test_a_name_twice_is_refused(text: str) -> None:
    tensor = '{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.5]}'
    whole = text % (tensor[1:] if '"y"' in text else tensor)
    with pytest.raises(InputError, match="each name once"):
        Codec(spec("numeric", nullable=False)).decode(whole.encode())


@pytest.mark.parametrize(
    "more",
    ['"parameters": {"event_time": "2026-01-01T00:00:00Z"}', '"id": "a:b"', '"unknown": {"a": 1}'],
)
def test_colons_elsewhere_are_no_offence(more: str) -> None:
    tensor = (
        '{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.5], "parameters": {"a": 1}}'
    )
    whole = f'{{"inputs": [{tensor}], {more}}}'
    assert Codec(spec("numeric", nullable=False)).decode(whole.encode()).values == {"x": [1.5]}


def test_rows_are_bounded() -> None:
    with pytest.raises(InputError, match="at most 100000 rows"):
        Codec(spec("numeric", nullable=False)).decode(body([], "FP64", 100_001))
