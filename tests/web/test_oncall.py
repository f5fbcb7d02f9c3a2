"""On-call over HTTP: every deed has a name and a reason."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx

from monitor.alert import incidents
from monitor.results import Finding
from shelflife import oncall


def test_over_http(web: Any) -> None:
    ledger = web.service.ledger
    finding = Finding(cause="drift", severity="ticket", title="drift of age")
    context = oncall.context(web.service.settings, "churn", version="3")
    with ledger.write() as tx:
        number = incidents.open_incident(
            tx, ledger, context=context, version="3", finding=finding,
            at=datetime(2026, 1, 1, tzinfo=UTC),
        )  # fmt: skip
    one = f"/api/v1/incidents/{number}"
    client: httpx.Client = web.client
    assert client.get(one).json()["title"] == "drift of age"
    assert client.get("/api/v1/incidents/77").status_code == 404
    assert client.post(f"{one}/acknowledge", json={}).status_code == 400  # nobody's name
    told = client.post(f"{one}/acknowledge", json={"by": "ann", "reason": "mine"}).json()
    assert (told["state"], told["events"][-1]["text"]) == (
        "acknowledged", "acknowledged by ann: mine",
    )  # fmt: skip
    assert client.post(f"{one}/silence", json={"by": "ann", "reason": "x"}).status_code == 200
    body = {"match": ["model=churn"], "by": "ann", "reason": "campaign", "until": "2d"}
    made = client.post("/api/v1/silences", json=body)
    assert (made.status_code, made.json()["matchers"]) == (201, ['model="churn"'])
    bad = client.post("/api/v1/silences", json=body | {"match": ['a=~"(x+)+"']})
    assert (bad.status_code, bad.json()["field"]) == (400, "match")
    ended = client.post(f"/api/v1/silences/{made.json()['id']}/end", json={"by": "bob"}).json()
    assert (ended["ended_by"], ended["active"]) == ("bob", False)
    assert len(client.get("/api/v1/silences").json()["silences"]) == 1
    assert len(client.get("/api/v1/silences?all=true").json()["silences"]) == 2
    assert client.post(f"{one}/resolve", json={"by": "ann"}).status_code == 400  # why?
    over = client.post(f"{one}/resolve", json={"by": "ann", "reason": "mended"}).json()
    assert over["state"] == "resolved"
    assert client.post(f"{one}/replay", json={"by": "ann"}).status_code == 200
    assert client.post(f"{one}/explode", json={"by": "ann"}).status_code == 400
    page = client.get("/runbooks/decay")
    assert page.headers["content-type"].startswith("text/markdown")
    assert page.text.startswith("# Decay")
    assert client.get("/runbooks/..%2Foncall").status_code == 404
