"""What `benchmarks/serving.py` measures with: prepared versions, a server, wrk, and its peers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import pandas as pd

from core.files import sha256_tree
from core.settings import InterpreterSettings
from core.spec import ModelSpec, infer_spec
from registry.loading import save_estimator
from serving import deploy, store
from serving.interpreters import Wanted
from serving.store import Target

REPOSITORY = Path(__file__).parents[1]
COLUMNS = [f"f{i}" for i in range(20)]


def fitted(seed: int) -> tuple[Any, np.ndarray]:
    """The one model every server loads: HistGradientBoosting, 100 trees, 20 features, 50k rows."""
    from sklearn.datasets import make_classification
    from sklearn.ensemble import HistGradientBoostingClassifier

    x, y = make_classification(50_000, 20, n_informative=12, random_state=0)
    x = x.astype(np.float32).astype(np.float64).round(6)
    model = HistGradientBoostingClassifier(random_state=seed, early_stopping=False)
    frame = pd.DataFrame(x, columns=COLUMNS)
    if seed:  # versions that answer differently
        keep = np.random.default_rng(seed).random(len(x)) < 0.8
        return model.fit(frame[keep], y[keep]), x[:4096]
    return model.fit(frame, y), x[:4096]


@dataclass
class Version:
    version: str
    sha256: str
    model: str = "m"
    tags: dict[str, str] = field(default_factory=dict)


class Folder:
    """What `serving.deploy` asks of MLflow, for versions that lie in plain folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, version: str, spec: ModelSpec, estimator: Any, rows: np.ndarray) -> Version:
        folder = self.root / version
        save_estimator(estimator, folder / "model" / "model.skops")
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        frame = pd.DataFrame(rows, columns=COLUMNS).add_prefix("in:")
        frame.to_parquet(folder / "reference.parquet")
        return Version(version, sha256_tree(folder / "model"))

    def file(self, version: Version, name: str) -> bytes:
        return (self.root / version.version / name).read_bytes()

    def fetch(self, version: Version) -> Path:
        return self.root / version.version / "model"

    def attach(self, *given: Any) -> None:
        """Nothing is kept."""

    def tag(self, *given: Any, **more: Any) -> None:
        """Nothing is kept."""


class Room:
    """A home folder with three versions of `m`, each as the estimator and as a graph."""

    def __init__(self, home: Path) -> None:
        self.home, self.targets = home, dict[tuple[str, str], Target]()
        registry = Folder(home / "versions")
        for number in (1, 2, 3):
            estimator, rows = fitted(number - 1)
            if number == 1:
                self.estimator, self.rows = estimator, rows
                joblib.dump(estimator, home / "model.joblib")  # for the peers
            spec = infer_spec(
                "m", pd.DataFrame(rows, columns=COLUMNS), target="y", task="binary", classes=(0, 1)
            )
            version = registry.add(str(number), spec, estimator, rows)
            for backend in ("native", "onnx"):
                wanted = Wanted(settings=InterpreterSettings(backend=backend))
                self.targets[str(number), backend] = deploy.prepare(
                    registry,  # type: ignore[arg-type]
                    home,
                    version,  # type: ignore[arg-type]
                    trust_pickle=False,
                    wanted=wanted,
                )
        self.spec = spec

    @classmethod
    def kept(cls, home: Path) -> Room:
        """A room that was prepared before, or one that is kept for the next time."""
        there = home / "room.pickle"
        if not there.exists():
            home.mkdir(parents=True, exist_ok=True)
            there.write_bytes(pickle.dumps(cls(home)))
        found: Room = pickle.loads(there.read_bytes())
        return found

    def point(self, version: str, backend: str, model: str = "m") -> None:
        """Let workers serve a version."""
        target = self.targets[version, backend]
        store.write_pointer(self.home, model, target, now=datetime.now(UTC))

    def copies(self, number: int, backend: str) -> list[str]:
        """So many models: the first version under other names."""
        source = store.prepared(self.home, self.targets["1", backend].folder)
        manifest, spec = store.verify(source)
        names = [f"m{i}" for i in range(number)]
        for name in names:
            scratch = self.home / f"copy-{name}"
            shutil.copytree(source, scratch)
            renamed = msgspec.structs.replace(spec, name=name)
            (scratch / "spec.json").write_bytes(msgspec.json.encode(renamed))
            mine = msgspec.structs.replace(manifest, model=name, files=store.file_hashes(scratch))
            data = msgspec.json.encode(mine, order="deterministic")
            (scratch / "manifest.json").write_bytes(data)
            folder = hashlib.sha256(data).hexdigest()
            final = store.prepared(self.home, folder)
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
            target = msgspec.structs.replace(self.targets["1", backend], folder=folder)
            store.write_pointer(self.home, name, target, now=datetime.now(UTC))
        return names

    def without_pointers(self) -> None:
        """Nothing is served."""
        shutil.rmtree(store.pointers(self.home), ignore_errors=True)


