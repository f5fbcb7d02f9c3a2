"""A broken feed is told from an odd one, and chance breaks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.settings import QualitySettings
from monitor.measure.calibration import Spread
from monitor.measure.profile import profile_column, read_values
from monitor.measure.quality import inspect, silence
from monitor.results import QualityIssue

RNG = np.random.default_rng(23)
KINDS = {"amount": "numeric", "currency": "categorical", "member": "boolean"}
BASELINE = {
    "amount": RNG.lognormal(3, 1, 2000),
    "currency": RNG.choice(["EUR", "GBP", "USD"], 2000, p=[0.6, 0.3, 0.1]),
    "member": RNG.choice([True, False], 2000),
}
PROFILES = [
    profile_column(name, "input", kind, read_values(kind, pd.Series(BASELINE[name])))  # type: ignore[arg-type]
    for name, kind in KINDS.items()
]


def window(n: int = 400, **changes: Any) -> dict[str, Any]:
    return {name: values[:n] for name, values in BASELINE.items()} | changes


def inspected(
    columns: Mapping[str, object],
    spreads: Mapping[str, Spread] | None = None,
    min_rows: int = 50,
) -> dict[tuple[str, str], QualityIssue]:
    values = {
        f"input:{name}": read_values(KINDS[name], pd.Series(column))  # type: ignore[arg-type]
        for name, column in columns.items()
    }
    rows = max((v.rows for v in values.values()), default=0)
    issues = inspect(
        PROFILES, spreads or {}, values, QualitySettings(), rows=rows, min_rows=min_rows
    )
    return {(issue.column, issue.kind): issue for issue in issues}


def with_missing(name: str, share: float, n: int = 400) -> list[object]:
    values: list[object] = list(BASELINE[name][:n])
    values[: round(share * n)] = [None] * round(share * n)
    return values


def test_a_healthy_window_has_no_issue() -> None:
    assert inspected(window()) == {}
    assert inspected({}) == {}


@pytest.mark.parametrize(("name", "values", "kind", "value"), [
    ("amount", with_missing("amount", 1.0), "missing", 1.0),
    ("amount", with_missing("amount", 0.35), "missing", 0.35),
    ("amount", [str(v) for v in BASELINE["amount"][:400]], "type", 1.0),
    ("amount", [float("inf")] * 400, "type", 1.0),
    ("amount", [0.0] * 400, "constant", 1.0),
    ("amount", BASELINE["amount"][:400] * 100, "range", None),
    ("currency", ["eur", "gbp"] * 200, "unseen", 1.0),
    ("currency", ["EUR"] * 400, "constant", 1.0),
    ("member", ["yes", "no"] * 200, "type", 1.0),
])  # fmt: skip
def test_what_breaks_the_feed(name: str, values: Any, kind: str, value: float | None) -> None:
    issue = inspected(window(**{name: values}))[name, kind]
    assert issue.broken
    assert name in issue.text
    assert issue.expected
    if value is not None:
        assert issue.value == pytest.approx(value)


def test_an_absent_column_breaks_the_feed() -> None:
    columns = window()
    del columns["currency"]
    issue = inspected(columns)["currency", "absent"]
    assert issue.broken
    assert issue.text == "currency is absent from all 400 rows"


@pytest.mark.parametrize(("name", "values", "kind"), [
    ("amount", with_missing("amount", 0.1), "missing"),
    ("amount", [*BASELINE["amount"][:398], "n/a", "n/a"], "type"),
    ("currency", [*BASELINE["currency"][:380], *["CHF"] * 20], "unseen"),
    ("amount", [*BASELINE["amount"][:380], *[1e7] * 20], "range"),
])  # fmt: skip
def test_milder_issues_are_notes(name: str, values: Any, kind: str) -> None:
    assert not inspected(window(**{name: values}))[name, kind].broken


def test_three_missing_of_ten_rows_break_nothing() -> None:
    issues = inspected(window(10, amount=with_missing("amount", 0.3, 10)), min_rows=1)
    assert not any(issue.broken for issue in issues.values())
    few = inspected(window(40, amount=with_missing("amount", 1.0, 40)))
    assert not few["amount", "missing"].broken  # 40 rows are fewer than min_rows


def test_texts_carry_the_numbers_and_an_example() -> None:
    issue = inspected(window(currency=["EUR"] * 200 + ["zł"] * 200))["currency", "unseen"]
    assert issue.text == (
        "currency holds categories the baseline never saw in 50 % of 400 rows, such as 'zł'"
    )
    missing = inspected(window(amount=with_missing("amount", 0.5)))["amount", "missing"]
    assert missing.text == "amount is missing in 50 % of 400 rows (baseline 0 %)"


def test_what_the_baselines_own_blocks_did_is_no_break() -> None:
    # A column that is null or constant for whole stretches of the baseline: 400 rows are few.
    bursts = Spread(1.0, 150.0, 100.0)
    burst = {"input:amount": bursts, "input:currency": bursts}
    columns = window(amount=with_missing("amount", 0.3), currency=["EUR"] * 400)
    issues = inspected(columns, burst)
    assert not any(issue.broken for issue in issues.values())


def test_chance_does_not_break_a_column_near_its_limit() -> None:
    broken = 0
    for _ in range(300):
        values = BASELINE["amount"][:200].astype(object)
        values[RNG.uniform(size=200) < 0.12] = None
        issues = inspected(window(200, amount=values))
        broken += any(issue.broken for issue in issues.values())
    assert broken == 0


AT = datetime(2010, 10, 9, tzinfo=UTC)
WEEK = timedelta(days=7)


def test_silence() -> None:
    assert silence(at=AT, newest=None, rows=0, after=WEEK) is None
    assert silence(at=AT, newest=AT - timedelta(days=6), rows=10, after=WEEK) is None
    note = silence(at=AT, newest=AT - timedelta(days=6), rows=0, after=WEEK)
    assert note is not None
    assert not note.broken
    page = silence(at=AT, newest=AT - timedelta(days=8), rows=10, after=WEEK)
    assert page is not None
    assert page.broken
    assert page.text == "no prediction for 8 d, the newest is of 2010-10-01T00:00:00Z"
