"""A whole run of `shelflife watch` with failures: who hears what, and that no secret shows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import load
from monitor.alert import incidents
from monitor.alert.messages import MessageContext
from monitor.results import Finding
from shelflife import metrics

SETTINGS = """
home: home
heartbeat: {{url: "env:BEAT_URL", receiver: hook, every: 500ms, allow: [127.0.0.1]}}
receivers:
  - {{name: hook, url: "env:HOOK_URL", secret: env:HOOK_KEY, allow: [127.0.0.1]}}
  - {{name: chat, type: slack, url: "env:SLACK_URL", allow: [127.0.0.1], timeout: 1s}}
  - {{name: pager, type: pagerduty, url: "env:SLACK_URL", secret: env:ROUTING, allow: [127.0.0.1]}}
  - {{name: alerts, type: alertmanager, url: "env:HOOK_URL", allow: [127.0.0.1], refresh_every: 1s}}
  - {{name: inner, url: "env:HOOK_URL", secret: env:HOOK_KEY}}
  - name: post
    type: email
    url: smtp://127.0.0.1:{port}
    secret: env:LOGIN
    sender: shelflife@example.com
    to: [kim@example.com]
    allow: [127.0.0.1]
"""


def until(true: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.1)


def test_a_run_with_failures_tells_everybody_it_can_and_nobody_a_secret(
    tmp_path: Path, empty_mlflow: Path, endpoint: Any, second: Any, post_office: Any,
    monkeypatch: Any,
):  # fmt: skip
    office = post_office(password="kim:right")
    (tmp_path / "home").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "home" / "mlflow.db")
    (tmp_path / "shelflife.yaml").write_text(SETTINGS.format(port=office.port))
    key = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5"
    secrets = {
        "HOOK_URL": endpoint.url, "BEAT_URL": endpoint.url.replace("hook", "beat"),
        "SLACK_URL": second.url, "HOOK_KEY": key, "ROUTING": "canary-routing-key",
        "LOGIN": "kim:canary-password",
    }  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    second.script = [500, "hang", "reset", 410]
    service_settings = load(tmp_path / "shelflife.yaml")
    ledger = Ledger(service_settings.ledger_url).create()
    names = tuple((one.name, ("page",)) for one in service_settings.receivers)
    context = MessageContext(model="shop", version="1", receivers=names)
    decay = Finding(cause="decay", severity="page", title="Brier 0.3 (0.2)")
    with ledger.write() as tx:
        incidents.apply(
            tx, ledger, context=context, version="1", findings=[decay], at=datetime.now(UTC),
            checked=frozenset({"decay"}),
        )  # fmt: skip

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "shelflife.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def kinds() -> list[str]:
        bodies = [json.loads(body) for _, body in endpoint.seen if body]
        return [one["type"] if isinstance(one, dict) else "alerts" for one in bodies]

    with (tmp_path / "watch.log").open("wb") as log:
        watch = subprocess.Popen(
            [sys.executable, "-m", "shelflife.cli", "watch"], cwd=tmp_path, stdout=log, stderr=log
        )
        try:
            until(lambda: "model.decay.detected" in kinds() and kinds().count("alerts") >= 2)
            until(lambda: "monitor.heartbeat" in kinds())
            until(lambda: any(not body for _, body in endpoint.seen))  # the ping
            until(lambda: len(second.seen) >= 2)
            until(lambda: _failed(ledger) >= {"post", "inner"})
        finally:
            watch.send_signal(signal.SIGTERM)
            assert watch.wait(60) == 0
    assert office.letters == []  # it refused our password
    second.script = [410]
    pages = run("receivers", "test", "chat") + run("receivers", "test", "post")
    pages += run("receivers", "list", "--json") + run("receivers", "failed") + run("doctor")
    pages += run("incidents", "1", "--json")
    assert "the server refuses our user and password" in pages
    assert "its address is loopback" in pages
    with ledger.read() as tx:
        jobs = set(tx.scalars(sa.select(schema.jobs.c.job)))
    assert {"pulse", "start", "deliver", "refresh", "watch_itself", "beat"} <= jobs
    text = metrics.render(ledger, {}, now=datetime.now(UTC))
    ledger.close()
    assert 'shelflife_webhook_deliveries_total{endpoint="hook",outcome="delivered"} 1' in text
    with closing(sqlite3.connect(tmp_path / "home" / "ledger.db")) as raw:
        dump = "\n".join(raw.iterdump())
    told = "".join(body.decode() for _, body in endpoint.seen + second.seen)
    told = told.replace("canary-routing-key", "", told.count('"routing_key"'))
    everything = (tmp_path / "watch.log").read_text() + pages + dump + text + told
    for value in ("canary", key[6:], *secrets.values()):
        assert value not in everything


def _failed(ledger: Ledger) -> set[str]:
    table = schema.outbox
    with ledger.read() as tx:
        return set(tx.scalars(sa.select(table.c.receiver).where(table.c.error != "")))
