"""MLServer, LitServe, BentoML, `mlflow models serve` and Ray Serve with the model of
`benchmarks/serving.py`, each in its own environment and its best settings.

FOLDER holds a virtual environment for each: `mlserver` (mlserver==1.7.1 mlserver-sklearn
uvloop<0.22), `litserve`, `bentoml`; `mlflow` and `ray` are taken from this one where there are no
folders of these names. What is not there is skipped and said so.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_room import Room, Server, free_port, ours, post, tensor, wrk

_LIT = """
import litserve as ls, joblib, numpy as np, sys
B = int(sys.argv[2])
class A(ls.LitAPI):
    def setup(self, device): self.m = joblib.load('model.joblib')
    def decode_request(self, request): return np.array(request['data'])
    def batch(self, inputs):
        self.lens = [len(x) for x in inputs]
        return np.concatenate(inputs)
    def unbatch(self, output): return np.split(output, np.cumsum(self.lens)[:-1])
    def predict(self, x): return self.m.predict_proba(x)
    def encode_response(self, output): return {'p': output.tolist()}
if __name__ == '__main__':
    a = A(max_batch_size=B, batch_timeout=0.002 if B > 1 else 0.0)
    ls.LitServer(a, accelerator='cpu', workers_per_device=1).run(
        port=int(sys.argv[1]), host='127.0.0.1', num_api_servers=1,
        generate_client_file=False, log_level='warning')
"""
_BENTO = """
import bentoml, joblib, numpy as np
@bentoml.service(workers=1)
class M:
    def __init__(self): self.m = joblib.load('model.joblib')
    @bentoml.api(route='/infer')
    def infer(self, data: list[list[float]]) -> list[list[float]]:
        return self.m.predict_proba(np.array(data)).tolist()
"""
_RAY = """
import ray, joblib, numpy as np, sys, signal, time
from ray import serve
from starlette.requests import Request
@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={'num_cpus': 1})
class M:
    def __init__(self): self.m = joblib.load(sys.argv[2] if len(sys.argv) > 2 else PATH)
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def go(self, xs):
        p = self.m.predict_proba(np.concatenate(xs)); o = []; k = 0
        for x in xs: o.append(p[k:k + len(x)]); k += len(x)
        return o
    async def __call__(self, r: Request):
        return {'p': (await self.go(np.array((await r.json())['data']))).tolist()}
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20)
serve.start(http_options={'host': '127.0.0.1', 'port': int(sys.argv[1])})
serve.run(M.bind(), route_prefix='/infer')
while True: time.sleep(1)
"""
_MLFLOW = """
import joblib, mlflow.sklearn, sys
mlflow.sklearn.save_model(joblib.load('model.joblib'), 'mlmodel', pip_requirements=[],
                          serialization_format='cloudpickle', pyfunc_predict_fn='predict_proba')
"""


@dataclass
class Peer:
    """How to start one, what to send it, where its probabilities are."""

    name: str
    environment: str
    command: list[str]  # PYTHON, BIN and PORT are filled in
    path: str
    kind: str
    files: dict[str, str]
    prepare: str = ""


def _settings(port: int) -> str:
    return json.dumps(
        {
            "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(),
            "metrics_port": free_port(), "parallel_workers": 0,
        }
    )  # fmt: skip


def _mlserver(port: int) -> dict[str, str]:
    model = {
        "name": "m", "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "1"},
    }  # fmt: skip
    return {"settings.json": _settings(port), "model-settings.json": json.dumps(model)}


def peers(port: int) -> list[Peer]:
    """Every peer, to listen on that port."""
    lit = ["PYTHON", "app_lit.py", "PORT"]
    serve = ["BIN/mlflow", "models", "serve", "-m", "mlmodel", "--env-manager", "local"]
    return [
        Peer("MLServer", "mlserver", ["BIN/mlserver", "start", "."], "/v2/models/m/infer", "mls",
             _mlserver(port)),
        Peer("LitServe (batch 64)", "litserve", [*lit, "64"], "/predict", "data",
             {"app_lit.py": _LIT}),
        Peer("BentoML", "bentoml",
             ["BIN/bentoml", "serve", "app_bento:M", "--host", "127.0.0.1", "-p", "PORT"],
             "/infer", "data", {"app_bento.py": _BENTO}),
        Peer("mlflow models serve", "mlflow", [*serve, "-h", "127.0.0.1", "-p", "PORT"],
             "/invocations", "mlf", {"save.py": _MLFLOW}, "save.py"),
        Peer("Ray Serve (batch 64)", "ray", ["PYTHON", "app_ray.py", "PORT"], "/infer", "data",
             {"app_ray.py": _RAY}),
    ]  # fmt: skip


def body(kind: str, rows: np.ndarray) -> bytes:
    """The rows as a peer takes them."""
    one = {
        "name": "x",
        "shape": list(rows.shape),
        "datatype": "FP64",
        "data": rows.ravel().tolist(),
    }
    made: dict[str, Any] = {
        "mls": {"inputs": [one], "outputs": [{"name": "predict_proba"}]},
        "mlf": {"inputs": rows.tolist()},
        "data": {"data": rows.tolist()},
    }
    return json.dumps(made[kind]).encode()


def probabilities(kind: str, answer: bytes) -> np.ndarray:
    """The second class's probability of each row."""
    told = json.loads(answer)
    found = told
    if kind == "mls":
        found = told["outputs"][0]["data"]
    elif kind == "mlf":
        found = told["predictions"]
    elif isinstance(told, dict):
        found = told["p"]
    return np.array(found, dtype=float).reshape(-1, 2)[:, 1]


