"""Versions change under load, fail to load, come back, disappear; nobody notices but the ledger."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.errors import UntrustedArtifact
from serving import store
from serving.deploy import wait_served
from serving.heartbeat import FRESH, served_by


def _wait(room: Any, version: str) -> Any:
    return wait_served(room.ledger, "churn", version, timeout=timedelta(seconds=30))


def test_swap_under_load(room: Any, start: Any, tools: Any) -> None:
    """16 clients, 5 swaps, 2,000 requests and more: none fails, each answer is its version's own,
    every acknowledged row is in the log once."""
    room.serve("1")
    columns = tools.rows(1, seed=9)
    asked = tools.request(columns)
    expected = {version: room.expected(version, columns)[0] for version in ("1", "2", "3")}
    assert len(set(expected.values())) == 3
    answers: list[tuple[str, str, str]] = []
    wrong: list[object] = []
    over = threading.Event()

    def ask(name: str, client: Any) -> None:
        for i in range(100_000):
            if over.is_set():
                return
            answer = client.infer({**asked, "id": f"{name}-{i}"})
            if answer.status != 200:
                wrong.append(answer)
                return
            version = answer.body["model_version"]
            if answer.body["outputs"][0]["data"] != [expected[version]]:
                wrong.append(answer)
            logged = answer.body["parameters"]["shelflife_logged"]
            answers.append((answer.body["id"], version, logged))

    with start() as server:
        names = [f"c{i}" for i in range(16)]
        threads = [threading.Thread(target=ask, args=(n, server.client())) for n in names]
        for thread in threads:
            thread.start()
        for swap, version in enumerate(("2", "1", "3", "2", "3"), start=1):
            tools.wait_for(lambda swap=swap: len(answers) > 400 * swap or bool(wrong))
            room.serve(version)
            assert _wait(room, version).ok
        tools.wait_for(lambda: len(answers) > 2400 or bool(wrong))
        over.set()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert {version for _, version, _ in answers} == {"1", "2", "3"}
    meta = room.log.read("churn").meta
    assert sorted(meta["id"]) == sorted(identity for identity, _, _ in answers)
    by_id = dict(zip(meta["id"], meta["version"], strict=True))
    assert all(by_id[identity] == version for identity, version, _ in answers)
    assert room.counter("answered") == room.counter("logged") == len(answers)


def test_rollback_to_a_kept_version_loads_nothing(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    with start() as server:
        slot = server.serving.slots.get("churn")
        first = slot.current
        room.serve("2")
        tools.wait_for(lambda: slot.current.target.version == "2")
        second = slot.current
        room.serve("1")
        tools.wait_for(lambda: slot.current is first)
        room.serve("3")
        tools.wait_for(lambda: slot.current.target.version == "3")
        tools.wait_for(lambda: second.model.health() == "unloaded")  # two at most stay
        assert first.model.health() == ""


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "manifest", "linked"])
def test_a_damaged_version_is_not_served(room: Any, start: Any, tools: Any, damage: str) -> None:
    deployed = room.serve("2")
    room.serve("1")
    folder = store.prepared(room.home, deployed.folder)
    model = next((folder / "model").iterdir())
    if damage == "changed":
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.unlink()  # it may be a hard link to the registry's own file
        model.write_bytes(bytes(data))
    elif damage == "missing":
        (folder / "spec.json").unlink()
    elif damage == "added":
        (folder / "model" / "extra.py").write_text("")
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{}")
    else:
        model.rename(room.home / "elsewhere")
        model.symlink_to(room.home / "elsewhere")
    with pytest.raises(UntrustedArtifact):
        store.verify(folder)
    with start() as server:
        target = store.Target(
            version="2", folder=deployed.folder, backend="native", sha256=deployed.sha256
        )
        store.write_pointer(room.home, "churn", target, now=datetime.now(UTC))
        served = _wait(room, "2")
        assert not served.ok
        assert "UntrustedArtifact" in served.error
        answer = server.client().infer(tools.request(tools.rows(1)))
        assert (answer.status, answer.body["model_version"]) == (200, "1")
        room.serve("2")  # the preparing process hears of it and mends the folder
        tools.wait_for(lambda: _wait(room, "2").ok)


def test_answers_must_be_those_of_the_preparing_process(room: Any, start: Any, tools: Any) -> None:
    """The sample in the manifest is what the worker's own answers are held against."""
    import hashlib

    import msgspec

    room.serve("1")
    with start():
        deployed = room.serve("2")
        assert _wait(room, "2").ok
        source = store.prepared(room.home, deployed.folder)
        manifest, _ = store.verify(source)
        assert manifest.sample is not None
        outputs = {"probability": [p + 0.01 for p in manifest.sample.outputs["probability"]]}
        sample = msgspec.structs.replace(manifest.sample, outputs=outputs)
        data = msgspec.json.encode(msgspec.structs.replace(manifest, sample=sample))
        name = hashlib.sha256(data).hexdigest()
        shutil.copytree(source, source.with_name(name))
        (source.with_name(name) / "manifest.json").write_bytes(data)
        target = store.Target(version="4", folder=name, backend="native", sha256=deployed.sha256)
        store.write_pointer(room.home, "churn", target, now=datetime.now(UTC))
        served = _wait(room, "4")
        assert not served.ok
        assert "differ by up to 0.01" in served.error


