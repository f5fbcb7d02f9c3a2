"""What columns do together: pairs that came apart, and a classifier that tells the rows apart.

Both find what no column shows by itself. Pairs (`monitor.measure.pairs`) are looked at in every
check, on a tenth of the budget. The classifier two-sample test (`monitor.measure.classifier`) finds
changes of any shape in any number of columns but costs a fit, so it runs when it is asked for.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from monitor.measure import alarms, pairs
from monitor.measure.calibration import Reference
from monitor.measure.classifier import Classified
from monitor.measure.drift import QUARTER, SHARE, Budget, Window, parts_of, z_of
from monitor.results import ColumnDrift, Statistic

_MOST = 5  # pairs that are listed
_EVERY = 3  # every third scale: pairs pay for few, a correlation moves as a whole


def judge_pairs(reference: Reference, window: Window, budget: Budget) -> tuple[ColumnDrift, ...]:
    """The pairs that came apart or together, the strongest first, at most five; or the strongest
    one, undrifted. Empty where there is nothing to compare."""
    known = reference.calibration.pairs
    if known is None or window.scores is None or window.score_parts is None:
        return ()
    length, parts = parts_of(reference.layout, budget)
    scales = alarms.scales_for(parts, len(window.scores) / parts)
    scales = (*scales[:-1:_EVERY], scales[-1])
    count = len(known.columns) * (len(known.columns) - 1) // 2
    checks, rate = max(QUARTER / budget.every, 1.0), max(length / budget.every, 1.0)
    best: dict[tuple[str, str], tuple[float, ColumnDrift]] = {}
    for scale in scales:
        line = alarms.alpha(
            SHARE * budget.false_alarms, checks, max(round(scale * rate), 1), len(scales), count
        )
        scores = window.scores[window.score_parts >= parts - scale]
        if len(scores) < max(budget.min_rows, pairs.LEAST):
            continue
        found = pairs.compared(known, scores)
        crossed = [pair for pair in found if pair.p < line] or found
        for pair in sorted(crossed, key=lambda pair: pair.p)[:_MOST]:
            strength = float(np.log(max(pair.p, 1e-300)) - np.log(line))
            if strength < best.get(pair.columns, (np.inf, None))[0]:
                told = _told(reference, pair, line, length * scale, len(scores))
                best[pair.columns] = (strength, told)
    ranked = [told for _, told in sorted(best.values(), key=lambda each: each[0])]
    return tuple([told for told in ranked if told.drifted][:_MOST] or ranked[:1])


def _told(
    reference: Reference, pair: pairs.Moved, line: float, over: timedelta, rows: int
) -> ColumnDrift:
    one, other = (profile.column for profile in reference.named(pair.columns))
    both_in = all(key.startswith("input:") for key in pair.columns)
    return ColumnDrift(
        column=f"{one} with {other}",
        role="input" if both_in else "output",
        kind="pair",
        n=rows,
        missing_share=0.0,
        statistics=(
            Statistic(name="rank_correlation", value=pair.now, threshold=None,
                      why=f"{pair.before:.3g} in the baseline"),
            Statistic(name="correlation", value=z_of(pair.p), threshold=z_of(line),
                      alarm=pair.p < line, over_s=over.total_seconds(), rows=rows),
        ),
        drifted=pair.p < line,
    )  # fmt: skip


def judge_classifier(found: Classified, alpha: float) -> ColumnDrift:
    """The classifier's area under the curve beside its line, and whether it decides."""
    drifted = not found.why and found.p < alpha
    statistics = () if found.why else (
        Statistic(name="auc", value=found.auc, threshold=None, why="0.5 where nothing differs"),
        Statistic(name="classifier", value=z_of(found.p), threshold=z_of(alpha),
                  alarm=drifted, rows=found.n),
    )  # fmt: skip
    return ColumnDrift(
        column="all columns",
        role="input",
        kind="rows",
        n=found.n,
        missing_share=0.0,
        statistics=statistics,
        drifted=drifted,
        why=found.why,
    )
