"""Triton's own clients, HTTP and gRPC, as callers: what they send is understood, what they are
answered is the estimator's answer. And what they cannot send: damaged bytes."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpcclient = pytest.importorskip("tritonclient.grpc")
httpclient = pytest.importorskip("tritonclient.http")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


ARRAYS = {
    "amount": ("FP64", np.float64),
    "age": ("FP32", np.float32),
    "visits": ("UINT8", np.uint8),
    "member": ("BOOL", np.bool_),
    "country": ("BYTES", np.object_),
}


def tensors(module: Any, columns: dict[str, list[Any]], **options: Any) -> list[Any]:
    """The columns as the client's own tensors; a missing age is NaN."""
    found = []
    for name, (datatype, dtype) in ARRAYS.items():
        values = [np.nan if value is None else value for value in columns[name]]
        tensor = module.InferInput(name, [len(values)], datatype)
        tensor.set_data_from_numpy(np.array(values, dtype=dtype), **options)
        found.append(tensor)
    return found


@pytest.fixture
def clients(room: Any, start: Any) -> Any:
    room.serve("1")
    port = free_port()
    with start(grpc_port=port) as server:
        http = httpclient.InferenceServerClient(f"127.0.0.1:{server.port}")
        grpc = grpcclient.InferenceServerClient(f"127.0.0.1:{port}")
        yield {"http": http, "grpc": grpc}
        grpc.close()
        http.close()


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_whole_protocol(room: Any, clients: Any, tools: Any, kind: str) -> None:
    client, module = clients[kind], {"http": httpclient, "grpc": grpcclient}[kind]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("churn")
    assert client.is_model_ready("churn", "1")
    more = {"as_json": True} if kind == "grpc" else {}
    assert client.get_server_metadata(**more)["name"] == "shelflife"
    metadata = client.get_model_metadata("churn", "1", **more)
    assert {each["name"]: each["datatype"] for each in metadata["inputs"]}["country"] == "BYTES"

    columns = tools.rows(9, seed=3)
    result = client.infer("churn", tensors(module, columns), request_id=f"{kind}-1")
    answered = result.as_numpy("probability")
    assert answered.dtype == np.float64
    assert answered.tolist() == room.expected("1", columns)
    response = result.get_response()
    identity = response["id"] if kind == "http" else response.id
    assert identity == f"{kind}-1"
    assert f"{kind}-1:8" in set(room.log.read("churn").meta["id"])
    logged = room.log.read("churn").inputs["age"].tolist()  # NaN was a missing value
    assert sum(value != value for value in logged) == columns["age"].count(None)

    wanted = [module.InferRequestedOutput("probability")]
    again = client.infer("churn", tensors(module, columns), model_version="1", outputs=wanted)
    assert again.as_numpy("probability").tolist() == answered.tolist()
    for model, version in (("nope", ""), ("churn", "9")):
        with pytest.raises(InferenceServerException, match=r"no (model|version)"):
            client.infer(model, tensors(module, columns), model_version=version)
    short = tensors(module, columns)[:-1]
    with pytest.raises(InferenceServerException, match="country"):
        client.infer("churn", short)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_repository(clients: Any, tools: Any, kind: str) -> None:
    client, module = clients[kind], {"http": httpclient, "grpc": grpcclient}[kind]
    asked = tensors(module, tools.rows(1))

    def index() -> list[tuple[str, str, str]]:
        found = client.get_model_repository_index()
        if kind == "grpc":
            return [(m.name, m.version, m.state) for m in found.models]
        return [(m["name"], m["version"], m["state"]) for m in found]

    assert index() == [("churn", "1", "READY")]
    client.unload_model("churn")
    assert index() == [("churn", "1", "UNAVAILABLE")]
    assert not client.is_model_ready("churn")
    assert client.is_server_ready()  # what nobody wants loaded is no reason to send callers away
    with pytest.raises(InferenceServerException, match="unloaded"):
        client.infer("churn", asked)
    client.load_model("churn")
    assert client.is_model_ready("churn")
    assert len(client.infer("churn", asked).as_numpy("probability")) == 1
    with pytest.raises(InferenceServerException, match="registered in MLflow"):
        client.load_model("churn", config="{}")
    with pytest.raises(InferenceServerException, match="no model"):
        client.load_model("nope")