def test_models_appear_and_disappear(room: Any, start: Any, tools: Any) -> None:
    with start() as server:
        client = server.client()
        asked = tools.request(tools.rows(1))
        assert client.infer(asked).status == 404
        room.serve("1")
        tools.wait_for(lambda: client.infer(asked).status == 200)
        assert _wait(room, "1").ok
        room.serve("")
        tools.wait_for(lambda: client.infer(asked).status == 404)
        tools.wait_for(
            lambda: served_by(room.ledger, "churn", "1", now=datetime.now(UTC)).workers == 0
        )


def test_heartbeats_come_and_go(room: Any, start: Any) -> None:
    room.serve("1")
    with start() as server:
        assert _wait(room, "1").ok
        now = datetime.now(UTC)
        assert served_by(room.ledger, "churn", "1", now=now).workers == 1
        assert not served_by(room.ledger, "churn", "2", now=now).ok
        # A worker that died long ago is nobody to wait for.
        assert served_by(room.ledger, "churn", "1", now=now + 2 * FRESH).workers == 0
        assert ":" in server.serving.worker
    assert served_by(room.ledger, "churn", "1", now=datetime.now(UTC)).workers == 0


def test_a_pointer_that_leads_out_of_the_store_is_refused(
    room: Any, start: Any, tools: Any
) -> None:
    room.serve("1")
    with start() as server:
        path = store.pointers(room.home) / "churn.json"
        path.write_bytes(path.read_bytes().replace(b'"folder":"', b'"folder":"../'))
        slot = server.serving.slots.get("churn")
        tools.wait_for(lambda: "expected a sha256" in slot.error)
        assert server.client().infer(tools.request(tools.rows(1))).status == 200


def test_a_version_counts_as_served_when_every_worker_has_it(room: Any, start: Any) -> None:
    room.serve("1")
    with start() as one, start() as two:
        assert one.serving.worker != two.serving.worker
        room.serve("2")
        served = _wait(room, "2")
        assert (served.ok, served.workers, served.serving) == (True, 2, 2)
        for server in (one, two):
            assert server.serving.slots.get("churn").current.target.version == "2"


def test_a_version_that_failed_is_tried_again(room: Any, start: Any, tools: Any) -> None:
    deployed = room.serve("1")
    folder = store.prepared(room.home, deployed.folder)
    folder.rename(room.home / "late")
    with start(ready=False) as server:
        tools.wait_for(lambda: any(s.error for s in server.serving.slots.all()))
        assert "no manifest.json" in server.serving.slots.get("churn").error
        (room.home / "late").rename(folder)
        tools.wait_for(lambda: server.serving.slots.ready)
        assert server.serving.slots.get("churn").error == ""
