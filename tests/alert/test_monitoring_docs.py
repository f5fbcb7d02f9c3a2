"""Alert rules, dashboard and documents name metrics and settings that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from core.settings import HeartbeatSettings, ReceiverSettings
from shelflife.cli import RECEIVER_VERBS
from shelflife.metrics import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs"
RULES = DOCS / "prometheus" / "alerts.yml"
DASHBOARD = DOCS / "grafana" / "shelflife.json"


def named(text: str) -> set[str]:
    return set(re.findall(r"shelflife_[a-z_]+", text))


def test_rules_and_dashboard_rest_on_metrics_that_exist():
    for file in (RULES, DASHBOARD, DOCS / "prometheus" / "alerts_test.yml"):
        found = named(file.read_text())
        assert found
        assert found <= set(METRICS), file.name


def test_every_metric_is_documented():
    text = (DOCS / "monitoring_shelflife.md").read_text()
    for name in METRICS:
        assert f"`{name}" in text, name


def test_every_setting_and_verb_of_receivers_is_documented():
    text = (DOCS / "receivers.md").read_text()
    for name in (*ReceiverSettings.__struct_fields__, *RECEIVER_VERBS):
        assert f"`{name}" in text or f"receivers {name}" in text, name
    health = (DOCS / "monitoring_shelflife.md").read_text()
    for name in HeartbeatSettings.__struct_fields__:
        assert f"`{name}`" in health or f"{name}:" in health, name


def test_metric_names_follow_prometheus_conventions():
    for name, (kind, text) in METRICS.items():
        assert re.fullmatch(r"shelflife(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert text.endswith(".")


def test_the_dashboard_can_be_imported():
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) >= 12
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def test_promtool_accepts_the_rules_and_their_tests(tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package `prometheus`) is not installed")
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [promtool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    queries = {
        target["expr"].replace("$model", ".*")
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
    }
    rules = [{"record": f"panel:{index}", "expr": each} for index, each in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