class Server:
    """A server in a process group of its own, and how long its first answer took."""

    def __init__(
        self, command: list[str], url: str, body: bytes, *, cwd: Path, env: dict[str, str]
    ) -> None:
        self.url, self._log = url, cwd / "server.log"
        began = time.perf_counter()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=os.environ | env, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.first = b""
        while time.perf_counter() - began < 120 and self.process.poll() is None:
            try:
                self.first = post(url, body)
                break
            except OSError:
                time.sleep(0.01)
        self.cold = time.perf_counter() - began
        if not self.first:
            self.stop()
            raise RuntimeError(f"{command}: {self._log.read_text()[-800:]}")

    def _processes(self) -> list[tuple[Path, list[str]]]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    if self.process.pid in (int(stat[2]), int(stat[3]), int(stat[1])):
                        found.append((entry, stat))
        return found

    def memory(self) -> float:
        """Megabytes of its processes: proportional set size."""
        total = 0
        for entry, _ in self._processes():
            with contextlib.suppress(OSError):
                found = re.search(r"\nPss: +(\d+)", (entry / "smaps_rollup").read_text())
                total += int(found[1]) if found else 0
        return total / 1024

    def cpu(self) -> float:
        """Processor seconds that its processes have used."""
        ticks = sum(int(stat[11]) + int(stat[12]) for _, stat in self._processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def post(url: str, body: bytes) -> bytes:
    """One request."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: bytes = answer.read()
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ours(room: Room, *, body: bytes, model: str = "m", **options: Any) -> Server:
    """`shelflife serve`, logging on; `options` go to its settings."""
    port = free_port()
    serving = {"port": port} | options.pop("serving", {})
    defaults = {"durability": "relaxed"} | options.pop("defaults", {})
    models = options.pop("models", {})
    text = {"home": ".", "serving": serving, "defaults": defaults, "models": models}
    settings = room.home / f"settings-{port}.yaml"
    settings.write_text(json.dumps(text))  # JSON is YAML
    command = [sys.executable, "-m", "shelflife.cli", "serve", "--settings", str(settings)]
    env = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
    return Server(command, url, body, cwd=room.home, env=env)


def tensor(rows: np.ndarray) -> bytes:
    """Rows as one tensor, as every OIP server takes them."""
    one = {
        "name": "x", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist(),
    }  # fmt: skip
    return json.dumps({"inputs": [one]}).encode()


def columns(rows: np.ndarray) -> bytes:
    """Rows as one tensor per column, as mixed types need them."""
    inputs = [
        {"name": name, "shape": [len(rows)], "datatype": "FP64", "data": rows[:, i].tolist()}
        for i, name in enumerate(COLUMNS)
    ]
    return json.dumps({"inputs": inputs}).encode()


@dataclass
class Load:
    """What wrk saw; milliseconds."""

    rate: float
    p50: float
    p99: float
    requests: int
    failed: int


def wrk(url: str, body: bytes, *, clients: int, seconds: float, folder: Path) -> Load:
    """A closed loop of so many clients."""
    script = folder / f"wrk-{hashlib.sha256(body).hexdigest()[:8]}.lua"
    script.write_text(
        'wrk.method="POST"\nwrk.headers["Content-Type"]="application/json"\n'
        f"wrk.body=[==[{body.decode()}]==]\n"
    )
    command = [
        "wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "10s", "--latency",
        "-s", str(script), url,
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def number(pattern: str) -> float:
        found = re.search(pattern, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = number(r"Non-2xx or 3xx responses: (\d+)")
    failed += sum(map(int, errors.groups())) if errors else 0
    return Load(
        rate=number(r"Requests/sec:\s+([\d.]+)"),
        p50=_milliseconds(text, "50"),
        p99=_milliseconds(text, "99"),
        requests=int(number(r"(\d+) requests in")),
        failed=int(failed),
    )


def _milliseconds(text: str, percentile: str) -> float:
    found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    if not found:
        return float("nan")
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found[2]]
