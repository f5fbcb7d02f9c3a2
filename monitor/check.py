"""One check of one model at one moment: gather the evidence, measure it, judge it, keep it.

`gather` reads the log and `record` writes the ledger; `run_check` between them is pure: the same
arguments give the same result, today or in a replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings, span
from core.spec import ModelSpec
from monitor import estimating, joint, lateness, outcome, proving, verdict
from monitor.baseline import Baseline, read_columns, reference_of, sorted_reference
from monitor.figures import Arrivals, ShelfLife, Track
from monitor.log.privacy import not_logged
from monitor.log.records import LabelActivity, Rows, SampleLog
from monitor.measure import drift, labels, quality, staleness
from monitor.measure.calibration import provisional as provisional_of
from monitor.measure.profile import Values
from monitor.outcome import chosen_metric as chosen_metric
from monitor.outcome import only_version as only_version
from monitor.results import CheckResult, ColumnDrift, LabelFacts, QualityIssue

if TYPE_CHECKING:
    import pandas as pd

    from monitor.measure.suspects import Predict

_HORIZON = 10  # windows to look back for the newest label, and first for the newest prediction
_LATE = 0.95  # quantile of the label lags at which a label counts as late


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What the registry knows of the version that is checked."""

    version: str
    registered: datetime
    promoted: datetime | None = None  # when it became champion


class Evidence(Struct, kw_only=True):
    """What the log knew at the moment of the check; nothing later."""

    window_start: datetime
    window_end: datetime
    rows: Rows  # window_start <= time < window_end, answered by any version
    labelled: Rows  # answered by this version, label known in (window_start, window_end]
    newest_prediction: datetime | None
    newest_label: datetime | None
    label_lag: timedelta | None  # median of rows whose label became known in the window
    matured: int | None = None  # rows of this version old enough to have a label; None: unknown
    matured_labelled: int = 0  # ... that have one
    arrived: int = 0  # rows of any version whose label became known in the window
    lags: tuple[tuple[float, float], ...] = ()  # their (quantile, seconds from row to label)
    activity: LabelActivity | None = None  # None: nobody counted
    track: Track | None = None  # how right estimates have been; None: nobody looked
    arrivals: Arrivals | None = None  # rows that arrived since the check before; None: unknown
    shelf_life: ShelfLife | None = None  # None: nobody forecast it


def gather(
    log: SampleLog, model: str, version: str, *, at: datetime, settings: ModelSettings
) -> Evidence:
    """Read what the check needs, as it was known at `at`."""
    start = at - span(settings.window)
    rows = log.read(model, start=start, end=at, known_at=at)
    arrived = log.read(model, end=at, known_at=at, known_after=start, labelled=True)
    newest_rows, newest_labels, long_ago = rows, arrived, at - _HORIZON * span(settings.window)
    if not len(rows):
        newest_rows = log.read(model, start=long_ago, end=at, known_at=at, newest=1)
    if not len(newest_rows):
        newest_rows = log.read(model, end=at, known_at=at, newest=1)
    if not len(arrived):
        newest_labels = log.read(model, end=at, known_at=at, known_after=long_ago, labelled=True)
    lags = labels.lags(arrived.meta)
    late = span(settings.label_delay) if settings.label_delay else None
    if late is None and len(lags):
        late = timedelta(seconds=float(np.quantile(lags, _LATE)))
    matured, matured_labelled = None, 0
    if late is not None:
        old = log.read(
            model, start=start - late, end=at - late, known_at=at, version=version, inputs=False
        )
        matured, matured_labelled = len(old), int(old.meta["label_time"].notna().sum())
    return Evidence(
        window_start=start,
        window_end=at,
        rows=rows,
        labelled=only_version(arrived, version),
        newest_prediction=_newest(newest_rows.meta["time"]),
        newest_label=_newest(newest_labels.meta["label_time"]),
        label_lag=timedelta(seconds=float(np.median(lags))) if len(lags) else None,
        matured=matured,
        matured_labelled=matured_labelled,
        arrived=len(arrived),
        lags=labels.quantiles(lags),
    )


def _newest(times: pd.Series) -> datetime | None:
    known = times.dropna()
    return known.max().to_pydatetime() if len(known) else None


