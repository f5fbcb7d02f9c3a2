"""Serving, beside the bare model and beside its peers, all in one run, logging on.

    python benchmarks/serving.py                       everything but the peers
    python benchmarks/serving.py latency swap          only these parts
    python benchmarks/serving.py --peers FOLDER peers  also the servers whose environments lie there

One model everywhere: HistGradientBoosting, 100 trees, 20 features (seed 0). Load comes from wrk, a
closed loop on the same machine: it takes processor time from the server it measures, and from all
of them alike. Answers are compared with the estimator's own before anything is timed.

What runs beside it on the machine shows: latencies and rates are those of the quietest of several
one-second windows, and `per cpu-s` is what the server's processes did in a second of processor
time, whoever else ran.

Parts: `latency` (one row, one client: what serving adds to the bare predict), `rows` (16 clients, 1
and 64 rows a request, by interpreter and by what is logged), `swap` (a new version every 0.4 s in
one and in two workers), `many` (50 models, memory for 20), `start` (first answer, memory), `peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving_room import (
    COLUMNS,
    Load,
    Room,
    Server,
    columns,
    ours,
    post,
    tensor,
    wrk,
)

BACKENDS = ("native", "onnx")


def percentiles(call: Callable[[], Any], times: int) -> tuple[float, float]:
    """Milliseconds of one call: p50, p99."""
    for _ in range(50):
        call()
    seconds = np.empty(times)
    for i in range(times):
        began = perf_counter()
        call()
        seconds[i] = perf_counter() - began
    return tuple(np.percentile(seconds, (50, 99)) * 1e3)  # type: ignore[return-value]


def bare(room: Room, backend: str) -> tuple[float, float]:
    """The interpreter in this process, asked for one row as it likes it best."""
    from serving import backends, store
    from serving.columns import Table

    target = room.targets["1", backend]
    folder = store.prepared(room.home, target.folder)
    model = backends.load(
        target.backend, folder / "model", room.spec, threads=1, trust_pickle=False
    )
    row = Table.of_matrix(COLUMNS, np.ascontiguousarray(room.rows[:1]))
    if backend == "native":  # without our wrapper: what a script would call
        import pandas as pd
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1):
            frame = pd.DataFrame(room.rows[:1], columns=COLUMNS)
            return percentiles(lambda: room.estimator.predict_proba(frame), 300)
    return percentiles(lambda: model.infer(row), 5000)


def checked(room: Room, server: Server, rows: int) -> None:
    """The server's answers are the estimator's."""
    import pandas as pd

    frame = pd.DataFrame(room.rows[:rows], columns=COLUMNS)
    expected = room.estimator.predict_proba(frame)[:, 1]
    for body in (tensor(room.rows[:rows]), columns(room.rows[:rows])):
        told = json.loads(post(server.url, body))["outputs"][0]["data"]
        assert np.allclose(told, expected, atol=1e-4), (told[:3], expected[:3])


def latency(room: Room) -> None:
    """One row, one client."""
    print("\n## One row, one client (ms)\n")
    print("| interpreter | durability | bare p50 / p99 | served p50 / p99 | added p50 / p99 |")
    print("|---|---|---|---|---|")
    body = tensor(room.rows[:1])
    for backend in BACKENDS:
        room.point("1", backend)
        for durability in ("relaxed", "strict"):
            server = ours(room, body=body, defaults={"durability": durability})
            try:
                checked(room, server, 16)
                wrk(server.url, body, clients=1, seconds=2, folder=room.home)
                bares, loads = [], []
                for _ in range(10):
                    bares.append(bare(room, backend))
                    loads.append(wrk(server.url, body, clients=1, seconds=1, folder=room.home))
                before = tuple(min(each[i] for each in bares) for i in (0, 1))
                p50, p99 = min(each.p50 for each in loads), min(each.p99 for each in loads)
                print(
                    f"| {backend} | {durability} | {before[0]:.3f} / {before[1]:.3f} |"
                    f" {p50:.3f} / {p99:.3f} | {p50 - before[0]:.3f} / {p99 - before[1]:.3f} |",
                    flush=True,
                )
            finally:
                server.stop()


CASES: dict[str, dict[str, Any]] = {
    "relaxed, all rows": {"durability": "relaxed"},
    "relaxed, 1 % of rows": {"durability": "relaxed", "sample_rate": 0.01},
    "strict, all rows": {"durability": "strict"},
}


def rows(room: Room) -> None:
    """Many clients."""
    print("\n## 16 clients\n")
    print(
        "| interpreter | log | 1 row: p50 / p99 ms | rows/s | per cpu-s | 64 rows: p50 / p99 ms |"
        " rows/s | per cpu-s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for backend in BACKENDS:
        room.point("1", backend)
        for name, defaults in CASES.items():
            one, many = tensor(room.rows[:1]), tensor(room.rows[:64])
            server = ours(room, body=one, defaults=defaults)
            try:
                wrk(server.url, one, clients=4, seconds=1, folder=room.home)
                cells = [
                    _windows(server, each, size, room) for size, each in ((1, one), (64, many))
                ]
                print(f"| {backend} | {name} | " + " | ".join(cells) + " |", flush=True)
                counters = _counters(server)
                if counters:
                    print(f"|  | ↳ {counters} |  |  |  |  |  |  |", flush=True)
            finally:
                server.stop()


def _windows(server: Server, body: bytes, size: int, room: Room) -> str:
    before = server.cpu()
    loads = [wrk(server.url, body, clients=16, seconds=1, folder=room.home) for _ in range(6)]
    used = server.cpu() - before
    failed = sum(load.failed for load in loads)
    return (
        f"{min(load.p50 for load in loads):.2f} / {min(load.p99 for load in loads):.2f} |"
        f" {size * max(load.rate for load in loads):,.0f} |"
        f" {size * sum(load.requests for load in loads) / used:,.0f}"
        + (f" FAILED {failed}" if failed else "")
    )


def _counters(server: Server) -> str:
    """What became of the rows, as the server counts it."""
    time.sleep(1.5)
    with urllib.request.urlopen(server.url.partition("/v2")[0] + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("shelflife_log_rows_total") and 'model="m"' in line:
            name = line.partition('outcome="')[2].partition('"')[0]
            found[name] = float(line.rpartition(" ")[2])
    answered = found.pop("answered", 0.0) or 1.0
    return ", ".join(f"{name} {100 * n / answered:.1f} %" for name, n in sorted(found.items()))


def swap(room: Room) -> None:
    """Swaps under load."""
    print("\n## Swaps under load (16 clients, one row, every swap loads a version)\n")
    print("| interpreter | workers | requests | swaps | failed | p99 before → during (ms) |")
    print("|---|---|---|---|---|---|")
    body = tensor(room.rows[:1])
    for backend in ("onnx", "native"):
        for workers in (1, 2):
            room.point("1", backend)
            server = ours(room, body=body, serving={"workers": workers})
            try:
                time.sleep(3 if workers > 1 else 0)
                wrk(server.url, body, clients=16, seconds=2, folder=room.home)
                quiet = wrk(server.url, body, clients=16, seconds=8, folder=room.home)
                loads, swaps, wrong = list[Load](), 0, list[str]()
                over = threading.Event()
                asking = threading.Thread(target=_ask_all, args=(server, over, wrong))
                asking.start()
                while sum(load.requests for load in loads) < 50_000 or swaps < 20:
                    with ThreadPoolExecutor(1) as pool:
                        one = pool.submit(
                            wrk, server.url, body, clients=16, seconds=8, folder=room.home
                        )
                        while not one.done():
                            swaps += 1
                            room.point(str(swaps % 3 + 1), backend)
                            time.sleep(0.4)
                        loads.append(one.result())
                over.set()
                asking.join()
                failed = sum(load.failed for load in loads) + len(wrong)
                p99 = float(np.median([load.p99 for load in loads]))
                total = sum(load.requests for load in loads)
                print(
                    f"| {backend} | {workers} | {total:,} | {swaps} | {failed} |"
                    f" {quiet.p99:.2f} → {p99:.2f} ({p99 / quiet.p99:.2f} ×) |",
                    flush=True,
                )
            finally:
                server.stop()


def _ask_all(server: Server, over: threading.Event, wrong: list[str]) -> None:
    """One client beside wrk that looks at every answer."""
    body, versions = tensor(np.full((1, 20), 0.5)), dict[str, float]()
    while not over.is_set():
        told = json.loads(post(server.url, body))
        value = told["outputs"][0]["data"][0]
        if versions.setdefault(told["model_version"], value) != value:
            wrong.append(told["model_version"])
        time.sleep(0.005)


def many(room: Room) -> None:
    """Fifty models, memory for twenty."""
    print("\n## 50 models in one process, memory for 20\n")
    room.without_pointers()
    names = room.copies(50, "onnx")
    body = tensor(room.rows[:1])
    size = _size(room, names[0])
    budget = 20.5 * size / 1e6
    server = ours(room, body=body, model=names[0], serving={"memory_mb": budget})
    urls = [server.url.replace(f"/{names[0]}/", f"/{name}/") for name in names]
    failed: list[str] = []
    times: dict[str, list[float]] = {"resident": [], "resident beside": [], "any": []}
    try:
        _drive(urls[:15], "resident", 6, times, failed)
        over = threading.Event()
        cold = threading.Thread(
            target=_drive, args=(urls, "any", 12, times, failed), kwargs={"pause": 0.02}
        )
        cold.start()
        _drive(urls[:15], "resident beside", 12, times, failed)
        over.set()
        cold.join()
        held = _resident(server)
        print(f"one model holds {size / 1e6:.2f} MB; the budget is {budget:.1f} MB")
        for name, seconds in times.items():
            p50, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
            print(f"- {name}: {len(seconds):,} requests, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        print(f"- failed: {len(failed)}; resident at the end: {held}; {server.memory():.0f} MB")
        for problem in failed[:3]:
            print("  ", problem)
    finally:
        server.stop()
        room.without_pointers()


def _drive(
    urls: list[str],
    name: str,
    seconds: float,
    times: dict[str, list[float]],
    failed: list[str],
    pause: float = 0.0,
) -> None:
    """Ask models at random, one connection."""
    import http.client

    rng, body = np.random.default_rng(1), tensor(np.full((1, 20), 0.25))
    host = urls[0].split("/")[2]
    connection = http.client.HTTPConnection(host, timeout=30)
    end = perf_counter() + seconds
    while perf_counter() < end:
        path = "/" + urls[rng.integers(len(urls))].split("/", 3)[3]
        began = perf_counter()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        times[name].append(perf_counter() - began)
        if answer.status != 200:
            failed.append(f"{answer.status} {text[:200]!r}")
        time.sleep(pause)
    connection.close()


def _resident(server: Server) -> int:
    base = server.url.partition("/v2")[0]
    found = json.loads(post(f"{base}/v2/repository/index", b'{"ready": true}'))
    return len(found)


def _size(room: Room, name: str) -> int:
    from serving import backends, store

    target = store.read_pointer(store.pointers(room.home) / f"{name}.json").champion
    folder = store.prepared(room.home, target.folder)
    _, spec = store.verify(folder)
    model = backends.load(target.backend, folder / "model", spec, threads=1, trust_pickle=False)
    memory = getattr(model, "memory", int)()
    return memory or sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def start(room: Room) -> None:
    """First answers and memory."""
    print("\n## Start and memory (median of 3)\n")
    print("| interpreter | first answer s | MB, one model | MB per further model (of 20) |")
    print("|---|---|---|---|")
    body = tensor(room.rows[:1])
    for backend in ("onnx", "native"):
        colds, ones, further = [], [], []
        for _ in range(3):
            room.without_pointers()
            room.point("1", backend)
            server = ours(room, body=body)
            wrk(server.url, body, clients=1, seconds=1, folder=room.home)
            colds.append(server.cold)
            ones.append(server.memory())
            room.copies(20, backend)
            base = server.url.partition("/v2")[0]
            while len(json.loads(post(f"{base}/v2/repository/index", b'{"ready": true}'))) < 21:
                time.sleep(0.05)
            for name in (f"m{i}" for i in range(20)):
                post(server.url.replace("/m/", f"/{name}/"), body)
            further.append((server.memory() - ones[-1]) / 20)
            server.stop()
        print(
            f"| {backend} | {np.median(colds):.2f} | {np.median(ones):.0f} |"
            f" {np.median(further):.2f} |",
            flush=True,
        )
    room.without_pointers()


PARTS: dict[str, Callable[[Room], None]] = {
    "latency": latency, "rows": rows, "swap": swap, "many": many, "start": start,
}  # fmt: skip


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "peers", []], default=[])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument(
        "--room", type=Path, help="keep what is prepared in this folder, and use it"
    )
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        began = perf_counter()
        room = Room.kept(given.room) if given.room else Room(Path(folder))
        print(
            f"three versions with two interpreters are ready after {perf_counter() - began:.0f} s"
        )
        for name, part in PARTS.items():
            if not given.parts or name in given.parts:
                part(room)
        if given.peers is not None and (not given.parts or "peers" in given.parts):
            from benchmarks.serving_peers import compare

            compare(room, given.peers)


if __name__ == "__main__":
    main()
