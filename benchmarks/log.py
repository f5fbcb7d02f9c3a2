"""The inference log beside bare SQLite, from its first append to its ten-thousandth, in serving.

    .venv/bin/python benchmarks/log.py [--json] [--quick] [PART …]

append   rows per second acknowledged, p50 and p99 of an append, by batch size and format, beside
         `executemany` of the same rows into bare SQLite with the same durability (WAL, FULL)
flat     the cost of an append of 50 rows from the first to the ten-thousandth
crowded  the same with a million hot rows and a million sealed keys already there
read     windows of the log beside DuckDB on the same Parquet (`benchmarks/log_read.py`)
serving  a served model's p50 and p99 with the log on, off, locked, dead and on a full disk

All parts without a name. Systems take turns within each measurement, so that only the ratios count
on a busy machine. Everything lies below the temporary folder ($TMPDIR): put that on the disk you
mean. Seeds: 0 for the appended rows, 1 for `flat`. docs/durability.md takes its figures from here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import log_append

PARTS = ("append", "flat", "crowded", "read", "serving")


def table(lines: list[dict[str, Any]]) -> str:
    """Columns in the order of the first line's keys."""
    if not lines:
        return ""
    cells = [list(lines[0])] + [[_shown(value) for value in line.values()] for line in lines]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    rows = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(row.rstrip() for row in rows)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return str(value)


def append(folder: Path, quick: bool) -> list[dict[str, Any]]:
    lines = []
    for ordered in (False, True):
        for batch, appends in log_append.APPENDS.items():
            wanted = max(5, appends // 10) if quick else appends
            lines += log_append.measure(
                folder / "append", batch, ordered=ordered, appends=wanted, postgres=None
            )
    return lines


def flat(folder: Path, quick: bool) -> list[dict[str, Any]]:
    appends = 500 if quick else 10_000
    found = log_append.flatness(folder / "flat", appends=appends)
    step = appends // 10
    return [
        {
            "system": name,
            **{f"to {step * (i + 1)}": value for i, value in enumerate(values)},
            "last/second": values[-1] / values[1],
        }
        for name, values in found.items()
    ]


def crowded(folder: Path, quick: bool) -> list[dict[str, Any]]:
    there, appends = (100_000, 50) if quick else (1_000_000, 500)
    return log_append.crowded(folder / "crowded", there=there, appends=appends)


def read(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds of a read by the log and by DuckDB, where that part is there."""
    if importlib.util.find_spec("log_read") is None:
        return []
    import log_read

    return [
        {
            "read": found.what + (", every row labelled" if labels else ""),
            "rows": found.rows,
            "log_ms": found.log_ms,
            "duckdb_ms": found.duckdb_ms,
            "to_duckdb": found.duckdb_ms / found.log_ms,
        }
        for labels in (False, True)
        for found in log_read.run(100_000 if quick else 1_000_000, labels=labels)
    ]


def serving(folder: Path, quick: bool) -> list[dict[str, Any]]:
    import log_serving

    place = folder / "serving"
    place.mkdir()
    return log_serving.measure(place, rounds=3 if quick else 15)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--json", action="store_true", help="the lines as JSON on stdout")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    given = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="shelflife-log-") as folder:
        for name in given.parts or PARTS:
            print(f"measuring {name} …", file=sys.stderr)
            results[name] = globals()[name](Path(folder), given.quick)
            if not given.json:
                print(f"\n{name}\n{table(results[name])}", flush=True)
    if given.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
