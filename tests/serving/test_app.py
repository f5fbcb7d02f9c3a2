"""The protocol over real HTTP: right answers, refusals that name what is wrong, counters."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from typing import Any

import pytest

from core.settings import ModelSettings


def test_answers_are_the_estimators_own(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    columns = tools.rows(50, seed=5)
    with start() as server:
        client = server.client()
        answer = client.infer(tools.request(columns, id="order-7"))
    assert answer.status == 200
    body = answer.body
    assert (body["id"], body["model_name"], body["model_version"]) == ("order-7", "churn", "1")
    (output,) = body["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("probability", [50], "FP64")
    assert output["data"] == room.expected("1", columns)
    assert body["parameters"]["shelflife_logged"] == "committed"

    logged = room.log.read("churn")
    assert sorted(logged.meta["id"]) == sorted(f"order-7:{i}" for i in range(50))
    first = logged.meta["id"].tolist().index("order-7:0")
    assert {name: logged.inputs[name][first] for name in ("visits", "country")} == {
        "visits": columns["visits"][0],
        "country": columns["country"][0],
    }
    assert logged.outputs["probability"][first] == output["data"][0]
    assert room.counter("answered") == room.counter("logged") == 50


def test_one_row_has_the_requests_id_and_event_time(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    parameters = {"event_time": "2010-10-09T02:00:00+02:00"}
    with start() as server:
        client = server.client()
        asked = tools.request(tools.rows(1), id="a", parameters=parameters)
        assert client.infer(asked).body["id"] == "a"
        generated = client.infer(tools.request(tools.rows(1))).body["id"]
    meta = room.log.read("churn").meta.set_index("id")
    assert meta["time"]["a"] == datetime(2010, 10, 9, tzinfo=UTC)
    assert set(meta.index) == {"a", generated}


def test_nested_data_other_datatypes_and_wanted_outputs(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    columns = tools.rows(3, seed=1)
    asked = tools.request(columns, outputs=[{"name": "probability"}])
    for tensor in asked["inputs"]:
        tensor["shape"] = [3, 1]
        tensor["data"] = [[value] for value in tensor["data"]]
    by_name = {tensor["name"]: tensor for tensor in asked["inputs"]}
    by_name["visits"]["datatype"] = "UINT8"
    by_name["amount"]["datatype"] = "FP32"
    with start() as server:
        answer = server.client().infer(asked)
    assert answer.body["outputs"][0]["data"] == room.expected("1", columns)


def test_the_six_endpoints(room: Any, start: Any) -> None:
    room.serve("2")
    with start() as server:
        client = server.client()
        assert client.ask("GET", "/v2").body["name"] == "shelflife"
        assert client.ask("GET", "/v2/health/live").body == {"live": True}
        assert client.ask("GET", "/v2/health/ready").body == {"ready": True}
        for path in ("/v2/models/churn", "/v2/models/churn/versions/2"):
            assert client.ask("GET", f"{path}/ready").status == 200
            metadata = client.ask("GET", path).body
            assert metadata["versions"] == ["2"]
            kinds = {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]}
            assert kinds["country"] == "BYTES"
            assert kinds["visits"] == "INT64"
        assert client.ask("GET", "/v2/models/churn/versions/1").status == 404
        assert client.ask("GET", "/v2/models/nope/ready").status == 404
        assert client.ask("GET", "/v2/models/churn/infer").body["error"]  # wrong method
        assert client.ask("GET", "/nowhere").status == 404


def _column(asked: dict[str, Any], name: str, /, **changed: Any) -> dict[str, Any]:
    for tensor in asked["inputs"]:
        if tensor["name"] == name:
            tensor.update(changed)
    return asked


BAD: dict[str, tuple[Any, str, str]] = {
    # what is done to a good request of 2 rows: (change, field named, words of the message)
    "missing column": (lambda a: a["inputs"].pop(0), "amount", "missing"),
    "unknown column": (lambda a: _column(a, "age", name="agee"), "agee", "did you mean 'age'"),
    "duplicate column": (lambda a: a["inputs"].append(a["inputs"][0]), "amount", "once"),
    "text for a number": (lambda a: _column(a, "amount", data=[1.0, "x"]), "amount", "in row 1"),
    "number for a text": (lambda a: _column(a, "country", data=[1, "NL"]), "country", "a string"),
    "truth for a number": (lambda a: _column(a, "amount", data=[True, 1.0]), "amount", "a number"),
    "number for a truth": (lambda a: _column(a, "member", data=[1, 0]), "member", "true or false"),
    "null where never null": (lambda a: _column(a, "amount", data=[None, 1]), "amount", "never"),
    "fraction for a whole": (lambda a: _column(a, "visits", data=[1, 2.5]), "visits", "whole"),
    "beyond 64 bits": (lambda a: _column(a, "visits", data=[1, 2**63]), "visits", "64 bits"),
    "beyond a float": (lambda a: _column(a, "amount", data=[1, 10**400]), "amount", "64 bits"),
    "beyond its datatype": (
        lambda a: _column(a, "visits", data=[1, 300], datatype="UINT8"),
        "visits",
        "from 0 to 255",
    ),
    "beyond FP32": (
        lambda a: _column(a, "amount", data=[1, 1e39], datatype="FP32"),
        "amount",
        "FP32",
    ),
    "wrong datatype": (lambda a: _column(a, "amount", datatype="BYTES"), "amount.datatype", "FP64"),
    "unknown datatype": (lambda a: _column(a, "amount", datatype="f8"), "amount.datatype", "FP64"),
    "unequal lengths": (lambda a: _column(a, "age", shape=[1], data=[3.0]), "age.shape", "2 rows"),
    "shape unlike data": (lambda a: _column(a, "age", data=[3.0]), "age.data", "2 values"),
    "matrix": (lambda a: _column(a, "amount", shape=[1, 2]), "amount.shape", "[n, 1]"),
    "too deep": (lambda a: _column(a, "amount", data=[[[1.0]], [[2.0]]]), "amount.data", "deep"),
    "object in data": (lambda a: _column(a, "amount", data=[{}, 1.0]), "amount", "a number"),
    "no data": (lambda a: a["inputs"][0].pop("data"), "amount.data", "list of values"),
    "no rows": (
        lambda a: [t.update(shape=[0], data=[]) for t in a["inputs"]],
        "amount.shape",
        "one",
    ),
    "no inputs": (lambda a: a.pop("inputs"), "inputs", "required"),
    "no shape": (lambda a: a["inputs"][0].pop("shape"), "inputs[0].shape", "required"),
    "shape of text": (lambda a: _column(a, "amount", shape="2"), "inputs[0].shape", "array"),
    "long id": (lambda a: a.update(id="x" * 201), "id", "200 characters"),
    "id with a null byte": (lambda a: a.update(id="a\0"), "id", "printable"),
    "id of a number": (lambda a: a.update(id=7), "id", "str"),
    "unknown output": (
        lambda a: a.update(outputs=[{"name": "p"}]),
        "outputs[0].name",
        "probability",
    ),
    "bad event time": (
        lambda a: a.update(parameters={"event_time": "yesterday"}),
        "parameters.event_time",
        "ISO 8601",
    ),
    "event time off the calendar": (
        lambda a: a.update(parameters={"event_time": "0001-01-01T00:00:00+10:00"}),
        "parameters.event_time",
        "ISO 8601",
    ),
    "unseen category": (lambda a: _column(a, "country", data=["XX", "NL"]), "inputs", "accepts"),
    "long text": (lambda a: _column(a, "country", data=["x" * 10_001, "NL"]), "country", "10000"),
}

RAW: dict[str, tuple[bytes, str, str]] = {
    "NaN": (
        b'{"inputs":[{"name":"age","shape":[1],"datatype":"FP64","data":[NaN]}]}',
        "age",
        "NaN",
    ),
    "-Infinity": (
        b'{"inputs":[{"name":"age","shape":[1,1],"datatype":"FP64","data":[[-Infinity]]}]}',
        "age",
        "-inf",
    ),
    "1e999": (
        b'{"inputs":[{"name":"age","shape":[1],"datatype":"FP64","data":[1e999]}]}',
        "age",
        "inf",
    ),
    "empty": (b"", "body", "JSON"),
    "not JSON": (b'{"inputs": [', "body", "JSON"),
    "a list": (b"[]", "body", "object"),
    "not UTF-8": (b'{"id": "\xff\xfe", "inputs": []}', "body", "UTF-8"),
    "half a pair": (b'{"id": "\\ud800", "inputs": []}', "body", "JSON"),
    "very deep": (b'{"parameters":{"x":' + b"[" * 100_000, "body", "deep"),
    "very deep data": (
        b'{"inputs":[{"name":"a","shape":[1],"datatype":"FP64","data":' + b"[" * 50_000,
        "body",
        "deep",
    ),
}


def test_bad_input_is_refused_by_name_and_only_counted(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    good = tools.request(tools.rows(2))
    with start() as server:
        client = server.client()
        for name, (change, field, words) in BAD.items():
            asked = json.loads(json.dumps(good))
            change(asked)
            _refused(client.infer(asked), 400, field, words, name)
        for name, (body, field, words) in RAW.items():
            _refused(client.infer(body), 400, field, words, name)
        assert client.infer(good).status == 200
    assert room.counter("refused:bad_input") == len(BAD) + len(RAW)
    assert room.log.counts("churn").predictions == 2
    assert room.counter("failed") == 0


def _refused(answer: Any, status: int, field: str, words: str, case: str) -> None:
    assert answer.status == status, (case, answer.body)
    assert answer.body["field"] == field, (case, answer.body)
    assert "value" in answer.body, case
    assert answer.body["expected"], case
    assert words in answer.body["error"], (case, answer.body)


def test_unknown_models_and_versions(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    good = tools.request(tools.rows(1))
    with start() as server:
        client = server.client()
        _refused(client.infer(good, model="chrun"), 404, "model", "churn", "model")
        _refused(client.infer(good, version="9"), 404, "version", "version 1", "version")
        assert client.infer(good, version="1").status == 200
    assert room.counter("refused:unknown_model", model="") == 1  # callers cannot name counters
    assert room.counter("refused:unknown_version") == 1


def test_too_large_announced_or_not(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    with start(max_body_mb=0.1) as server:
        client = server.client()
        _refused(client.infer(b" " * 10_000_000), 413, "body", "at most 100000 bytes", "announced")
        chunked = server.client()
        parts = (b" " * 10_000 for _ in range(1000))
        chunked._connection.request("POST", "/v2/models/churn/infer", parts, encode_chunked=True)
        response = chunked._connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["field"] == "body"
        assert server.client().infer(tools.request(tools.rows(1))).status == 200
    assert room.counter("refused:too_large") == 2


def test_a_caller_who_hangs_up_harms_nobody(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    with start() as server:
        for model in ("churn", "churn", "x"):
            with socket.create_connection(("127.0.0.1", server.port)) as caller:
                head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99"
                caller.sendall(f"{head}\r\n\r\n{{".encode())
        tools.wait_for(
            lambda: server.serving.metrics().counters.get(("churn", "refused:disconnected")) == 2
        )
        assert server.client().infer(tools.request(tools.rows(1))).status == 200
    assert room.log.counts("churn").predictions == 1


def test_not_ready_before_the_first_version(room: Any, start: Any, tools: Any) -> None:
    folder = room.home / "serving" / "pointers"
    folder.mkdir(parents=True)
    (folder / "churn.json").write_text("{}")
    with start(ready=False) as server:
        tools.wait_for(lambda: bool(server.serving.slots.all()))
        client = server.client()
        for method, path in (("GET", "/v2/health/ready"), ("POST", "/v2/models/churn/infer")):
            answer = client.ask(method, path, b"{}" if method == "POST" else None)
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
        room.serve("1")
        tools.wait_for(lambda: client.ask("GET", "/v2/health/ready").status == 200)
        assert client.infer(tools.request(tools.rows(1))).status == 200


@pytest.mark.parametrize(("rate", "logged"), [(1.0, 400), (0.25, None)])
def test_sampling_and_relaxed_durability(
    room: Any, start: Any, tools: Any, rate: float, logged: int | None
) -> None:
    from monitor.log.sample import kept

    room.serve("1")
    settings = ModelSettings(sample_rate=rate, durability="relaxed")
    with start(models={"churn": settings}) as server:
        answer = server.client().infer(tools.request(tools.rows(400), id="r"))
        assert answer.body["parameters"]["shelflife_logged"] == "accepted"
    wanted = {f"r:{i}" for i in range(400) if kept(f"r:{i}", rate)}
    assert logged is None or len(wanted) == logged
    assert set(room.log.read("churn").meta["id"]) == wanted
    assert room.counter("answered") == 400
    assert room.counter("logged") == len(wanted)
    assert room.counter("unsampled") == 400 - len(wanted)


def test_metrics(room: Any, start: Any, tools: Any) -> None:
    room.serve("1")
    with start() as server:
        server.client().infer(tools.request(tools.rows(7)))
        metrics = server.serving.metrics()
    assert metrics.counters["churn", "answered"] == 7
    assert metrics.models["churn"].version == "1"
    stats = metrics.models["churn"].stats
    assert stats is not None
    assert stats.rows >= 7


@pytest.mark.parametrize(
    ("moment", "words"), [("2999-01-01", "ahead of our clock"), ("1969-12-31", "or later")]
)
def test_an_event_time_that_cannot_be_is_refused(
    room: Any, start: Any, tools: Any, moment: str, words: str
) -> None:
    room.serve("1")
    with start() as server:
        asked = tools.request(tools.rows(1), parameters={"event_time": moment})
        told = server.client().infer(asked)
        assert (told.status, told.body["field"]) == (400, "parameters.event_time")
        assert words in told.body["expected"]
