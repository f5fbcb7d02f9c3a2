"""Evidently reports of incidents, rendered beside the work in a process of their own.

Importing Evidently takes seconds and hundreds of megabytes, so nothing waits for it: an incident
says that it wants a report, and a subprocess renders all that are wanted in one go.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from core import schema
from core.settings import span
from core.spec import ModelSpec, Scalar
from monitor.alert import incidents
from monitor.measure.performance import encode_labels
from retrain.dataset import input_columns
from shelflife.service import Service

log = logging.getLogger("shelflife.reports")
_AT_ONCE = 8
_TIMEOUT = 300.0  # seconds for one batch


def render_wanted(service: Service) -> int:
    """Render the reports that unresolved or past incidents still want; returns how many exist."""
    table = schema.incidents
    query = sa.select(table).where(table.c.report_state == "wanted").order_by(table.c.id)
    with service.ledger.read() as tx:
        wanted = tx.execute(query.limit(_AT_ONCE)).all()
    if not wanted:
        return 0
    with tempfile.TemporaryDirectory(prefix="shelflife-report-") as scratch:
        jobs = {}
        for row in wanted:
            try:
                jobs[row.id] = _job(service, row, Path(scratch))
            except Exception:  # whatever its rows are like: tried again, it would fail again
                log.exception("no_report", extra={"incident": row.id})
                _settle(service, row.id, None)
        _run([path for path, _ in jobs.values()])
        for identity, (_, target) in jobs.items():
            done = target.is_file()
            _settle(
                service, identity, target.relative_to(service.home).as_posix() if done else None
            )
    return len(jobs)


def _job(service: Service, row: Any, scratch: Path) -> tuple[Path, Path]:
    """Write what one report needs; returns its job file and where the HTML will be."""
    version = service.registry.get(row.model, row.version)
    baseline, reference = service.baseline(version)
    spec = baseline.spec
    settings = service.model(row.model)
    found = service.log.read(
        row.model, start=row.updated - span(settings.window), end=row.updated, known_at=row.updated
    )
    folder = scratch / str(row.id)
    folder.mkdir()
    inputs = input_columns(spec, found.inputs)  # one type a column, whatever callers sent
    current = pd.concat([inputs.add_prefix("in:"), found.outputs.add_prefix("out:")], axis=1)
    current["y"] = pd.Series(_labels(spec, found.meta["label"].tolist()), dtype=object)
    reference.to_parquet(folder / "reference.parquet", index=False)
    current.to_parquet(folder / "current.parquet", index=False)
    target = service.home / "reports" / f"incident-{row.id}.html"
    job = {
        "reference": str(folder / "reference.parquet"),
        "current": str(folder / "current.parquet"),
        "spec": json.loads(service.registry.file(version, "spec.json")),
        "target": str(target),
        "title": f"incident {row.id}: {row.title}",
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path, target


def _labels(spec: ModelSpec, raw: list[object]) -> list[Scalar]:
    """Labels as the model spells them; None where one is missing or no value of the target."""
    y, _ = encode_labels(spec, raw)
    if spec.task == "regression":
        return [None if np.isnan(value) else float(value) for value in y]
    return [None if np.isnan(value) else spec.classes[int(value)] for value in y]


def _run(jobs: list[Path]) -> None:
    if not jobs:
        return
    # The child gets no secrets: only what Python needs.
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    command = [sys.executable, "-m", "monitor.report", *map(str, jobs)]
    try:
        subprocess.run(command, env=env, timeout=_TIMEOUT, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        return  # what was rendered until then counts


def _settle(service: Service, identity: int, path: str | None) -> None:
    """Note that the report is there, or that it could not be made."""
    with service.ledger.write() as tx:
        incidents.set_report(tx, identity, path=path, state="ready" if path else "failed")