def _start(peer: Peer, port: int, room: Room, environments: Path) -> Server:
    folder = environments / peer.environment
    there = (folder / "bin" / "python").exists()
    if not there and peer.environment not in ("mlflow", "ray"):
        raise RuntimeError(f"no environment {folder}")
    binaries = folder / "bin" if there else Path(sys.executable).parent
    work = room.home / f"peer-{peer.environment}"
    work.mkdir(exist_ok=True)
    for name, text in peer.files.items():
        (work / name).write_text(text.replace("PATH)", f"{str(room.home / 'model.joblib')!r})"))
    if not (work / "model.joblib").exists():
        os.link(room.home / "model.joblib", work / "model.joblib")
    python = str(binaries / "python")
    environment = {
        "OMP_NUM_THREADS": "1", "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": "",
        "BENTOML_DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    if peer.prepare and not (work / "mlmodel").exists():
        import subprocess

        subprocess.run(
            [python, peer.prepare], cwd=work, env=os.environ | environment, check=True,
            capture_output=True,
        )  # fmt: skip
    command = [
        part.replace("PYTHON", python).replace("BIN", str(binaries)).replace("PORT", str(port))
        for part in peer.command
    ]
    url = f"http://127.0.0.1:{port}{peer.path}"
    return Server(command, url, body(peer.kind, room.rows[:1]), cwd=work, env=environment)


def compare(room: Room, environments: Path) -> None:
    """Each peer, with ours measured before and after it in the same minutes."""
    print("\n## Beside its peers (16 clients; the quietest of the windows)\n")
    print(
        "| server | answers off by | first s | MB | 1 row: rows/s | per cpu-s | 64 rows: rows/s |"
        " per cpu-s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    import pandas as pd

    frame = pd.DataFrame(room.rows[:64], columns=room.spec.columns)
    expected = room.estimator.predict_proba(frame)[:, 1]
    rates = {}
    for backend in ("native", "onnx"):
        room.point("1", backend)
        server = ours(room, body=tensor(room.rows[:1]))
        try:
            told = json.loads(post(server.url, tensor(room.rows[:64])))["outputs"][0]["data"]
            off = float(np.abs(np.array(told) - expected).max())
            made = [tensor(room.rows[:n]) for n in (1, 64)]
            rates[backend] = _row(f"shelflife, {backend}", server, made, off, room)
        finally:
            server.stop()
    best = (0.0, 0.0)
    for peer in peers(port := free_port()):
        try:
            server = _start(peer, port, room, environments)
        except (RuntimeError, OSError) as error:
            print(f"| {peer.name} | not measured: {str(error)[-300:]!r} |||||||", flush=True)
            continue
        try:
            told = probabilities(peer.kind, post(server.url, body(peer.kind, room.rows[:64])))
            off = float(np.abs(told - expected).max())
            made = [body(peer.kind, room.rows[:n]) for n in (1, 64)]
            found = _row(peer.name, server, made, off, room)
            best = (max(best[0], found[0]), max(best[1], found[1]))
        finally:
            server.stop()
            time.sleep(1)
    for backend, (rate, cpu) in rates.items():
        if best[0]:
            print(
                f"\n{backend}: {rate / best[0]:.1f} × the best peer's one-row rate,"
                f" {cpu / best[1]:.1f} × per cpu-second"
            )


def _row(
    name: str, server: Server, made: list[bytes], off: float, room: Room
) -> tuple[float, float]:
    cells, first = [], (0.0, 0.0)
    for size, one in zip((1, 64), made, strict=True):
        wrk(server.url, one, clients=16, seconds=1, folder=room.home)
        before, loads = server.cpu(), []
        for _ in range(5):
            loads.append(wrk(server.url, one, clients=16, seconds=1, folder=room.home))
        used = max(1e-9, server.cpu() - before)
        rate = size * max(load.rate for load in loads)
        per_cpu = size * sum(load.requests for load in loads) / used
        failed = sum(load.failed for load in loads)
        cells += [f"{rate:,.0f}" + (f" ({failed} FAILED)" if failed else ""), f"{per_cpu:,.0f}"]
        first = first if size > 1 else (rate, per_cpu)
    print(
        f"| {name} | {off:.1e} | {server.cold:.1f} | {server.memory():.0f} | "
        + " | ".join(cells)
        + " |",
        flush=True,
    )
    return first
