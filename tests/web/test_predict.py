"""Data frames for people with curl: JSON, CSV and Arrow in and out, refused by name."""

from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow as pa

PATH = "/api/v1/models/shop/predict"
RECORDS = [{"age": 40.5, "visits": 3}, {"age": 22.0, "visits": 1}]
ARROW = "application/vnd.apache.arrow.stream"


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def test_every_way_in_and_out_gives_the_protocols_answer(ready_web: Any) -> None:
    inputs = [
        {"name": "age", "shape": [2], "datatype": "FP64", "data": [40.5, 22.0]},
        {"name": "visits", "shape": [2], "datatype": "INT64", "data": [3, 1]},
    ]
    told = ready_web.post("/v2/models/shop/infer", json={"inputs": inputs}).json()
    expected = told["outputs"][0]["data"]
    split = {"columns": ["visits", "age"], "data": [[3, 40.5], [1, 22.0]]}
    for body in (RECORDS, split):
        answer = ready_web.post(f"{PATH}?id=frame", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert [row["probability"] for row in found["predictions"]] == expected
        assert [row["id"] for row in found["predictions"]] == ["frame:0", "frame:1"]
        assert (found["model"], found["version"]) == ("shop", told["model_version"])
    one = ready_web.post(PATH, json=RECORDS[0]).json()
    assert one["predictions"] == [{"id": one["id"], "probability": expected[0]}]

    text = "age,visits\n40.5,3\n22,1\n"
    as_csv = ready_web.post(
        PATH, content=text, headers={"Content-Type": "text/csv", "Accept": "text/csv"}
    )
    assert as_csv.headers["x-model-version"] == told["model_version"]
    rows = list(csv.DictReader(io.StringIO(as_csv.text)))
    assert [float(row["probability"]) for row in rows] == expected

    table = pa.table({"age": [40.5, 22.0], "visits": pa.array([3, 1], pa.int8())})
    as_arrow = ready_web.post(
        PATH, content=_arrow(table), headers={"Content-Type": ARROW, "Accept": ARROW}
    )
    read = pa.ipc.open_stream(as_arrow.content).read_all()
    assert read["probability"].to_pylist() == expected


BAD: dict[str, tuple[Any, str, int, str]] = {
    "a number": (b"3", "application/json", 400, "a record"),
    "no rows": (b"[]", "application/json", 400, "at least one row"),
    "no JSON": (b"{", "application/json", 400, "body"),
    "a name twice": (b'{"age": 1, "age": 2, "visits": 1}', "application/json", 400, "each name"),
    "a missing column": (b'{"visits": 1}', "application/json", 400, "age"),
    "a missing cell": (
        b'[{"age": 1, "visits": 1}, {"visits": 1}]', "application/json", 400, "row 1 has none",
    ),
    "an unknown column": (b'{"agee": 1, "visits": 1}', "application/json", 400, "agee"),
    "a text": (b'{"age": "x", "visits": 1}', "application/json", 400, "a number"),
    "a short row": (
        b'{"columns": ["age", "visits"], "data": [[1]]}', "application/json", 400, "2 values",
    ),
    "a header alone": (b"age,visits\n", "text/csv", 400, "at least one row"),
    "a cell too many": (b"age,visits\n1,2,3\n", "text/csv", 400, "2 cells"),
    "a word in CSV": (b"age,visits\nx,2\n", "text/csv", 400, "a number in row 0"),
    "an open quote": (b'age,visits\n"1,2\n', "text/csv", 400, "CSV"),
    "no UTF-8": (b"age,visits\n\xff,2\n", "text/csv", 400, "UTF-8"),
    "no Arrow": (b"ARROW1", ARROW, 400, "body"),
    "a spreadsheet": (b"PK", "application/vnd.ms-excel", 415, "text/csv"),
}  # fmt: skip


def test_what_is_no_frame_is_refused_by_name(ready_web: Any) -> None:
    for case, (body, media, status, words) in BAD.items():
        answer = ready_web.post(PATH, content=body, headers={"Content-Type": media})
        assert answer.status_code == status, (case, answer.text)
        assert words in answer.json()["error"], (case, answer.text)
    unknown = ready_web.post("/api/v1/models/nope/predict", json=RECORDS)
    assert unknown.status_code == 404
    assert ready_web.post(f"{PATH}?version=99", json=RECORDS).status_code == 404
    accept = ready_web.post(PATH, json=RECORDS, headers={"Accept": "image/png"})
    assert accept.status_code == 415
    assert ready_web.post(f"{PATH}?event_time=soon", json=RECORDS).status_code == 400
