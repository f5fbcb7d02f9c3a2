"""A real Alertmanager (Debian's package) receives, groups, keeps and resolves what we send."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import ReceiverSettings
from monitor.alert import incidents
from monitor.alert.delivery import deliver_due
from monitor.alert.messages import MessageContext
from monitor.alert.receivers import build
from monitor.alert.refreshing import lasting, refresh_due
from monitor.results import Finding

_PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = pytest.mark.skipif(
    _PROGRAM is None, reason="Debian's package `prometheus-alertmanager` is not installed"
)
_CONFIG = """
route:
  receiver: hook
  group_by: [model]
  group_wait: 300ms
  group_interval: 300ms
  repeat_interval: 1h
receivers:
  - name: hook
    webhook_configs: [{url: "%s", send_resolved: true}]
"""


@pytest.fixture
def manager(tmp_path: Path, endpoint: Any) -> Iterator[str]:
    """The root of an Alertmanager that tells our endpoint of what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "alertmanager.yml"
    file.write_text(_CONFIG % endpoint.url)
    with (tmp_path / "alertmanager.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(_PROGRAM), f"--config.file={file}", f"--storage.path={tmp_path / 'am'}",
                f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        root = f"http://127.0.0.1:{port}"
        try:
            until(lambda: httpx.get(f"{root}/-/ready").status_code == 200)
            yield root
        finally:
            process.kill()
            process.wait()


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := true():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come true")


def check(ledger: Ledger, model: str, at: datetime, *findings: Finding) -> None:
    context = MessageContext(model=model, version="3", owner="crm", receivers=(("am", ("page",)),))
    with ledger.write() as tx:
        incidents.apply(
            tx, ledger, context=context, version="3", findings=findings, at=at,
            checked=frozenset({"decay", "stale"}),
        )  # fmt: skip


def test_it_receives_groups_keeps_and_resolves(ledger: Ledger, manager: str, endpoint: Any):
    settings = ReceiverSettings(
        name="am", type="alertmanager", url=manager, allow=("127.0.0.1",), refresh_every="200ms"
    )  # alerts expire after two seconds
    receivers = build([settings])
    decay = Finding(cause="decay", severity="page", title="Brier 0.3 (0.2)")
    stale = Finding(cause="stale", severity="page", title="no row is newer than a year")
    start = datetime.now(UTC) - timedelta(hours=9)
    check(ledger, "shop", start, decay, stale)
    check(ledger, "bank", start, decay)
    assert deliver_due(ledger, receivers, now=datetime.now(UTC)).delivered == 3

    def heard() -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in endpoint.seen]

    def alerts() -> set[tuple[str, str]]:
        found = httpx.get(f"{manager}/api/v2/alerts?active=true").json()
        return {(one["labels"]["model"], one["labels"]["cause"]) for one in found}

    everything = {("shop", "decay"), ("shop", "stale"), ("bank", "decay")}
    until(lambda: alerts() == everything)
    until(lambda: {one["groupLabels"]["model"] for one in heard()} == {"shop", "bank"})
    assert {one["status"] for one in heard()} == {"firing"}

    # Told again, they outlive their own expiry; once shop is over, only bank is told again.
    last: dict[str, datetime] = {}
    end = time.monotonic() + 3
    while time.monotonic() < end:
        outcomes = refresh_due(ledger, receivers, last, now=datetime.now(UTC))
        assert all(outcome.delivered for outcome in outcomes.values())
        time.sleep(0.1)
    assert alerts() == everything
    assert {one["status"] for one in heard()} == {"firing"}
    assert max(len(one["alerts"]) for one in heard()) == 2  # shop's two are one notification
    for hour in (1, 2):
        check(ledger, "shop", start + timedelta(hours=hour))
    assert deliver_due(ledger, receivers, now=datetime.now(UTC)).delivered == 2

    def over() -> bool:
        refresh_due(ledger, receivers, last, now=datetime.now(UTC))
        ended = [one for one in heard() if one["status"] == "resolved"]
        return bool(ended) and ended[-1]["groupLabels"]["model"] == "shop"

    until(over)
    assert alerts() == {("bank", "decay")}
    with ledger.read() as tx:
        assert [one.data["model"] for one in lasting(tx, "am")] == ["bank"]

    until(lambda: alerts() == set())  # nobody tells it of bank any more: it expires
    labels = {key for one in heard() for alert in one["alerts"] for key in alert["labels"]}
    assert labels == {"alertname", "cause", "job", "model", "owner", "severity"}
    assert heard()[0]["alerts"][0]["annotations"]["description"]


def test_what_it_was_never_told_is_not_told_again(ledger: Ledger):
    check(ledger, "shop", datetime(2026, 1, 1, tzinfo=UTC), Finding(
        cause="decay", severity="page", title="Brier 0.3 (0.2)",
    ))  # fmt: skip
    with ledger.write() as tx:
        assert lasting(tx, "am") == []  # it waits in the outbox
        tx.execute(sa.update(schema.outbox).values(state="delivered"))
        assert len(lasting(tx, "am")) == 1
        assert lasting(tx, "other") == []
