"""How long the dashboard's pages take: 200 models, 90 days of hourly checks, 8 columns each.

    python benchmarks/dashboard.py [--models 200] [--days 90] [--columns 8] [--ledger URL]

Writes such a ledger (432,000 checks of about 4 kB; --ledger keeps it for the next run), then asks
for every page the way a browser's first visit does: Streamlit's own test runner runs the page's
script, with every cache empty. Shown are the median and the slowest of --rounds rounds, the
processor time of it (what a machine with nothing else to do would take), the time that the queries
alone take, and the most points that any chart was given. The page's second visit
(caches warm) is in the last column. Drawing in the browser is not in it. Seed 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
# This file bears the package's name: its own folder must not stand before it.
sys.path = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() != ROOT / "benchmarks")]
HOUR = timedelta(hours=1)


def seed_module() -> Any:
    """`tests/dashboard/seed.py`, which knows how a check looks."""
    path = ROOT / "tests" / "dashboard" / "seed.py"
    spec = importlib.util.spec_from_file_location("dashboard_seed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fill(url: str, models: int, days: int, columns: int) -> None:
    """The ledger: one of ten models decays with an open page, each was promoted every 30 days."""
    from core import schema
    from core.ledger import Ledger

    seed, dice = seed_module(), random.Random(1)
    ledger = Ledger(url).create()
    hours = days * 24
    for number in range(models):
        name = f"model-{number:03d}"
        bad = number % 10 == 0
        drift = {f"column_{c:02d}": dice.uniform(0.1, 1.2 if bad else 0.6) for c in range(columns)}
        base = seed.row(
            seed.check(
                name, "3", seed.NOW, state="decaying" if bad else "healthy", drift=drift,
                value=0.213 if bad else 0.174,
            )
        )  # fmt: skip
        rows = [
            base
            | {
                "at": seed.NOW - back * HOUR,
                "value": base["value"] + dice.gauss(0, 0.003),
                "state": "healthy" if back > 72 or not bad else "decaying",
                "version": str(3 - back // 720),
            }
            for back in range(hours)
        ]
        with ledger.write() as tx:
            tx.execute(schema.checks.insert(), rows)
            tx.execute(
                schema.promotions.insert(),
                [
                    {
                        "model": name, "version": str(v), "previous": str(v - 1), "kind": "gate",
                        "at": seed.NOW - (3 - v) * 30 * 24 * HOUR, "by": "shelflife",
                        "reason": "ahead", "sha256": "0" * 64,
                    }
                    for v in (1, 2, 3)
                ],
            )  # fmt: skip
            if bad:
                tx.execute(
                    schema.incidents.insert().values(
                        model=name, cause="decay", version="3", severity="page", state="open",
                        title=f"{name} is decaying", opened=seed.NOW - 72 * HOUR,
                        updated=seed.NOW, finding="{}", open_key=f"{name}/decay",
                        report_state="ready",
                    )
                )  # fmt: skip
            tx.execute(
                schema.runs.insert(),
                [
                    {
                        "id": f"{number:04d}{back:04d}", "model": name, "trigger": "decay",
                        "reason": "decay has cost a run", "by": "shelflife", "state": "promoted",
                        "champion": "2", "candidate": "3", "outcome": "ahead",
                        "started": seed.NOW - back * 24 * HOUR, "updated": seed.NOW,
                        "finished": seed.NOW, "gate": seed.gate(True), "active": None,
                    }
                    for back in range(0, days, 15)
                ],
            )  # fmt: skip
            tx.execute(
                schema.decisions.insert(),
                [
                    {
                        "model": name, "version": "3", "at": seed.NOW - back * HOUR,
                        "action": "wait", "reason": "not needed", "detail": "{}", "run_id": None,
                    }
                    for back in range(hours)
                ],
            )  # fmt: skip
            tx.execute(
                schema.traffic.insert(),
                [
                    {
                        "worker": "worker-0", "model": name, "version": "3",
                        "hour": seed.NOW.replace(minute=0) - back * HOUR, "requests": 3600,
                        "rows": 3600, "batches": 900,
                        "cells": msgspec.json.encode({60: 1800, 66: 1764, 80: 36}).decode(),
                    }
                    for back in range(hours)
                ],
            )  # fmt: skip
        if not number:  # all models together
            with ledger.write() as tx:
                whole = sa.select(
                    schema.traffic.c.worker, sa.literal(""), sa.literal(""), schema.traffic.c.hour,
                    *(schema.traffic.c[n] for n in ("requests", "rows", "batches", "cells")),
                )  # fmt: skip
                names = [column.name for column in schema.traffic.columns]
                tx.execute(schema.traffic.insert().from_select(names, whole))
    with ledger.write() as tx:
        if ledger.sqlite:
            tx.exec_driver_sql("ANALYZE")
    ledger.close()


PAGES: dict[str, tuple[str, dict[str, str]]] = {
    "fleet": ("fleet", {}),
    "fleet, decaying only": ("fleet", {"state": "decaying"}),
    "model": ("model", {"name": "model-010"}),
    "model, 30 days": ("model", {"name": "model-010", "range": "30d"}),
    "column": ("column", {"model": "model-010", "name": "column_03"}),
    "compare": ("compare", {"model": "model-010"}),
    "runs": ("runs", {}),
    "run": ("runs", {"id": "00100000"}),
    "incidents": ("incidents", {}),
    "incident": ("incidents", {"id": "2"}),
    "serving": ("serving", {"span": "90d"}),
    "serving of a model": ("serving", {"model": "model-010", "span": "90d"}),
    "backtest": ("backtest", {}),
}


def visit(page: str, parameters: dict[str, str], *, cold: bool) -> tuple[float, float, int]:
    """Seconds and processor seconds of one run of a page's script, points of its largest chart."""
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    import dashboard

    script = Path(dashboard.__file__).with_name("app.py")
    app = AppTest.from_file(str(script), default_timeout=120)
    app.query_params["state"] = "none"
    app.run()
    app.query_params.clear()
    if page != "fleet":
        app.switch_page(f"page_{page}.py")
    for name, value in parameters.items():
        app.query_params[name] = value
    if cold:
        st.cache_data.clear()
    began, worked = time.perf_counter(), time.process_time()
    app.run()
    took, worked = time.perf_counter() - began, time.process_time() - worked
    assert not app.exception, app.exception
    return took, worked, points(app)


