"""The baseline's cells, and what is a usable value of a column."""

from __future__ import annotations

import decimal

import msgspec
import numpy as np
import pandas as pd
import pytest

from monitor.measure.profile import (
    MAX_LEVELS,
    ColumnProfile,
    cells_of,
    count,
    profile_column,
    read_values,
)

RNG = np.random.default_rng(11)


def profiled(kind: str, values: object, name: str = "x") -> ColumnProfile:
    return profile_column(name, "input", kind, read_values(kind, pd.Series(values)))  # type: ignore[arg-type]


def test_numeric_cells_are_of_equal_mass_with_a_tail_on_either_side() -> None:
    profile = profiled("numeric", RNG.normal(size=2000))
    assert len(profile.counts) == 34
    assert profile.counts[0] == profile.counts[-1] == 0
    assert set(profile.counts[1:-1]) == {62, 63}
    assert sum(profile.counts) == profile.n == 2000
    outside = count(profile, read_values("numeric", pd.Series([-99.0, 0.0, 1e6, 1e6])))
    assert (outside[0], outside[-1], outside.sum()) == (1, 2, 4)


def test_ties_merge_cells_and_every_value_of_the_baseline_lies_inside() -> None:
    values = RNG.poisson(2.0, size=3000).astype(float)
    profile = profiled("integer", values)
    assert len(profile.counts) <= profile.distinct + 2
    assert profile.counts[0] == profile.counts[-1] == 0
    assert cells_of(profile, read_values("numeric", pd.Series([values.min()])))[0] == 1
    assert (
        cells_of(profile, read_values("numeric", pd.Series([values.max()])))[0]
        == len(profile.counts) - 2
    )


def test_one_wild_value_stretches_no_cell() -> None:
    values = RNG.normal(size=2000)
    wild = np.append(values, 1e6)
    assert profiled("numeric", wild).edges[1:-2] == pytest.approx(
        profiled("numeric", values).edges[1:-2], abs=0.02
    )
    usual = profiled("numeric", wild).usual
    assert usual is not None
    assert usual[1] < 3


def test_categories_are_kept_by_frequency_and_the_rest_counted() -> None:
    values = ["a"] * 50 + ["b"] * 70 + [f"rare{i:03}" for i in range(300)]
    profile = profiled("categorical", values)
    assert profile.levels[:3] == ("b", "a", "rare000")
    assert len(profile.levels) == MAX_LEVELS
    assert profile.counts[-1] == 302 - MAX_LEVELS
    assert not profile.complete
    small = profiled("categorical", ["a", "b", None])
    assert small.complete
    assert (small.n, small.missing) == (2, 1)
    assert count(small, read_values("categorical", pd.Series(["a", "new"]))).tolist() == [1, 0, 1]


def test_texts_that_look_alike_stay_apart() -> None:
    assert set(profiled("categorical", ["a", "a\0", "A"]).levels) == {"a", "a\0", "A"}


def test_booleans_in_every_spelling_are_two_levels() -> None:
    for values in ([True, False, True], [1.0, 0.0, 1.0], pd.array([True, False, True], "boolean")):
        assert profiled("boolean", values).levels == ("true", "false")
    odd = read_values("boolean", pd.Series([True, "yes", 2, None], dtype=object))
    assert (len(odd.values), odd.invalid, odd.missing, odd.example) == (1, 2, 1, "yes")


@pytest.mark.parametrize(
    ("values", "usable", "invalid", "missing"),
    [
        ([1, 2.5, "3", True, None, float("nan"), float("inf")], 2, 3, 2),
        ([1, 10**400, decimal.Decimal("1"), [1], pd.NA], 1, 3, 1),
        (pd.array([1, None, 3], dtype="Int64"), 2, 0, 1),
        (pd.Series(["2020-01-01", None], dtype="datetime64[us]"), 0, 1, 1),
        ([True, False], 0, 2, 0),
        ([], 0, 0, 0),
    ],
)
def test_numbers_are_told_from_everything_else(
    values: object, usable: int, invalid: int, missing: int
) -> None:
    dtype = object if isinstance(values, list) else None
    read = read_values("numeric", pd.Series(values, dtype=dtype))
    assert (len(read.values), read.invalid, read.missing) == (usable, invalid, missing)
    assert read.present.sum() == usable
    assert read.values.dtype == np.float64


def test_an_empty_column_says_why() -> None:
    profile = profiled("numeric", [None, np.nan])
    assert "no value" in profile.why
    assert profile.missing == 2


@pytest.mark.parametrize("values", [[5.0] * 30, [-1.7e308, 1.7e308, 0.0], [np.nan, 1.0]])
def test_profiles_survive_json(values: list[float]) -> None:
    profile = profiled("numeric", values)
    assert msgspec.json.decode(msgspec.json.encode(profile), type=ColumnProfile) == profile
    assert sum(profile.counts) == profile.n
