"""What enters the log: a sample whose rate can be estimated back, and no personal data."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from logrows import HOUR, LATER, T0, label, row

from core.errors import SettingsError
from core.ledger import Ledger
from core.settings import PrivacySettings, Settings, parse
from monitor.log.admission import Admission, Rule
from monitor.log.log import InferenceLog
from monitor.log.privacy import not_logged, privacy_of
from monitor.log.sample import kept
from shelflife.service import Service


def sampling(ledger: Ledger, folder: Path, rate: float) -> InferenceLog:
    return InferenceLog(ledger, folder, admission=Admission(lambda model: Rule(rate=rate)))


def test_what_was_seen_and_kept_is_exact(any_ledger: Ledger, tmp_path: Path) -> None:
    log = sampling(any_ledger, tmp_path, 0.3)
    rows = [row(i) for i in range(500)]
    for start in range(0, 500, 50):
        log.append(rows[start : start + 50], received=T0)
    wanted = {r.id for r in rows if kept(r.id, 0.3)}
    assert set(log.read("m").meta["id"]) == wanted
    counts = log.counts("m")
    assert (counts.seen, counts.kept, counts.predictions) == (500, len(wanted), len(wanted))
    assert {s.hour: s.seen for s in log.sampled("m")} == {T0 + i * HOUR: 1 for i in range(500)}
    assert sum(s.kept for s in log.sampled("m")) == len(wanted)
    assert 100 < len(wanted) < 200


def test_a_rate_that_changed_is_counted_apart(any_ledger: Ledger, tmp_path: Path) -> None:
    for rate, first in ((1.0, 0), (0.2, 200)):
        log = sampling(any_ledger, tmp_path, rate)
        log.append([row(i, time=T0) for i in range(first, first + 200)], received=T0)
    low, full = log.sampled("m")
    assert (low.rate, low.seen, full.rate, full.seen, full.kept) == (0.2, 200, 1.0, 200, 200)
    assert low.kept == sum(kept(f"p{i}", 0.2) for i in range(200, 400))
    # Estimated back: every row that was kept stands for seen / kept of its stratum.
    assert low.kept * (low.seen / low.kept) + full.kept == 400


def test_a_sampled_prediction_meets_its_label_and_others_are_counted(
    any_ledger: Ledger, tmp_path: Path
) -> None:
    sampling(any_ledger, tmp_path, 1.0).append([row(i) for i in range(20)], received=T0)
    log = sampling(any_ledger, tmp_path, 0.25)  # from now on; the 20 are in the log
    log.append([row(i) for i in range(20, 200)], received=T0)
    receipt = log.append_labels([label(i) for i in range(200)], received=T0)
    found = log.read("m")
    assert found.meta["label"].tolist() == [1] * len(found)
    assert receipt.new == len(found)
    assert receipt.unknown == 0
    assert receipt.unsampled == log.counts("m").unsampled_labels == 200 - len(found)
    early = [i for i in range(200, 300) if kept(f"p{i}", 0.25)]
    log.append_labels([label(i) for i in range(200, 300)], received=T0)  # before their predictions
    log.append([row(i) for i in range(200, 300)], received=T0)
    assert len(log.read("m", start=T0 + 200 * HOUR, labelled=True)) == len(early)
    assert log.counts("m").unknown_labels == 0


def test_history_is_never_sampled(any_ledger: Ledger, tmp_path: Path) -> None:
    log = sampling(any_ledger, tmp_path, 0.01)
    assert log.append([row(i, role="history") for i in range(50)], received=T0) == 50
    log.append_labels([label(i) for i in range(50)], received=T0)
    assert len(log.read("m", roles=("history",), labelled=True)) == 50
    assert log.counts("m").seen == 0


def test_counts_are_committed_with_the_rows_or_not_at_all(
    log: InferenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monitor.log.log as module

    def broken(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "tally", broken)
        with pytest.raises(OSError, match="disk full"):
            log.append([row(1)], received=T0)
    assert len(log.read("m")) == 0
    assert log.counts("m").seen == 0


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef-canary\n")
    return f"file:{path}"


def test_personal_data_stops_at_the_door(any_ledger: Ledger, tmp_path: Path, key: str) -> None:
    settings = PrivacySettings(deny=("x",), hash=("c", "k"), key=key)
    privacy = privacy_of(settings, "defaults.privacy")
    rule = Rule(privacy=privacy)
    log = InferenceLog(any_ledger, tmp_path / "s", admission=Admission(lambda model: rule))
    values = [("ann", 1), ("bob", 1.0), ("ann", 2), (None, None)]
    rows = [
        row(i, inputs={"x": "here", "c": c, "k": k, "b": True}) for i, (c, k) in enumerate(values)
    ]
    log.append(rows, received=T0)
    log.seal(before=LATER)
    found = log.read("m").inputs
    assert found["x"].isna().all()
    assert found["b"].tolist() == [True] * 4
    ann, bob, again, nobody = found["c"].tolist()
    assert ann == again != bob
    assert str(ann).startswith("h:")
    assert nobody is None or nobody != nobody
    one, same, two, _ = found["k"].tolist()
    assert one == same != two
    assert one != ann
    for path in (p for p in tmp_path.rglob("*") if p.is_file() and p.name != "key"):
        assert not [w for w in (b"ann", b"here", b"canary") if w in path.read_bytes()], path
    assert "canary" not in repr(privacy) + repr(rule)
    # The same event as it was read: its hash is not hashed again.
    assert privacy is not None
    assert privacy.apply({"c": ann})["c"] == ann


def test_another_key_is_another_hash(tmp_path: Path, key: str) -> None:
    (tmp_path / "other").write_text("another key of 16 and more")
    keys = (key, f"file:{tmp_path}/other")
    two = [privacy_of(PrivacySettings(hash=("c",), key=name), "d") for name in keys]
    assert len({p.apply({"c": "ann"})["c"] for p in two if p}) == 2


def test_an_allow_list_withholds_the_rest() -> None:
    settings = PrivacySettings(allow=("a",))
    privacy = privacy_of(settings, "d")
    assert privacy is not None
    assert privacy.apply({"a": 1, "b": 2}) == {"a": 1, "b": None}
    assert not_logged(settings, ["a", "b"]) == ("b",)
    assert not_logged(PrivacySettings(), ["a"]) == ()
    assert privacy_of(PrivacySettings(), "d") is None


@pytest.mark.parametrize("text", ["", "short"])
def test_hashing_without_a_key_is_refused_at_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    key = f"file:{tmp_path}/k" if text else ""
    privacy = PrivacySettings(hash=("c",), key=key)
    with pytest.raises(SettingsError, match=r"models\.churn\.privacy\.key .* 16 characters"):
        privacy_of(privacy, "models.churn.privacy")


def test_the_service_follows_its_settings(tmp_path: Path, key: str) -> None:
    text = (
        "segments_options: {auto_mkdir: true}\n"
        f"models: {{m: {{sample_rate: 0.5, privacy: {{hash: [c], key: '{key}'}}}}}}\n"
    )
    settings: Settings = parse(text)
    service = Service(msgspec.structs.replace(settings, home=str(tmp_path / "home")))
    service.log.append([row(i) for i in range(40)] + [row(1, model="n")], received=T0)
    assert service.log.counts("m").predictions == sum(kept(f"p{i}", 0.5) for i in range(40))
    assert service.log.counts("m").seen == 40
    assert service.log.read("n").inputs["c"].tolist() == ["a"]
    assert service.log.read("m").inputs["c"].dropna().str.startswith("h:").all()
    service.close()
