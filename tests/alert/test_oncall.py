"""What on-call lives through: signs, groups, silences, maintenance, mutes, escalation, one id."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from core import schema
from core.errors import InputError, NotFound
from core.ledger import Ledger
from core.settings import Settings, parse
from monitor.alert import incidents, routes, silences
from monitor.alert.causes import CAUSES
from monitor.alert.dispatch import firing
from monitor.alert.messages import MessageContext
from monitor.results import Crossed, Finding
from shelflife import oncall

T0 = datetime(2026, 1, 5, 12, tzinfo=UTC)  # a Monday
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
ALL = frozenset({"broken_feed", "decay", "drift"})
RECEIVERS = """
receivers:
  - {name: pager, url: "https://pager.example", severities: [page]}
  - {name: chat, url: "https://chat.example"}
  - {name: boss, url: "https://boss.example", severities: [page]}
"""
GROUPED = "alerts: {route: {receivers: [chat], group_by: [cause], group_wait: 30m}}"


class Desk:
    """A ledger and settings, driven by a clock that only this test moves."""

    def __init__(self, ledger: Ledger, text: str = "") -> None:
        self.ledger, self.settings = ledger, parse(RECEIVERS + text)

    def context(self, model: str = "churn") -> MessageContext:
        return oncall.context(self.settings, model, version="3")

    def check(self, hour: float, *found: Finding, model: str = "churn", **more: Any) -> list[Any]:
        with self.ledger.write() as tx:
            return incidents.apply(
                tx, self.ledger, context=self.context(model), version="3", findings=found,
                at=T0 + hour * HOUR, **({"checked": ALL} | more),
            )  # fmt: skip

    def turn(self, hour: float) -> dict[int, tuple[str, str]]:
        return oncall.turn(self.ledger, self.settings, now=T0 + hour * HOUR)

    def silence(self, hours: float, *match: str, at: float = 0) -> int:
        with self.ledger.write() as tx:
            return silences.add(
                tx, match=match, by="kim", reason="known", ends=T0 + (at + hours) * HOUR,
                at=T0 + at * HOUR,
            ).id  # fmt: skip

    def sent(self, receiver: str = "chat") -> list[str]:
        return [body["type"] for body in self.bodies(receiver)]

    def bodies(self, receiver: str = "chat") -> list[Any]:
        table = schema.outbox
        query = sa.select(table.c.body).where(table.c.receiver == receiver).order_by(table.c.id)
        with self.ledger.read() as tx:
            return [json.loads(raw) for raw in tx.scalars(query)]

    def one(self, number: int) -> incidents.Incident:
        with self.ledger.read() as tx:
            return incidents.get(tx, number)


@pytest.fixture
def desk(ledger: Ledger) -> Desk:
    return Desk(ledger)


@pytest.fixture
def grouped(ledger: Ledger) -> Desk:
    return Desk(ledger, GROUPED)


def finding(cause: str = "drift", severity: Any = "ticket", **more: Any) -> Finding:
    return Finding(cause=cause, severity=severity, title=f"{cause} 0.31 over 0.20", **more)


SIGN = Finding(cause="drift", severity="note", title="age, seen once")


def test_the_first_sign_has_the_id_that_stays_to_the_end(desk: Desk):
    (noticed,) = desk.check(0, signs=[SIGN])
    assert noticed.change == "noticed"
    assert desk.sent() == []
    assert desk.one(noticed.incident_id).state == "noticed"
    (opened,) = desk.check(1, finding())
    assert (opened.change, opened.incident_id) == ("opened", noticed.incident_id)
    desk.check(2)
    (resolved,) = desk.check(3)
    assert resolved.incident_id == noticed.incident_id
    assert {body["data"]["incident"] for body in desk.bodies()} == {noticed.incident_id}
    with desk.ledger.read() as tx:
        kinds = [event.kind for event in incidents.timeline(tx, noticed.incident_id)]
    assert kinds == ["noticed", "opened", "resolved"]


def test_a_sign_that_comes_to_nothing_leaves_nothing(desk: Desk):
    desk.check(0, signs=[SIGN])
    desk.check(1)
    assert [change.change for change in desk.check(2)] == []
    with desk.ledger.read() as tx:
        assert incidents.unresolved(tx) == []
        assert tx.scalar(sa.select(sa.func.count()).select_from(schema.incident_events)) == 0
    assert desk.sent() == []


def test_n_of_m_is_a_setting_by_cause(ledger: Ledger):
    desk = Desk(ledger, "alerts: {opens: {drift: 2/3}}")
    assert [c.change for c in desk.check(0, finding(), finding("decay", "page"))] == [
        "opened", "noticed",
    ]  # fmt: skip
    desk.check(1)
    assert "opened" in [c.change for c in desk.check(2, finding())]


def test_a_group_waits_speaks_once_and_names_everybody(grouped: Desk):
    for index in range(50):
        grouped.check(0.01, finding(columns=("c",) * 500), model=f"m{index}")
    assert grouped.sent() == []
    grouped.turn(0.4)
    assert grouped.sent() == []
    grouped.turn(0.6)
    (body,) = grouped.bodies()
    data = body["data"]
    assert (body["type"], data["incident_count"], data["status"]) == (
        "incident.group", 50, "firing",
    )  # fmt: skip
    assert len(data["incidents"]) >= 5
    assert "50 incidents: m0, m1" in data["message"]
    assert len(json.dumps(body).encode()) < 25_000
    assert grouped.turn(1) == {}


def test_what_comes_and_goes_while_its_group_waits_is_told_nobody(grouped: Desk):
    grouped.check(0, finding())
    grouped.check(0.1)
    grouped.check(0.2)
    grouped.turn(1)
    assert grouped.sent() == []


def test_a_group_ends_when_its_last_incident_does(grouped: Desk):
    for model in ("a", "b"):
        grouped.check(0, finding(), model=model)
    grouped.turn(1)
    for model, hour in (("a", 2), ("b", 10)):
        grouped.check(hour, model=model)
        grouped.check(hour + 1, model=model)
        grouped.turn(hour + 2)
    assert [body["data"]["status"] for body in grouped.bodies()] == [
        "firing", "firing", "resolved",
    ]  # fmt: skip
    assert len({body["data"]["dedup_key"] for body in grouped.bodies()}) == 1


def test_a_group_is_told_again_once_an_interval_all_of_it_together(grouped: Desk):
    for model in ("a", "b", "c"):
        grouped.check(0, finding(), model=model)
    for hour in range(1, 24 * 22):
        grouped.turn(hour)
    assert len(grouped.sent()) == 4  # the beginning, and after one, two and three weeks
    assert len(grouped.bodies()[-1]["data"]["incidents"]) == 3


def test_a_silence_holds_back_until_it_ends_if_the_trouble_lasts(desk: Desk):
    desk.silence(5, 'model="churn"', 'cause=~"dr.*"')
    (opened,) = desk.check(1, finding())
    assert desk.sent() == []
    assert desk.one(opened.incident_id).muted == "silence 1 by kim: known"
    assert desk.turn(4.9) == {}
    assert desk.turn(5)[opened.incident_id][0] == "opened"
    assert desk.sent() == ["model.drift.detected"]
    assert desk.one(opened.incident_id).muted == ""


def test_what_is_over_before_its_silence_is_never_told(desk: Desk):
    desk.silence(50, "model=churn")
    desk.check(1, finding())
    desk.check(2)
    desk.check(3)
    desk.turn(60)
    assert desk.sent() == []


def test_who_heard_of_it_before_the_silence_hears_of_the_end_during_it(desk: Desk):
    desk.check(0, finding())
    desk.silence(50, "model=churn", at=0.5)
    desk.check(1)
    desk.check(2)
    assert desk.sent() == ["model.drift.detected", "model.drift.resolved"]


def test_a_silence_made_while_a_group_waits_still_counts(grouped: Desk):
    grouped.check(0, finding())
    grouped.silence(5, "model=churn", at=0.2)
    grouped.turn(1)
    assert grouped.sent() == []
    grouped.turn(6)
    grouped.turn(7)
    assert grouped.sent() == ["model.drift.detected"]


def test_ended_early_a_silence_says_by_whom(desk: Desk):
    number = desk.silence(50, "model=churn")
    desk.check(1, finding())
    with desk.ledger.write() as tx:
        silences.end(tx, number, by="ann", at=T0 + 2 * HOUR)
        assert silences.end(tx, number, by="bob", at=T0 + 3 * HOUR).ended_by == "ann"
    desk.turn(3)
    assert desk.sent() == ["model.drift.detected"]
    assert [row.ended_by for row in oncall.silence_rows(desk.ledger, now=T0, every=True)] == ["ann"]


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"match": []}, "match"), ({"match": ["x"]}, "match"), ({"by": " "}, "by"),
        ({"reason": ""}, "reason"), ({"ends": T0}, "until"),
        ({"ends": T0 + timedelta(days=99)}, "until"),
    ],
)  # fmt: skip
def test_a_silence_has_a_name_a_reason_and_an_end(desk: Desk, changed: Any, field: str):
    good: dict[str, Any] = {"match": ["a=b"], "by": "k", "reason": "r", "ends": T0 + HOUR, "at": T0}
    with desk.ledger.write() as tx:
        with pytest.raises(InputError, match=field):
            silences.add(tx, **good | changed)
        with pytest.raises(NotFound):
            silences.end(tx, 99, by="k", at=T0)


def test_maintenance_is_quiet_and_tells_what_lasts_afterwards(ledger: Ledger):
    planned = '{reason: backups, days: [mon], start: "12:30", end: "14:00"}'
    desk = Desk(ledger, f"alerts: {{maintenance: [{planned}]}}")
    (opened,) = desk.check(1, finding())
    assert desk.one(opened.incident_id).muted == "maintenance: backups"
    desk.turn(1.9)
    assert desk.sent() == []
    desk.turn(2)
    assert desk.sent() == ["model.drift.detected"]


def test_a_broken_feed_mutes_the_drift_it_causes_and_what_goes_with_it_is_not_told(desk: Desk):
    desk.check(0, finding(), finding("broken_feed", "page"))
    assert desk.sent() == ["model.broken_feed.detected"]
    desk.check(1)
    desk.check(2)  # both are over
    assert desk.sent() == ["model.broken_feed.detected", "model.broken_feed.resolved"]


def test_drift_that_outlives_the_broken_feed_is_told_when_it_is_found_again(desk: Desk):
    for hour in range(3):
        desk.check(hour, finding(), finding("broken_feed", "page"))
    desk.check(3, checked=frozenset({"broken_feed"}))
    desk.check(4, checked=frozenset({"broken_feed"}))
    desk.turn(4.5)
    assert "model.drift.detected" not in desk.sent()
    desk.check(5, finding())
    assert desk.sent()[-1] == "model.drift.detected"


def test_a_page_that_nobody_takes_goes_up_once(ledger: Ledger):
    desk = Desk(
        ledger,
        "alerts: {route: {receivers: [pager, chat], escalate_after: 1h, escalate_to: [boss]}}",
    )
    desk.check(0, finding("decay", "page"), finding("drift"))
    desk.turn(0.9)
    assert desk.sent("boss") == []
    for hour in (1, 2, 30):
        desk.turn(hour)
    assert desk.sent("boss") == ["incident.escalated"]
    assert "nobody has acknowledged" in desk.bodies("boss")[0]["data"]["message"]
    desk.check(40, checked=frozenset({"decay"}))
    desk.check(41, checked=frozenset({"decay"}))
    assert desk.sent("boss") == ["incident.escalated", "model.decay.resolved"]


def test_an_acknowledgement_stops_the_escalation_and_says_who_and_why(ledger: Ledger):
    desk = Desk(ledger, "alerts: {route: {escalate_after: 1h, escalate_to: [boss]}}")
    (opened,) = desk.check(0, finding("decay", "page"))
    before = len(desk.sent("boss"))
    oncall.acknowledge(ledger, opened.incident_id, by="kim", at=T0, reason="on it")
    desk.turn(9)
    assert len(desk.sent("boss")) == before
    events = oncall.detail(ledger, opened.incident_id)["events"]
    assert events[-1]["text"] == "acknowledged by kim: on it"


def test_what_follows_from_an_open_incident_goes_on_under_its_id(desk: Desk):
    (opened,) = desk.check(0, finding("decay"))
    failed = finding("promotion_failed", "page", text="the worker refused it")
    rollback = finding("rollback", "page", text="it disappointed")
    with desk.ledger.write() as tx:
        for hour, chapter in ((1, failed), (2, rollback)):
            number = incidents.open_incident(
                tx, desk.ledger, context=desk.context(), version="3", finding=chapter,
                at=T0 + hour * HOUR, of=opened.incident_id,
            )  # fmt: skip
            assert number == opened.incident_id
    assert desk.one(opened.incident_id).severity == "page"
    assert desk.sent() == [
        "model.decay.detected", "model.promotion_failed", "model.rolled_back",
    ]  # fmt: skip
    assert desk.sent("pager") == ["model.promotion_failed", "model.rolled_back"]
    desk.check(3)
    desk.check(4)
    with desk.ledger.write() as tx:  # after the end it is a new one, of the same story
        number = incidents.open_incident(
            tx, desk.ledger, context=desk.context(), version="3", finding=rollback,
            at=T0 + 9 * HOUR, of=opened.incident_id,
        )  # fmt: skip
    assert number != opened.incident_id
    assert desk.one(number).story == opened.incident_id
    assert desk.bodies()[-1]["data"]["story"] == opened.incident_id


def test_a_message_says_everything_on_call_needs(ledger: Ledger):
    desk = Desk(
        ledger, "environment: production\nmodels: {churn: {owner: crm, labels: {team: growth}}}"
    )
    crossed = Crossed(what="brier", value=0.213, low=0.205, high=0.221, line=0.19, n=1312)
    context = oncall.context(
        desk.settings, "churn", version="3", mlflow_url="http://m/#/models/churn/versions/3",
        command="shelflife check churn --at 2026-01-05T12:00:00Z",
    )  # fmt: skip
    with ledger.write() as tx:
        incidents.apply(
            tx, ledger, context=context, version="3", at=T0, checked=ALL,
            findings=[finding("decay", "page", crossed=(crossed,), since=T0)],
        )  # fmt: skip
    data = desk.bodies("pager")[0]["data"]
    assert (data["model"], data["version"], data["owner"]) == ("churn", "3", "crm")
    assert data["crossed"] == [
        {"what": "brier", "value": 0.213, "low": 0.205, "high": 0.221, "line": 0.19, "n": 1312,
         "over": pytest.approx(0.023)}
    ]  # fmt: skip
    assert "0.023 (12 %) over the line" in data["message"]
    assert data["labels"] == {
        "team": "growth", "model": "churn", "cause": "decay", "severity": "page", "owner": "crm",
        "environment": "production",
    }  # fmt: skip
    assert data["links"] == {
        "dashboard": "http://127.0.0.1:8501/incidents?id=1",
        "mlflow": "http://m/#/models/churn/versions/3",
        "runbook": "http://127.0.0.1:8080/runbooks/decay",
        "silence": "http://127.0.0.1:8501/incidents?id=1&silence=4h",
    }
    for words in ("since", "crm", "silence 4 h", "shelflife check churn", "shelflife retrain"):
        assert words in data["message"]


def test_own_words_replace_ours_and_empty_lines_go(ledger: Ledger, tmp_path: Path):
    (tmp_path / "end.txt").write_text("$model is fine")
    desk = Desk(
        ledger,
        'alerts: {templates: {drift: "$symbol $model v$version: $title\\n$cost\\nask $owner", '
        f"resolved: 'file:{tmp_path}/end.txt'}}}}\nmodels: {{churn: {{owner: crm}}}}",
    )
    oncall.check_settings(desk.settings)
    desk.check(0, finding())
    desk.check(1)
    desk.check(2)
    texts = [body["data"]["message"] for body in desk.bodies()]
    assert texts == ["◐ churn v3: drift 0.31 over 0.20\nask crm", "churn is fine"]


def test_a_slow_flap_is_held_longer_every_time(desk: Desk):
    for cycle in range(60):  # found once, clear five times: over before it comes back
        desk.check(6 * cycle, finding())
        for hour in range(1, 6):
            desk.check(6 * cycle + hour)
    assert [body["data"]["event"] for body in desk.bodies()].count("opened") == 3


def test_alertmanager_is_told_anew_what_is_not_over(desk: Desk):
    desk.check(0, finding())
    desk.check(0, finding("decay", "page"), model="eta")
    with desk.ledger.read() as tx:
        assert len(firing(tx, "chat")) == 2
        assert len(firing(tx, "pager")) == 1
    desk.silence(5, "model=churn", at=1)
    desk.turn(1.1)
    with desk.ledger.read() as tx:
        assert len(firing(tx, "chat")) == 1


def test_only_what_failed_for_good_is_sent_again(grouped: Desk):
    for model in ("a", "b"):
        grouped.check(0, finding(), model=model)
    grouped.turn(1)
    with grouped.ledger.write() as tx:
        tx.execute(schema.outbox.update().values(state="failed", attempts=10))
    assert oncall.replay(grouped.ledger, 2, receiver="pager") == 0
    assert oncall.replay(grouped.ledger, 2) == 1  # it was told in the message about both
    assert oncall.replay(grouped.ledger, 2) == 0
    with pytest.raises(NotFound):
        oncall.replay(grouped.ledger, 99)


def test_every_cause_has_its_runbook_and_every_runbook_its_cause():
    folder = Path(__file__).resolve().parents[2] / "docs" / "runbooks"
    assert {page.stem for page in folder.glob("*.md")} - {"README"} == set(CAUSES)
    for name, known in CAUSES.items():
        text = oncall.runbook(name)
        assert f"**{known.severity}**" in text, name
        for heading in ("## What it means", "## Look first", "## What to do", "## When it ends"):
            assert heading in text, (name, heading)
    with pytest.raises(NotFound):
        oncall.runbook("../oncall")


def test_the_default_settings_route_everything_alone():
    (target,) = routes.targets(Settings().alerts.route, {"model": "a"})
    assert target.alone
    oncall.check_settings(Settings())


def test_it_all_holds_on_postgresql_too(any_ledger: Ledger):
    desk = Desk(any_ledger, GROUPED)
    desk.silence(1.2, 'model="c"')
    for model in ("a", "b", "c"):
        desk.check(0, finding(), model=model, signs=[SIGN])
    for hour in (1, 2, 3):
        desk.turn(hour)
    assert [len(body["data"]["incidents"]) for body in desk.bodies()] == [2, 3]
    for hour in (4, 5):
        for model in ("a", "b", "c"):
            desk.check(hour, model=model)
    desk.turn(6)
    assert desk.bodies()[-1]["data"]["status"] == "resolved"
    with any_ledger.read() as tx:
        assert incidents.unresolved(tx) == []
