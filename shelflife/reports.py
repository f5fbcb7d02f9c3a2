"""Evidently reports of incidents, checks and gates, rendered beside the work in a process of their
own.

Importing Evidently takes seconds and hundreds of megabytes, so nothing waits for it: an incident
says that it wants a report, a person asks for one of a check or a run (`want`), and a subprocess
renders all that are wanted in one go. What exists already is not made again.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import InputError, NotFound
from core.settings import span
from core.spec import ModelSpec, Scalar
from monitor.alert import incidents
from monitor.measure.performance import encode_labels
from retrain.dataset import input_columns
from shelflife.service import Service

log = logging.getLogger("shelflife.reports")
_AT_ONCE = 8
_TIMEOUT = 300.0  # seconds for one batch
_KINDS = ("incident", "check", "run")


class _Wanted(Struct, frozen=True, kw_only=True):
    """A report to render: of which rows, beside which version's reference."""

    subject: str  # incident:42, check:17
    model: str
    version: str
    start: datetime
    end: datetime
    title: str

    @property
    def page(self) -> str:
        """The name of its page, in `home/reports`."""
        return self.subject.replace(":", "-") + ".html"


def want(service: Service, model: str, subject: str, *, by: str, now: datetime) -> str:
    """Ask for the report of `incident:42`, `check:17` or `run:8f3…`; says what comes of it.

    A run's report was made with its gate: it is fetched from the version at once.

    Raises:
        InputError: a subject of another kind or model.
        NotFound: no such incident, check or run, or a run that compared nothing.
    """
    kind, _, identity = subject.partition(":")
    if kind not in _KINDS or not identity:
        raise InputError("subject", subject, "incident:ID, check:ID or run:ID")
    _assert_exists(service, model, kind, identity)
    if kind == "incident":
        table = schema.incidents
        with service.ledger.write() as tx:
            mine = table.update().where(table.c.id == int(identity), table.c.report.is_(None))
            tx.execute(mine.values(report_state="wanted"))
        return f"the report of {subject} is being made"
    known = service.home / "reports" / f"{kind}-{identity}.html"
    if known.is_file():
        _note(service, model, subject, by=by, now=now, state="ready")
        return f"the report of {subject} is there"
    if kind == "run":
        _fetch(service, model, identity)
        _note(service, model, subject, by=by, now=now, state="ready")
        return f"the report of {subject} is there"
    _note(service, model, subject, by=by, now=now, state="wanted")
    return f"the report of {subject} is being made"


def _assert_exists(service: Service, model: str, kind: str, identity: str) -> None:
    table = {"incident": schema.incidents, "check": schema.checks, "run": schema.runs}[kind]
    if kind != "run" and not (identity.isascii() and identity.isdecimal() and len(identity) < 19):
        raise NotFound(kind, identity, "its number is whole")
    key = identity if kind == "run" else int(identity)
    with service.ledger.read() as tx:
        owner = tx.scalar(sa.select(table.c.model).where(table.c.id == key))
    if owner is None:
        raise NotFound(kind, identity)
    if owner != model:
        raise InputError("subject", f"{kind}:{identity}", f"one of {model}; this is of {owner}")


def _note(
    service: Service, model: str, subject: str, *, by: str, now: datetime, state: str
) -> None:
    table = schema.reports
    path = f"reports/{subject.replace(':', '-')}.html" if state == "ready" else None
    values = {"model": model, "state": state, "path": path, "asked": now, "by": by, "error": ""}
    with service.ledger.write() as tx:
        changed = tx.execute(table.update().where(table.c.subject == subject).values(**values))
        if not changed.rowcount:
            tx.execute(table.insert().values(subject=subject, **values))


def _fetch(service: Service, model: str, run_id: str) -> None:
    """Copy the gate's report from its version, with the page on performance beside it.

    Raises:
        NotFound: the run compared nothing, or its report was switched off.
    """
    with service.ledger.read() as tx:
        query = sa.select(schema.runs.c.candidate).where(schema.runs.c.id == run_id)
        candidate = tx.scalar(query)
    if not candidate:
        raise NotFound("report of run", run_id, "it has no candidate yet")
    version = service.registry.get(model, candidate)
    folder = service.home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    first = service.registry.file(version, "gate-report.html")
    try:
        beside = service.registry.file(version, "gate-report-performance.html")
        name = f"run-{run_id}-performance.html"
        (folder / name).write_bytes(beside)
        first = first.replace(b"gate-report-performance.html", name.encode())
    except NotFound:
        pass
    (folder / f"run-{run_id}.html").write_bytes(first)


