"""More models than memory: who stays, who goes, and nobody notices but the clock."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings import ModelSettings
from serving import store
from serving.residency import Resident, evicted


def resident(model: str, idle: float, **more: Any) -> Resident:
    return Resident(**({"model": model, "version": "1", "size": 10, "idle": idle} | more))


def names(*residents: Resident, room: int = 10, budget: int = 30) -> list[str]:
    return [each.model for each in evicted(residents, room=room, budget=budget)]


def test_the_one_unused_longest_goes() -> None:
    assert names(resident("a", 5), resident("b", 9), resident("c", 1)) == ["b"]
    assert names(resident("a", 5), resident("b", 9)) == []
    assert names(resident("a", 5), resident("b", 9), resident("c", 1), room=20) == ["b", "a"]
    assert names(resident("a", 5), resident("b", 9), budget=0, room=10**9) == []


def test_weights_pins_spares_and_those_at_work() -> None:
    assert names(resident("a", 5), resident("b", 9, weight=3.0), resident("c", 1)) == ["a"]
    assert names(resident("a", 5), resident("b", 9, pinned=True), resident("c", 1)) == ["a"]
    assert names(resident("a", 5), resident("b", 9), resident("c", 1, spare=True)) == ["c"]
    assert names(resident("a", 5), resident("b", 9, busy=True), resident("c", 1)) == ["a"]
    every = [resident(name, 1, pinned=True) for name in "abc"]
    assert names(*every) == []


@given(
    st.lists(
        st.builds(
            Resident,
            model=st.text(min_size=1, max_size=3),
            version=st.just("1"),
            size=st.integers(0, 50),
            idle=st.floats(0, 100),
            weight=st.floats(0.1, 10),
            pinned=st.booleans(),
            spare=st.booleans(),
            busy=st.booleans(),
        ),
        max_size=12,
    ),
    st.integers(0, 100),
    st.integers(1, 200),
)
def test_no_more_go_than_must_and_enough_if_they_can(
    residents: list[Resident], room: int, budget: int
) -> None:
    out = evicted(residents, room=room, budget=budget)
    held = sum(each.size for each in residents)
    freed = sum(each.size for each in out)
    movable = sum(each.size for each in residents if not each.pinned or each.spare)
    assert not any(each.pinned and not each.spare for each in out)
    assert held - freed + room <= budget or freed == movable
    if out:
        assert held - freed + out[-1].size + room > budget  # the last one had to go


@pytest.fixture
def fleet(room: Any) -> list[str]:
    """Six models of one size: copies of one version under six names."""
    room.serve("1")
    models = [f"m{i}" for i in range(6)]
    for model in models:
        add(room, model, "1")
    (store.pointers(room.home) / "churn.json").unlink()
    return models


def add(room: Any, model: str, version: str) -> store.Target:
    """A version of `churn` under another model's name."""
    import hashlib
    import shutil

    churn = store.read_pointer(store.pointers(room.home) / "churn.json").champion
    source = store.prepared(room.home, churn.folder)
    manifest, spec = store.verify(source)
    scratch = room.home / f"new-{model}-{version}"
    shutil.copytree(source, scratch)
    spec = msgspec.structs.replace(spec, name=model)
    (scratch / "spec.json").write_bytes(msgspec.json.encode(spec))
    files = store.file_hashes(scratch)
    manifest = msgspec.structs.replace(manifest, model=model, files=files)
    data = msgspec.json.encode(manifest, order="deterministic")
    (scratch / "manifest.json").write_bytes(data)
    folder = hashlib.sha256(data).hexdigest()
    scratch.rename(store.prepared(room.home, folder))
    target = store.Target(version=version, folder=folder, backend="native", sha256=churn.sha256)
    store.write_pointer(room.home, model, target, now=datetime.now(UTC))
    return target


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_memory(server: Any) -> set[str]:
    return {slot.model for slot in server.serving.slots.all() if slot.current is not None}


def test_six_models_and_room_for_three(
    room: Any, start: Any, tools: Any, fleet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.loading._size", lambda model, folder: 1_000_000)
    monkeypatch.setattr("serving.loading._on_disk", lambda folder: 1_000_000)
    asked = tools.request(tools.rows(2))
    expected = room.expected("1", tools.rows(2))
    pinned = {"m0": ModelSettings(pinned=True)}
    with start(memory_mb=3.5, models=pinned) as server:
        client = server.client()
        assert len(_in_memory(server)) == 3  # those that fit when it started
        assert client.ask("GET", "/v2/health/ready").status == 200
        wrong: list[Any] = []

        def ask(number: int) -> None:
            mine = server.client()
            for i in range(60):
                answer = mine.infer(asked, model=fleet[(number + i // 3) % 6])
                if answer.status != 200 or answer.body["outputs"][0]["data"] != expected:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not wrong
        assert len(_in_memory(server)) <= 3
        assert "m0" in _in_memory(server)
        counters = server.serving.metrics().counters
        assert sum(n for (_, name), n in counters.items() if name == "loaded_on_demand") > 6

        away = next(model for model in fleet if model not in _in_memory(server))
        assert client.ask("GET", f"/v2/models/{away}").status == 200  # described all the same
        told = client.ask("GET", f"/v2/models/{away}/ready")
        assert (told.status, told.headers["retry-after"]) == (503, "1")
        assert away not in _in_memory(server)  # asking whether it is ready loads nothing
        assert client.infer(asked, model=away, version="9").status == 404
        # A pointer that moves is loaded and proven, whoever has to go.
        pointer = store.read_pointer(store.pointers(room.home) / f"{away}.json")
        target = msgspec.structs.replace(pointer.champion, version="2")
        store.write_pointer(room.home, away, target, now=datetime.now(UTC))
        tools.wait_for(lambda: server.serving.slots.get(away).warm)
        assert len(_in_memory(server)) <= 3


def test_a_model_that_never_fits_says_so(
    room: Any, start: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.serve("1")
    with start(ready=False, memory_mb=0.001, load_within="1s") as server:
        tools.wait_for(lambda: server.serving.slots.ready)
        answer = server.client().infer(tools.request(tools.rows(1)))
        assert answer.status == 503
        assert "serving.memory_mb is 0.001" in answer.body["error"]


def test_ready_means_that_the_aliass_version_is_warm(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    with start() as server:
        client = server.client()
        assert client.ask("GET", "/v2/models/churn/ready").status == 200
        deployed = room.serve("2")
        tools.wait_for(lambda: client.ask("GET", "/v2/models/churn/versions/2/ready").status == 200)
        room.serve("1")
        tools.wait_for(lambda: client.ask("GET", "/v2/models/churn/versions/1/ready").status == 200)
        # Version 3 cannot be loaded: 1 answers, and `ready` says that it is not what was asked for.
        broken = store.Target(
            version="3", folder="0" * 64, backend="native", sha256=deployed.sha256
        )
        store.write_pointer(room.home, "churn", broken, now=datetime.now(UTC))
        tools.wait_for(lambda: client.ask("GET", "/v2/models/churn/ready").status == 503)
        told = client.ask("GET", "/v2/models/churn/ready").body["error"]
        assert "version 1 answers until version 3 is warm" in told
        assert client.ask("GET", "/v2/health/ready").status == 200
        assert client.infer(tools.request(tools.rows(1))).body["model_version"] == "1"
