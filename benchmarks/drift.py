"""A drift check beside Evidently and the fastest yardsticks in NumPy and Polars, in one run.

    .venv/bin/python -m pip install --group bench        # Polars, for its yardstick
    .venv/bin/python benchmarks/drift.py [--sizes 10k 50k 1m] [--repeat 3] [--fleet 10 100 1000]

Data: 30 numeric columns (normal, lognormal, gamma, integers, two humps; two with gaps) and 10
categorical ones (2 to 200 levels), a reference of 50,000 rows, windows in which 8 columns drift.
Each measurement is a process of its own; engines take turns, so that a busy machine slows all of
them. Seconds are the least of the repeats, the processor's (all threads) beside them because a busy
machine stretches the others; MB is the peak resident memory over that after imports
and, for those that take a frame, after loading it.

shelflife         Parquet to verdicts, the baseline prepared before (it is stored with the version)
shelflife_all     the same with the baseline made first
counts            verdicts of 40 columns from counts alone, eight time scales
evidently         DataDriftPreset() on frames that are loaded
numpy_sorts       PSI, JS, KS, W1 by exact sorts, 2 threads, baseline made first
numpy_cells       the same four from 2,048 uniform cells, 2 threads, baseline made first
polars_cells      the same cells counted by Polars straight from Parquet

The yardsticks compute distances; only shelflife also decides, under a promise of false alarms.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"10k": 10_000, "50k": 50_000, "1m": 1_000_000}
NUMBERS = [f"n{i:02d}" for i in range(30)]
NAMES = [f"c{j}" for j in range(10)]
LEVELS = (2, 3, 5, 8, 12, 20, 30, 50, 100, 200)
CELLS = 2048


def generate(rows: int, seed: int, *, drift: bool) -> Any:
    """The columns as an Arrow table; with `drift`, six numeric and two categorical ones moved."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for i, name in enumerate(NUMBERS):
        shift = 0.25 if drift and i < 6 else 0.0
        shape: list[Callable[[float], np.ndarray]] = [
            lambda s: rng.normal(s, 1, rows),
            lambda s: rng.lognormal(s, 0.8, rows),
            lambda s: rng.gamma(2 + s, 1.5, rows),
            lambda s: rng.integers(0, 40, rows).astype(float) + 10 * s,
            lambda s: np.where(
                rng.random(rows) < 0.5, rng.normal(-2, 0.5, rows), rng.normal(2 + s, 0.7, rows)
            ),
        ]
        values = shape[i % 5](shift)
        if i in (10, 11):
            values[rng.random(rows) < 0.03] = np.nan
        columns[name] = values
    for j, (name, levels) in enumerate(zip(NAMES, LEVELS, strict=True)):
        shares = 1.0 / np.arange(1, levels + 1)
        if drift and j in (3, 6):
            shares[0] *= 2
        codes = rng.choice(levels, rows, p=shares / shares.sum()).astype(np.int32)
        words = pa.array([f"{name}_{v}" for v in range(levels)])
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(codes), words).cast(pa.string())
    return pa.table(columns)


# --- engines: each returns (seconds, what it found) ----------------------------------------------


def ours(folder: Path, size: str, *, whole: bool) -> tuple[float, Any]:
    from shelflife.comparison import Prepared

    began = _start()
    prepared = Prepared.of(folder / "reference.parquet")
    if not whole:
        began = _start()
    found = prepared.compare(folder / f"{size}.parquet")
    return _lap(began), sorted(found.drifted)


def counts(folder: Path, size: str) -> tuple[float, Any]:
    from monitor.measure import alarms, tally
    from shelflife.comparison import Prepared

    reference = Prepared.of(folder / "reference.parquet").reference
    rng = np.random.default_rng(1)
    layout, parts = reference.layout, 168
    one = reference.strata
    share = 200 / one.rows[0]
    window = tally.Tally(
        np.full(parts, 200),
        rng.poisson(one.numeric * share, (parts, *one.numeric.shape[1:])),
        tuple(rng.poisson(t * share, (parts, t.shape[1])) for t in one.levels),
        rng.poisson(one.missing * share, (parts, one.missing.shape[1])),
    )
    scales, mix = alarms.scales_for(parts, 200), np.full((parts, 1), 200.0)
    alphas = [alarms.alpha(1.0, 2160, s, len(scales), alarms.tests_of(layout)) for s in scales]
    seconds = []
    for _ in range(50):
        began = time.perf_counter()
        found = alarms.windows(window, mix, scales)
        base = alarms.standardised(reference.sums, found.mix)
        variation = reference.over([(timedelta(hours=s), 200.0 * s) for s in scales])
        alarms.look(layout, found, base, variation, alphas)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)), len(scales)