def run_check(
    baseline: Baseline,
    reference: pd.DataFrame,
    evidence: Evidence,
    history: Sequence[CheckResult],
    facts: ModelFacts,
    settings: ModelSettings,
    *,
    at: datetime,
    predict: Predict | None = None,
    accepted: tuple[Baseline, pd.DataFrame] | None = None,
) -> CheckResult:
    """Measure and judge; no clock, no I/O.

    Args:
        reference: the version's reference sample (`monitor.baseline.reference_sample`).
        history: earlier checks of this model, newest first; three suffice.
        predict: the version itself, inputs to outputs; asked only where the loss is worse than
            tolerated, to see which repaired column takes the loss away.
        accepted: the baseline and sample that drift is held against instead of the version's own.
    """
    rows = len(evidence.rows)
    drifts, issues, provisional, together = _data(
        *(accepted or (baseline, reference)), evidence, facts, settings, at=at
    )
    labelled, version = evidence.labelled, facts.version
    performance = outcome.performance(baseline, labelled, settings, coverage=_share(evidence))
    hidden = not_logged(settings.privacy, baseline.spec.columns)
    found = outcome.carries(baseline, reference, labelled, performance, predict, hidden)
    span_known = (evidence.window_start, evidence.window_end)
    measured = outcome.measured(
        baseline, reference, labelled, settings, performance, version=version, known=span_known
    )
    estimated = estimating.estimated(
        baseline, reference, evidence.rows, settings,
        version=version, since=evidence.window_start, track=evidence.track,
    )  # fmt: skip
    proof = proving.proof(baseline, reference, labelled, history, settings, version=version, at=at)
    ages = staleness.ages(
        at=at,
        registered=facts.registered,
        promoted=facts.promoted,
        trained_until=baseline.trained_until,
        newest_prediction=evidence.newest_prediction,
        newest_label=evidence.newest_label,
        label_lag=evidence.label_lag,
        baseline=baseline.created,
        checked=history[0].at if history else None,
        received=evidence.arrivals.newest if evidence.arrivals else None,
        arrival=evidence.arrivals.delay if evidence.arrivals else None,
    )
    judged = verdict.Evidence(
        version=facts.version,
        at=at,
        rows=rows,
        quality=issues,
        drift=(*drifts, *(each for each in together if each.drifted)),
        performance=performance,
        causes=found.causes,
        staleness=ages,
        promoted=facts.promoted,
        label_lag=span(settings.label_delay) if settings.label_delay else evidence.label_lag,
        proof=proof,
        shelf_life=evidence.shelf_life,
        arrivals=evidence.arrivals,
        newest=evidence.newest_prediction,
    )
    state, reason, findings = verdict.judge(judged, history, settings)
    return CheckResult(
        model=baseline.spec.name,
        version=facts.version,
        at=at,
        window_start=evidence.window_start,
        window_end=evidence.window_end,
        rows=rows,
        labelled=performance.n,
        state=state,
        reason=reason,
        quality=issues,
        drift=drifts,
        performance=performance,
        staleness=ages,
        findings=findings,
        provisional=provisional,
        labels=_labels(baseline, evidence),
        not_logged=hidden,
        causes=found.causes,
        joint=together,
        causes_why="; ".join(part for part in (found.why, *found.notes) if part),
        measured=measured,
        estimated=estimated,
        proof=proof,
        shelf_life=evidence.shelf_life,
        arrivals=evidence.arrivals,
    )


def _labels(baseline: Baseline, evidence: Evidence) -> LabelFacts:
    has = evidence.rows.meta["label_time"].notna()
    _, problems = labels.usable(baseline.spec, evidence.labelled.meta)
    found = evidence.activity
    return LabelFacts(
        arrived=evidence.arrived,
        lag=evidence.lags,
        rows=len(has),
        coverage=float(has.mean()) if len(has) else None,
        matured=evidence.matured,
        matured_coverage=_share(evidence),
        repeated=found.repeated if found else None,
        corrected=found.corrected if found else None,
        unknown=found.unknown if found else None,
        problems=problems,
    )


def _share(evidence: Evidence) -> float | None:
    return evidence.matured_labelled / evidence.matured if evidence.matured else None


