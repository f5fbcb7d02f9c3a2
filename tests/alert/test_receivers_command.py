"""`shelflife receivers`, as a person uses it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from core.settings import load
from monitor.alert import outbox
from monitor.alert.delivery import deliver_due
from monitor.alert.receivers import build
from shelflife.cli import main
from shelflife.service import Service

KEY = "whsec_" + base64.b64encode(b"k" * 32).decode()
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """Runs a command in a folder with one receiver, `chat`."""
    monkeypatch.setenv("HOOK_URL", endpoint.url)
    monkeypatch.setenv("HOOK_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    Path("shelflife.yaml").write_text(
        'home: home\nreceivers: [{name: chat, url: "env:HOOK_URL", secret: env:HOOK_KEY,'
        " allow: [127.0.0.1], timeout: 2s}]\n"
    )
    Path("home").mkdir()

    def running(*arguments: str) -> tuple[int, str, str]:
        code = main(["receivers", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return running


def test_one_real_message_is_sent_signed_and_reported(run: Run, endpoint: Any):
    assert run("test", "chat") == (0, "chat took it (200)\n", "")
    ((headers, body),) = endpoint.seen
    read = standardwebhooks.Webhook(KEY).verify(body, headers)
    assert read["type"] == "shelflife.test"
    assert "shelflife arrive" in read["data"]["message"]
    endpoint.script = [500]
    code, out, _ = run("test", "chat", "--json")
    assert code == 1
    assert json.loads(out)["outcome"]["error"] == "HTTP 500"
    for wrong in (["test", "nobody"], ["test"], ["enable"], ["replay"]):
        code, out, err = run(*wrong)
        assert (code, out) == (2, "")
        assert "receiver" in err
    assert len(endpoint.seen) == 2


def test_what_failed_is_listed_replayed_and_a_disabled_receiver_enabled(run: Run, endpoint: Any):
    service = Service(load(Path("shelflife.yaml")))
    hooks, now = build(service.settings.receivers), datetime.now(UTC)
    with service.ledger.write() as tx:
        for one, receiver in (("m1", "chat"), ("m2", "chat"), ("m3", "gone")):
            outbox.put(
                tx, message_id=one, incident_id=None, type="x.y", body="{}",
                receivers=[receiver], at=now,
            )  # fmt: skip
    endpoint.script = [410]
    deliver_due(service.ledger, hooks, now=now)
    listed = {one["name"]: one for one in json.loads(run("list", "--json")[1])}
    assert (listed["chat"]["state"], listed["chat"]["pending"]) == ("disabled", 2)
    assert listed["gone"]["state"] == "unknown"
    assert "HTTP 410" in run()[1]
    assert run("enable", "chat")[1] == "chat is enabled; what waited is sent now\n"
    assert run("enable", "chat")[1] == "chat was not disabled\n"
    endpoint.script = [200]
    assert deliver_due(service.ledger, hooks, now=now).delivered == 2
    with service.ledger.write() as tx:
        tx.execute(outbox.schema.outbox.update().values(state="failed", error="HTTP 500"))
    assert run("failed", "gone")[1].startswith("m3  gone")
    assert run("replay", "chat")[1].startswith("2 failed messages")
    assert deliver_due(service.ledger, hooks, now=now).delivered == 2
    assert json.loads(run("failed", "--json")[1])[0]["message_id"] == "m3"
    assert endpoint.ids[1:3] == endpoint.ids[3:5]
    service.close()