def evidently(folder: Path, size: str) -> tuple[float, Any]:
    os.environ["DO_NOT_TRACK"] = "1"
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    old, new = (pd.read_parquet(folder / f"{n}.parquet") for n in ("reference", size))
    definition = DataDefinition(numerical_columns=NUMBERS, categorical_columns=NAMES)
    _baseline_memory()
    began = _start()
    before, now = (Dataset.from_pandas(f, data_definition=definition) for f in (old, new))
    found = Report([DataDriftPreset()]).run(now, before).dict()
    return _lap(began), len(found["metrics"])


def _distances(reference: np.ndarray, window: np.ndarray) -> tuple[float, float]:
    p, q = reference / reference.sum(), window / window.sum()
    a, b = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        js = sum(np.nansum(np.where(x > 0, x * np.log2(x / middle), 0)) for x in (p, q)) / 2
    return float(((b - a) * np.log(b / a)).sum()), float(np.sqrt(max(js, 0)))


def numpy_sorts(folder: Path, size: str) -> tuple[float, Any]:
    import pandas as pd

    old, new = (pd.read_parquet(folder / f"{n}.parquet") for n in ("reference", size))
    _baseline_memory()

    def number(name: str) -> tuple[float, ...]:
        ref, cur = (np.sort(f[name].to_numpy()[~np.isnan(f[name].to_numpy())]) for f in (old, new))
        edges = np.unique(np.quantile(ref, np.linspace(0, 1, 11)[1:-1]))
        cut = [np.diff(np.searchsorted(x, edges, "right"), prepend=0, append=len(x))
               for x in (ref, cur)]  # fmt: skip
        both = np.concatenate([ref, cur])
        both.sort(kind="stable")
        gap = np.abs(
            np.searchsorted(ref, both[:-1], "right") / len(ref)
            - np.searchsorted(cur, both[:-1], "right") / len(cur)
        )
        return (*_distances(*cut), float(gap.max()), float((gap * np.diff(both)).sum()))

    return _threaded(number, old, new)


def numpy_cells(folder: Path, size: str) -> tuple[float, Any]:
    import pandas as pd

    old, new = (pd.read_parquet(folder / f"{n}.parquet") for n in ("reference", size))
    _baseline_memory()

    def number(name: str) -> tuple[float, ...]:
        ref = old[name].to_numpy()
        ref = ref[~np.isnan(ref)]
        low, high = np.quantile(ref, [0.0005, 0.9995])
        scale = (CELLS - 2) / (high - low)

        def count(values: np.ndarray) -> np.ndarray:
            total = np.zeros(CELLS, dtype=np.int64)
            for start in range(0, len(values), 65_536):
                piece = values[start : start + 65_536]
                place = np.clip((piece[~np.isnan(piece)] - low) * scale + 1, 0, CELLS - 1)
                total += np.bincount(place.astype(np.int32), minlength=CELLS)
            return total

        h, g = count(ref), count(new[name].to_numpy())
        cdf = h.cumsum() / h.sum()
        gap = np.abs(g.cumsum() / g.sum() - cdf)
        tenth = np.minimum((cdf * 10 - 1e-9).astype(int), 9)
        cut = [np.bincount(tenth, x, 10) for x in (h, g)]
        return (*_distances(*cut), float(gap.max()), float(gap.sum() / scale))

    return _threaded(number, old, new)


def _threaded(number: Callable[[str], tuple[float, ...]], old: Any, new: Any) -> tuple[float, Any]:
    from concurrent.futures import ThreadPoolExecutor

    import pandas as pd

    def category(name: str) -> tuple[float, ...]:
        levels = old[name].value_counts()
        codes = pd.Categorical(new[name], categories=levels.index).codes
        place = np.where(codes < 0, len(levels), codes)
        return _distances(
            np.append(levels.to_numpy(), 0), np.bincount(place, minlength=len(levels) + 1)
        )

    began = _start()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(number, NUMBERS)) + list(pool.map(category, NAMES))
    return _lap(began), round(found[0][2], 4)


