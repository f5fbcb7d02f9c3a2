"""`shelflife log …`, as a person types it, and the scheduler's hourly tidying."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from monitor.log.records import Label, Prediction
from shelflife import housekeeping
from shelflife.cli import main
from shelflife.service import Service, wall_clock

DAY = timedelta(days=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file, and ten days of one row each; four segments of them."""
    (tmp_path / "shelflife.yaml").write_text("home: home\ndefaults: {retention: 5d}\n")
    monkeypatch.chdir(tmp_path)
    service, now = Service.open(), wall_clock()
    for first in range(0, 10, 2):
        rows = [
            Prediction(
                model="shop", id=f"p{i}", version="1", time=now - (9.5 - i) * DAY,
                inputs={"age": i}, outputs={"probability": 0.5},
            )
            for i in (first, first + 1)
        ]  # fmt: skip
        service.log.append(rows, received=now)
        if first < 8:
            service.log.seal(before=now + DAY)
    service.log.append_labels(
        [Label(model="shop", id=f"p{i}", value=1, time=now) for i in range(10)], received=now
    )
    service.close()
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["log", *words]) == code
    return capsys.readouterr().out


def test_status_seal_compact_verify(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "status")
    assert "shop: 10 predictions (2 hot, 4 segments" in text
    assert "seen 10, kept 10" in text
    assert "2 rows sealed" in said(capsys, "seal")
    assert "shop: 5 segments merged" in said(capsys, "compact", "shop")
    found = json.loads(said(capsys, "status", "--json"))
    assert found["shop"]["counts"]["segments"] == 1
    assert found["shop"]["bytes"] > 0
    assert "1 of 1 segments are intact" in said(capsys, "verify")
    [path] = (home / "home" / "segments").rglob("*.parquet")
    path.write_bytes(b"?")
    assert "corrupt: shop/" in said(capsys, "verify", code=1)
    assert "1 quarantined" in said(capsys, "status")


def test_forget(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = said(capsys, "forget", "shop", "p1", "p9", "--reason", "asked", "--by", "ann")
    assert text == "2 rows and 2 labels deleted, 1 segments rewritten\n"
    found = json.loads(said(capsys, "forget", "shop", "p2", "--vacuum", "--json"))
    assert found == {"forgotten": {"rows": 1, "labels": 1, "segments": 1}, "clean": True}
    service = Service.open()
    assert next((e.reason, e.by) for e in service.log.events("shop")) == ("asked", "ann")
    assert service.log.read("shop").meta["id"].tolist() == [f"p{i}" for i in (0, 3, 4, 5, 6, 7, 8)]
    service.close()


def test_a_model_that_is_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "verify", "nope"]) == 2
    assert "it holds: shop" in capsys.readouterr().err


def test_retention_by_hand(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # p4 is too old as well, but p5 in its segment is not.
    assert "shop: 4 rows and 4 labels deleted" in said(capsys, "retain")
    service = Service.open()
    assert service.log.read("shop").meta["id"].tolist() == [f"p{i}" for i in range(4, 10)]
    service.close()


def test_the_hourly_tidying(home: Path) -> None:
    service = Service.open()
    orphan = home / "home" / "segments" / "shop" / "x.parquet"
    orphan.write_bytes(b"left by a crash")
    housekeeping.tidy(service, now=wall_clock())
    assert orphan.exists()
    assert len(service.log.segments("shop")) == 1
    assert service.log.counts("shop").predictions == 6
    housekeeping.tidy(service, now=wall_clock() + 2 * DAY)
    assert not orphan.exists()
    service.close()
