"""The demo's first two months; CI runs the whole of it (`make demo EXIT=1`)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shelflife.demo.run import Demo


def test_two_months_of_the_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    until = datetime(2010, 6, 1, tzinfo=UTC)
    folder = tmp_path / "demo"
    assert Demo(folder, leave=True, as_json=True, until=until).run() == 0
    found = json.loads((folder / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["requests_sent"] == 2706  # invoices of April and May 2010 in the data
    assert found["requests_failed"] == 0
    assert found["rows_acknowledged"] == found["rows_in_log"] == found["requests_sent"]
    assert found["tickets"] >= 1  # the customer history grows: drift, and nobody is woken
    assert found["pages"] == 0
    assert found["messages_received"] >= 1
    assert found["messages_refused"] == 0
    assert 0.15 < found["brier_served"] < 0.21
    assert found["brier_served"] == pytest.approx(found["brier_frozen"])  # one version so far
    assert [v["version"] for v in found["versions"]] == ["1"]
    assert found["events"][0]["kind"] == "promoted"
    assert any(event["kind"] == "ticket" for event in found["events"])
    assert "keep growing" in found["caveat"]
    assert list((folder / "home" / "reports").glob("incident-*.html"))


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match=r"thesis\.tex"):
        Demo(tmp_path, leave=True).run()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
