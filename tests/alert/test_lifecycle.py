"""The state machine of an incident, alone: no ledger, no clock, no message."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.alert.lifecycle import (
    RANK,
    Life,
    Rules,
    Step,
    acknowledge,
    escalates,
    needed_clears,
    observe,
    resolve,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SIGNALS = {"f": "found", "s": "sign", "h": "held", "c": "clear"}


def walk(
    signals: str, rules: Rules = Rules(), **more: Any
) -> tuple[Life | None, list[Step | None]]:
    """Checks an hour apart; what ended is taken away, its rises remembered as the shell does."""
    life: Life | None = None
    steps, relapses = [], 0
    for hour, letter in enumerate(signals):
        life, step = observe(
            life, SIGNALS[letter], at=T0 + hour * HOUR, rules=rules, relapses=relapses,
            severity="page" if letter == "f" else "note", **more,
        )  # fmt: skip
        steps.append(step)
        if step in ("resolved", "forgotten") and life is not None:
            relapses = life.relapses + life.history.count("01") + life.history.startswith("1")
            life = None
    return life, steps


@pytest.mark.parametrize(
    ("opens", "signals", "last"),
    [
        ((1, 1), "f", "opened"),
        ((2, 3), "f", "noticed"),
        ((2, 3), "fcf", "opened"),
        ((2, 3), "fccf", "held"),
        ((2, 3), "ff", "opened"),
        ((3, 5), "fcfcf", "opened"),
        ((3, 5), "fccfcf", "held"),
    ],
)
def test_it_takes_n_of_m_to_open(opens: tuple[int, int], signals: str, last: str):
    assert walk(signals, Rules(opens=opens))[1][-1] == last


def test_a_sign_is_noticed_and_opens_under_the_same_life_or_is_forgotten():
    assert walk("sf")[1] == ["noticed", "opened"]
    assert walk("ssf")[1] == ["noticed", "held", "opened"]
    assert walk("scc")[1] == ["noticed", "clearing", "forgotten"]
    assert walk("c")[1] == [None]
    assert walk("h")[1] == [None]


def test_between_the_two_lines_nothing_resolves():
    assert walk("f" + "ch" * 20)[1].count("resolved") == 0
    assert walk("fchcc")[1][-1] == "resolved"


def test_what_flaps_is_one_incident_whatever_its_rhythm():
    for up, down in ((1, 1), (3, 1), (1, 3), (1, 5), (2, 7)):
        steps = walk((("f" * up) + ("c" * down)) * 40 + "c" * 60)[1]
        opened = steps.count("opened")
        assert opened == steps.count("resolved")
        # A slow flap ends a few times before the machine knows it for one.
        assert opened <= 1 + (down - 1) // 2, (up, down, opened)
    assert walk("fc" * 40 + "c" * 60)[1].count("opened") == 1


def test_relapses_raise_the_price_of_the_end_up_to_memory():
    life = Life(state="open", severity="page", updated=T0, history="1", relapses=3)
    assert needed_clears(life, Rules(clears=2)) == 8
    many = Life(state="open", severity="page", updated=T0, history="1", relapses=90)
    assert needed_clears(many, Rules(clears=2, memory=24)) == 24


def test_a_graver_find_reopens_what_was_acknowledged():
    life, _ = observe(None, "found", at=T0, rules=Rules(), severity="ticket")
    assert life is not None
    life = acknowledge(life)
    same, step = observe(life, "found", at=T0 + HOUR, rules=Rules(), severity="ticket")
    assert (step, same and same.state) == ("updated", "acknowledged")
    worse, step = observe(same, "found", at=T0 + 2 * HOUR, rules=Rules(), severity="page")
    assert (step, worse and worse.state, worse and worse.severity) == ("worse", "open", "page")


def test_only_a_page_that_nobody_took_goes_up_and_only_once():
    one: dict[str, Any] = {
        "state": "open", "severity": "page", "told": T0, "escalated": None, "at": T0 + HOUR,
        "after": HOUR,
    }  # fmt: skip
    assert escalates(**one)
    for changed in (
        {"state": "acknowledged"}, {"severity": "ticket"}, {"told": None}, {"escalated": T0},
        {"after": None}, {"at": T0 + HOUR / 2},
    ):  # fmt: skip
        assert not escalates(**one | changed)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["found", "sign", "held", "clear"]),
            st.sampled_from(["ticket", "page"]),
            st.integers(-2, 5),
            st.sampled_from(["", "", "", "acknowledge", "resolve"]),
        ),
        max_size=60,
    ),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 4),
)
def test_any_life_keeps_its_promises(steps: list[Any], n: int, extra: int, clears: int):
    rules = Rules(opens=(n, n + extra), clears=clears)
    life: Life | None = None
    at, told = T0, []
    for signal, severity, hours, person in steps:
        at += hours * HOUR
        before = life
        life, step = observe(life, signal, at=at, rules=rules, severity=severity)
        if before is not None and at <= before.updated:
            assert (life, step) == (before, None)  # old news changes nothing
            continue
        if step in ("opened", "worse", "resolved"):
            told.append(step)
        if before is not None and life is not None:
            assert RANK[life.severity] >= RANK[before.severity] or before.state == "noticed"
        if step == "opened":
            assert life is not None
            assert life.history[-rules.opens[1] :].count("1") >= n
        if step == "resolved":
            assert life is not None
            assert life.clear >= clears
        if step in ("resolved", "forgotten"):
            life = None
        if person == "acknowledge" and life is not None:
            life = acknowledge(life)
        elif person == "resolve" and life is not None and life.state != "noticed":
            assert resolve(life).state == "resolved"
            told.append("resolved")
            life = None
    alternating = [step for step in told if step != "worse"]
    assert all(a != b for a, b in itertools.pairwise(alternating))
    assert not alternating or alternating[0] == "opened"  # resolved after opened, never before