def points(app: Any) -> int:
    """Rows of the largest data set that a chart of the page was sent."""
    import pyarrow as pa

    most = 0
    for chart in [*app.get("arrow_vega_lite_chart"), *app.get("vega_lite_chart")]:
        for data in [chart.proto.data, *(d.data for d in chart.proto.datasets)]:
            if data.data:
                most = max(most, pa.ipc.open_stream(data.data).read_all().num_rows)
    return most


def queries(url: str) -> dict[str, Callable[[], object]]:
    """What the pages ask, without Streamlit."""
    from core.ledger import Ledger
    from dashboard import column_query, fleet_query, history, serving_query
    from dashboard import queries as asked

    ledger, seed = Ledger(url), seed_module()
    now, day = seed.NOW, timedelta(days=1)

    def fleet() -> object:
        found = fleet_query.fleet(ledger, now)
        return fleet_query.detailed(ledger, found.rows[:25])

    return {
        "fleet": fleet,
        "model": lambda: history.model_view(ledger, "model-010", now),
        "model, 30 days": lambda: history.model_view(
            ledger, "model-010", now, start=now - 30 * day
        ),
        "column": lambda: column_query.column_view(ledger, "model-010", "column_03", "input", None),
        "runs": lambda: asked.runs(ledger),
        "incidents": lambda: asked.incidents(ledger, state="unresolved"),
        "serving": lambda: serving_query.serving_view(ledger, now, model=None, span=90 * day),
        "serving of a model": lambda: serving_query.serving_view(
            ledger, now, model="model-010", span=90 * day
        ),
        "has anything changed?": lambda: asked.version(ledger),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ledger", default="", help="SQLAlchemy URL; filled if it is empty")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # Streamlit warns that no browser is there
    with tempfile.TemporaryDirectory(prefix="shelflife-bench-") as folder:
        url = given.ledger or f"sqlite:///{folder}/ledger.db"
        os.environ |= {
            "SHELFLIFE_LEDGER": url, "SHELFLIFE_HOME": folder, "SHELFLIFE_CLOCK": "ledger",
        }  # fmt: skip
        _prepare(url, given)
        alone = {name: _timed(ask, given.rounds) for name, ask in queries(url).items()}
        print(f"\n{'page':24}{'first visit':>14}{'slowest':>10}{'processor':>12}"
              f"{'queries':>10}{'again':>10}{'points':>8}")  # fmt: skip
        worst = most = 0.0
        for name, (page, parameters) in PAGES.items():
            cold = [visit(page, parameters, cold=True) for _ in range(given.rounds)]
            warm, _, _ = visit(page, parameters, cold=False)
            times = [seconds for seconds, _, _ in cold]
            worked = statistics.median(seconds for _, seconds, _ in cold)
            worst, most = max(worst, statistics.median(times)), max(most, worked)
            asked = f"{alone[name]:.3f} s" if name in alone else "–"
            print(f"{name:24}{statistics.median(times):>12.3f} s{max(times):>8.3f} s"
                  f"{worked:>10.3f} s{asked:>10}{warm:>8.3f} s{cold[0][2]:>8}")  # fmt: skip
        print(f"{'has anything changed?':60}{alone['has anything changed?']:>8.3f} s")
    print(f"\nno page above {worst:.2f} s, {most:.2f} s of processor (median of {given.rounds})")
    return 0


def _prepare(url: str, given: argparse.Namespace) -> None:
    from core import schema
    from core.ledger import Ledger

    ledger = Ledger(url).create()
    with ledger.read() as tx:
        there = tx.scalar(sa.select(schema.checks.c.id).limit(1)) is not None
    ledger.close()
    if not there:
        began = time.perf_counter()
        fill(url, given.models, given.days, given.columns)
        print(f"filled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    path = sa.make_url(url).database
    size = Path(str(path)).stat().st_size / 1e9 if path and Path(path).is_file() else 0.0
    print(f"{given.models} models × {given.days} days of hourly checks, {given.columns} columns: "
          f"{size:.1f} GB")  # fmt: skip


def _timed(ask: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
