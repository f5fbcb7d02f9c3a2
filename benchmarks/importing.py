"""How long `shelflife import` takes, and how much memory, for a Parquet file of a million rows.

    python benchmarks/importing.py [--rows 1000000] [--columns 20] [--seed 0] [--folder DIR]

Predictions with inputs, an output and a label each, into a fresh SQLite ledger (WAL,
synchronous=FULL), sealed into segments at the end. Beside it: the same import run again (skipped),
and read again (`--again`: every row found to be there).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
_RUN = """
import sys, time
from shelflife import cli
code = cli.main(sys.argv[1:])
# Not ru_maxrss: it starts at what the parent had.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(time.process_time(), int(peak) // 1024, file=sys.stderr)
sys.exit(code)
"""


def table(rows: int, columns: int, seed: int) -> pd.DataFrame:
    """Rows with an id, a time, numeric inputs and two categories, an output and a label."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(rows)],
            "time": pd.date_range("2026-01-01", periods=rows, freq="10s", tz="UTC"),
            **{f"x{k}": rng.normal(size=rows) for k in range(columns - 2)},
            "country": rng.choice(["UK", "DE", "FR"], rows),
            "plan": rng.choice(["gold", "tin"], rows),
            "probability": rng.random(rows),
            "label": rng.integers(0, 2, rows),
        }
    )


def run(folder: Path, *options: str) -> tuple[float, float, int, dict[str, int]]:
    """Seconds, seconds of CPU, peak MB and counts of one import."""
    given = ["import", "rows.parquet", "--model", "m", "--json", *options]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *given], cwd=folder, capture_output=True, text=True,
        check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    spent = time.perf_counter() - start
    busy, peak = done.stderr.split()[-2:]
    return spent, float(busy), int(peak), json.loads(done.stdout)["total"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        table(given.rows, given.columns, given.seed).to_parquet(folder / "rows.parquet")
        size = (folder / "rows.parquet").stat().st_size / 1e6
        print(f"{given.rows:,} rows, {given.columns} inputs, {size:.0f} MB, seed {given.seed}\n")
        print(
            f"{'':12} {'seconds':>8} {'of CPU':>8} {'rows/s':>10} {'peak MB':>8}  "
            f"{'logged':>9} {'labels':>9}"
        )
        for title, options in (("first", ()), ("once more", ()), ("--again", ("--again",))):
            spent, busy, peak, total = run(folder, *options)
            print(
                f"{title:12} {spent:8.1f} {busy:8.1f} {given.rows / spent:10,.0f} {peak:8,}  "
                f"{total['logged']:9,} {total['labels']:9,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
