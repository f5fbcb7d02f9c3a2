"""Interpreters on an NVIDIA GPU: correct first, then where it pays and what sharing it costs.

    python benchmarks/gpu.py [--largest 1048576] [--json FILE]

1. Correctness: every candidate against the estimator's own answers, in float64, on rows with
   missing values; what is wrong is not timed.
2. Batch sizes from 1 to a million: the best CPU interpreter of each model beside CUDA, medians of
   the clock of the whole call (arrays on the host in, arrays on the host out), and the time on the
   device by CUDA events; the smallest batch from which the GPU is faster (break-even).
3. Rows a second beside the memory-bandwidth floor of the fused kernel: the bytes it must move
   (inputs read, answers written, nodes once) over the bandwidth measured by a copy on this card.
4. Eight models sharing the GPU, a thread and a stream each: their rows a second together against
   one model alone (wanted: at least 0.9 of it).
5. The p99 of a latency model (one row) alone, and beside a bulk model; the profile `latency`
   gives its stream the higher priority.
6. Memory: what the device holds before a model is loaded, while it is, and after `unload`.

Models: HistGradientBoosting with 100 trees, a random forest of 200 trees of depth 12 (both on 20
features), and a PyTorch network 20-256-256-1. nvforest, RAPIDS's engine, is timed beside them where
it is installed. Seeds are fixed. Without a GPU it says so and ends well (exit 0).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec, infer_spec
from registry.loading import PyfuncEstimator, predict_array
from serving import backends
from serving.backend import Model, NotApplicable, Subject

FEATURES = 20
_SECONDS = 0.4  # spent on one measurement
_TOLERANCE = {
    "float64": 1e-12,
    "kernel": 1e-12,
    "float32": 1e-5,
    "compiled": 1e-5,
    "float16": 1e-2,
    "bfloat16": 1e-2,
    "int8": 1e-2,
}
Report = dict[str, Any]


class _Module:
    """What `registry.loading` sees of an MLflow PyTorch model, without MLflow."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def get_raw_model(self) -> Any:
        return self._module

    def predict(self, inputs: pd.DataFrame) -> np.ndarray:
        import torch

        with torch.inference_mode():
            rows = torch.from_numpy(inputs.to_numpy(dtype=np.float32))
            return np.asarray(self._module(rows).numpy())


def fitted() -> dict[str, tuple[ModelSpec, Any]]:
    """The models, by name."""
    import torch
    from sklearn.datasets import make_classification
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    x, y = make_classification(20_000, FEATURES, n_informative=12, random_state=0)
    frame = pd.DataFrame(x, columns=[f"n{i}" for i in range(FEATURES)])
    frame.iloc[::50, 3] = np.nan
    spec = infer_spec("bench", frame, target="y", task="binary", classes=(0, 1))
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256),
        torch.nn.ReLU(), torch.nn.Linear(256, 1), torch.nn.Sigmoid(),
    ).eval()  # fmt: skip
    forest = RandomForestClassifier(200, max_depth=12, n_jobs=os.cpu_count(), random_state=0)
    boosting = HistGradientBoostingClassifier(max_iter=100, random_state=0)
    return {
        "HGB 100": (spec, boosting.fit(frame, y)),
        "RF 200": (spec, forest.fit(frame, y)),
        "MLP": (spec, PyfuncEstimator(_Module(network))),
    }


def rows_of(spec: ModelSpec, n: int, *, missing: bool) -> dict[str, np.ndarray]:
    """Columns of `n` rows."""
    rng = np.random.default_rng(n)
    matrix = rng.normal(size=(n, len(spec.features))) * 2
    if missing:
        matrix[rng.random(n) < 0.05, 3] = np.nan
    return {f.name: np.ascontiguousarray(matrix[:, i]) for i, f in enumerate(spec.features)}


def clock(call: Callable[[], object], *, device: bool) -> tuple[float, float, float]:
    """Milliseconds of a call: median and p99 by the host's clock, median on the device."""
    import torch

    for _ in range(3):
        call()
    host, gpu = [], []
    end = time.perf_counter() + _SECONDS
    while len(host) < 5 or (time.perf_counter() < end and len(host) < 2000):
        if device:
            begin, finish = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        if device:
            begin.record()
        call()
        if device:
            finish.record()
            finish.synchronize()
            gpu.append(begin.elapsed_time(finish))
        host.append((time.perf_counter() - started) * 1e3)
    on_device = float(np.median(gpu)) if gpu else 0.0
    return float(np.median(host)), float(np.percentile(host, 99)), on_device


