"""`shelflife compare`: light, so that ten thousand rows take a second from start to exit."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Arrow's default pool keeps what it freed: a tenth of a gigabyte more on a million rows.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from monitor.results import ColumnDrift
from shelflife.cli import DRIFT, OK
from shelflife.comparison import Comparison, compare, html

_HEAD = ("column", "kind", "n", "missing", "verdict", "PSI", "JS", "W1", "KS", "χ²")
_EFFECTS = ("psi", "js", "wasserstein", "ks", "chi2")


def do_compare(given: argparse.Namespace) -> int:
    found = compare(
        given.reference,
        given.current,
        columns=given.columns,
        error_rate=given.error_rate,
        classifier=given.classifier,
    )
    if given.html:
        page = html(given.reference, given.current, Path(given.html))
        sys.stderr.write(f"wrote {page}\n")
    sys.stdout.write((found.to_json().decode() if given.json else text(found)) + "\n")
    return DRIFT if given.fail_on_drift and found.drifted else OK


def text(found: Comparison) -> str:
    """The comparison as a table for people, those that drifted first."""
    rows = [_HEAD, *(_row(column) for column in found.columns)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 1, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += [f"{each.column}: {_joint(each)}" for each in found.joint if each.drifted or each.why]
    for names, where in (
        (found.only_reference, "the current rows"),
        (found.only_current, "the reference"),
    ):
        if names:
            lines.append(f"not in {where}: {', '.join(names)}")
    return "\n".join([found.summary(), *lines])


def _row(column: ColumnDrift) -> tuple[str, ...]:
    values = {s.name: s.value for s in column.statistics}
    return (
        column.column,
        column.kind,
        f"{column.n:,}",
        f"{100 * column.missing_share:.3g} %",
        _verdict(column),
        *("–" if values.get(name) is None else f"{values[name]:.3g}" for name in _EFFECTS),
    )


def _joint(found: ColumnDrift) -> str:
    if found.why:
        return f"◌ {found.why}"
    size = found.statistics[0]
    return f"{_verdict(found)}; {size.name.replace('_', ' ')} {size.value:.3g}, {size.why}"


def _verdict(column: ColumnDrift) -> str:
    if column.why:
        return f"◌ {column.why}"
    top = column.statistics[-1]
    if column.drifted:
        return f"▲ {top.name} z {top.value:.3g}, line {top.threshold:.3g}"
    return "● alike"