def render_wanted(service: Service) -> int:
    """Render the reports that incidents or people still want; returns how many were tried."""
    wanted = _wanted(service)
    if not wanted:
        return 0
    with tempfile.TemporaryDirectory(prefix="shelflife-report-") as scratch:
        jobs: dict[str, tuple[Path, Path]] = {}
        for one in wanted:
            try:
                jobs[one.subject] = _job(service, one, Path(scratch))
            except Exception:  # whatever its rows are like: tried again, it would fail again
                log.exception("no_report", extra={"subject": one.subject})
                _settle(service, one.subject, None)
        _run([path for path, _ in jobs.values()])
        for subject, (_, target) in jobs.items():
            done = target.is_file()
            _settle(service, subject, target.relative_to(service.home).as_posix() if done else None)
    return len(jobs)


def _wanted(service: Service) -> list[_Wanted]:
    """What is to be rendered next: what people wait for first, then incidents."""
    checks, opened, asked = schema.checks, schema.incidents, schema.reports
    with service.ledger.read() as tx:
        query = sa.select(asked.c.subject).where(asked.c.state == "wanted").order_by(asked.c.asked)
        subjects = list(tx.scalars(query.limit(_AT_ONCE)))
        ids = [int(s.partition(":")[2]) for s in subjects if s.startswith("check:")]
        of_checks = tx.execute(sa.select(checks).where(checks.c.id.in_(ids))).all()
        open_ = sa.select(opened).where(opened.c.report_state == "wanted").order_by(opened.c.id)
        of_incidents = tx.execute(open_.limit(_AT_ONCE)).all()
    found = [
        _Wanted(
            subject=f"check:{row.id}",
            model=row.model,
            version=row.version,
            start=row.window_start,
            end=row.window_end,
            title=f"check of {row.model} at {row.at:%Y-%m-%d %H:%M} UTC: {row.state}",
        )
        for row in of_checks
    ]
    found += [
        _Wanted(
            subject=f"incident:{row.id}",
            model=row.model,
            version=row.version,
            start=row.updated - span(service.model(row.model).window),
            end=row.updated,
            title=f"incident {row.id}: {row.title}",
        )
        for row in of_incidents
    ]
    return found[:_AT_ONCE]


def _job(service: Service, wanted: _Wanted, scratch: Path) -> tuple[Path, Path]:
    """Write what one report needs; returns its job file and where the HTML will be."""
    version = service.registry.get(wanted.model, wanted.version)
    baseline, reference = service.baseline(version)
    spec = baseline.spec
    found = service.log.read(wanted.model, start=wanted.start, end=wanted.end, known_at=wanted.end)
    folder = scratch / wanted.subject.replace(":", "-")
    folder.mkdir()
    inputs = input_columns(spec, found.inputs)  # one type a column, whatever callers sent
    current = pd.concat([inputs.add_prefix("in:"), found.outputs.add_prefix("out:")], axis=1)
    current["y"] = pd.Series(_labels(spec, found.meta["label"].tolist()), dtype=object)
    reference.to_parquet(folder / "reference.parquet", index=False)
    current.to_parquet(folder / "current.parquet", index=False)
    target = service.home / "reports" / wanted.page
    job = {
        "reference": str(folder / "reference.parquet"),
        "current": str(folder / "current.parquet"),
        "spec": json.loads(service.registry.file(version, "spec.json")),
        "target": str(target),
        "title": wanted.title,
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


def _settle(service: Service, subject: str, path: str | None) -> None:
    """Note that the report is there, or that it could not be made."""
    kind, _, identity = subject.partition(":")
    state = "ready" if path else "failed"
    with service.ledger.write() as tx:
        if kind == "incident":
            incidents.set_report(tx, int(identity), path=path, state=state)
            return
        table = schema.reports
        tx.execute(table.update().where(table.c.subject == subject).values(state=state, path=path))
