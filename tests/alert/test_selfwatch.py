"""The monitor about itself: what is wrong, who is told, and what Prometheus reads."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from core import schema
from core.errors import SettingsError
from core.ledger import Ledger
from core.settings import HeartbeatSettings, ModelSettings, ReceiverSettings, Settings
from monitor.alert import outbox
from monitor.alert.receivers import build
from shelflife import health, metrics
from shelflife.health import Facts, Problem, judge
from shelflife.pulses import PULSE, START, Pulse, Pulses, read
from shelflife.selfwatch import Heartbeat, SelfWatch
from shelflife.service import Service

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
CHAT = ReceiverSettings(name="chat", url="https://chat.example/")
SETTINGS = Settings(receivers=(CHAT,), models={"shop": ModelSettings(check_every="1h")})


def job(name: str, ago: timedelta, error: str = "") -> Pulse:
    failed = NOW if error else None
    return Pulse(job=name, succeeded=NOW - ago, failed=failed, error=error)


def facts(*jobs: Pulse, **more: Any) -> Facts:
    alive = [job(PULSE, MINUTE / 2), job(START, 100 * HOUR)]
    given: dict[str, Any] = {
        "jobs": {one.job: one for one in [*alive, *jobs]},
        "checked": {}, "waiting": {}, "disabled": {}, "free": 10**12, **more,
    }  # fmt: skip
    return Facts(**given)


def found(given: Facts) -> list[tuple[str, str]]:
    return [(one.what, one.severity) for one in judge(given, SETTINGS, ["shop"], now=NOW)]


def test_a_monitor_that_works_has_no_problems():
    assert found(facts(job("deliver", MINUTE), checked={"shop": NOW - HOUR})) == []


def test_a_scheduler_that_fell_silent_is_the_one_problem():
    silent = facts(job("deliver", HOUR), job(PULSE, 2 * MINUTE))
    assert found(silent) == [("scheduler", "page")]


def test_a_job_that_never_comes_to_its_end_blinds_the_monitor():
    stuck = facts(job("deliver", HOUR), job("poll_registry", 2 * HOUR, "RegistryError"))
    assert found(stuck) == [("job:deliver", "page"), ("job:poll_registry", "page")]
    texts = [one.text for one in judge(stuck, SETTINGS, [], now=NOW)]
    assert texts[1].endswith("for 2 h (RegistryError)")
    fresh = facts(job("deliver", HOUR), job(START, 5 * MINUTE))  # it was down, and has caught up
    assert found(fresh) == []
    assert found(facts(job("tidy", 3 * HOUR))) == []  # an hourly job may take its time


def test_a_check_that_is_overdue_blinds_the_monitor():
    late = {"shop": NOW - 4 * HOUR, "retired": NOW - 400 * HOUR}
    assert found(facts(checked=late)) == [("check:shop", "page")]
    assert found(facts(job(START, 10 * MINUTE), checked=late)) == []
    assert found(facts(checked={"shop": NOW - 3 * HOUR})) == []


def test_a_full_disk_and_a_dead_receiver():
    given = facts(
        free=10**7, disabled={"chat": "HTTP 410", "old": "HTTP 410"},
        waiting={"gone": (2, NOW - 5 * HOUR), "chat": (1, NOW - 9 * HOUR), "new": (1, NOW)},
    )  # fmt: skip
    assert found(given) == [
        ("disk", "page"), ("receiver:chat", "ticket"), ("receiver:gone", "ticket"),
    ]  # fmt: skip


def test_pulses_are_written_together_and_survive_a_ledger_that_is_away(any_ledger: Ledger):
    pulses = Pulses()
    pulses.begin(any_ledger, ["deliver"], NOW)
    pulses.worked("deliver", NOW)
    pulses.failed("run_checks", NOW, "OSError")

    class Away:
        def write(self) -> Any:
            raise OSError("away")

    with pytest.raises(OSError, match="away"):
        pulses.save(Away())  # type: ignore[arg-type]
    pulses.worked("deliver", NOW + MINUTE)
    pulses.save(any_ledger)
    pulses.save(any_ledger)
    with any_ledger.read() as tx:
        kept = read(tx)
    assert kept["deliver"].succeeded == NOW + MINUTE
    assert (kept["run_checks"].succeeded, kept["run_checks"].error) == (None, "OSError")
    pulses.begin(any_ledger, ["deliver"], NOW + HOUR)  # a release without that job
    with any_ledger.read() as tx:
        assert set(read(tx)) == {"deliver", START}


@pytest.fixture
def installation(tmp_path: Path, endpoint: Any) -> Any:
    receivers = ReceiverSettings(name="chat", url=endpoint.url, allow=("127.0.0.1",))
    service = Service(Settings(home=str(tmp_path), receivers=(receivers,)))
    vars(service)["registry"] = SimpleNamespace()
    yield service
    service.close()


def test_two_looks_open_one_incident_and_two_clear_ones_end_it(installation: Service):
    watch = SelfWatch(installation)
    stuck = Problem(what="job:deliver", severity="page", text="the job deliver is stuck")
    late = Problem(what="check:shop", severity="page", text="shop is late")
    dead = Problem(what="receiver:chat", severity="ticket", text="chat is disabled")
    looks = [[stuck], [], [stuck], [stuck, dead], [stuck, dead, late], [stuck, dead, late],
             [dead], [], []]  # fmt: skip
    for number, problems in enumerate(looks):
        watch.look(problems, now=NOW + number * MINUTE)
    with installation.ledger.read() as tx:
        incidents = tx.execute(sa.select(schema.incidents).order_by(schema.incidents.c.id)).all()
        types = tx.scalars(sa.select(schema.outbox.c.type).order_by(schema.outbox.c.id)).all()
    assert [(one.cause, one.severity, one.state) for one in incidents] == [
        ("monitor", "page", "resolved"), ("receiver", "ticket", "resolved"),
    ]  # fmt: skip
    assert incidents[0].opened == NOW + 3 * MINUTE
    assert "monitor.unhealthy" in types


def test_a_heartbeat_is_sent_to_an_address_and_to_a_receiver(endpoint: Any, second: Any):
    receiver = ReceiverSettings(name="chat", url=second.url, allow=("127.0.0.1",))
    beat = HeartbeatSettings(url=endpoint.url, receiver="chat", allow=("127.0.0.1",))
    settings = Settings(receivers=(receiver,), heartbeat=beat)
    heart = Heartbeat(settings, build(settings.receivers))
    assert heart.wanted
    assert not Heartbeat(Settings(), {}).wanted
    assert [one.delivered for one in heart.beat(now=NOW)] == [True, True]
    assert endpoint.seen[0][1] == b""
    assert json.loads(second.seen[0][1])["type"] == "monitor.heartbeat"
    heart.beat(now=NOW + MINUTE)
    assert len(set(second.ids)) == 2
    endpoint.script = [500]
    assert [one.delivered for one in heart.beat(now=NOW)] == [False, True]
    pager = ReceiverSettings(name="pager", type="slack", url=second.url)
    unfit = Settings(receivers=(pager,), heartbeat=HeartbeatSettings(receiver="pager"))
    with pytest.raises(SettingsError, match=r"heartbeat\.receiver"):
        Heartbeat(unfit, build(unfit.receivers))


def exposition(ledger: Ledger) -> str:
    check = {
        "staleness": {"model": 3600.0, "training_row": 7200.0},
        "drift": [
            {
                "column": f"c{i}", "drifted": i == 29,
                "statistics": [{"name": "psi", "value": i / 100}, {"name": "js", "value": None},
                               {"name": "location", "value": 9.0, "over_s": 60.0}],
            }
            for i in range(30)
        ],
    }  # fmt: skip
    row = {
        "model": 'sh"op', "version": "3", "at": NOW, "window_start": NOW, "window_end": NOW,
        "rows": 1, "labelled": 1, "state": "healthy", "metric": "brier", "value": 0.2,
        "tolerated": 0.25, "result": json.dumps(check), "created": NOW,
    }  # fmt: skip
    with ledger.write() as tx:
        tx.execute(schema.checks.insert().values(**row))
        outbox.put(
            tx, message_id="m", incident_id=None, type="x.y", body="{}", receivers=["chat"],
            at=NOW - HOUR,
        )  # fmt: skip
        outbox.disable(tx, "chat", reason="HTTP 410", at=NOW)
        ledger.count_in(tx, {("", "delivery:retried:chat"): 3, ("", "job_failures"): 2})
    pulses = Pulses()
    pulses.worked("deliver", NOW)
    pulses.save(ledger)
    snapshot = {"counters": {("shop", "logged"): 5, ("shop", "ok"): 4}, "waiting": {"shop": 1}}
    return metrics.render(ledger, snapshot, now=NOW, problems=["page"])


def test_the_metrics_have_the_names_and_values_that_dashboards_rest_on(any_ledger: Ledger):
    lines = exposition(any_ledger).splitlines()
    moment = f"{NOW.timestamp():.15g}"
    for line in (
        'shelflife_samples_total{model="shop",outcome="logged"} 5',
        'shelflife_model_info{model="sh\\"op",version="3"} 1',
        'shelflife_model_age_seconds{model="sh\\"op"} 3600',
        'shelflife_baseline_age_seconds{model="sh\\"op"} 7200',
        'shelflife_feature_drift_score{model="sh\\"op",feature="c29",method="psi"} 0.29',
        'shelflife_feature_drift_score{model="sh\\"op",feature="other",method="psi"} 0.09',
        'shelflife_features_drifted{model="sh\\"op"} 1',
        f'shelflife_last_success_timestamp_seconds{{job="deliver"}} {moment}',
        'shelflife_webhook_deliveries_total{endpoint="chat",outcome="retried"} 3',
        "shelflife_outbox_oldest_age_seconds 3600",
        "shelflife_outbox_pending 1",
        'shelflife_receiver_disabled{endpoint="chat"} 1',
        "shelflife_job_failures_total 2",
        'shelflife_monitor_problems{severity="page"} 1',
    ):
        assert line in lines
    assert len([one for one in lines if one.startswith("shelflife_feature_drift_score{")]) == 21


def test_promtool_accepts_the_exposition(tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package `prometheus`) is not installed")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db").create()
    text = exposition(ledger)
    ledger.close()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_gathered_facts_are_those_of_the_ledger(any_ledger: Ledger, tmp_path: Path):
    exposition(any_ledger)
    seen = health.gather(any_ledger, tmp_path)
    assert seen.checked == {'sh"op': NOW}
    assert seen.waiting == {"chat": (1, NOW - HOUR)}
    assert seen.disabled == {"chat": "HTTP 410"}
    assert seen.jobs["deliver"].succeeded == NOW
    assert seen.free > 0
