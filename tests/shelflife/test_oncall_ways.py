"""On-call from the terminal, each deed with a name and a reason; and workers that die."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import Settings, load
from monitor.alert import incidents
from monitor.results import Finding
from serving.heartbeat import EVERY
from shelflife import cli, oncall, serving_watch
from shelflife.service import Service, wall_clock

SETTINGS = """
receivers: [{name: chat, url: "https://chat.example"}]
models: {churn: {owner: crm}}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shelflife.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHELFLIFE_USER", "kim")
    return tmp_path


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    one = Service(load(home / "shelflife.yaml"), folder=home)
    yield one
    one.close()


@pytest.fixture
def number(service: Service) -> int:
    return opened(service.ledger, service.settings)


def opened(ledger: Ledger, settings: Settings, cause: str = "drift") -> int:
    finding = Finding(cause=cause, severity="ticket", title=f"{cause} of age")
    context = oncall.context(settings, "churn", version="3")
    with ledger.write() as tx:
        return incidents.open_incident(
            tx, ledger, context=context, version="3", finding=finding, at=wall_clock()
        )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    code = cli.main([*words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_from_the_terminal(
    service: Service, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(number)
    assert [row["id"] for row in run(capsys, "incidents")[1]] == [number]
    assert run(capsys, "incidents", one)[1]["messages"][0]["state"] == "pending"
    code, row, _ = run(capsys, "incidents", "ack", one, "--reason", "on it")
    assert (code, row["state"], row["acknowledged_by"]) == (0, "acknowledged", "kim")
    code, row, _ = run(capsys, "incidents", "silence", one, "--for", "2h", "--reason", "known")
    assert row["matchers"] == ['model="churn"', 'cause="drift"']
    assert (row["by"], row["active"], row["incident_id"]) == ("kim", True, number)
    assert [s["id"] for s in run(capsys, "silences")[1]] == [row["id"]]
    assert run(capsys, "silences", "end", str(row["id"]))[1]["ended_by"] == "kim"
    assert run(capsys, "silences")[1] == []
    code, row, _ = run(
        capsys, "silences", "add", "--match", 'cause=~"drift|stale"', "--for", "1d",
        "--reason", "campaign",
    )  # fmt: skip
    assert code == 0
    code, row, _ = run(capsys, "incidents", "resolve", one, "--reason", "mended")
    assert row["state"] == "resolved"
    assert [event["kind"] for event in row["events"]] == [
        "opened", "acknowledged", "silenced", "resolved",
    ]  # fmt: skip
    assert row["events"][-1]["text"] == "resolved by kim: mended"
    assert [sent["type"] for sent in row["messages"]] == [
        "model.drift.detected", "incident.acknowledged", "model.drift.resolved",
    ]  # fmt: skip
    with service.ledger.write() as tx:
        tx.execute(schema.outbox.update().values(state="failed"))
    assert run(capsys, "incidents", "replay", one)[1] == {"replayed": 3}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("incidents", "ack"), "the id of one"),
        (("incidents", "ack", "99"), "no incident 99"),
        (("incidents", "explode", "1"), "ack"),
        (("incidents", "resolve", "1"), "why it is over"),
        (("incidents", "silence", "1", "--for", "soon", "--reason", "x"), "until"),
        (("silences", "add", "--reason", "x"), "matchers"),
        (("silences", "end", "7"), "no silence 7"),
    ],
)
def test_what_cannot_be_done_is_said(
    service: Service, number: int, words: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2
    assert said in err


def test_a_worker_that_dies_is_a_page_and_one_that_stops_is_not(service: Service) -> None:
    now, table = datetime(2026, 1, 1, tzinfo=UTC), schema.workers
    row = {
        "worker": "w", "model": "churn", "version": "1", "sha256": "", "loaded": now, "seen": now,
    }  # fmt: skip
    with service.ledger.write() as tx:
        tx.execute(table.insert().values(**row))

    def look(seconds: float, started: datetime = now) -> list[str]:
        moment = now + timedelta(seconds=seconds)
        return serving_watch.look(service, started=started, now=moment)

    def causes() -> list[str]:
        with service.ledger.read() as tx:
            return [one.cause for one in incidents.unresolved(tx)]

    assert look(5 * EVERY) == []
    late = now + timedelta(hours=1)
    assert look(3610, started=late) == []  # after an outage workers get their time, too
    assert look(40) == look(45) == ["churn"]
    assert causes() == ["serving_down"]
    with service.ledger.write() as tx:
        tx.execute(table.update().values(seen=now + timedelta(seconds=50)))
    assert look(52) == []
    assert causes() == []
    look(200)
    with service.ledger.write() as tx:  # stopped on purpose
        tx.execute(table.delete())
    look(205)
    assert causes() == []
    with service.ledger.read() as tx:
        types = list(tx.scalars(sa.select(schema.outbox.c.type).order_by(schema.outbox.c.id)))
    assert types == ["model.serving_down.detected", "model.serving_down.resolved"] * 2
