"""What carries a risen loss: columns, a broken feed, the label mix or a segment.

Every suspect is tried by a repair (`monitor.measure.repairs`, `monitor.measure.segments`) whose
effect on the measured loss is a number with a standard error. Nobody is accused unless the loss
rose, and never by how far a column drifted. After the largest cause is undone, what remains of the
rise is looked at again, so that a second cause is found and a passenger of the first is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from core.spec import Metric, ModelSpec
from monitor.measure import cause_words
from monitor.measure.suspects import FLOOR, PART, Case, Sample, sample
from monitor.results import Cause, Causes

if TYPE_CHECKING:
    from monitor.measure.suspects import Predict

__all__ = ["Sample", "explain", "sample"]

ROWS = 10_000  # at most, of the reference and of the window; more are sampled by the seed
_LEAST = 100  # fewer rows with a loss cannot tell causes apart
_MOST = 3  # causes named
_RISE_Z = 3.0  # ... and the rise itself


def explain(
    spec: ModelSpec,
    reference: Sample,
    window: Sample,
    predict: Predict | None = None,
    *,
    metric: Metric | None = None,
    seed: int = 0,
) -> Causes:
    """What carries the loss of a window, largest first; a pure function of its arguments.

    Args:
        reference: rows the model had not seen, the champion's baseline.
        window: labelled rows of now.
        predict: inputs to outputs; without it (or if it raises) a column is not predicted again,
            and the notes say so.
        metric: the loss of both samples, for rows that are predicted again.
        seed: fixes every draw.
    """
    rng = np.random.default_rng(seed)
    reference, window = _usable(reference, rng), _usable(window, rng)
    n = len(window.loss)
    if min(n, len(reference.loss)) < _LEAST:
        which = "window" if n < _LEAST else "baseline"
        few = min(n, len(reference.loss))
        why = f"{few:,} rows of the {which} have a loss, fewer than the {_LEAST} this needs"
        return Causes(n=n, why=why)
    case = Case(spec, reference, window, predict, metric, rng)
    rise, se = case.rise()
    if not _rose(rise, se, case.level):
        return Causes(rise=rise, rise_se=se, n=n, why=_calm(rise, se, case.level))
    found: list[Cause] = []
    while len(found) < _MOST:
        best = case.accused(rise)
        if best is None:
            break
        found.append(cause_words.cause(best, rise))
        left, left_se = case.undo(best)
        if not _rose(left, left_se, case.level) or left < PART * rise:
            break
    why = (
        ""
        if found
        else (
            f"the loss rose by {rise:.3g} ± {1.96 * se:.2g}, and undoing no column, segment or "
            "label mix removes a clear part of it: it rose everywhere alike, or in an unknown way"
        )
    )
    return Causes(causes=tuple(found), rise=rise, rise_se=se, n=n, why=why, notes=tuple(case.notes))


def _usable(rows: Sample, rng: np.random.Generator) -> Sample:
    """The rows with a loss, at most `ROWS` of them."""
    kept = np.flatnonzero(np.isfinite(rows.loss) & np.isfinite(rows.y))
    if len(kept) > ROWS:
        kept = np.sort(rng.choice(kept, ROWS, replace=False))
    return Sample(
        inputs=rows.inputs.iloc[kept].reset_index(drop=True),
        outputs=rows.outputs.iloc[kept].reset_index(drop=True),
        y=np.asarray(rows.y, dtype=np.float64)[kept],
        loss=rows.loss[kept],
    )


def _rose(rise: float, se: float, level: float) -> bool:
    return rise > max(_RISE_Z * se, FLOOR * level)


def _calm(rise: float, se: float, level: float) -> str:
    if rise <= FLOOR * level:
        return "the loss did not rise over the baseline's"
    return f"the rise of the loss, {rise:.3g} ± {1.96 * se:.2g}, may be chance"
