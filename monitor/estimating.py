"""What a window will score, before its labels come: `measure.estimate` for a check. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from core.settings import ModelSettings
from core.times import micros
from monitor import outcome
from monitor.baseline import Baseline
from monitor.figures import Estimated, Track
from monitor.kept import kept
from monitor.log.privacy import not_logged
from monitor.log.records import Rows
from monitor.measure import metrics
from monitor.measure.estimate import Estimator, learn, reference_parts

if TYPE_CHECKING:
    import pandas as pd


def estimated(
    baseline: Baseline,
    reference: pd.DataFrame,
    rows: Rows,
    settings: ModelSettings,
    *,
    version: str,
    since: datetime,
    track: Track | None = None,
) -> Estimated:
    """Metrics of the rows that this version answered, as if no label were known.

    Args:
        rows: of the check's window, answered by any version.
        since: the window's start: event-time windows that began before it are not whole.
    """
    spec, mine = baseline.spec, outcome.only_version(rows, version)
    rests = outcome.source(mine, version)
    if not len(mine):
        why = f"no row of the window was answered by v{version}"
        return Estimated(method="", source=rests, why=why, track=track)
    known = _estimator(baseline, reference, settings)
    if not known.method:
        return Estimated(method="", source=rests, why=known.why, track=track)
    values = known.whole(mine.inputs, mine.outputs)
    if not values:
        why = f"no row of v{version} has a usable answer"
        return Estimated(method=known.method, source=rests, why=why, track=track)
    then = outcome.expected(baseline, reference, settings)
    figures = tuple(
        metrics.figure(
            name,
            value,
            expected=then.get(name),
            tolerance=settings.tolerance,
            min_rows=settings.min_rows,
        )
        for name, value in values.items()
    )
    windows = known.windows(
        mine.inputs,
        mine.outputs,
        mine.meta["time"].astype("int64").to_numpy(),
        version,
        outcome.score_width(settings),
        since=micros(since),
        least=2,
    )
    hidden = not_logged(settings.privacy, spec.columns)
    why = f"without {', '.join(hidden)}, which the log does not keep" if hidden else ""
    why = why if known.method == "DLE" else ""
    return Estimated(
        method=known.method, source=rests, figures=figures, windows=windows, track=track, why=why
    )


def _estimator(baseline: Baseline, reference: pd.DataFrame, settings: ModelSettings) -> Estimator:
    spec, metric = baseline.spec, outcome.chosen_metric(baseline.spec, settings)
    hidden = not_logged(settings.privacy, spec.columns)

    def made() -> Estimator:
        inputs, outputs, y = reference_parts(spec, reference)
        return learn(
            spec, inputs, outputs, y, metric, choices=outcome.choices_of(settings), hidden=hidden
        )

    return kept(reference, (metric, settings.threshold, hidden, baseline.created), made)
