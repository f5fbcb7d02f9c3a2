"""What `shelflife.Client` costs the service that uses it.

    python benchmarks/client.py [--calls 100000] [--seed 0]

For a row of 20 columns: microseconds per `log()` beside an empty function called in the same loop,
with the server up, down and hanging (p50, p99 and the largest of single calls, and the mean), and
rows per second that reach a server which reads and counts them. The receiver is a process of its
own, so that its work is not charged to the caller.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import socket
import statistics
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection as Pipe

from shelflife import Client

COLUMNS = 20


def serve(pipe: Pipe, hang: bool) -> None:
    """A server that takes every batch, or never answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            while hang:
                time.sleep(1)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def empty(model: str, inputs: object, outputs: object) -> None:
    """What `log` is compared with."""


def timed(call: object, rows: list[dict[str, float]], pause: float) -> list[float]:
    """Microseconds of each call; `pause` seconds between them, as a busy service has."""
    clock, spent, outputs = time.perf_counter, [], {"probability": 0.5}
    for row in rows:
        start = clock()
        call("m", row, outputs)  # type: ignore[operator]
        spent.append((clock() - start) * 1e6)
        if pause:
            until = clock() + pause
            while clock() < until:
                pass
    return spent


def line(name: str, spent: list[float], note: str = "") -> None:
    ordered = sorted(spent)
    p99 = ordered[int(0.99 * len(ordered))]
    mean = statistics.fmean(spent)
    print(
        f"{name:28} {statistics.median(spent):8.2f} {p99:8.2f} {ordered[-1]:10.1f} {mean:8.2f}  "
        f"{note}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    rows = [
        {f"x{k}": rng.random() for k in range(COLUMNS)} | {"plan": "gold"}
        for _ in range(given.calls)
    ]
    print(f"{given.calls:,} calls of {COLUMNS + 1} columns, seed {given.seed}\n")
    print(f"{'µs per call':28} {'p50':>8} {'p99':>8} {'largest':>10} {'mean':>8}")
    line("empty function", timed(empty, rows, 0))
    for server in ("up", "down", "hanging"):
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(
            target=serve, args=(there, server == "hanging"), daemon=True
        )
        if server == "down":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        else:
            child.start()
            port = here.recv()
        for name, pause in (("back to back", 0.0), ("every 200 µs", 200e-6)):
            part = rows if not pause else rows[: min(len(rows), 20_000)]
            client = Client(f"http://127.0.0.1:{port}", timeout=5, max_rows=50_000)
            spent = timed(client.log, part, pause)
            found = client.stats()
            note = f"sent {found['sent']:,}, shed {found['shed']:,}, pending {found['pending']:,}"
            line(f"server {server}, {name}", spent, note)
            client.close(0)
        if server == "up":
            throughput(port, rows)
        if child.is_alive():
            child.kill()


def throughput(port: int, rows: list[dict[str, float]]) -> None:
    """Rows per second from the first call to the last answer; nothing may be shed."""
    client = Client(f"http://127.0.0.1:{port}", max_rows=10**9, max_bytes=10**12)
    start = time.perf_counter()
    for row in rows:
        client.log("m", row, {"probability": 0.5})
    client.flush(120)
    spent = time.perf_counter() - start
    found = client.stats()
    assert found["sent"] == len(rows), found
    print(f"{'rows per second, all sent':28} {len(rows) / spent:8,.0f}")
    client.close()


if __name__ == "__main__":
    main()
