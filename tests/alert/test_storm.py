"""`benchmarks/storm.py`, short: everything drifts at once, and nobody drowns."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "storm.py"


@pytest.fixture(scope="module")
def storm() -> Any:
    spec = importlib.util.spec_from_file_location("storm", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("route", ["alone", "all in one"])
def test_few_messages_each_with_a_reason(storm: Any, route: str):
    found = storm.simulate(storm.ROUTES[route], models=8, days=16, every=timedelta(hours=8))
    assert found["most pages of an incident"] == 1
    assert found["messages within an interval"] == 0
    assert found["repeats within an interval"] == 0
    assert found["opened and resolved"]["flap"] == (1, 1)
    assert found["all arrived, in order, once"]
    assert found["attempts"]["chat"] > found["messages"]["chat"]  # it was down for a day
    assert found["on the day of the storm"] <= (12 if route == "alone" else 2)
