"""Matchers, routes, maintenance, inhibition: pure functions of labels and a moment."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError, SettingsError
from core.settings import AlertSettings, MaintenanceSettings, MuteSettings, RouteSettings, parse
from monitor.alert import matchers, quiet, routes, templates
from monitor.alert.quiet import Trouble

T0 = datetime(2026, 3, 27, 12, tzinfo=UTC)  # a Friday
PAGE = {"model": "churn", "cause": "decay", "severity": "page", "owner": "crm"}
TICKET = {"model": "churn", "cause": "drift", "severity": "ticket", "owner": "crm"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('severity="page"', True),
        ("severity=page", True),
        ('severity!="page"', False),
        ('owner=~"crm|sales"', True),
        ('owner=~"cr"', False),  # the whole value
        ('owner!~"c.*"', False),
        ('team=""', True),  # not there is empty
        ('team!=""', False),
        (' cause =~ "[a-d]ecay" ', True),
    ],
)
def test_matchers_read_as_in_prometheus(text: str, holds: bool):
    assert matchers.parse(text).holds(PAGE) is holds


@pytest.mark.parametrize(
    "text", ["", "severity", '="x"', "a b=c", 'a=~"("', 'a=~"(a+)+$"', 'a=~"(x)\\1"', "a=~.*.*.*.*"]
)
def test_what_is_no_matcher_or_could_run_away_is_refused(text: str):
    with pytest.raises(InputError, match="expected"):
        matchers.parse(text)


@given(st.text(max_size=40), st.sampled_from(["=", "!="]))
def test_a_matcher_is_written_as_it_is_read(value: str, operator: Any):
    one = matchers.Matcher("name", operator, value)
    if len(str(one)) <= 256 and "\n" not in value:
        assert matchers.parse(str(one)) == one


def test_the_worst_pattern_that_is_allowed_is_quick():
    started = time.process_time()
    assert not matchers.parse('a=~".*a.*b.*c"').holds({"a": "ab" * 200})
    assert time.process_time() - started < 5  # no timing claim: it comes back at all


def route(text: str) -> RouteSettings:
    return parse(f"alerts:\n  route: {text}").alerts.route


TREE = route(
    """{receivers: [chat], group_by: [owner], group_interval: 5m, routes: [
      {match: ['severity="page"'], receivers: [pager], group_wait: 30s, continue: true,
       routes: [{match: ['owner="sales"'], receivers: [sales]}]},
      {match: ['cause="decay"'], receivers: [books], repeat_interval: 1d},
      {match: ['cause=~"d.*"'], receivers: [never-after-books]}]}"""
)


def names(found: list[routes.Target]) -> list[tuple[str, ...] | None]:
    return [target.receivers for target in found]


def test_the_first_child_that_matches_takes_it_and_continue_goes_on():
    assert names(routes.targets(TREE, PAGE)) == [("pager",), ("books",)]
    assert names(routes.targets(TREE, PAGE | {"owner": "sales"})) == [("sales",), ("books",)]
    assert names(routes.targets(TREE, TICKET)) == [("never-after-books",)]
    assert names(routes.targets(TREE, {"cause": "stale"})) == [("chat",)]


def test_children_inherit_and_groups_follow_labels_alone():
    pager, books = routes.targets(TREE, PAGE)
    assert (pager.wait, pager.interval) == (timedelta(seconds=30), timedelta(minutes=5))
    assert books.repeat == timedelta(days=1)
    assert pager.group(PAGE) == {"owner": "crm"}
    assert pager.key("pager", PAGE) == pager.key("pager", PAGE | {"cause": "no_data"})
    assert pager.key("pager", PAGE) != pager.key("pager", PAGE | {"owner": "sales"})
    assert not pager.alone
    (root,) = routes.targets(RouteSettings(), PAGE)
    assert root.alone
    assert root.receivers is None


def test_a_root_that_does_not_match_tells_nobody():
    assert routes.targets(route("{match: ['severity=\"page\"']}"), TICKET) == []


def test_a_group_waits_first_and_keeps_its_distance_afterwards():
    (pager, _) = routes.targets(TREE, PAGE)
    wait, interval = pager.wait, pager.interval
    assert routes.due(pager, at=T0, last=None) == T0 + wait
    assert routes.due(pager, at=T0, last=T0 - timedelta(minutes=1)) == T0 + timedelta(minutes=4)
    assert routes.due(pager, at=T0, last=T0 - interval) == T0
    assert routes.due(pager, at=T0, last=T0 - timedelta(hours=1)) == T0 + wait


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("{route: {match: [nonsense]}}", r"alerts.route.match"),
        ("{route: {routes: [{receivers: [ghost]}]}}", r"alerts.route.routes\[0\].receivers"),
        ("{route: {escalate_to: [ghost]}}", "escalate_to"),
        ("{mutes: [{source: [x], target: []}]}", r"mutes\[0\].source"),
    ],
)
def test_settings_that_could_not_work_are_refused_by_name(settings: str, key: str):
    with pytest.raises(SettingsError, match=key):
        routes.check(parse(f"alerts: {settings}").alerts, ["chat"])


def test_continue_is_spelled_as_in_alertmanager():
    with pytest.raises(SettingsError, match="go_on"):
        route("{go_on: true}")
    assert route("{continue: true}").go_on


@pytest.mark.parametrize(
    ("planned", "moment", "covered"),
    [
        ({"days": ("fri",), "start": "11:00", "end": "13:00"}, T0, True),
        ({"days": ("sat",), "start": "11:00", "end": "13:00"}, T0, False),
        ({"start": "12:00", "end": "12:00"}, T0, True),  # a whole day
        ({"days": ("thu",), "start": "22:00", "end": "13:00"}, T0, True),  # since yesterday
        ({"days": ("fri",), "start": "22:00", "end": "13:00"}, T0, False),
        ({"match": ('model="eta"',)}, T0, False),
        ({"since": "2026-03-27T13:00Z"}, T0, False),
        ({"until": "2026-03-27T12:00Z"}, T0, False),
        ({"since": "2026-03-27T00:00Z", "until": "2026-03-28T00:00Z"}, T0, True),
        ({"start": "13:00", "end": "14:00", "timezone": "Europe/Berlin"}, T0, True),
        # Two days later Berlin has summer time: 12:00 UTC is 14:00 there.
        (
            {"start": "13:00", "end": "14:00", "timezone": "Europe/Berlin"},
            T0 + timedelta(days=2),
            False,
        ),
    ],
)
def test_maintenance_keeps_local_hours(planned: dict[str, Any], moment: datetime, covered: bool):
    assert quiet.covers(MaintenanceSettings(reason="x", **planned), PAGE, moment) is covered


def why(labels: dict[str, str], *others: Trouble, **settings: Any) -> str:
    found = quiet.why(
        labels, incident=7, at=T0, settings=AlertSettings(**settings), silences=(), others=others
    )
    return found.text if found else ""


def test_a_graver_trouble_of_the_same_model_comes_first():
    broken = Trouble(id=3, labels=PAGE | {"cause": "broken_feed"})
    down = Trouble(id=4, labels=PAGE | {"cause": "serving_down"})
    assert why(TICKET, broken) == "incident 3 (broken_feed) comes first"
    assert why(PAGE, broken)  # decay
    assert why(TICKET, down)
    assert why(PAGE | {"cause": "no_data"}, down)
    assert not why(broken.labels, down)
    assert not why(TICKET | {"model": "eta"}, broken)
    assert not why(down.labels, broken)
    own = MuteSettings(source=('cause="broken_feed"',), target=('cause="stale"',), equal=("owner",))
    assert why({"model": "eta", "cause": "stale", "owner": "crm"}, broken, mutes=(own,))


def test_templates_are_checked_before_they_are_needed():
    templates.check({"finding": "$model: $title", "decay": "$$ $headline"})
    for bad in ({"finding": "$modle"}, {"dekay": "x"}, {"step": "${"}, {"group": "file:/nowhere"}):
        with pytest.raises(SettingsError):
            templates.check(bad)


def test_the_settings_survive_a_round_trip():
    raw = msgspec.json.encode(AlertSettings(route=TREE))
    assert msgspec.json.decode(raw, type=AlertSettings).route == TREE
