from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import words

NOON = datetime(2026, 10, 12, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.2134, "0.213"),
        (4.1, "4.10"),
        (0.19, "0.190"),
        (131, "131"),
        (1312.4, "1,310"),
        (98_765, "98,800"),
        (0, "0.00"),
        (-0.0042, "-0.00420"),
        (1e-9, "1.00e-09"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_have_three_significant_digits(value: float | None, said: str) -> None:
    assert words.number(value) == said


@given(st.floats(min_value=1e-4, max_value=9e6))
def test_a_number_is_within_half_a_percent_of_what_it_says(value: float) -> None:
    assert float(words.number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(seconds=40.7), "40 s"),
        (timedelta(minutes=3, seconds=50), "3 min"),
        (timedelta(hours=5, minutes=59), "5 h"),
        (timedelta(days=41, hours=3), "41 d"),
        (timedelta(0), "0 s"),
        (None, "–"),
    ],
)
def test_ages_are_whole_units(span: timedelta | None, said: str) -> None:
    assert words.age(span) == said


def test_ago_never_speaks_of_the_future() -> None:
    assert words.ago(NOON + timedelta(minutes=1), NOON) == "just now"
    assert words.ago(NOON - timedelta(minutes=3), NOON) == "3 min ago"
    assert words.ago(None, NOON) == "never"


def test_clock_has_utc_and_the_readers_own_time() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert words.clock(NOON, berlin, NOON) == "12:00 UTC (14:00 your time)"
    assert words.clock(NOON, ZoneInfo("UTC"), NOON) == "12:00 UTC"
    assert words.clock(NOON, None, NOON + timedelta(days=3)) == "12 Oct, 12:00 UTC"
    assert words.clock(NOON) == "12 Oct 2026, 12:00 UTC"


def test_every_state_has_its_own_shape_word_and_colour() -> None:
    for part in ("shape", "word"):
        seen = [getattr(look, part) for look in words.STATES.values()]
        assert len(set(seen)) == len(seen)
    loud = {name for name, look in words.STATES.items() if look.colour in ("orange", "red")}
    assert loud == {"decaying", "broken_feed"}


def test_a_state_of_a_newer_version_shows_its_name() -> None:
    assert words.look("half_asleep").label == "? half asleep"


@given(st.text(max_size=400))
def test_plain_text_has_no_markup_left(text: str) -> None:
    said = words.plain(text)
    assert "\n" not in said
    # Every character Markdown, HTML, a colour or a formula could begin with is escaped.
    for index, character in enumerate(said):
        if character in "`*_[]<>#|~$:&!":
            before = said[:index]
            assert (len(before) - len(before.rstrip("\\"))) % 2 == 1


def test_direction_marks_and_control_characters_are_dropped() -> None:
    assert words.clean("a\u202eb\x00c\r\nd") == "abc d"
    assert len(words.clean("x" * 5000)) == 300
