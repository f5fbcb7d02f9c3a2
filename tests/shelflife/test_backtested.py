"""Day one: how clones of a model would have aged within the rows it was registered with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from core.spec import infer_spec
from shelflife.backtested import lives
from shelflife.reference import Reference

START = datetime(2026, 1, 1, tzinfo=UTC)


def rows(n: int, turn: float) -> Reference:
    """Hourly rows whose slope turns steadily from 1 to 1 + turn."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    y = a * np.linspace(1, 1 + turn, n) + rng.normal(0, 0.3, n)
    times = [START + i * timedelta(hours=1) for i in range(n)]
    return Reference(
        inputs=pd.DataFrame({"a": a}), labels=y.tolist(), times=times, label_times=times,
        ids=[str(i) for i in range(n)], timed=True,
    )  # fmt: skip


def test_clones_of_a_model_in_a_turning_world_get_worse_with_age() -> None:
    given = rows(1600, turn=3.0)
    spec = infer_spec("m", given.inputs, target="y", task="regression")
    found = lives(spec, LinearRegression(), given)
    absolute = [path for path in found if path.yardstick == "absolute"]
    relative = [path for path in found if path.yardstick == "relative"]
    assert [path.points for path in absolute] == [4, 3, 2, 1]
    assert absolute[0].ratios[0] == pytest.approx(1.0)  # as it was when it was new
    assert all(np.diff(absolute[0].ratios) > 0)
    assert relative[0].ratios[-1] > 1.2  # a fresher clone does better
    assert absolute[0].began == given.times[799]


def test_nothing_is_back_tested_without_times_rows_or_a_clone() -> None:
    given = rows(1600, turn=0.0)
    spec = infer_spec("m", given.inputs, target="y", task="regression")
    assert lives(spec, LinearRegression(), msgspec.structs.replace(given, timed=False)) == ()
    assert lives(spec, LinearRegression(), rows(300, turn=0.0)) == ()
    assert lives(spec, object(), given) == ()

    class Fails(LinearRegression):
        def fit(self, *_: object) -> object:
            raise MemoryError

    assert lives(spec, Fails(), given) == ()
