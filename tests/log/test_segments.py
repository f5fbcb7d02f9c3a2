"""Sealed segments under damage, crashes, races, and a store that is not there."""

from __future__ import annotations

import hashlib
import io
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from logrows import HOUR, LATER, T0, label, row, seen

from core import schema
from core.errors import ShelflifeError, StoreUnavailable
from core.ledger import Ledger
from core.times import micros
from monitor.log import lineage, sealing, segments
from monitor.log.log import InferenceLog
from monitor.log.storage import Folder, Gone, Remote, Storage, open_storage


def files(log: InferenceLog) -> list[Path]:
    return sorted(log.storage.root.rglob("*.parquet"))  # type: ignore[attr-defined]


def sealed(log: InferenceLog, *groups: range) -> InferenceLog:
    for group in groups:
        log.append([row(i) for i in group], received=T0)
        log.seal(before=LATER)
    return log


def test_a_flipped_bit_anywhere_is_refused_or_harmless(log: InferenceLog) -> None:
    """What is read is what was written, or a problem is said; 0 wrong answers."""
    sealed(log, range(40))
    wanted, [path] = seen(log.read("m")), files(log)
    whole, rng = path.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        found = log.read("m")
        refused += bool(found.problems)
        assert (seen(found) == wanted) != bool(found.problems)
        path.write_bytes(whole)
        assert [v.state for v in log.verify("m", at=T0)] == ["restored"]
    assert refused == 60
    assert seen(log.read("m")) == wanted


def test_a_lost_and_a_cut_file_are_problems_and_the_rest_is_read(log: InferenceLog) -> None:
    sealed(log, range(2), range(2, 4), range(4, 6))
    first, second, third = files(log)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    found = log.read("m")
    assert found.meta["id"].tolist() == ["p4", "p5"]
    assert "is missing from" in found.problems[0]
    assert "does not match its sha256" in found.problems[1]
    assert found.segments == (log.segments("m")[-1],)
    assert [v.state for v in log.verify("m", at=T0)] == ["missing", "corrupt", "intact"]
    assert len(log.read("m").problems) == 2  # said at every read
    assert third.exists()


