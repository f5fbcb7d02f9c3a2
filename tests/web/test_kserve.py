"""CloudEvents of KServe's logger, written by the CloudEvents library: paired, or known as lost."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent

from core import schema

NOW = datetime.now(UTC)
ALL = "/api/v1/cloudevents"
SHOP = "/api/v1/models/shop/cloudevents"
V1 = ({"instances": [[40.0, 2], [41.0, 3]]}, {"predictions": [0.25, 0.75]})
ROWS = [({"age": 40.0, "visits": 2}, 0.25), ({"age": 41.0, "visits": 3}, 0.75)]


def tensor(name: str, shape: list[int], data: list[Any], datatype: str = "FP64") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def event(part: str, data: Any, id: str = "e1", **more: Any) -> CloudEvent:
    attributes = {
        "id": id,
        "source": "http://localhost:9081/",
        "type": f"org.kubeflow.serving.inference.{part}",
        "time": datetime(2026, 3, 1, 8, tzinfo=UTC),
        "datacontenttype": "application/json",
        "inferenceservicename": "shop",
        "namespace": "default",
        "component": "predictor",
        "endpoint": "default",
        "metadata": "{}",
    }
    wanted = {key: value for key, value in (attributes | more).items() if value is not ...}
    return CloudEvent(attributes=wanted, data=data)


def send(web: Any, each: CloudEvent, path: str = ALL, mode: str = "binary") -> Any:
    write = http.to_binary_event if mode == "binary" else http.to_structured_event
    message = write(each)
    return web.post(path, content=message.body, headers=message.headers)


def pair(id: str = "e1", payloads: Any = V1, **more: Any) -> tuple[CloudEvent, CloudEvent]:
    return event("request", payloads[0], id, **more), event("response", payloads[1], id, **more)


def logged(web: Any) -> list[tuple[Any, Any]]:
    return [
        (json.loads(each["inputs"]), json.loads(each["outputs"])["probability"])
        for each in web.rows()
    ]


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_pair_is_logged_once_in_either_order(any_web: Any, mode: str, order: Any) -> None:
    halves = pair()
    first = send(any_web, halves[order[0]], mode=mode)
    assert first.status_code == 200, first.text
    assert (first.json()["waiting"], first.json()["paired"]) == (1, 0)
    assert any_web.rows() == []
    assert any_web.metric('shelflife_event_halves_waiting{model="shop"}') == 1
    second = send(any_web, halves[order[1]], mode=mode).json()
    assert (second["waiting"], second["paired"], second["new"]) == (0, 1, 2)
    assert logged(any_web) == ROWS
    rows = any_web.rows()
    assert [each["prediction_id"] for each in rows] == ["e1:0", "e1:1"]
    assert {each["time"] for each in rows} == {datetime(2026, 3, 1, 8, tzinfo=UTC)}
    assert {each["version"] for each in rows} == {"1"}
    for half in halves:  # delivered again
        again = send(any_web, half, mode=mode).json()
        assert (again["duplicate"], again["new"], again["waiting"]) == (1, 0, 0)
    assert len(any_web.rows()) == 2
    assert any_web.metric('shelflife_event_halves_waiting{model="shop"}') == 0
    assert any_web.metric('shelflife_event_pairs_total{model="shop",outcome="paired"}') == 1


def test_a_batch_of_pairs_halves_repeats_and_rubbish(web: Any) -> None:
    batch = []
    for i in range(5):
        batch += [json.loads(http.to_structured_event(half).body) for half in pair(f"e{i}")]
    batch += [batch[0], json.loads(http.to_structured_event(event("request", V1[0], "e9")).body)]
    batch += [{"specversion": "0.3"}, 7, {**batch[0], "type": "org.example", "id": "x"}]
    headers = {"content-type": "application/cloudevents-batch+json"}
    told = web.post(ALL, json=batch, headers=headers).json()
    assert (told["received"], told["paired"], told["waiting"]) == (15, 5, 1)
    assert (told["duplicate"], told["refused"], told["new"]) == (1, 3, 10)
    assert [(p["row"], p["reason"]) for p in told["problems"]] == [
        (12, "type"), (13, "type"), (14, "type"),
    ]  # fmt: skip


V2_COLUMNS = [tensor("visits", [2, 1], [[2], [3]], "INT64"), tensor("age", [2], [40, 41])]


@pytest.mark.parametrize(
    "payloads",
    [
        ({"instances": [{"age": 40, "visits": 2}, {"visits": [3], "age": 41}]},
         {"predictions": [{"probability": 0.25}, {"0": 0.25, "1": 0.75}]}),
        ({"instances": [[40, 2], [41, 3]]}, {"predictions": [[0.75, 0.25], [0.25, 0.75]]}),
        ({"inputs": V2_COLUMNS}, {"outputs": [tensor("probability", [2], [0.25, 0.75])]}),
        ({"inputs": V2_COLUMNS},
         {"outputs": [tensor("predict", [2], [0, 1]),
                      tensor("predict_proba", [2, 2], [0.75, 0.25, 0.25, 0.75])]}),
        ({"inputs": [tensor("input-0", [2, 2], [[40, 2], [41, 3]])]},
         {"model_version": "1", "outputs": [tensor("output-0", [2, 1], [0.25, 0.75])]}),
    ],
)  # fmt: skip
def test_payloads_of_both_protocols(shared_web: Any, payloads: Any) -> None:
    before = len(shared_web.rows())
    for half in pair(f"payload-{before}", payloads):
        told = send(shared_web, half)
    assert told.json()["paired"] == 1, told.text
    assert logged(shared_web)[before:] == ROWS


def test_ids_versions_and_roles(web: Any) -> None:
    one = ({"id": "order-7", "inputs": [tensor("age", [1], [40]), tensor("visits", [1], [2])]},
           {"id": "order-7", "outputs": [tensor("probability", [1], [0.5])]})  # fmt: skip
    for half in pair("a", one, annotations=json.dumps({"shelflife/version": "3"})):
        send(web, half)
    for half in pair("b", one, endpoint="canary", inferenceservicename=...):
        send(web, half, f"{SHOP}?version=4")
    for half in pair("c", ({"instances": [[1.0, 1]]}, {"predictions": [1]}), source="s" * 500):
        send(web, half)
    for half in pair(
        "c", ({"instances": [[1.0, 1]]}, {"predictions": [0]}), component="transformer"
    ):
        send(web, half)
    rows = web.rows()
    assert [each["prediction_id"] for each in rows] == ["order-7", "order-7", "c", "c"]
    assert [each["version"] for each in rows] == ["3", "4", "1", "1"]
    assert [each["role"] for each in rows] == ["champion", "challenger", "champion", "champion"]
    assert [each["event_id"] for each in rows] == ["a", "b", "c", "c"]
    assert [json.loads(each["outputs"])["probability"] for each in rows] == [0.5, 0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"id": "x" * 201}, "id", "id"),
        ({"inferenceservicename": "nobody"}, "model", "inferenceservicename"),
        ({"inferenceservicename": ...}, "model", "inferenceservicename"),
        ({"time": NOW + timedelta(days=1)}, "future", "time"),
        ({"type": "org.example.other"}, "type", "type"),
    ],
)
def test_events_that_are_refused(shared_web: Any, change: Any, reason: str, field: str) -> None:
    def refused() -> int:
        text = shared_web.client.get("/metrics").text
        counts = re.findall(rf'refused_total{{.*reason="{reason}"}} (\d+)', text)
        return sum(map(int, counts))

    before = refused()
    told = send(shared_web, event("request", V1[0], **change))
    assert told.status_code == 400
    assert field in told.json()["field"]
    assert refused() == before + 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"[" * 9999, b'{"instances": NaN}'])
def test_payloads_that_are_none_are_refused_at_once(shared_web: Any, body: bytes) -> None:
    headers = http.to_binary_event(event("request", {}, "none")).headers
    assert shared_web.post(ALL, content=body, headers=headers).status_code == 400
    with shared_web.service.ledger.read() as tx:
        assert tx.scalar(_halves().where(schema.event_halves.c.event_id == "none")) == 0


def _halves() -> Any:
    import sqlalchemy as sa

    return sa.select(sa.func.count()).select_from(schema.event_halves)


def test_halves_that_do_not_fit_each_other_are_refused_together(web: Any) -> None:
    bad = ({"instances": [[40.0, 2], [41.0, 3]]}, {"predictions": [0.25]})
    request, response = pair("e1", bad)
    assert send(web, request).status_code == 200
    told = send(web, response)
    assert told.status_code == 400
    assert "2 answers" in told.json()["expected"]
    late = pair("e2", ({"instances": [[40.0]]}, {"predictions": [0.25]}))
    send(web, late[1])
    assert send(web, late[0]).json()["problems"][0]["reason"] == "payload"
    some = pair("e3", ({"instances": [[40.0, 2], ["x", 3]]}, {"predictions": [0.25, 0.5]}))
    for half in some:
        told = send(web, half)
    assert told.json()["new"] == 1
    assert [each["event_id"] for each in web.rows()] == ["e3:0"]


def test_a_restart_in_between_loses_nothing(run: Any, tmp_path: Any) -> None:
    request, response = pair()
    with run(tmp_path) as web:
        send(web, request)
    with run(tmp_path) as web:
        assert send(web, response).json()["new"] == 2
        assert logged(web) == ROWS


def test_a_crash_between_the_log_and_the_mark_doubles_nothing(
    run: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    from shelflife.web.pairs import Pairs

    with run(tmp_path) as web, monkeypatch.context() as patched:
        patched.setattr(Pairs, "settle", lambda *_: (_ for _ in ()).throw(KeyError("crash")))
        for half in pair():
            told = send(web, half)
        assert told.status_code == 500
        assert len(web.rows()) == 2
        # The sweep at the next start finds both halves waiting; the log knows the rows already.
    with run(tmp_path) as web:
        for _ in range(200):
            if web.metric('shelflife_event_halves_waiting{model="shop"}') == 0:
                break
        assert len(web.rows()) == 2
        assert send(web, pair()[0]).json()["duplicate"] == 1


def test_the_other_half_that_never_comes_is_counted_as_lost(any_web: Any) -> None:
    from shelflife.web.pairs import Pairs

    pairs, ledger = Pairs(any_web.service.ledger), any_web.service.ledger
    for i in range(3):
        send(any_web, event("request", V1[0], f"r{i}"))
    send(any_web, event("response", V1[1], "s0"))
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert pairs.give_up(now - hour, now - 2 * hour, ledger.count_in) == 0
    assert pairs.give_up(now + hour, now - hour, ledger.count_in) == 4
    assert pairs.give_up(now + hour, now - hour, ledger.count_in) == 0
    name = 'shelflife_event_pairs_total{model="shop",outcome='
    assert any_web.metric(f'{name}"lost_response"') == 3
    assert any_web.metric(f'{name}"lost_request"') == 1
    assert any_web.metric('shelflife_event_halves_waiting{model="shop"}') == 0
    late = send(any_web, event("response", V1[1], "r0")).json()
    assert (late["refused"], late["waiting"], late["new"]) == (1, 0, 0)
    assert any_web.rows() == []
    # Marks are forgotten in the end.
    pairs.give_up(now - hour, now + 2 * hour, ledger.count_in)
    with ledger.read() as tx:
        assert tx.scalar(_halves()) == 0


def test_both_halves_at_the_same_moment(any_web: Any) -> None:
    """Each writer may miss the other's half; together they log every pair once."""
    told: list[Any] = []

    def one(part: int) -> None:
        for i in range(30):
            told.append(send(any_web, pair(f"e{i}")[part]).json())

    threads = [threading.Thread(target=one, args=(part,)) for part in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 120
    assert sum(each["new"] for each in told) == 60
    assert len(any_web.rows()) == 60
    assert any_web.metric('shelflife_event_halves_waiting{model="shop"}') == 0
