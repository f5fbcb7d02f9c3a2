"""The control API: labels in, state out, requests written down and obeyed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from shop import HOUR, NOW, ask, customers

from core import schema
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import Client, actions, commands, server
from shelflife.deploying import deploy_all
from shelflife.service import Service


@pytest.fixture
def client(service: Service, champion: Version) -> Iterator[httpx.Client]:
    """A client of a real server on a free port."""
    deploy_all(service, now=NOW)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        server.build(service), **server.options(service.settings) | {"port": port}
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client
    running.should_exit = True
    thread.join()


LABELS = "/api/v1/models/shop/labels"


def test_labels_are_kept_known_and_unknown(client: httpx.Client, service: Service) -> None:
    body = {"labels": [{"id": "s1-3", "label": 1}, {"id": "nobody", "label": 0}]}
    answer = client.post(LABELS, json=body)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["received"], told["changed"], told["unknown"], told["refused"]) == (2, 1, 1, 0)
    assert service.log.counts("shop").unknown_labels == 1
    shown = client.get("/api/v1/models/shop").json()
    assert shown["log"]["unknown_labels"] == 1
    with Client(str(client.base_url), model="shop") as theirs:  # the same from another service
        theirs.label("s1-4", 1)
        theirs.label("nobody", 1)
    assert theirs.stats()["sent"] == 2
    assert service.log.counts("shop").unknown_labels == 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, ["body", "JSON"]),
        (b'{"labels": [{"id": "a"}]}', 400, ["labels[0].label", "required"]),
        (b'{"labels": [{"id": 5, "label": 1}]}', 400, ["labels[0].id", "got 5", "str"]),
        (b'{"labels": [{"id": "a", "label": null}]}', 400, ["labels[0].label"]),
        (b'{"labels": [{"id": "", "label": 1}]}', 400, ["labels[0].id", "1 to 256"]),
        (b'{"labels": [{"id": "a", "label": 1, "time": "noon"}]}', 400, ["time", "ISO 8601"]),
        (b'{"labels": [{"id": "a", "label": NaN}]}', 400, ["JSON"]),
        (b'{"labels": [], "rows": 1}', 400, ["rows"]),
        (b"{}", 400, ["labels", "required"]),
        (b"[" * 100_000, 400, ["body"]),
        (b" " * 9_000_000, 413, ["body", "at most"]),
    ],
)
def test_bad_labels_are_refused_by_name(
    client: httpx.Client, service: Service, body: bytes, status: int, words: list[str]
) -> None:
    before = service.log.counts("shop")
    answer = client.post(LABELS, content=body)
    assert answer.status_code == status
    for word in words:
        assert word in answer.json()["error"] + answer.json()["field"]
    assert service.log.counts("shop") == before


def test_an_unknown_model_is_a_404(client: httpx.Client) -> None:
    answer = client.post("/api/v1/models/nobody/labels", json={"labels": []})
    assert answer.status_code == 404
    assert "nobody" in answer.json()["error"]


def test_a_request_for_action_is_written_down_and_obeyed(
    client: httpx.Client, service: Service, champion: Version
) -> None:
    ask(
        service,
        "1",
        customers(200, seed=2, start=NOW),
        load_estimator(service.registry.fetch(champion)),
    )
    asked = client.post("/api/v1/models/shop/actions/check", json={"by": "me", "reason": "look"})
    assert asked.status_code == 202
    number = asked.json()["command"]
    assert client.get(f"/api/v1/commands/{number}").json()["state"] == "asked"
    assert commands.obey(service, now=NOW) == 1
    done = client.get(f"/api/v1/commands/{number}").json()
    assert (done["state"], done["by"]) == ("done", "me")
    assert client.get("/api/v1/models").json()["models"][0]["version"] == "1"
    bad = client.post("/api/v1/models/shop/actions/explode", json={})
    assert bad.status_code == 400
    assert "rollback" in bad.json()["error"]
    missing = client.post("/api/v1/models/shop/actions/promote", json={})
    assert "version" in missing.json()["error"]
    client.post("/api/v1/models/shop/actions/promote", json={"arguments": {"version": "77"}})
    commands.obey(service, now=NOW)
    with service.ledger.read() as tx:
        states = tx.scalars(sa.select(schema.commands.c.state)).all()
    assert states == ["done", "failed"]


def test_windows_are_listed(client: httpx.Client, service: Service, champion: Version) -> None:
    ask(
        service,
        "1",
        customers(200, seed=2, start=NOW),
        load_estimator(service.registry.fetch(champion)),
    )
    actions.check_now(service, "shop", at=NOW + 3 * 24 * HOUR)
    found = client.get("/api/v1/models/shop/windows").json()["windows"]
    assert len(found) >= 3
    assert found[0]["coverage"] == 1.0
    assert 0 < found[0]["value"] < 1
    assert found[0]["scored"] == "2026-03-04T00:00:00Z"
    assert client.get("/api/v1/models/shop/windows?since=noon").status_code == 400


def test_health_metrics_and_listings(client: httpx.Client) -> None:
    found = client.get("/healthz").json()
    assert (found["status"], found["problems"]) == (
        "degraded", ["no scheduler was ever started: nothing is checked"],
    )  # fmt: skip
    text = client.get("/metrics").text
    assert "# TYPE shelflife_outbox_pending gauge" in text
    assert client.get("/api/v1/incidents").json() == {"incidents": []}
    assert client.get("/api/v1/runs?model=shop").json() == {"runs": []}
    assert client.get("/api/v1/nothing").status_code == 404