def _data(
    baseline: Baseline,
    reference: pd.DataFrame,
    evidence: Evidence,
    facts: ModelFacts,
    settings: ModelSettings,
    *,
    at: datetime,
) -> tuple[tuple[ColumnDrift, ...], tuple[QualityIssue, ...], str, tuple[ColumnDrift, ...]]:
    """Drift and quality of the window, why thresholds are provisional, and `monitor.joint`."""
    rows, spec = len(evidence.rows), baseline.spec
    hidden = not_logged(settings.privacy, spec.columns)
    profiles = [p for p in baseline.columns if p.role == "output" or p.column not in hidden]
    inputs = [profile for profile in profiles if profile.role == "input"]
    window = read_columns(spec, evidence.rows.inputs, None) | _own_outputs(spec, evidence, facts)
    reference_counts = reference_of(baseline)
    span_ = span(settings.window)
    times = evidence.rows.meta["time"].to_numpy("datetime64[us]")
    moments = times.astype(np.int64) / 1e6
    budget = drift.Budget(
        false_alarms=settings.false_alarms_per_quarter,
        every=span(settings.check_every),
        window=span_,
        min_rows=settings.min_rows,
    )
    ages = at.timestamp() - moments
    seen = drift.window_of(reference_counts, window, ages, moments, budget)
    ordered = sorted_reference(baseline, reference)
    drifts = drift.measure(reference_counts, profiles, ordered, seen, budget)
    parts = joint.Parts(
        spec, profiles, reference_counts, reference, window, seen,
        evidence.rows.inputs, evidence.rows.outputs, ages, moments, budget,
    )  # fmt: skip
    issues = quality.inspect(
        inputs,
        {p.key: reference_counts.spread(p.key, span_, rows) for p in inputs},
        window,
        settings.quality,
        rows=rows,
        min_rows=settings.min_rows,
    )
    after = settings.no_data_after
    silent = quality.silence(
        at=at,
        newest=evidence.newest_prediction,
        rows=rows,
        after=span(after) if after else 2 * span(settings.window),
    )
    provisional = provisional_of(baseline.calibration, span_) if rows else ""
    together = joint.measure(parts, settings, at=at) if rows >= settings.min_rows else ()
    if lateness.arriving(evidence.arrivals, settings):
        silent = None  # rows do come, only late: that is told instead
    return drifts, (*([silent] if silent else ()), *issues), provisional, together


def _own_outputs(spec: ModelSpec, evidence: Evidence, facts: ModelFacts) -> dict[str, Values]:
    """The outputs of this version's rows; another version's say nothing of it.

    Rows of other versions are there, without a value.
    """
    mine = (evidence.rows.meta["version"] == facts.version).to_numpy(dtype=bool)
    own = only_version(evidence.rows, facts.version)
    found = read_columns(spec, own.inputs, own.outputs)
    spread = {}
    for key, values in found.items():
        if key.startswith("output:"):
            present = np.zeros(len(mine), dtype=bool)
            present[mine] = values.present
            spread[key] = Values(
                values.values, present, values.missing, values.invalid, values.example
            )
    return spread


def record(tx: sa.Connection, result: CheckResult, *, created: datetime | None = None) -> int:
    """Keep a check and return its id; a check of this model and moment is kept once.

    `created` is the shell's clock; the moment of the check when not given.
    """
    table = schema.checks
    known = sa.select(table.c.id).where(table.c.model == result.model, table.c.at == result.at)
    found = tx.scalar(known)
    if found is not None:
        return int(found)
    performance = result.performance
    values = {
        "model": result.model,
        "version": result.version,
        "at": result.at,
        "window_start": result.window_start,
        "window_end": result.window_end,
        "rows": result.rows,
        "labelled": result.labelled,
        "state": result.state,
        "reason": result.reason,
        "metric": performance.metric,
        "value": performance.value,
        "low": performance.low,
        "high": performance.high,
        "expected": performance.expected,
        "tolerated": performance.tolerated,
        "result": msgspec.json.encode(result).decode(),
        "created": created or result.at,
    }
    try:
        with tx.begin_nested():
            query = table.insert().values(values).returning(table.c.id)
            return int(tx.execute(query).scalar_one())
    except sa.exc.IntegrityError:  # PostgreSQL: another process recorded it since we looked
        return int(tx.execute(known).scalar_one())


def recorded(ledger: Ledger, model: str, at: datetime) -> CheckResult | None:
    """The check of a model at this very moment, if it was kept."""
    table = schema.checks
    query = sa.select(table.c.result).where(table.c.model == model, table.c.at == at)
    with ledger.read() as tx:
        text = tx.scalar(query)
    return msgspec.json.decode(text, type=CheckResult) if text else None


def recent(ledger: Ledger, model: str, before: datetime, limit: int) -> list[CheckResult]:
    """The checks of a model before a moment, newest first, at most `limit`."""
    table = schema.checks
    query = (
        sa.select(table.c.result)
        .where(table.c.model == model, table.c.at < before)
        .order_by(table.c.at.desc())
        .limit(limit)
    )
    with ledger.read() as tx:
        return [msgspec.json.decode(text, type=CheckResult) for text in tx.scalars(query)]
