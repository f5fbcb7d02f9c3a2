"""How long a backtest takes, and what it finds on real streams.

    python benchmarks/backtest.py            # 40,000 synthetic rows in 60 windows, timed
    python benchmarks/backtest.py FOLDER     # every *.parquet in it: columns f_*, y and t

Prints a table: seconds on the wall and of this process's processor time (`every:1` is replayed by a
second process), the policies' losses, fits and pages. Two cores are meant; on a busy machine only
the processor time tells anything. docs/backtest.md takes its figures from here. Seeds are fixed;
the numbers beside the times are the same at every run.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import shelflife

ROWS, TRAIN, WINDOWS, SEED = 40_000, 10_000, 60, 0
POLICIES = ("default", "every:5", "threshold", "drift_share")
#: Rows to start with, rows of a window and task, as the streams' own description has them.
STREAMS: dict[str, tuple[int, int]] = {
    "nycflights": (9000, 1500),
    "dc_bikes": (8760, 840),
    "ma_employment": (4800, 800),
    "appliance_energy": (2880, 288),
    "household_power": (3000, 336),
    "retail_return": (4000, 480),
}


def stream() -> pd.DataFrame:
    """Ten numeric columns and two categories; what they mean changes slowly, and once at once."""
    rng = np.random.default_rng(SEED)
    numbers = rng.normal(size=(ROWS, 10))
    cities = rng.choice(["Ulm", "Rom", "Oslo", "Lyon"], ROWS)
    kinds = rng.choice(list("abcdefgh"), ROWS)
    age = np.linspace(0, 1, ROWS)
    weights = np.outer(1 - age, rng.normal(size=10)) + np.outer(age, rng.normal(size=10))
    signal = (numbers * weights).sum(axis=1) + (cities == "Rom") * np.where(age < 0.6, 1, -1)
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-1.5 * signal))).astype(int)
    frame = pd.DataFrame(numbers, columns=[f"x{i}" for i in range(10)])
    frame.loc[rng.random(ROWS) < 0.05, "x0"] = np.nan
    times = pd.date_range("2025-01-01", periods=ROWS, freq="15min")
    return frame.assign(city=cities, kind=kinds, y=y, at=times)


def timed(name: str, source: Any, policies: tuple[str, ...], **options: Any) -> None:
    """Replay and print one block of the table."""
    wall, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    found = shelflife.backtest(source, policies=policies, seed=SEED, **options)
    wall = time.monotonic() - wall
    cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
    facts = found.facts
    print(f"\n{name}: {facts.rows:,} rows, {facts.windows} windows, {wall:.0f} s ({cpu:.0f} s CPU)")
    print(f"  {'policy':12} {facts.metric:>9} {'vs never':>9} {'vs every':>9} {'fits':>6} "
          f"{'promoted':>8} {'refused':>7} {'back':>4} {'pages':>5} {'cost':>9}")  # fmt: skip
    for policy, one in found.summary.items():
        print(
            f"  {policy:12} {one['mean_loss']:9.4f} {-one['gain_vs_never']:+9.1%} "
            f"{one['regret_vs_every']:+9.1%} {one['fits']:6.4g} {one['promotions']:8} "
            f"{one['rejected']:7} {one['rollbacks']:4} {one['alarms']:5} {one['cost']:9.4g}"
        )


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("folder", nargs="?", type=Path, help="of Parquet streams")
    given.add_argument("--policies", nargs="+", default=list(POLICIES))
    chosen = given.parse_args()
    if chosen.folder is None:
        batch = (ROWS - TRAIN) // WINDOWS
        timed("synthetic", stream(), ("default",), target="y", time="at", train_rows=TRAIN,
              batch_rows=batch)  # fmt: skip
        return
    for path in sorted(chosen.folder.glob("*.parquet")):
        train, batch = STREAMS.get(path.stem, (0, 0))
        timed(path.stem, path, tuple(chosen.policies), target="y", time="t", train_rows=train,
              batch_rows=batch)  # fmt: skip


if __name__ == "__main__":
    main()
