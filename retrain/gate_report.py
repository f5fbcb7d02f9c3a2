"""The gate's comparison as an Evidently report: the champion's answers beside the candidate's.

Rendered by `monitor.report` in a process of its own, beside the registration, and attached to the
version. It is for people: no step fails because of it.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from core.errors import ShelflifeError
from core.spec import ModelSpec
from monitor.report import Job
from retrain.gate import GateResult
from retrain.job import TrainerResult, read_frame, read_inputs, write_frame
from retrain.run import RunContext, RunState
from retrain.trainer import environment

if TYPE_CHECKING:
    import pandas as pd

    from registry.versions import Version

log = logging.getLogger("shelflife.gate_report")
_PATIENCE_S = 180.0


class Rendering(Struct, kw_only=True):
    """A report under way."""

    process: Any  # subprocess.Popen
    target: Path


def begin(
    context: RunContext, run: RunState, spec: ModelSpec, trained: TrainerResult, gate: GateResult
) -> Rendering | None:
    """Start rendering; None where it is switched off or nothing can be rendered."""
    if not context.settings.retrain.gate.report:
        return None
    try:
        folder = context.folder(run.id).resolve()
        job = _write(folder, run, spec, gate)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monitor.report", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment(1),
        )
    except Exception:  # odd rows, a full disk: the gate's numbers stand without a picture
        log.exception("no_report", extra={"run": run.id})
        return None
    return Rendering(process=process, target=folder / "gate-report.html")


def _write(folder: Path, run: RunState, spec: ModelSpec, gate: GateResult) -> Path:
    outputs = read_frame(folder / "job" / "predictions.parquet")
    y = read_frame(folder / "holdout.parquet")["y"].to_numpy(np.float64)
    inputs = read_inputs(folder / "holdout.parquet", spec).add_prefix("in:")
    for who in ("champion", "candidate"):
        write_frame(folder / f"report-{who}.parquet", _side(spec, inputs, outputs, y, who))
    verdict = "passed" if gate.passed else "refused"
    job = Job(
        reference=str(folder / "report-champion.parquet"),
        current=str(folder / "report-candidate.parquet"),
        spec=spec,
        target=str(folder / "gate-report.html"),
        title=f"run {run.id}: champion (reference) and candidate (current), {verdict}",
    )
    path = folder / "report.json"
    path.write_bytes(msgspec.json.encode(job))
    return path


def _side(
    spec: ModelSpec, inputs: pd.DataFrame, outputs: pd.DataFrame, y: np.ndarray, who: str
) -> pd.DataFrame:
    """One model's rows in the form of a reference sample; the candidate's labels as given."""
    import pandas as pd

    frame = inputs.copy()
    for name in spec.outputs:
        frame[f"out:{name}"] = outputs[f"{who}:{name}"].to_numpy(np.float64)
    if who == "champion" or spec.task == "regression":
        return frame.assign(y=y)
    frame["y"] = pd.Series([spec.classes[int(value)] for value in y], dtype=object)
    return frame


def attach(context: RunContext, version: Version, rendering: Rendering | None) -> bool:
    """Wait for the report and attach its pages; whatever goes wrong is logged, not raised."""
    if rendering is None:
        return False
    try:
        _wait(rendering, context)
        pages = [rendering.target, rendering.target.with_stem("gate-report-performance")]
        there = [page for page in pages if page.is_file()]
        for page in there:
            context.registry.attach(version, page.name, page.read_bytes())
    except (ShelflifeError, OSError, subprocess.TimeoutExpired):
        log.exception("no_report", extra={"version": version.version})
        return False
    return bool(there)


def _wait(rendering: Rendering, context: RunContext) -> None:
    left = _PATIENCE_S
    try:
        while left > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rendering.process.wait(timeout=0.5)
                return
            left -= 0.5
            context.beat()
    finally:
        if rendering.process.poll() is None:
            rendering.process.kill()
            rendering.process.wait()