def test_a_crash_between_file_and_transaction_loses_nothing(
    log: InferenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append([row(i) for i in range(5)], received=T0)

    def crash(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "_swap_in", crash)
        with pytest.raises(KeyboardInterrupt):
            log.seal(before=LATER)
    [orphan] = files(log)
    (orphan.parent / f".{orphan.name}.77.tmp").write_bytes(b"half a fi")
    assert log.read("m").meta["id"].tolist() == [f"p{i}" for i in range(5)]
    assert log.seal(before=LATER) == 5
    assert log.counts("m").predictions == len(log.read("m")) == 5
    now = datetime.now(UTC)
    assert log.sweep(at=now) == []  # as young as a segment on its way into the manifest
    swept = log.sweep(at=now + timedelta(days=2))
    assert sorted(swept) == sorted([f"m/{orphan.name}", f"m/.{orphan.name}.77.tmp"])
    assert len(files(log)) == 1
    assert len(log.read("m")) == 5


def test_a_crash_before_the_old_files_are_deleted_is_made_good(
    log: InferenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(log, range(3), range(3, 6))
    with monkeypatch.context() as patch:
        patch.setattr(lineage, "bury", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log.forget("m", ["p1"], at=T0)
    assert len(files(log)) == 3  # the old one still holds the row
    assert log.read("m").meta["id"].tolist() == ["p0", "p2", "p3", "p4", "p5"]
    log.sweep(at=T0)  # whatever their age: these are known to be dead
    assert len(files(log)) == 2


def test_a_store_of_another_ledger_is_not_swept(log: InferenceLog, tmp_path: Path) -> None:
    sealed(log, range(3))
    log.sweep(at=LATER)
    other = InferenceLog(Ledger(f"sqlite:///{tmp_path / 'other.db'}").create(), log.storage)
    with pytest.raises(ShelflifeError, match="belongs to another ledger"):
        other.sweep(at=LATER)
    other.ledger.close()
    assert len(files(log)) == 1


def test_a_segment_replaced_under_a_reader_is_read_anew(
    log: InferenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was read, then compaction deleted the files it names."""
    sealed(log, range(3), range(3, 6))
    wanted, real, once = seen(log.read("m")), segments.read, []

    def late(*args: object, **options: object) -> object:
        if not once:
            once.append(True)
            assert log.compact("m", at=T0) == 2
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(segments, "read", late)
    found = log.read("m")
    assert seen(found) == wanted
    assert found.problems == ()
    assert len(found.segments) == 1


def test_readers_do_not_notice_sealing_compaction_and_forgetting(log: InferenceLog) -> None:
    sealed(log, *(range(i, i + 5) for i in range(0, 60, 5)))
    wanted = {f"p{i}" for i in range(60)}
    stop, wrong = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            found = log.read("m", inputs=False)
            names = found.meta["id"].tolist()
            if len(names) != len(set(names)) or not wanted - {"p7"} <= set(names):
                wrong.append(names)
            if found.problems:
                wrong.append(list(found.problems))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for size in (10, 20, 40, 80):
        log.compact("m", at=T0, rows=size)
    log.append([row(i) for i in range(60, 70)], received=T0)
    log.seal(before=LATER)
    log.forget("m", ["p7"], at=T0)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_what_became_of_a_segment_can_be_traced(log: InferenceLog) -> None:
    sealed(log, range(3), range(3, 6), range(6, 9))
    names = log.segments("m")
    log.compact("m", at=T0, rows=6)
    log.forget("m", ["p4", "p8"], at=T0 + HOUR, reason="asked for it", by="ann")
    log.retain("m", since=T0 + 7 * HOUR, at=T0 + 2 * HOUR)
    fates = lineage.trace(log.ledger, [*names, "f" * 64])
    assert [fate.state for fate in fates] == ["deleted", "deleted", "replaced", "unknown"]
    assert [step.kind for step in fates[0].steps] == ["compact", "forget", "retain"]
    assert fates[2].removed == 1
    forgotten = [event for event in log.events("m") if event.kind == "forget"]
    assert {(e.removed, e.reason, e.by) for e in forgotten} == {(1, "asked for it", "ann")}
    with log.ledger.read() as tx:
        paths = tx.scalars(sa.select(schema.segment_events.c.path)).all()
    assert set(paths) == {""}  # every old file is deleted


def test_nothing_of_the_forgotten_is_left_in_any_file(log: InferenceLog, tmp_path: Path) -> None:
    """Ids and values, in the database, its write-ahead log, and the segments."""
    secret = "secret-value-3141592653"
    rows = [row(i, inputs={"name": f"somebody {i}", "k": i}) for i in range(300)]
    rows[7] = row(7, id="subject-27182818", inputs={"name": secret, "k": 7})
    rows[8] = row(8, id="subject-27182818", event_id="again", inputs={"name": secret, "k": 8})
    log.append(rows[:8], received=T0)
    log.append_labels([label(7, "truth-16180339", id="subject-27182818")], received=T0)
    log.seal(before=LATER)
    log.append(rows[8:], received=T0)
    words = (b"subject-27182818", secret.encode(), b"truth-16180339")
    assert any(word in path.read_bytes() for path in tmp_path.rglob("*.db*") for word in words)
    gone = log.forget("m", ["subject-27182818"], at=T0)
    assert (gone.rows, gone.labels, gone.segments) == (2, 1, 1)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert not [word for word in words if word in path.read_bytes()], path
    assert len(log.read("m")) == 298


def test_a_corrupt_segment_of_the_forgotten_is_deleted_whole(log: InferenceLog) -> None:
    sealed(log, range(3), range(3, 6))
    files(log)[0].write_bytes(b"?")
    gone = log.forget("m", ["p1"], at=T0)
    assert gone.rows == 3
    assert log.read("m").meta["id"].tolist() == ["p3", "p4", "p5"]
    assert "all of it went" in log.events("m")[-1].reason


def test_a_folder_that_is_not_mounted_is_no_lost_segment(log: InferenceLog) -> None:
    sealed(log, range(3))
    root = log.storage.root  # type: ignore[attr-defined]
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(StoreUnavailable, match="cannot read"):
        log.read("m")
    root.with_name("elsewhere").rename(root)
    assert len(log.read("m")) == 3
    assert log.counts("m").quarantined == 0


def test_s3_down_is_an_error_and_not_a_verdict(s3: Storage, s3_server: str, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}").create()
    sealed(InferenceLog(ledger, s3), range(3))
    once = {"retries": {"max_attempts": 1}}
    options = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": once}
    down = InferenceLog(ledger, open_storage(s3.address, options))
    with pytest.raises(StoreUnavailable, match="cannot read s3://"):
        down.read("m")
    down.append([row(9)], received=T0)
    with pytest.raises(StoreUnavailable, match="cannot write s3://"):
        down.seal(before=LATER)
    with pytest.raises(StoreUnavailable):
        down.forget("m", ["p1"], at=T0)
    up = InferenceLog(ledger, s3)
    assert up.counts("m").quarantined == 0
    assert up.read("m").meta["id"].tolist() == ["p0", "p1", "p2", "p9"]
    wrong = open_storage("s3://no-such-bucket/log", {"endpoint_url": s3_server})
    with pytest.raises(StoreUnavailable):
        wrong.read("m/x.parquet")
    ledger.close()


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return Folder(tmp_path / "store")
    found: Remote = request.getfixturevalue("s3")
    return found


def test_a_store_keeps_files_whole(storage: Storage) -> None:
    assert storage.listed() == []
    storage.write("m/a.parquet", b"one")
    storage.write("m/b.parquet", b"")
    storage.write("m/a.parquet", b"two" * 1000)
    assert storage.read("m/a.parquet") == b"two" * 1000
    sizes = {entry.name: entry.bytes for entry in storage.listed()}
    assert sizes == {"m/a.parquet": 3000, "m/b.parquet": 0}
    assert all(entry.modified.tzinfo for entry in storage.listed())
    storage.delete("m/a.parquet")
    storage.delete("m/a.parquet")
    with pytest.raises(Gone):
        storage.read("m/a.parquet")


def test_a_write_that_fails_leaves_nothing_and_seals_nothing(
    log: InferenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append([row(i) for i in range(3)], received=T0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("core.files.os.fsync", full)
        with pytest.raises(StoreUnavailable, match="No space left on device"):
            log.seal(before=LATER)
    root = log.storage.root  # type: ignore[attr-defined]
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert log.counts("m").hot == len(log.read("m")) == 3
    assert log.seal(before=LATER) == 3


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("!")
    store = Folder(tmp_path / "store")
    for action in (store.read, store.delete, lambda name: store.write(name, b"")):
        with pytest.raises(StoreUnavailable, match="leads out of the store"):
            action("../secret")
    assert (tmp_path / "secret").read_text() == "!"


def test_a_folder_may_be_given_as_a_url(tmp_path: Path) -> None:
    store = open_storage(f"file://{tmp_path}/x")
    store.write("a", b"1")
    assert (tmp_path / "x" / "a").read_bytes() == b"1"
    assert open_storage("memory://somewhere").listed() == []


def test_segments_are_plain_parquet(log: InferenceLog) -> None:
    duckdb = pytest.importorskip("duckdb")
    sealed(log, range(4))
    columns = 'id, epoch_us(time), "in.x", "out.probability"'
    query = f"SELECT {columns} FROM '{files(log)[0]}' ORDER BY time"
    found = duckdb.execute(query).fetchall()
    assert [row[0] for row in found] == ["p0", "p1", "p2", "p3"]
    assert found[2][1] == micros(T0 + 2 * HOUR)
    assert found[3][2:] == (1.5, 0.25)


def test_the_newest_row_is_found_without_reading_all(
    log: InferenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(log, range(3), range(3, 6), range(6, 9))
    real, opened = segments.read, []

    def counting(storage: object, segment: segments.Segment, **options: object) -> object:
        opened.append(segment.path)
        return real(storage, segment, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(segments, "read", counting)
    assert log.read("m", newest=2).meta["id"].tolist() == ["p7", "p8"]
    assert len(opened) == 1


def test_a_segment_of_an_older_release_is_read_and_compacted(log: InferenceLog) -> None:
    """Times as whole microseconds and no order of arrival."""
    times = [micros(T0 + i * HOUR) for i in range(3)]
    columns = {"id": ["p0", "p1", "p2"], "version": ["1"] * 3, "role": ["champion"] * 3}
    columns |= {"source": ["serving"] * 3, "event_id": ["p0", "p1", "p2"], "time": times}
    columns |= {"in.x": [0.0, 0.5, None], "out.probability": [0.25] * 3}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    data = buffer.getvalue()
    log.storage.write("m/old.parquet", data)
    old = segments.Written(
        path="m/old.parquet", rows=3, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data),
        min_time=T0, max_time=T0 + 2 * HOUR, columns="{}",
    )  # fmt: skip
    with log.ledger.write() as tx:
        segments.added(tx, "m", old, T0)
    sealed(log, range(3, 5))
    before = seen(log.read("m"))
    assert [each["id"] for each in before] == ["p0", "p1", "p2", "p3", "p4"]
    assert log.read("m", start=T0 + HOUR, end=T0 + 2 * HOUR).inputs["x"].tolist() == [0.5]
    assert log.compact("m", at=T0) == 2
    assert seen(log.read("m")) == before
