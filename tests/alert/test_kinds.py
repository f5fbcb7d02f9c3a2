"""What each product is sent: Slack, PagerDuty, Alertmanager, as their own rules have it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from core import schema
from core.errors import SettingsError
from core.ledger import Ledger
from core.settings import ReceiverSettings
from monitor.alert import alertmanager, incidents, pagerduty, slack
from monitor.alert.contract import Message
from monitor.alert.messages import MessageContext
from monitor.alert.receivers import build
from monitor.results import Finding

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LONG = timedelta(minutes=10)
LINKS = {"dashboard": "https://d.example/incidents?id=7", "runbook": "https://r.example/"}


def message(**data: Any) -> Message:
    given = {
        "incident": 7, "dedup_key": "d" * 64, "cause": "decay", "severity": "page",
        "state": "open", "event": "opened", "model": "shop", "version": "3", "owner": "crm",
        "environment": "prod", "title": "Brier 0.3 (0.2)", "message": "▲ shop\n  is decaying",
        "opened": "2026-01-01T00:00:00Z", "since": "2025-12-31T00:00:00Z", "links": LINKS,
        "command": "shelflife check shop", **data,
    }  # fmt: skip
    body = json.dumps({"type": "model.decay.detected", "data": given})
    return Message(id="msg_1", type="model.decay.detected", body=body, incident=7, origin="ledger")


HOSTILE = "<!channel> & <https://evil|here> =HYPERLINK(1)\u202e"


def test_slack_shows_the_text_as_it_is_with_its_links(endpoint: Any, monkeypatch: Any):
    monkeypatch.setenv("SLACK", endpoint.url)
    settings = ReceiverSettings(name="s", type="slack", url="env:SLACK", allow=("127.0.0.1",))
    receiver = build([settings])["s"]
    assert receiver.send(message(message=HOSTILE), at=AT).delivered
    found = json.loads(endpoint.seen[0][1])
    header, section, actions = found["blocks"]
    assert header["text"]["text"] == "[page] shop: Brier 0.3 (0.2)"
    shown = section["text"]["text"]
    assert "&lt;!channel&gt; &amp; &lt;https" in shown
    assert "<" not in shown
    assert [(b["text"]["text"], b["url"]) for b in actions["elements"]] == [
        ("Dashboard", LINKS["dashboard"]), ("Runbook", LINKS["runbook"]),
    ]  # fmt: skip
    endpoint.script = [400]
    assert receiver.send(message(), at=AT).final
    endpoint.script = [(429, {"retry-after": "30"})]
    outcome = receiver.send(message(), at=AT)
    assert (outcome.final, outcome.retry_after) == (False, timedelta(seconds=30))


@given(st.text(max_size=9000), st.text(max_size=400))
def test_slacks_limits_hold_for_any_text(text: str, title: str):
    found = slack.blocks(message(message=text, title=title))
    assert 0 < len(found["blocks"][0]["text"]["text"]) <= 150
    body = found["blocks"][1]["text"]["text"]
    assert 0 < len(body) <= 3000
    assert not set("<>") & set(body)
    assert len(json.dumps(found, ensure_ascii=False)) < 13_200
    tail = body.removesuffix("…")[-4:]
    assert "&" not in tail or ";" in tail[tail.rfind("&") :]


def test_pagerduty_opens_acknowledges_and_resolves_one_alert(endpoint: Any, monkeypatch: Any):
    monkeypatch.setenv("ROUTING", "canary-routing-key")
    settings = ReceiverSettings(
        name="p", type="pagerduty", url=endpoint.url, secret="env:ROUTING", allow=("127.0.0.1",)
    )
    receiver = build([settings])["p"]
    endpoint.script = [202]
    for one in (
        message(), message(event="acknowledged", state="acknowledged"),
        message(state="acknowledged", event="worse", status="firing"), message(state="resolved"),
    ):  # fmt: skip
        assert receiver.send(one, at=AT).delivered
    found = [json.loads(body) for _, body in endpoint.seen]
    actions = [one["event_action"] for one in found]
    assert actions == ["trigger", "acknowledge", "trigger", "resolve"]
    assert {one["dedup_key"] for one in found} == {"ledger-" + "d" * 64}
    assert {one["routing_key"] for one in found} == {"canary-routing-key"}
    payload = found[0]["payload"]
    assert payload["summary"] == "[page] shop: Brier 0.3 (0.2)"
    assert (payload["severity"], payload["source"]) == ("critical", "prod")
    assert payload["custom_details"]["webhook_id"] == "msg_1"
    assert found[0]["links"][0] == {"href": LINKS["dashboard"], "text": "dashboard"}
    for status, final in ((400, True), (429, False), (500, False)):
        endpoint.script = [status]
        assert receiver.send(message(), at=AT).final is final
    with pytest.raises(SettingsError, match="routing key"):
        build([ReceiverSettings(name="p", type="pagerduty")])


@given(st.text(max_size=3000), st.text(max_size=300))
def test_pagerdutys_limits_hold_for_any_text(title: str, dedup: str):
    found = pagerduty.event(message(title=title, dedup_key=dedup, columns=["é" * 80] * 4000))
    assert len(found["payload"]["summary"]) <= 1024
    assert len(found["dedup_key"]) <= 255
    assert len(msgspec.json.encode(found)) < 512_000


def test_an_alert_is_the_same_alert_over_its_whole_life():
    first = message(title="Brier 0.3", version="3", columns=["a"])
    later = message(title="Brier 0.4", version="4", columns=["b"], event="reminder")
    ended = message(title="Brier 0.1", version="5", state="resolved", event="resolved")
    found = [alertmanager.alerts(one, AT, LONG) for one in (first, later, ended)]
    assert [len(one) for one in found] == [1, 1, 1]
    assert found[0][0]["labels"] == found[1][0]["labels"] == found[2][0]["labels"]
    assert found[0][0]["labels"] == {
        "alertname": "ShelflifeDecay", "job": "shelflife", "model": "shop", "cause": "decay",
        "severity": "page", "environment": "prod", "owner": "crm",
    }  # fmt: skip
    ends = [one[0]["endsAt"] for one in found]
    assert ends == ["2026-01-02T03:14:05Z"] * 2 + ["2026-01-02T03:04:05Z"]
    assert found[0][0]["startsAt"] == "2026-01-01T00:00:00Z"
    assert found[1][0]["annotations"]["summary"] == "Brier 0.4"
    assert found[0][0]["generatorURL"] == LINKS["dashboard"]


def test_a_ticket_that_becomes_a_page_leaves_no_ticket_behind():
    told, past = alertmanager.alerts(message(event="worse"), AT, LONG)
    assert (told["labels"]["severity"], past["labels"]["severity"]) == ("page", "ticket")
    assert past["endsAt"] == "2026-01-02T03:04:05Z"


def test_a_message_about_several_incidents_is_as_many_alerts():
    both = [
        {
            "model": "a",
            "cause": "drift",
            "status": "firing",
            "labels": {"team": "x", "no-label": 1},
        },
        {"model": "b", "cause": "drift", "status": "resolved", "labels": {}},
    ]
    one, two = alertmanager.alerts(message(incidents=both), AT, LONG)
    assert (one["labels"]["model"], two["labels"]["model"]) == ("a", "b")
    assert one["labels"]["team"] == "x"
    assert "no-label" not in one["labels"]
    assert (one["endsAt"], two["endsAt"]) == ("2026-01-02T03:14:05Z", "2026-01-02T03:04:05Z")
    assert message(incidents=both).status == "firing"


def test_an_acknowledgement_reaches_those_who_heard_and_stops_a_pager(ledger: Ledger):
    context = MessageContext(model="shop", version="3", receivers=(("pager", ("page",)),))
    found = Finding(cause="decay", severity="page", title="Brier 0.3 (0.2)")
    with ledger.write() as tx:
        (opened,) = incidents.apply(
            tx, ledger, context=context, version="3", findings=[found], at=AT,
            checked=frozenset({"decay"}),
        )  # fmt: skip
        later = AT + timedelta(minutes=1)
        number = opened.incident_id
        assert incidents.acknowledge(tx, number, by="kim", at=later, context=context)
        assert not incidents.acknowledge(tx, number, by="kim", at=later, context=context)
        incidents.resolve(tx, number, at=AT + LONG, text="done", context=context)
        rows = tx.execute(sa.select(schema.outbox).order_by(schema.outbox.c.id)).all()
    told = [
        Message(id=row.message_id, type=row.type, body=row.body, incident=number, origin="o")
        for row in rows
    ]
    assert [one.type for one in told] == [
        "model.decay.detected", "incident.acknowledged", "model.decay.resolved",
    ]  # fmt: skip
    events = [pagerduty.event(one) for one in told]
    assert [one["event_action"] for one in events] == ["trigger", "acknowledge", "resolve"]
    assert len({one["dedup_key"] for one in events}) == 1
    assert "acknowledged by kim" in told[1].text
    [alert] = alertmanager.alerts(told[1], AT, LONG)
    assert alert["endsAt"] > alert["startsAt"]  # it lasts
