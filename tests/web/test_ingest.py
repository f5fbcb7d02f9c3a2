"""Predictions and labels from elsewhere: in every format, nothing lost, each refusal named."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

NOW = datetime.now(UTC)
PREDICTIONS = "/api/v1/models/shop/predictions"
LABELS = "/api/v1/models/shop/labels"
ELSEWHERE = "/api/v1/models/elsewhere/predictions"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
T = "2026-03-01T08:00:00Z"


def row(i: int = 0, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": f"p{i}",
        "time": T,
        "inputs": {"age": 40.5 + i, "visits": i},
        "outputs": {"probability": 0.25},
    }
    return {key: value for key, value in (values | changes).items() if value is not ...}


def kinds(i: int = 0, **changes: Any) -> dict[str, Any]:
    inputs = {"amount": 1.5, "count": 3, "member": True, "country": "NL"} | changes
    return row(i, inputs=inputs, outputs={"a": 0.2, "b": 0.3, "c": 0.5})


def arrow(columns: dict[str, Any], *, file: bool = False, codec: str | None = None) -> bytes:
    table = pa.table(columns)
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    writer = pa.ipc.new_file if file else pa.ipc.new_stream
    with writer(sink, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=2)
    return sink.getvalue()


def test_json_rows_are_in_the_log_when_they_are_answered(any_web: Any) -> None:
    told = any_web.post(PREDICTIONS, json={"predictions": [row(i) for i in range(3)]})
    assert told.status_code == 200
    assert told.json() == {
        "received": 3, "new": 3, "duplicate": 0, "unsampled": 0, "refused": 0, "problems": [],
    }  # fmt: skip
    rows = any_web.rows()
    assert [each["prediction_id"] for each in rows] == ["p0", "p1", "p2"]
    assert json.loads(rows[1]["inputs"]) == {"age": 41.5, "visits": 1}
    assert json.loads(rows[1]["outputs"]) == {"probability": 0.25}
    assert {(r["version"], r["source"], r["role"]) for r in rows} == {("1", "api/shop", "champion")}
    assert rows[0]["time"] == datetime(2026, 3, 1, 8, tzinfo=UTC)
    again = any_web.post(PREDICTIONS, json={"predictions": [row(i) for i in range(4)]}).json()
    assert (again["new"], again["duplicate"]) == (1, 3)
    assert any_web.service.log.counts("shop").predictions == 4


@pytest.mark.parametrize("form", ["json", "ndjson", "stream", "file", "zstd buffers", "flat"])
def test_every_format_says_the_same(shared_web: Any, form: str) -> None:
    web, given = shared_web, []
    for i in range(5):
        odd = {"amount": None if i == 2 else i / 2, "country": None if i == 1 else "a:b é"}
        given.append(kinds(i, **odd) | {"id": f"{form}-{i}"})
    columns = {name: [each[name] for each in given] for name in ("id", "time", "inputs", "outputs")}
    flat = {
        "id": columns["id"],
        "time": pa.array([datetime(2026, 3, 1, 8)] * 5, pa.timestamp("ns")),  # noqa: DTZ001
        **{f"inputs.{n}": [r["inputs"][n] for r in given] for n in given[0]["inputs"]},
        **{f"outputs.{n}": [r["outputs"][n] for r in given] for n in "abc"},
    }
    flat["inputs.country"] = pa.array(flat["inputs.country"]).dictionary_encode()
    body, media = {
        "json": lambda: (json.dumps({"predictions": given}).encode(), "application/json"),
        "ndjson": lambda: (
            b"\r\n".join(json.dumps(each).encode() for each in given) + b"\n\n",
            "application/x-ndjson",
        ),
        "stream": lambda: (arrow(columns), STREAM),
        "file": lambda: (arrow(columns, file=True), FILE),
        "zstd buffers": lambda: (arrow(columns, codec="zstd"), STREAM),
        "flat": lambda: (arrow(flat), STREAM),
    }[form]()
    told = web.post(ELSEWHERE, content=body, headers={"content-type": media})
    assert told.status_code == 200, told.text
    assert told.json()["new"] == 5
    rows = web.rows("elsewhere")[-5:]
    assert [each["prediction_id"] for each in rows] == [each["id"] for each in given]
    assert [json.loads(each["inputs"]) for each in rows] == [each["inputs"] for each in given]
    wanted = {"probability:a": 0.2, "probability:b": 0.3, "probability:c": 0.5}
    assert [json.loads(each["outputs"]) for each in rows] == [wanted] * 5
    assert {each["time"] for each in rows} == {datetime(2026, 3, 1, 8, tzinfo=UTC)}


def test_a_bad_row_never_takes_the_others_with_it(web: Any) -> None:
    late = (NOW + timedelta(days=1)).isoformat()
    bad: list[tuple[dict[str, Any] | Any, str, str]] = [
        (row(1, inputs={"age": "x", "visits": 1}), "value", "predictions[1].inputs.age"),
        (row(2, inputs={"age": 1.0}), "missing_column", "predictions[2].inputs.visits"),
        (row(3, inputs={"age": 1.0, "visit": 1, "visits": 1}), "unknown_column",
         "predictions[3].inputs"),
        (row(4, inputs={"age": 1.0, "visits": 2**63}), "value", "predictions[4].inputs.visits"),
        (row(5, inputs={"age": 1.0, "visits": 1.5}), "value", "predictions[5].inputs.visits"),
        (row(6, inputs={"age": [1.0], "visits": 1}), "type", "predictions[6].inputs.age"),
        (row(7, outputs={"probability": 1.5}), "output", "predictions[7].outputs.probability"),
        (row(8, outputs={"score": 0.5}), "output", "predictions[8].outputs"),
        (row(9, time=late), "future", "predictions[9].time"),
        (row(10, time="1969-12-31T23:59:59Z"), "past", "predictions[10].time"),
        (row(11, time="noon"), "time", "predictions[11].time"),
        (row(12, id="a\0b"), "id", "predictions[12].id"),
        (row(13, id="x" * 257), "id", "predictions[13].id"),
        (row(14, inputs=...), "missing_field", "predictions[14].inputs"),
        (row(15, colour="red"), "unknown_field", "predictions[15].colour"),
        (row(16, role="king"), "type", "predictions[16].role"),
        (17, "type", "predictions[17].row"),
        (row(18, inputs={"age": None, "visits": 1}), "value", "predictions[18].inputs.age"),
        (row(19, inputs={"age": True, "visits": 1}), "value", "predictions[19].inputs.age"),
    ]  # fmt: skip
    given = [row(0), *(each for each, _, _ in bad), row(20)]
    told = web.post(PREDICTIONS, json={"predictions": given})
    assert told.status_code == 200
    found = told.json()
    assert (found["received"], found["new"], found["refused"]) == (21, 2, 19)
    assert [(p["row"], p["reason"], p["field"]) for p in found["problems"]] == [
        (i + 1, reason, field) for i, (_, reason, field) in enumerate(bad)
    ]
    assert [each["prediction_id"] for each in web.rows()] == ["p0", "p20"]
    line = 'shelflife_ingest_refused_total{model="shop",reason="id"}'
    assert web.metric(line) == 2
    assert web.metric('shelflife_ingest_rows_total{model="shop",outcome="new"}') == 2


def test_all_or_nothing_where_it_is_asked_for(web: Any) -> None:
    body = {"predictions": [row(0), row(1, outputs="maybe")]}
    told = web.post(f"{PREDICTIONS}?atomic=true", json=body)
    assert told.status_code == 400
    assert "predictions[1].outputs" in told.json()["error"]
    strict = {"Prefer": "respond-async, handling=strict"}
    assert web.post(PREDICTIONS, json=body, headers=strict).status_code == 400
    assert web.rows() == []
    assert web.post(f"{PREDICTIONS}?atomic=perhaps", json=body).status_code == 400
    # Nothing left of a request is a 400 too, so that a client which looks at nothing else notices.
    assert web.post(PREDICTIONS, json={"predictions": [row(1, id="")]}).status_code == 200
    assert web.post(PREDICTIONS, json={"predictions": [row(1, id="\n")]}).status_code == 400
    assert web.post(PREDICTIONS, json={"predictions": []}).json()["received"] == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"predictions": [{"id": "a", "id": "b", "inputs": {}, "outputs": 1}]}', "duplicate_key"),
        (b'{"predictions": [{"inputs": {"age": 1, "age": 2, "visits": 1}, "outputs": 1}]}',
         "duplicate_key"),
        (b'{"predictions": [{"inputs": {"age": 1, "\\u0061ge": 2, "visits": 1}, "outputs": 1}]}',
         "duplicate_key"),
        (b'{"predictions": [], "predictions": []}', "duplicate_key"),
        (b'{"predictions": [{"inputs": {"age": NaN, "visits": 1}, "outputs": 1}]}', "not_finite"),
        (b'{"predictions": [{"inputs": {"age": 1e999, "visits": 1}, "outputs": 1}]}', "not_finite"),
        (b'{"predictions": [{"inputs": {"age": ' + b"9" * 5000 + b', "visits": 1}, "outputs": 1}]}',
         "not_finite"),
        (b'{"predictions": [{"inputs": {"age": ' + b"[" * 60 + b"]" * 60 + b"}}]}", "nesting"),
        (b'{"predictions": ' + b"[" * 200_000, "nesting"),
        (b'{"predictions": [{"id": "\xff"}]}', "encoding"),
        (b'{"predictions": [{"id": "\\ud800", "inputs": {}, "outputs": 1}]}', "encoding"),
        (b'{"predictions": [{}', "json"),
        (b'{"predictions": [{},]}', "json"),
        (b'{"predictions": [1] "x"}', "json"),
        (b'{"rows": []}', "unknown_field"),
        (b"{}", "missing_field"),
        (b"[]", "type"),
        (b'{"predictions": {}}', "type"),
        (b"", "json"),
    ],
)  # fmt: skip
def test_json_that_is_none_is_refused_by_name(shared_web: Any, body: bytes, reason: str) -> None:
    web = shared_web
    line = f'shelflife_ingest_refused_total{{model="shop",reason="{reason}"}}'
    before = web.metric(line)
    told = web.post(PREDICTIONS, content=body)
    assert told.status_code == 400, told.text
    assert web.metric(line) == before + 1
    assert {"error", "field", "expected"} <= told.json().keys()
    assert web.rows() == []


def test_strings_that_a_database_may_not_hold(any_web: Any) -> None:
    odd = ["a\0b", "🦊", "\u202eevil", "'; DROP TABLE predictions; --", "=1+1", "x" * 10_000, ""]
    given = [kinds(i, country=text) for i, text in enumerate(odd)]
    told = any_web.post(ELSEWHERE, json={"predictions": given})
    assert told.json()["new"] == len(odd)
    stored = any_web.rows("elsewhere")
    assert [json.loads(each["inputs"])["country"] for each in stored] == odd
    sealed = any_web.service.log.seal(before=NOW + timedelta(days=1))
    assert sealed == len(odd)
    assert any_web.service.log.read("elsewhere").inputs["country"].tolist() == odd
    long = any_web.post(ELSEWHERE, json={"predictions": [kinds(9, country="x" * 10_001)]})
    assert long.status_code == 400
    labels = [{"id": "p0", "label": "a\0b"}, {"id": "p\0", "label": 1}]
    told = any_web.post(ELSEWHERE.replace("predictions", "labels"), json={"labels": labels}).json()
    assert [p["reason"] for p in told["problems"]] == ["id"]
    for path in ("incidents?model=%00", "runs?model=a%00b", "runs?state=%00"):
        assert any_web.client.get(f"/api/v1/{path}").status_code == 400
    reason = any_web.post("/api/v1/models/shop/actions/check", json={"reason": "a\0b"})
    assert reason.status_code == 400


def test_ids_that_are_missing(web: Any) -> None:
    same = [row(0, id=...), row(0, id=...), row(1, id=None)]
    first = web.post(PREDICTIONS, json={"predictions": same}).json()
    again = web.post(PREDICTIONS, json={"predictions": same}).json()
    assert (first["new"], again["new"], again["duplicate"]) == (3, 0, 3)
    assert first["ids"] == again["ids"]
    assert len(set(first["ids"])) == 3
    # Without a time two callers may say the same; a repeat is only known by its key.
    timeless = {"predictions": [row(0, id=..., time=...)]}
    assert web.post(PREDICTIONS, json=timeless).json()["new"] == 1
    assert web.post(PREDICTIONS, json=timeless).json()["new"] == 1
    keyed = {"headers": {"idempotency-key": "batch-7"}, "json": timeless}
    assert web.post(PREDICTIONS, **keyed).json()["new"] == 1
    assert web.post(PREDICTIONS, **keyed).json()["duplicate"] == 1
    event = web.post(PREDICTIONS, json={"predictions": [row(0, id=..., event_id="e1")]}).json()
    assert event["new"] == 1
    assert web.rows()[-1]["prediction_id"] == "e1"


def test_the_version_is_that_of_the_champion_then(web: Any) -> None:
    before = row(0, time="2025-06-01T00:00:00")  # no zone: UTC
    told = row(1, version="7", source="checkout", role="shadow")
    web.post(PREDICTIONS, json={"predictions": [before, told, row(2)]})
    rows = web.rows()
    assert [each["version"] for each in rows] == ["external", "7", "1"]
    assert rows[0]["time"] == datetime(2025, 6, 1, tzinfo=UTC)
    assert (rows[1]["source"], rows[1]["role"]) == ("checkout/shop", "shadow")


def test_a_sample_keeps_what_it_would_keep_anyway(run: Any, tmp_path: Any) -> None:
    with run(tmp_path, sample_rate=0.3) as web:
        told = web.post(PREDICTIONS, json={"predictions": [row(i) for i in range(400)]}).json()
        assert told["new"] + told["unsampled"] == 400
        assert 80 < told["new"] < 160
        again = web.post(PREDICTIONS, json={"predictions": [row(i) for i in range(400)]}).json()
        assert (again["duplicate"], again["unsampled"]) == (told["new"], told["unsampled"])


def test_labels_in_every_format(any_web: Any) -> None:
    any_web.post(PREDICTIONS, json={"predictions": [row(i) for i in range(4)]})
    told = any_web.post(LABELS, json={"labels": [{"id": "p0", "label": 1, "time": T}]}).json()
    assert (told["received"], told["new"], told["refused"]) == (1, 1, 0)
    lines = (
        b'{"id": "p1", "label": 0}\n{"id": "p2"}\n{"id": "p3", "label": 2.5, "time": "3000-01-01"}'
    )
    nd = any_web.post(LABELS, content=lines, headers={"content-type": "application/x-ndjson"})
    assert [(p["row"], p["reason"]) for p in nd.json()["problems"]] == [
        (1, "missing_field"),
        (2, "future"),
    ]
    body = arrow({"id": ["p2", "p3"], "label": [1, 0], "time": [T, None]}, file=True)
    assert any_web.post(LABELS, content=body, headers={"content-type": FILE}).json()["new"] == 2
    found = any_web.service.log.read("shop", labelled=True).meta
    assert dict(zip(found["id"], found["label"], strict=True)) == {
        "p0": 1, "p1": 0, "p2": 1, "p3": 0,
    }  # fmt: skip


def test_bodies_are_bounded_before_and_after_decompression(run: Any, tmp_path: Any) -> None:
    with run(tmp_path, max_body_mb=0.1, max_rows=10, read_within="1s") as web:
        good = json.dumps({"predictions": [row(0)]}).encode()
        zipped = {"content-encoding": "gzip"}
        assert web.post(PREDICTIONS, content=gzip.compress(good), headers=zipped).json()["new"] == 1
        zstd = pa.compress(good, codec="zstd", asbytes=True)
        told = web.post(PREDICTIONS, content=zstd, headers={"content-encoding": "zstd"})
        assert told.json()["duplicate"] == 1
        bomb = gzip.compress(b" " * 50_000_000)
        assert len(bomb) < 100_000
        assert web.post(PREDICTIONS, content=bomb, headers=zipped).status_code == 413
        zbomb = pa.compress(b" " * 50_000_000, codec="zstd", asbytes=True)
        told = web.post(PREDICTIONS, content=zbomb, headers={"content-encoding": "zstd"})
        assert told.status_code == 413
        for encoding, content in (("gzip", gzip.compress(good)[:-9]), ("gzip", b"nonsense"),
                                  ("zstd", zstd[:-3]), ("gzip", zlib.compress(good))):  # fmt: skip
            told = web.post(PREDICTIONS, content=content, headers={"content-encoding": encoding})
            assert told.status_code == 400, encoding
        for headers in ({"content-encoding": "br"}, {"content-type": "text/csv"}):
            assert web.post(PREDICTIONS, content=good, headers=headers).status_code == 415
        assert web.post(PREDICTIONS, content=b" " * 100_001).status_code == 413
        # Sent in pieces, so that no length is announced.
        pieces = iter([b" " * 60_000] * 2)
        assert web.post(PREDICTIONS, content=pieces).status_code == 413
        many = {"predictions": [row(i) for i in range(11)]}
        told = web.post(PREDICTIONS, json=many)
        assert (told.status_code, told.json()["expected"]) == (
            400, "at most 10; send several requests",
        )  # fmt: skip
        many = {"id": [f"p{i}" for i in range(11)], "inputs.age": [1.0] * 11}
        headers = {"content-type": STREAM}
        assert web.post(PREDICTIONS, content=arrow(many), headers=headers).status_code == 400
        assert web.service.log.counts("shop").predictions == 1


def test_a_caller_that_stalls_is_let_go(run: Any, tmp_path: Any) -> None:
    import socket

    with (
        run(tmp_path, read_within="200ms") as web,
        socket.create_connection(("127.0.0.1", web.port)) as stalled,
    ):
        head = f"POST {PREDICTIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        stalled.sendall(head.encode())
        assert stalled.recv(100).startswith(b"HTTP/1.1 408")


def test_a_locked_ledger_is_said_and_nothing_is_half_done(web: Any, monkeypatch: Any) -> None:
    from sqlalchemy.exc import OperationalError

    def locked(*_: Any, **__: Any) -> int:
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    monkeypatch.setattr(type(web.service.log), "append", locked)
    told = web.post(PREDICTIONS, json={"predictions": [row(0)]})
    assert (told.status_code, told.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    assert web.post(PREDICTIONS, json={"predictions": [row(0)]}).json()["new"] == 1


def test_unknown_and_unprepared_models(web: Any, tmp_path: Any) -> None:
    body = {"predictions": [row(0)]}
    assert web.post("/api/v1/models/nobody/predictions", json=body).status_code == 404
    assert web.post("/api/v1/models/..%2f..%2fx/predictions", json=body).status_code == 404
    (tmp_path / "serving" / "pointers" / "elsewhere.json").unlink()
    told = web.post(ELSEWHERE, json=body)
    assert (told.status_code, told.headers["retry-after"]) == (503, "1")


def test_json_needs_no_pandas() -> None:
    import subprocess

    code = """
import sys, json
from datetime import UTC, datetime, timedelta
from core.spec import Feature, ModelSpec
import shelflife.server
from shelflife.web import jsonrows, rows, wire
spec = ModelSpec(name="m", task="regression", target="y", metric="mae",
                 features=(Feature(name="x", kind="numeric"),))
body = json.dumps({"predictions": [{"inputs": {"x": 1.0}, "outputs": 2.0}]}).encode()
given, bad = jsonrows.rows(body, wire.PredictionIn, 10)
context = rows.Context(spec=spec, promotions=rows.Promotions(), now=datetime.now(UTC),
                       future=timedelta(0))
made = rows.assemble(given, context)
assert made.rows[0].outputs == {"prediction": 2.0}, made
sys.exit(", ".join({"pandas", "pyarrow", "sklearn", "mlflow"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