def test_json_both_ways_compression_and_deadlines(room: Any, clients: Any, tools: Any) -> None:
    columns = tools.rows(5, seed=4)
    expected = room.expected("1", columns)
    http, grpc = clients["http"], clients["grpc"]
    as_json = tensors(httpclient, columns | {"age": [30.0] * 5}, binary_data=False)
    output = [httpclient.InferRequestedOutput("probability", binary_data=False)]
    wanted = room.expected("1", columns | {"age": [30.0] * 5})
    for compression in (None, "gzip", "deflate"):
        found = http.infer(
            "churn", as_json, outputs=output, request_compression_algorithm=compression
        )
        assert found.as_numpy("probability").tolist() == wanted
    mixed = http.infer("churn", tensors(httpclient, columns), outputs=output)
    assert mixed.as_numpy("probability").tolist() == expected
    generous = grpc.infer("churn", tensors(grpcclient, columns), client_timeout=20)
    assert generous.as_numpy("probability").tolist() == expected
    assert http.infer("churn", tensors(httpclient, columns), timeout=20_000_000)
    with pytest.raises(InferenceServerException, match=r"passed before|no answer within"):
        http.infer("churn", tensors(httpclient, columns), timeout=1)


def test_one_process_may_serve_grpc_and_ask_a_triton() -> None:
    """Triton's client and we have messages of the same names."""
    code = (
        "import tritonclient.grpc, serving.messages as m; print(m.message('ModelInferRequest')())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_vendored_descriptor_is_the_compiled_proto(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    from google.protobuf import descriptor_pb2

    out = tmp_path / "x.binpb"
    folder = REPOSITORY / "serving"
    command = ["protoc", f"-I{folder}", f"--descriptor_set_out={out}", "inference.proto"]
    assert protoc.main(command) == 0
    mine, theirs = (descriptor_pb2.FileDescriptorSet() for _ in range(2))
    mine.ParseFromString((folder / "inference.binpb").read_bytes())
    theirs.ParseFromString(out.read_bytes())
    assert mine == theirs


GOOD = {"name": "amount", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": 16}}
DAMAGED: dict[str, tuple[Any, bytes, str]] = {
    "too few bytes": ({}, b"\0" * 15, "bytes that are left"),
    "too many bytes": ({}, b"\0" * 17, "its tensors say"),
    "half a number": ({"parameters": {"binary_data_size": 15}}, b"\0" * 15, "a multiple of 8"),
    "other length than shape": ({"shape": [3]}, b"\0" * 16, "3 values"),
    "unknown datatype": ({"datatype": "BF16"}, b"\0" * 16, "one of"),
    "infinite": ({}, struct.pack("<dd", 1.0, float("inf")), "a finite number in row 1"),
    "never missing": ({}, struct.pack("<dd", 1.0, float("nan")), "a finite number in row 1"),
    "data beside it": ({"data": [1.0, 2.0]}, b"\0" * 16, "no data beside"),
    "size that is no number": ({"parameters": {"binary_data_size": "16"}}, b"\0" * 16, "bytes"),
    "text for a number": ({"datatype": "BYTES"}, b"\x0c\0\0\0" + b"a" * 12, "FP64"),
    "text that ends early": ({"datatype": "BYTES"}, b"\xff\0\0\0" + b"a" * 12, "bytes"),
    "text that is no UTF-8": ({"datatype": "BYTES"}, b"\x0c\0\0\0" + b"\xff" * 12, "UTF-8"),
    "truth of 2": ({"datatype": "BOOL", "shape": [16]}, b"\2" * 16, "0 or 1"),
}


def test_damaged_bytes_are_refused_by_name(room: Any, start: Any, tools: Any) -> None:
    import json

    room.serve("1")
    rest = [t for t in tools.request(tools.rows(2))["inputs"] if t["name"] != "amount"]
    with start() as server:
        connection = server.client()._connection

        def send(change: Any, raw: bytes, header: str | None = None) -> tuple[int, Any]:
            body = json.dumps({"inputs": [GOOD | change, *rest]}).encode()
            length = str(len(body)) if header is None else header
            headers = {"Inference-Header-Content-Length": length}
            connection.request("POST", "/v2/models/churn/infer", body + raw, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        assert send({}, struct.pack("<dd", 50.0, 20.0))[0] == 200
        for case, (change, raw, words) in DAMAGED.items():
            status, told = send(change, raw)
            assert status == 400, (case, told)
            assert words in told["error"], (case, told)
        for header in ("-1", "x", "9" * 40, "1000000"):
            status, told = send({}, b"", header)
            assert (status, told["field"]) == (400, "Inference-Header-Content-Length")
