"""The proof of decay that may be looked at after every check: `measure.sequential` for a check.

The e-process of a version's life travels in its checks: each takes on the labels that are new since
the check before. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from core.settings import ModelSettings
from core.spec import Metric
from monitor import outcome
from monitor.baseline import Baseline
from monitor.figures import Proof
from monitor.kept import kept
from monitor.log.records import Rows
from monitor.measure import labels, sequential
from monitor.measure.estimate import reference_parts
from monitor.measure.performance import matrix, row_loss
from monitor.results import CheckResult

if TYPE_CHECKING:
    import pandas as pd

SURE = 2.0  # standard errors of the baseline's mean, so that its own luck breaks no promise
ALPHA = 0.05  # share of lives without decay that may ever be called decaying by the proof


def proof(
    baseline: Baseline,
    reference: pd.DataFrame,
    labelled: Rows,
    history: Sequence[CheckResult],
    settings: ModelSettings,
    *,
    version: str,
    at: datetime,
) -> Proof | None:
    """The e-process of this version's life, taken on by the labels that are new since it was told.

    None where the baseline says nothing to hold them against, or no label has come yet. It starts
    anew with another version, metric or tolerance.
    """
    spec, metric = baseline.spec, outcome.chosen_metric(baseline.spec, settings)
    value = baseline.expected.of(metric) if baseline.expected else None
    if value is None:
        return None
    tolerated = value * (1 + settings.tolerance)
    before = _told(history, version, metric, tolerated)
    y, _ = labels.usable(spec, labelled.meta)
    fresh = labelled.meta["label_time"].notna().to_numpy(bool)
    if before is not None and before.until is not None:
        fresh = fresh & (labelled.meta["label_time"] > before.until).to_numpy(bool)
    losses = row_loss(spec, labelled.outputs, y, metric)[fresh]
    line = _line(baseline, reference, settings, metric, value)
    if line is None or (before is None and not np.isfinite(losses).any()):
        return None
    known = sequential.Following()
    if before is not None:
        known = sequential.Following(looks=before.looks, rows=before.n, bets=before.bets)
    order = np.argsort(labelled.meta["label_time"].to_numpy()[fresh], kind="stable")
    now = sequential.follow(known, line, losses[order])
    since = before.since if before else None
    crossed = now.evidence >= 1 / ALPHA
    return Proof(
        metric=metric,
        tolerated=tolerated,
        evidence=now.evidence,
        line=1 / ALPHA,
        alpha=ALPHA,
        proven=crossed,
        n=now.rows,
        looks=now.looks,
        since=(since or at) if crossed else None,
        until=at,
        bets=now.bets,
    )


def _told(
    history: Sequence[CheckResult], version: str, metric: str, tolerated: float
) -> Proof | None:
    """The proof as the newest check of this version left it, if it is of the same question."""
    for check in history:
        if check.version == version and check.proof is not None:
            same = check.proof.metric == metric and check.proof.tolerated == tolerated
            return check.proof if same else None
    return None


def _line(
    baseline: Baseline,
    reference: pd.DataFrame,
    settings: ModelSettings,
    metric: Metric,
    value: float,
) -> sequential.Line | None:
    def made() -> sequential.Line | None:
        _, outputs, y = reference_parts(baseline.spec, reference)
        losses = row_loss(baseline.spec, matrix(baseline.spec, outputs), y, metric)
        losses = losses[np.isfinite(losses)]
        mean = value**2 if metric == "rmse" else value
        tolerance = settings.tolerance
        if metric == "rmse":
            tolerance = (1 + tolerance) ** 2 - 1
        if not len(losses):
            return None
        return sequential.line(losses, expected=mean, tolerance=tolerance, sure=SURE)

    key = ("line", metric, settings.tolerance, value, baseline.created)
    return kept(reference, key, made)
