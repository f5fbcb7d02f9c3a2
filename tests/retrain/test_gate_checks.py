"""Guardrails, segments, training, latency, and the gate's four paths."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from core.errors import GateRefused
from core.settings import GateSettings, Guardrail
from core.spec import Feature, ModelSpec
from retrain.gate import GateResult, compare, first_model, forced
from retrain.gate_data import TrainingFacts, swapped_columns
from retrain.segments import judge, split

SPEC = ModelSpec(
    name="m",
    task="binary",
    target="t",
    features=(
        Feature(name="x", kind="numeric", nullable=True),
        Feature(name="w", kind="numeric"),
        Feature(name="c", kind="categorical", nullable=True),
    ),
    metric="brier",
    classes=(0, 1),
)
T0 = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FACTS = TrainingFacts(
    trained_until=T0 + DAY,
    champion_until=T0,
    rows=900,
    champion_rows=1000,
    latency_ms=1.0,
    champion_latency_ms=1.0,
)


def answers(p: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"probability": p})


def world(n: int = 1200, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.95, n)
    inputs = pd.DataFrame(
        {"x": rng.normal(size=n), "w": rng.normal(5, 1, n), "c": rng.choice(["a", "b", "d"], n)}
    )
    return inputs, p, (rng.random(n) < p).astype(float)


def run(**changes: Any) -> GateResult:
    inputs, p, y = world()
    given: dict[str, Any] = {
        "settings": GateSettings(min_rows=100),
        "reproduces": True,
        "inputs": inputs,
        "facts": FACTS,
    }
    champion = changes.pop("champion", np.sqrt(p))
    candidate = changes.pop("candidate", p)
    return compare(SPEC, y, answers(champion), answers(candidate), **(given | changes))


def failed(result: GateResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def test_a_sound_candidate_passes_every_check() -> None:
    result = run()
    assert result.passed, result.reason
    assert {"newer_data", "train_rows", "columns", "latency"} <= {c.name for c in result.checks}
    assert (result.path, result.rule) == ("compared", "ahead")
    assert result.newest_z is not None
    assert result.newest_z > 0.67


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"trained_until": T0}, "newer_data", "no newer than the champion's"),
        ({"trained_until": None}, "newer_data", "nobody wrote down"),
        ({"rows": 199}, "train_rows", "trained on 199 rows, the champion on 1,000: less than 20%"),
        ({"rows": None}, "train_rows", "nobody counted"),
        ({"swapped": (("x", "w"),)}, "columns", "columns look swapped.*x and w"),
        ({"latency_ms": 3.1}, "latency", "3.10 ms against the champion's 1.00 ms: more than 3.00"),
        ({"latency_ms": None}, "latency", "was not measured"),
        ({"latency_ms": float("nan")}, "latency", "was not measured"),
    ],
)
def test_training_that_looks_wrong_is_refused(
    changes: dict[str, Any], name: str, text: str
) -> None:
    result = run(facts=msgspec.structs.replace(FACTS, **changes))
    assert failed(result) == [name]
    assert not result.passed
    import re

    assert re.search(text, result.reason), result.reason


def test_lines_that_are_just_met() -> None:
    facts = msgspec.structs.replace(FACTS, rows=200, latency_ms=3.0)
    assert run(facts=facts).passed
    won = msgspec.structs.replace(FACTS, rows=50, window_won=True)
    assert run(facts=won).passed
    budget = GateSettings(min_rows=100, latency_budget_ms=0.9)
    assert failed(run(settings=budget)) == ["latency"]
    alone = msgspec.structs.replace(FACTS, champion_latency_ms=None, latency_ms=50.0)
    assert run(facts=alone).passed  # nothing to compare with, and no budget
    unknown = msgspec.structs.replace(FACTS, champion_until=None, champion_rows=None)
    assert run(facts=unknown).passed


def test_a_guardrail_metric_may_not_get_worse() -> None:
    _, p, y = world()
    # Better Brier, but one sure and wrong answer in fifty costs the log loss.
    sure = p.copy()
    wrong = np.arange(0, len(p), 50)
    sure[wrong] = np.where(y[wrong] == 1, 1e-9, 1 - 1e-9)
    champion = np.full_like(p, 0.5) + 0.01 * (p - 0.5)
    rules = GateSettings(min_rows=100, guardrails=(Guardrail(metric="log_loss", max_worse=0.02),))
    result = run(champion=champion, candidate=sure, settings=rules)
    assert failed(result) == ["guardrail:log_loss"]
    check = next(c for c in result.checks if c.name == "guardrail:log_loss")
    losses = [-np.log(np.where(y == 1, q, 1 - q)).mean() for q in (champion, sure)]
    assert check.limit == pytest.approx(1.02 * losses[0])
    assert check.value == pytest.approx(losses[1])
    wrong_task = GateSettings(min_rows=100, guardrails=(Guardrail(metric="mae"),))
    assert "does not exist for a binary model" in run(settings=wrong_task).reason


def test_a_protected_segment_that_is_clearly_worse_refuses() -> None:
    inputs, p, _y = world()
    spoiled = np.where(inputs["c"] == "d", 1 - p, p)
    champion = np.where(inputs["c"] == "d", p, 0.5 + 0.01 * (p - 0.5))
    rules = GateSettings(min_rows=100, segments=("c",))
    result = run(champion=champion, candidate=spoiled, settings=rules)
    assert "segments" in failed(result)
    assert result.segments[0].name == "c = d"
    assert result.segments[0].clearly_worse
    assert "clearly worse on c = d" in result.reason
    fine = run(settings=rules)
    assert fine.passed
    assert [part.judged for part in fine.segments] == [True] * 3


def test_segments_that_cannot_be_measured_refuse() -> None:
    rules = GateSettings(min_rows=100, segments=("nothere",))
    assert "no input nothere" in run(settings=rules).reason
    assert not run(settings=GateSettings(min_rows=100, segments=("c",)), inputs=None).passed
    big = GateSettings(min_rows=100, segments=("c",), segment_rows=1000)
    assert "no protected segment has 1,000 rows" in run(settings=big).reason


def test_many_segments_are_not_refused_by_chance() -> None:
    rng, refused = np.random.default_rng(3), 0
    for _ in range(150):
        parts = {str(i): np.arange(2000) % 20 == i for i in range(20)}
        found = judge(parts, rng.normal(size=2000), min_rows=50, confidence=0.9)
        refused += any(part.clearly_worse for part in found)
    assert refused < 28  # 10 % of 150, plus three standard errors


def test_numbers_are_split_into_quarters_and_missing() -> None:
    inputs = pd.DataFrame({"x": [*range(100), np.nan, np.nan], "w": 1.0, "c": ["a", None] * 51})
    names = dict(split(SPEC, inputs, ["x", "c", "w"]))
    assert [int(rows.sum()) for rows in names.values()] == [2, 25, 25, 25, 25, 51, 51, 102]
    assert list(names)[:2] == ["x = missing", "x < 24.75"]
    assert list(names)[-3:] == ["c = missing", "c = a", "w = 1.0"]


def test_swapped_columns_are_seen_and_drift_is_not() -> None:
    rng = np.random.default_rng(4)
    train = pd.DataFrame({"x": rng.normal(0, 1, 500), "w": rng.normal(5, 1, 500), "c": "a"})
    held = pd.DataFrame({"x": rng.normal(0, 1, 300), "w": rng.normal(5, 1, 300), "c": "a"})
    assert swapped_columns(SPEC, train, held) == ()
    mixed = train.rename(columns={"x": "w", "w": "x"})
    assert swapped_columns(SPEC, mixed, held) == (("x", "w"),)
    assert swapped_columns(SPEC, train.assign(x=train["x"] + 3, w=train["w"] - 9), held) == ()
    assert swapped_columns(SPEC, train.head(20), held) == ()


def test_a_champion_that_cannot_be_evaluated_asks_a_person() -> None:
    _, p, y = world()
    broken = np.full_like(p, np.nan)
    trivial = np.array([y.mean()])
    asked = run(champion=broken, trivial=trivial)
    assert (asked.path, asked.asks, asked.passed) == ("no_champion", True, False)
    assert "the champion cannot be evaluated" in asked.reason
    assert "against 0.2" in asked.reason
    assert "a person has to decide" in asked.reason
    rules = GateSettings(min_rows=100, champion_unavailable="baseline")
    assert run(champion=broken, trivial=trivial, settings=rules).passed
    worse = run(champion=broken, candidate=1 - p, trivial=trivial, settings=rules)
    assert (worse.passed, worse.asks) == (False, False)
    nothing = run(champion=broken)
    assert (nothing.passed, nothing.path) == (False, "compared")


def test_the_first_model_has_to_beat_the_mean() -> None:
    _, p, y = world()
    rules, trivial = GateSettings(min_rows=100), np.array([y.mean()])
    good = first_model(SPEC, y, answers(p), trivial=trivial, settings=rules, reproduces=True)
    assert (good.passed, good.path) == (True, "first")
    assert good.reason.startswith("first model, Brier 0.1")
    bad = first_model(SPEC, y, answers(1 - p), trivial=trivial, settings=rules, reproduces=True)
    assert not bad.passed
    constant = first_model(
        SPEC, y, answers(np.full_like(p, 0.4)), trivial=trivial, settings=rules, reproduces=True
    )
    assert "same output for every row" in constant.reason


def test_forcing_names_who_and_why_and_keeps_the_checks() -> None:
    _, p, _y = world()
    refused = run(candidate=1 - p)
    result = forced(refused, by="ana", why="the old one is illegal from May")
    assert (result.passed, result.path, result.by) == (True, "forced", "ana")
    assert result.checks == refused.checks
    assert result.reason.startswith("forced by ana: the old one is illegal from May (the gate said")
    for who, why in (("", "because"), ("ana", "  ")):
        with pytest.raises(GateRefused, match="who forces it and why"):
            forced(refused, by=who, why=why)
    assert "the gate was not asked" in forced(None, by="ana", why="no labels yet").reason


def test_results_of_before_still_read() -> None:
    old = (
        b'{"passed":true,"reason":"r","metric":"brier","champion":0.2,"candidate":0.1,"gain":0.1,'
        b'"low":0.05,"high":0.15,"n":300,"confidence":0.9,"checks":[]}'
    )
    found = msgspec.json.decode(old, type=GateResult)
    assert (found.path, found.rule, found.newest_z) == ("compared", "superior", None)
    assert msgspec.json.decode(msgspec.json.encode(run()), type=GateResult) == run()
