"""What a model takes and answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from core.errors import InputError
from core.frames import to_frame
from core.spec import Feature, ModelSpec, infer_spec, valid_name

FRAME = pd.DataFrame(
    {
        "amount": [1.5, np.nan, 3.0],
        "count": [1, 2, 3],
        "country": ["DE", None, "FR"],
        "member": [True, False, True],
        "maybe": pd.array([1, None, 3], dtype="Int64"),
    }
)


def spec() -> ModelSpec:
    return infer_spec("m", FRAME, target="y", task="binary", classes=(0, 1))


def test_a_frame_says_what_its_columns_are() -> None:
    found = {f.name: (f.kind, f.nullable) for f in spec().features}
    assert found == {
        "amount": ("numeric", True),
        "count": ("integer", False),
        "country": ("categorical", True),
        "member": ("boolean", False),
        "maybe": ("integer", True),
    }
    assert spec().features[2].levels == ("DE", "FR")
    assert spec().metric == "brier"


def test_values_become_what_the_model_was_fitted_with() -> None:
    columns = {
        "amount": [None],
        "count": [7],
        "country": ["IT"],
        "member": [False],
        "maybe": [None],
        "other": [1],
    }
    frame = to_frame(spec(), columns)
    assert list(frame.columns) == list(FRAME.columns)
    kinds = [dtype.kind for dtype in frame.dtypes]
    assert kinds[:2] == ["f", "i"]
    assert kinds[3:] == ["b", "f"]
    assert frame["country"].dtype == FRAME["country"].dtype
    assert np.isnan(frame.loc[0, "amount"])
    assert np.isnan(frame.loc[0, "maybe"])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("numeric", "5"),
        ("numeric", True),
        ("numeric", float("inf")),
        ("numeric", None),
        ("numeric", float("nan")),
        ("integer", 1.5),
        ("integer", 2**63),
        ("integer", 10**400),
        ("categorical", 5),
        ("boolean", 1),
    ],
)
def test_a_value_that_does_not_fit_is_named(kind: str, value: object) -> None:
    feature = Feature(name="amount", kind=kind)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="amount") as caught:
        feature.check(value)  # type: ignore[arg-type]
    assert caught.value.expected


def test_a_nullable_column_takes_nothing() -> None:
    assert Feature(name="x", kind="numeric", nullable=True).check(float("nan")) is None
    assert Feature(name="x", kind="integer").check(3.0) == 3


def test_labels_are_encoded_or_refused() -> None:
    found = spec()
    assert [found.encode_label(v) for v in (0, 1, True, "1", 1.0)] == [0, 1, 1, 1, 1]
    with pytest.raises(InputError, match="one of"):
        found.encode_label("2")
    number = infer_spec("m", FRAME, target="y", task="regression")
    assert number.encode_label(2) == 2.0
    for bad in ("2", True, None, float("nan")):
        with pytest.raises(InputError):
            number.encode_label(bad)


def test_outputs_are_named_by_task() -> None:
    assert spec().outputs == ["probability"]
    three = infer_spec("m", FRAME, target="y", task="multiclass", classes=("a", "b", "c"))
    assert three.outputs == ["probability:a", "probability:b", "probability:c"]


def test_what_cannot_be_served_is_refused() -> None:
    dates = pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])})
    with pytest.raises(InputError, match="datetimes"):
        infer_spec("m", dates, target="y", task="regression")
    with pytest.raises(InputError, match="metric"):
        infer_spec("m", FRAME, target="y", task="regression", metric="brier")
    for name in ("", "../x", "a b", "-x", "x" * 200):
        with pytest.raises(InputError):
            valid_name(name)
