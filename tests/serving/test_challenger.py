"""A challenger beside the champion, on a real worker: its copy is heard by nobody, its share is
sticky, and nothing it does or fails to do reaches a caller's answer."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.frames import to_frame
from serving import canary, shadow
from serving.deploy import Beside
from serving.swap import Slot

SHADOW = Beside(version="2", mode="shadow")


_ROWS: dict[str, list[Any]] = {}


def _columns(tools: Any, i: int) -> dict[str, list[Any]]:
    if not _ROWS:
        _ROWS.update(tools.rows(400, seed=3))
    return {name: values[i : i + 1] for name, values in _ROWS.items()}


def _ask(client: Any, tools: Any, i: int, **more: Any) -> Any:
    return client.infer(tools.request(_columns(tools, i), id=f"p{i}"), **more)


def _role(room: Any, role: str) -> Any:
    return room.log.read("churn", roles=(role,))


@pytest.fixture
def ready(tools: Any) -> Callable[[Any], Slot]:
    """The slot, once its shadow has loaded its model (it has answered its first row)."""

    def wait(server: Any) -> Slot:
        slot: Slot = server.serving.slots.get("churn")
        tools.wait_for(lambda: slot.shadow is not None or slot.canary is not None)
        return slot

    return wait


def test_a_shadow_answers_a_copy_that_no_caller_sees(
    room: Any, start: Any, tools: Any, ready: Any
) -> None:
    room.serve("1", SHADOW)
    first, second = (room.expected(version, tools.rows(400, seed=3)) for version in "12")
    with start() as server:
        slot, client = ready(server), server.client()
        for i in range(60):
            answer = _ask(client, tools, i)
            assert (answer.status, answer.body["model_version"]) == (200, "1")
            assert answer.body["outputs"][0]["data"] == pytest.approx([first[i]])
        tools.wait_for(lambda: len(_role(room, "shadow")) == 60)
        copies, asked = _role(room, "shadow"), _role(room, "champion")
        assert set(copies.meta["version"]) == {"2"}
        assert sorted(copies.meta["id"]) == sorted(asked.meta["id"])
        answered = dict(zip(copies.meta["id"], copies.outputs["probability"], strict=True))
        for i in range(60):
            assert answered[f"p{i}"] == pytest.approx(second[i])
        assert len(room.log.read("churn")) == 60  # what checks and training read
        process = slot.shadow._process
        room.serve("1")
        tools.wait_for(lambda: slot.shadow is None)
        tools.wait_for(lambda: process.poll() is not None)
    assert room.counter("shadowed") == 60


def test_a_shadow_that_hangs_is_shed_counted_and_started_again(
    room: Any, start: Any, tools: Any, ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_ROOM", 20)
    monkeypatch.setattr(shadow, "_PATIENCE", 1.0)
    monkeypatch.setattr(shadow, "_PAUSES", (0.1,))
    room.serve("1", SHADOW)
    with start() as server:
        slot, client = ready(server), server.client()
        assert _ask(client, tools, 0).status == 200
        tools.wait_for(lambda: len(_role(room, "shadow")) == 1)
        hung = slot.shadow._process
        os.kill(hung.pid, signal.SIGSTOP)
        for i in range(1, 101):
            answer = _ask(client, tools, i)
            assert (answer.status, answer.body["model_version"]) == (200, "1")
        tools.wait_for(lambda: hung.poll() is not None)  # killed when its time was over
        asked = 100

        def answered_again() -> bool:
            nonlocal asked
            asked += 1
            assert _ask(client, tools, asked).status == 200
            time.sleep(0.1)
            return f"p{asked - 5}" in set(_role(room, "shadow").meta["id"])

        tools.wait_for(answered_again)
        tools.wait_for(lambda: slot.shadow.waiting == 0)
        counts = server.serving.metrics().counters
        lost = counts["churn", "shadow_shed"] + counts["churn", "shadow_failed"]
        assert counts["churn", "shadow_shed"] > 0
        tools.wait_for(
            lambda: server.serving.metrics().counters["churn", "shadowed"] + lost == asked + 1
        )


@pytest.mark.skipif(not os.environ.get("SHELFLIFE_CHAOS"), reason="half a minute: make chaos")
def test_a_shadow_that_is_killed_comes_back(
    room: Any, start: Any, tools: Any, ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_PAUSES", (0.1,))
    room.serve("1", SHADOW)
    with start() as server:
        slot, client = ready(server), server.client()
        assert _ask(client, tools, 0).status == 200
        tools.wait_for(lambda: len(_role(room, "shadow")) == 1)
        slot.shadow._process.kill()
        assert _ask(client, tools, 1).status == 200
        tools.wait_for(lambda: "EOFError" in slot.shadow.error or slot.shadow.error == "")
        assert _ask(client, tools, 2).status == 200
        tools.wait_for(lambda: "p2" in set(_role(room, "shadow").meta["id"]))


@pytest.fixture
def narrow(room: Any, tools: Any, tmp_path: Any) -> Any:
    """Version 9, whose encoder knows one country and refuses every other."""
    root = tmp_path / "versions"
    shutil.copytree(room.registry.root, root)
    room.registry.root = root
    columns = tools.rows(400, seed=0)
    columns["country"] = ["NL"] * 400
    inputs = to_frame(room.spec, columns)
    from sklearn.base import clone

    estimator = clone(room.estimators["1"]).fit(inputs, np.arange(400) % 2)
    room.registry.add("9", room.spec, estimator, inputs)
    room.estimators["9"] = estimator
    return estimator


def test_a_shadow_that_fails_is_counted_row_by_row(
    room: Any, start: Any, tools: Any, ready: Any, narrow: Any
) -> None:
    done = room.serve("1", Beside(version="9", mode="shadow"))
    assert (done.challenger, done.problem) == ("9", "")
    with start() as server:
        slot, client = ready(server), server.client()
        countries = [_columns(tools, i)["country"][0] for i in range(40)]
        for i in range(40):
            assert _ask(client, tools, i).status == 200
        known = countries.count("NL")
        tools.wait_for(lambda: len(_role(room, "shadow")) == known)
        tools.wait_for(
            lambda: server.serving.metrics().counters["churn", "shadow_failed"] == 40 - known
        )
        assert "unknown categories" in slot.challenger_error


def test_a_canary_answers_its_share_and_always_the_same_callers(
    room: Any, start: Any, tools: Any, ready: Any
) -> None:
    room.serve("1", Beside(version="2", mode="canary", share=0.3))
    with start() as server:
        slot, client = ready(server), server.client()
        first = {i: _ask(client, tools, i).body for i in range(300)}
        again = {i: _ask(client, tools, i).body["model_version"] for i in range(300)}
        assert again == {i: body["model_version"] for i, body in first.items()}
        share = sum(version == "2" for version in again.values())
        assert 55 <= share <= 125  # binomial(300, 0.3): outside once in 1e5
        expected = {version: room.expected(version, tools.rows(400, seed=3)) for version in "12"}
        for i, body in first.items():
            value = expected[body["model_version"]][i]
            assert body["outputs"][0]["data"] == pytest.approx([value])
        rows = _role(room, "challenger")
        assert set(rows.meta["version"]) == {"2"}
        assert set(rows.meta["id"]) == {f"p{i}" for i, v in again.items() if v == "2"}
        # Who names a version gets that version.
        assert all(
            _ask(client, tools, i, version="1").body["model_version"] == "1" for i in range(20)
        )
        # Promoted, the version that is loaded already answers everybody.
        warm = slot._challenger
        room.serve("2")
        tools.wait_for(lambda: slot.current is warm)
        assert slot.canary is None
        assert _ask(client, tools, 0).body["model_version"] == "2"
        # And back: the version before is still in memory.
        room.serve("1")
        tools.wait_for(lambda: slot.current.target.version == "1")


def test_where_a_canary_fails_or_hangs_the_champion_answers(
    room: Any, start: Any, tools: Any, ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "_PATIENCE", 0.2)
    room.serve("1", Beside(version="2", mode="canary", share=1.0))
    with start() as server:
        slot, client = ready(server), server.client()
        assert _ask(client, tools, 0).body["model_version"] == "2"
        model = slot._challenger.model
        infer = model.infer

        def broken(columns: Any) -> Any:
            return {name: array * np.nan for name, array in infer(columns).items()}

        model.infer = broken
        for i in range(1, 10):
            answer = _ask(client, tools, i)
            assert (answer.status, answer.body["model_version"]) == (200, "1")
        counts = server.serving.metrics().counters
        assert counts["churn", "canary_failed"] == 3  # then it was left alone
        assert counts["churn", "canary_skipped"] == 6
        slot.canary._rests_until, slot.canary._failures = 0.0, 0
        model.infer = lambda columns: time.sleep(1.5) or infer(columns)
        for i in range(10, 20):
            answer = _ask(client, tools, i)
            assert (answer.status, answer.body["model_version"]) == (200, "1")
        counts = server.serving.metrics().counters
        assert counts["churn", "canary_failed"] == 6
        assert set(_role(room, "champion").meta["version"]) == {"1"}
        model.infer = infer


def test_a_challenger_that_cannot_be_prepared_or_loaded_costs_the_champion_nothing(
    room: Any, start: Any, tools: Any
) -> None:
    done = room.serve("1", Beside(version="77", mode="shadow"))
    assert done.challenger == ""
    assert "version 77 cannot run beside the champion" in done.problem
    done = room.serve("1", Beside(version="2", mode="canary", share=0.5))
    assert not done.changed
    from serving import store

    pointer = store.read_pointer(store.pointers(room.home) / "churn.json")
    assert pointer.challenger is not None
    model = next((store.prepared(room.home, pointer.challenger.folder) / "model").iterdir())
    data = model.read_bytes()
    model.unlink()  # it may be a hard link to the registry's own file
    model.write_bytes(data + b"x")
    with start() as server:
        slot = server.serving.slots.get("churn")
        tools.wait_for(lambda: "UntrustedArtifact" in slot.challenger_error)
        assert slot.error == ""
        assert _ask(server.client(), tools, 1).body["model_version"] == "1"

        def told() -> bool:
            from core.schema import workers

            with room.ledger.read() as tx:
                row = tx.execute(workers.select()).first()
            return row is not None and row.challenger == "2" and bool(row.challenger_error)

        tools.wait_for(told)


def test_without_a_challenger_nothing_runs_beside_the_champion(
    room: Any, start: Any, tools: Any
) -> None:
    room.serve("1")
    with start() as server:
        slot = server.serving.slots.get("churn")
        assert _ask(server.client(), tools, 0).status == 200
        assert (slot.canary, slot.shadow, slot.beside, slot.challenger_error) == (
            None,
            None,
            None,
            "",
        )
        assert not [name for _, name in server.serving.metrics().counters if "shadow" in name]