class Bench:
    """One run on one card."""

    def __init__(self, room: Path, largest: int) -> None:
        import torch

        self.torch, self.room, self.largest = torch, room, largest
        self.models = fitted()
        self.built: dict[tuple[str, str], tuple[Model, Path]] = {}
        self.report: Report = {
            "gpu": torch.cuda.get_device_name(),
            "cpu": f"{os.cpu_count()} processors",
            "torch": torch.__version__,
        }

    def subject(self, name: str) -> Subject:
        spec, estimator = self.models[name]
        return Subject(
            spec=spec, folder=self.room, estimator=estimator, trust_pickle=False,
            settings=InterpreterSettings(profile="latency" if name == "MLP" else "throughput"),
        )  # fmt: skip

    def build(self) -> None:
        """Prepare every candidate of `onnx` and `torch`; native forests are asked in process."""
        for name in self.models:
            for kind in ("onnx", "torch"):
                backend = backends.backend(kind)
                try:
                    variants = backend.assess(self.subject(name))
                except NotApplicable as error:
                    print(f"{name:8} {kind:22} {error}")
                    continue
                for variant in variants:
                    self._build(name, kind, variant)

    def _build(self, name: str, kind: str, variant: str) -> None:
        backend = backends.backend(kind)
        folder = self.room / f"{name}-{kind}-{variant}".replace(" ", "_")
        folder.mkdir()
        threads = os.cpu_count() or 1
        try:
            backend.prepare(self.subject(name), variant, folder)
            spec = self.models[name][0]
            model = backend.load(folder, spec, threads=threads, trust_pickle=False)
        except NotApplicable as error:
            print(f"{name:8} {kind + '/' + variant:22} {error}")
            return
        self.built[name, f"{kind}/{variant}"] = (model, folder)

    def correct(self) -> None:
        """Drop what does not answer as the estimator does; say how near the others are."""
        print("\n1. Largest difference from the estimator (float64), 20,000 rows")
        found: Report = {}
        for (name, label), (model, _) in list(self.built.items()):
            spec, estimator = self.models[name]
            columns = rows_of(spec, 20_000, missing=name != "MLP")
            want = predict_array(estimator, spec, pd.DataFrame(columns))[:, 0]
            worst = float(np.abs(model.infer(columns)["probability"] - want).max())
            precision = label.partition("/")[2].partition("@")[0]
            sound = worst <= _TOLERANCE.get(precision, 1e-4)
            print(f"   {name:8} {label:24} {worst:.1e}{'' if sound else '  WRONG: not timed'}")
            found[f"{name} {label}"] = worst
            if not sound:
                model.unload()
                del self.built[name, label]
        self.report["difference"] = found

    def batches(self) -> None:
        """Medians by batch size, and the break-even."""
        print("\n2. Milliseconds of the whole call (on the device) by batch size")
        sizes = [4**power for power in range(11) if 4**power <= self.largest]
        found: Report = {}
        for (name, label), (model, _) in self.built.items():
            spec, gpu = self.models[name][0], "@" in label
            line = []
            for size in sizes:
                if not gpu and label.startswith("torch/") and size > 65536:
                    continue  # minutes of tensors on the CPU tell nobody anything
                columns = rows_of(spec, size, missing=False)
                host, p99, on_device = clock(lambda m=model, c=columns: m.infer(c), device=gpu)  # type: ignore[misc]
                line.append({"rows": size, "ms": host, "p99_ms": p99, "device_ms": on_device})
            found[f"{name} {label}"] = line
            cells = " ".join(
                f"{each['rows']}:{each['ms']:.3f}({each['device_ms']:.3f})" for each in line
            )
            print(f"   {name:8} {label:24} {cells}")
        self.report["batches"] = found
        self._peer(sizes)
        self.report["break_even"] = {name: self._break_even(name, found) for name in self.models}
        print("   the GPU is faster from this batch on:", self.report["break_even"])

    def _break_even(self, name: str, found: Report) -> int | None:
        mine = {key: line for key, line in found.items() if key.startswith(name + " ")}
        best: dict[bool, dict[int, float]] = {True: {}, False: {}}
        for key, line in mine.items():
            for each in line:
                times = best["@" in key]
                times[each["rows"]] = min(each["ms"], times.get(each["rows"], np.inf))
        sizes = sorted(set(best[True]) & set(best[False]))
        for start in range(len(sizes)):  # faster here and at every larger batch
            if all(best[True][size] < best[False][size] for size in sizes[start:]):
                return sizes[start]
        return None

    def _peer(self, sizes: list[int]) -> None:
        try:
            import nvforest  # type: ignore[import-not-found]
        except ImportError:
            print("   nvforest is not installed: no peer")
            return
        for name in ("HGB 100", "RF 200"):
            spec, estimator = self.models[name]
            peer = nvforest.load_from_sklearn(estimator)
            line = []
            for size in sizes:
                columns = rows_of(spec, size, missing=False)
                matrix = np.column_stack(list(columns.values())).astype(np.float32)
                line.append(
                    clock(lambda p=peer, m=matrix: np.asarray(p.predict(m)), device=True)[0]
                )  # type: ignore[misc]
            self.report.setdefault("nvforest", {})[name] = dict(zip(sizes, line, strict=True))
            print(
                f"   {name:8} nvforest                ",
                " ".join(f"{s}:{m:.3f}" for s, m in zip(sizes, line, strict=True)),
            )

    def bandwidth(self) -> None:
        """Rows a second of the tensors on the device beside what the memory allows."""
        torch = self.torch
        print("\n3. On the device alone, beside the memory-bandwidth floor")
        block = torch.empty(1 << 27, dtype=torch.float64, device="cuda")  # 1 GiB
        copy = clock(block.clone, device=True)[2]
        rate = 2 * block.numel() * 8 / copy * 1e3
        print(f"   a copy moves {rate / 1e9:,.0f} GB/s")
        del block
        from serving.backends.forest import forest_of
        from serving.backends.forest_torch import ForestTensors

        found: Report = {"copy_gb_s": rate / 1e9}
        size = self.largest
        for name in ("HGB 100", "RF 200"):
            tensors = ForestTensors(forest_of(self.models[name][1]), torch.float64, "cuda")
            walks: dict[str, Any] = {"tensors": tensors}
            try:
                from serving.backends.forest_kernel import FusedForest

                walks["kernel"] = FusedForest(tensors)
            except ImportError:
                print("   the Triton language is not installed: no kernel")
            matrix = torch.randn(size, FEATURES, dtype=torch.float64, device="cuda")
            moved = matrix.numel() * 8 + size * 8 + tensors.nbytes
            floor = size / (moved / rate)
            for label, walk in walks.items():
                taken = clock(lambda w=walk, m=matrix: w(m), device=True)[2]  # type: ignore[misc]
                reached = size / taken * 1e3
                print(f"   {name:8} {label:8} {reached:14,.0f} rows/s, floor {floor:14,.0f} "
                      f"({reached / floor:.1%})")  # fmt: skip
                found[f"{name} {label}"] = {"rows_s": reached, "floor_rows_s": floor}
        self.report["bandwidth"] = found

    def _on_gpu(self, name: str) -> tuple[str, Path] | None:
        """The fastest variant of a model on the GPU, by the largest batch measured."""
        timed = {
            label: self.report["batches"][f"{name} {label}"][-1]["ms"]
            for (own, label) in self.built
            if own == name and label.startswith("torch/") and "@" in label
        }
        if not timed:
            return None
        label = min(timed, key=lambda each: timed[each])
        return label, self.built[name, label][1]

    @contextmanager
    def _loaded(self, name: str) -> Iterator[Model]:
        best = self._on_gpu(name)
        assert best is not None
        model = backends.load("torch", best[1], self.models[name][0], threads=1, trust_pickle=False)
        try:
            yield model
        finally:
            model.unload()

    def _rate(self, models: list[tuple[str, Model]], rows: int, seconds: float) -> float:
        """Rows a second of some models together, each in a thread and a stream of its own."""
        done, stop = [0] * len(models), threading.Event()

        def work(index: int, name: str, model: Model) -> None:
            columns = rows_of(self.models[name][0], rows, missing=False)
            while not stop.is_set():
                model.infer(columns)
                done[index] += rows

        threads = [
            threading.Thread(target=work, args=(index, *each)) for index, each in enumerate(models)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        before, started = sum(done), time.perf_counter()
        time.sleep(seconds)
        rate = (sum(done) - before) / (time.perf_counter() - started)
        stop.set()
        for thread in threads:
            thread.join()
        return rate

    def shared(self) -> None:
        """Eight models together against one alone."""
        name, rows = "HGB 100", 16_384
        if self._on_gpu(name) is None:
            return
        print(f"\n4. Eight models of {name} share the GPU, {rows:,} rows a call")
        with self._loaded(name) as model:
            alone = self._rate([(name, model)], rows, 3.0)
        best = self._on_gpu(name)
        assert best is not None
        spec = self.models[name][0]
        eight = [
            (name, backends.load("torch", best[1], spec, threads=1, trust_pickle=False))
            for _ in range(8)
        ]
        together = self._rate(eight, rows, 3.0)
        for _, model in eight:
            model.unload()
        print(f"   alone {alone:,.0f} rows/s, together {together:,.0f}: {together / alone:.2f}")
        self.report["shared"] = {"alone": alone, "together": together, "share": together / alone}

    def beside(self) -> None:
        """The p99 of one row, alone and beside a bulk model."""
        name = "MLP"
        if self._on_gpu(name) is None or self._on_gpu("RF 200") is None:
            return
        print("\n5. One row of the MLP beside batches of 65,536 rows of the forest")
        columns = rows_of(self.models[name][0], 1, missing=False)
        stop = threading.Event()
        with self._loaded(name) as quick, self._loaded("RF 200") as bulk:
            heavy = rows_of(self.models["RF 200"][0], 65_536, missing=False)

            def work() -> None:
                while not stop.is_set():
                    bulk.infer(heavy)

            alone = clock(lambda: quick.infer(columns), device=False)
            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(0.5)
            crowded = clock(lambda: quick.infer(columns), device=False)
            stop.set()
            thread.join()
        print(f"   p99 alone {alone[1]:.3f} ms, beside {crowded[1]:.3f} ms")
        self.report["beside"] = {"alone_p99_ms": alone[1], "beside_p99_ms": crowded[1]}

    def memory(self) -> None:
        """What the device holds before, with and after a model."""
        torch = self.torch
        print("\n6. Device memory (MiB, this process's tensors and torch's cache)")
        for name in self.models:
            if self._on_gpu(name) is None:
                continue

            def held() -> tuple[float, float]:
                torch.cuda.synchronize()
                return torch.cuda.memory_allocated() / 2**20, torch.cuda.memory_reserved() / 2**20

            before = held()
            with self._loaded(name) as model:
                model.infer(rows_of(self.models[name][0], 4096, missing=False))
                loaded = held()
            after = held()
            print(f"   {name:8} before {before[0]:.1f} ({before[1]:.1f}), loaded {loaded[0]:.1f} "
                  f"({loaded[1]:.1f}), after {after[0]:.1f} ({after[1]:.1f})")  # fmt: skip
            self.report.setdefault("memory", {})[name] = {
                "before": before, "loaded": loaded, "after": after,
            }  # fmt: skip


def no_gpu() -> str:
    """Why there is nothing to measure; empty where there is."""
    try:
        import torch
    except ImportError:
        return "torch is not installed: install shelflife[torch]"
    return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU on this machine"


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--largest", type=int, default=4**10, help="largest batch")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    reason = no_gpu()
    if reason:
        print(f"skipped: {reason}")
        return
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as room:
        bench = Bench(Path(room), arguments.largest)
        print(bench.report["gpu"], "·", bench.report["cpu"], "· torch", bench.report["torch"])
        bench.build()
        for part in (bench.correct, bench.batches, bench.bandwidth, bench.shared, bench.beside,
                     bench.memory):  # fmt: skip
            part()
        if arguments.json:
            arguments.json.write_text(json.dumps(bench.report, indent=1, default=float))


if __name__ == "__main__":
    main()