def polars_cells(folder: Path, size: str) -> tuple[float, Any]:
    import polars as pl

    old = pl.read_parquet(folder / "reference.parquet")
    grid = {}
    for name in NUMBERS:
        low, high = np.quantile(old[name].drop_nans().to_numpy(), [0.0005, 0.9995])
        grid[name] = (float(low), float((CELLS - 2) / (high - low)))
    _baseline_memory()
    began = _start()
    frame = pl.scan_parquet(folder / f"{size}.parquet")
    queries = [
        frame.select(
            ((pl.col(name) - low) * scale + 1).clip(0, CELLS - 1).cast(pl.Int32, strict=False)
        ).group_by(name).len()
        for name, (low, scale) in grid.items()
    ] + [frame.select(name).group_by(name).len() for name in NAMES]  # fmt: skip
    found = pl.collect_all(queries)
    return _lap(began), len(found)


ENGINES: dict[str, Callable[[Path, str], tuple[float, Any]]] = {
    "shelflife": lambda folder, size: ours(folder, size, whole=False),
    "shelflife_all": lambda folder, size: ours(folder, size, whole=True),
    "counts": counts,
    "numpy_sorts": numpy_sorts,
    "numpy_cells": numpy_cells,
    "polars_cells": polars_cells,
    "evidently": evidently,
}
_before = 0.0
_cpu = float("nan")


def _start() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _lap(began: tuple[float, float]) -> float:
    """Seconds since; the processor's are kept for `one`."""
    global _cpu
    _cpu = time.process_time() - began[1]
    return time.perf_counter() - began[0]


def _baseline_memory() -> None:
    global _before
    _before = _peak()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(engine: str, folder: Path, size: str) -> None:
    """One measurement, in this process; JSON on stdout."""
    seconds, found = ENGINES[engine](folder, size)
    print(
        json.dumps(
            {"s": seconds, "cpu": _cpu, "mb": _peak() - _before, "peak": _peak(), "found": found}
        )
    )


def fleet(folder: Path, models: int) -> dict[str, float]:
    """So many models of 40 columns with 5,000 new rows each, from Parquet to verdicts."""
    from shelflife.comparison import Prepared

    prepared = Prepared.of(folder / "reference.parquet")
    files = [folder / f"fleet{i}.parquet" for i in range(10)]
    began, cpu = time.perf_counter(), time.process_time()
    for index in range(models):
        prepared.compare(files[index % len(files)])
    return {
        "models": models,
        "s": time.perf_counter() - began,
        "ms_per_model": 1000 * (time.perf_counter() - began) / models,
        "cpu_ms_per_model": 1000 * (time.process_time() - cpu) / models,
        "peak_mb": _peak(),
    }


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    given.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    given.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    given.add_argument("--repeat", type=int, default=3)
    given.add_argument("--fleet", type=int, nargs="*", default=[10, 100, 1000])
    given.add_argument("--one", nargs=3, metavar=("ENGINE", "FOLDER", "SIZE"))
    options = given.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), options.one[2])
        return
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(generate(50_000, 0, drift=False), folder / "reference.parquet")
        for size in options.sizes:
            table = generate(SIZES[size], SIZES[size] + 1, drift=True)
            pq.write_table(table, folder / f"{size}.parquet")
        for size in options.sizes:
            _table(folder, size, options.engines, options.repeat)
        for i in range(10 if options.fleet else 0):
            pq.write_table(generate(5000, i + 1, drift=False), folder / f"fleet{i}.parquet")
        for models in options.fleet:
            print(json.dumps(fleet(folder, models)), flush=True)


def _table(folder: Path, size: str, engines: list[str], repeat: int) -> None:
    best: dict[str, dict[str, Any]] = {}
    for _ in range(repeat):
        for engine in engines:
            command = [sys.executable, __file__, "--one", engine, str(folder), size]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                best[engine] = {
                    "s": float("nan"),
                    "cpu": float("nan"),
                    "mb": 0,
                    "found": done.stderr[-200:],
                }
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            if engine not in best or found["s"] < best[engine]["s"]:
                best[engine] = found
    base = best.get("evidently", {}).get("s", float("nan"))
    print(f"\n{size}: {SIZES[size]:,} rows x 40 columns, reference 50,000 rows")
    print(
        f"{'engine':14} {'seconds':>9} {'processor s':>11} {'Evidently / it':>15} {'MB':>7}  found"
    )
    for engine, row in best.items():
        times = f"{base / row['s']:,.0f} x" if base == base else "-"
        print(
            f"{engine:14} {row['s']:9.4f} {row['cpu']:11.4f} {times:>15} {row['mb']:7.0f}"
            f"  {row['found']}",
            flush=True,
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
