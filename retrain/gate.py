"""Is the candidate better? A paired comparison on rows neither model was trained on. Pure.

Both models answered the same newest labelled rows. The gain is the mean difference of their per-row
losses (champion minus candidate: positive is better), with Student's t interval of the paired
differences, which cancels how hard each row is. The candidate passes when the lower end at the
chosen one-sided confidence is above zero and every other named check holds. What cannot be measured
never passes: a missing or constant number is a refusal with its reason, not a pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from core.settings import GateSettings
from core.spec import Metric, ModelSpec
from monitor.measure.performance import aggregate, row_loss
from retrain.wording import METRIC_WORDS, plural, rounded

if TYPE_CHECKING:
    import pandas as pd

_SUM_TOLERANCE = 1e-6  # how far the probabilities of a row may be from summing to one


class GateCheck(Struct, frozen=True, kw_only=True):
    """One condition of the gate, with the number it rests on and the line it was held to."""

    name: str
    passed: bool
    text: str
    value: float | None = None
    limit: float | None = None


class GateResult(Struct, frozen=True, kw_only=True):
    """What the gate found. Numbers are None where they could not be computed."""

    passed: bool
    reason: str
    metric: str
    champion: float | None  # the metric of each model on the rows
    candidate: float | None
    gain: float | None  # champion - candidate, in the metric's units; positive is better
    low: float | None  # two-sided interval of the gain, whose lower end is the one-sided bound
    high: float | None
    n: int  # rows that both models answered
    confidence: float  # one-sided
    checks: tuple[GateCheck, ...]


class Difference(Struct, frozen=True, kw_only=True):
    """A paired difference of mean losses with its interval; None where it has none."""

    gain: float | None
    low: float | None
    high: float | None
    n: int


def paired(first: np.ndarray, second: np.ndarray, confidence: float) -> Difference:
    """Mean of first - second over rows where both are finite.

    `low` is the lower end of the one-sided Student's t interval at `confidence`, `high` the upper.
    Without an interval (fewer than two rows, or differences that do not vary) both are None.
    """
    from scipy.special import stdtrit

    difference = first - second
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if not n:
        return Difference(gain=None, low=None, high=None, n=0)
    gain = float(difference.mean())
    # A constant column's sd is rounding noise, not exactly zero: compare the values themselves.
    if n < 2 or difference.min() == difference.max():
        return Difference(gain=gain, low=None, high=None, n=n)
    half = float(stdtrit(n - 1, confidence)) * float(difference.std(ddof=1)) / math.sqrt(n)
    return Difference(gain=gain, low=gain - half, high=gain + half, n=n)


def compare(
    spec: ModelSpec,
    y: np.ndarray,
    champion: pd.DataFrame,
    candidate: pd.DataFrame,
    *,
    settings: GateSettings,
    metric: Metric | None = None,
    reproduces: bool | None = None,
    label_range: tuple[float, float] | None = None,
) -> GateResult:
    """Compare two models' outputs on the same rows.

    Args:
        y: encoded labels, shape (n,), all finite.
        champion, candidate: outputs, n rows with the columns `spec.outputs`.
        metric: the loss to compare by; the spec's when None.
        reproduces: whether the candidate gave the very same outputs after it was saved and
            loaded; None (nobody tried) does not pass.
        label_range: for regression, smallest and largest label known; those of `y` when None.
    """
    chosen = metric or spec.metric
    theirs, ours = (row_loss(spec, outputs, y, chosen) for outputs in (champion, candidate))
    difference = paired(theirs, ours, settings.confidence)
    both = np.isfinite(theirs) & np.isfinite(ours)
    means = [_finite(aggregate(chosen, losses[both])) for losses in (theirs, ours)]
    gain, low, high = _in_units(chosen, difference, means)
    old, new = (_matrix(spec, outputs) for outputs in (champion, candidate))
    checks = (
        _enough(difference.n, settings.min_rows),
        _evaluable("champion", theirs),
        _evaluable("candidate", ours),
        _in_range(spec, new, y, label_range),
        _not_constant(new),
        _better(chosen, means, (gain, low, high), difference.n, settings.confidence),
        _calibrated(spec, y, old, new, settings.confidence),
        _reproduced(reproduces),
    )
    failed = [check.text for check in checks if not check.passed]
    better = next(check.text for check in checks if check.name == "better")
    return GateResult(
        passed=not failed,
        reason="; ".join(failed) if failed else better,
        metric=chosen,
        champion=means[0],
        candidate=means[1],
        gain=gain,
        low=low,
        high=high,
        n=difference.n,
        confidence=settings.confidence,
        checks=checks,
    )


def _in_units(
    metric: Metric, difference: Difference, means: list[float | None]
) -> tuple[float | None, float | None, float | None]:
    """The difference in the metric's units: squared errors a^2 - b^2 over a + b for RMSE."""
    numbers = (difference.gain, difference.low, difference.high)
    scale = 1.0
    if metric == "rmse":
        scale = sum(mean or 0.0 for mean in means)
    if not math.isfinite(scale) or scale <= 0:
        return None, None, None
    gain, low, high = (None if x is None else _finite(x / scale) for x in numbers)
    return gain, low, high


def _enough(n: int, wanted: int) -> GateCheck:
    text = f"{plural(n, 'row')} compared"
    if n < wanted:
        text = f"only {plural(n, 'row')} could be compared, {wanted:,} are needed"
    return GateCheck(name="rows", passed=n >= wanted, text=text, value=n, limit=wanted)


def _evaluable(who: str, losses: np.ndarray) -> GateCheck:
    """Every row must have a loss: an output that is missing or infinite is no answer."""
    bad, n = int((~np.isfinite(losses)).sum()), len(losses)
    text = f"the {who} answers every row"
    if bad or not n:
        text = f"the {who} cannot be evaluated: no finite loss on {bad:,} of {plural(n, 'row')}"
    return GateCheck(name=f"{who}_finite", passed=n > 0 and not bad, text=text, value=bad, limit=0)


def _in_range(
    spec: ModelSpec, outputs: np.ndarray, y: np.ndarray, labels: tuple[float, float] | None
) -> GateCheck:
    """Probabilities within [0, 1] that sum to one; predictions near the labels ever seen."""
    if spec.task == "regression":
        lowest, highest = labels or (_least(y), _most(y))
        width = highest - lowest
        low, high = lowest - width, highest + width  # a label's span of room on either side
    else:
        low, high = 0.0, 1.0
    with np.errstate(invalid="ignore"):
        outside = ((outputs < low) | (outputs > high)).any(axis=1)
        if spec.task == "multiclass":
            outside |= np.abs(outputs.sum(axis=1) - 1.0) > _SUM_TOLERANCE
    count = int(outside.sum())
    where = f"[{rounded(low)}, {rounded(high)}]"
    text = f"every output lies within {where}"
    if count:
        text = f"{plural(count, 'output')} of the candidate lie outside {where}"
        if spec.task == "multiclass":
            text += " or do not sum to one"
    return GateCheck(name="in_range", passed=not count, text=text, value=count, limit=0)


def _not_constant(outputs: np.ndarray) -> GateCheck:
    distinct = len(np.unique(outputs[np.isfinite(outputs).all(axis=1)], axis=0))
    text = f"the candidate gives {distinct:,} different outputs"
    if distinct < 2:
        text = "the candidate gives the same output for every row"
    return GateCheck(name="not_constant", passed=distinct > 1, text=text, value=distinct, limit=2)


def _better(
    metric: Metric,
    means: list[float | None],
    interval: tuple[float | None, float | None, float | None],
    n: int,
    confidence: float,
) -> GateCheck:
    name, (gain, low, high) = METRIC_WORDS[metric], interval
    sides = f"{name} {rounded(means[1])} against the champion's {rounded(means[0])}"
    if gain is None or low is None or high is None:
        text = f"nothing is proven: {sides}, with no interval of the difference (n {n:,})"
        return GateCheck(name="better", passed=False, text=text, value=None, limit=0.0)
    numbers = f"{rounded(gain, 2)} [{rounded(low, 2)}, {rounded(high, 2)}] on {plural(n, 'row')}"
    if low > 0:
        text = f"the candidate is ahead by {numbers}: {sides}"
        return GateCheck(name="better", passed=True, text=text, value=low, limit=0.0)
    word = "behind" if gain < 0 else "not provably ahead"
    text = f"the candidate is {word} at {confidence:.0%} confidence: {sides}, gain {numbers}"
    return GateCheck(name="better", passed=False, text=text, value=low, limit=0.0)


def _calibrated(
    spec: ModelSpec, y: np.ndarray, old: np.ndarray, new: np.ndarray, confidence: float
) -> GateCheck:
    """Calibration in the large: |mean output - base rate| is not clearly above the champion's.

    Clearly: even the lower end of its one-sided interval exceeds the champion's. For several
    classes the worst class counts; for regression it is the mean error.
    """
    from scipy.special import ndtri

    if len(y) < 2:
        text = f"calibration cannot be measured on {plural(len(y), 'row')}"
        return GateCheck(name="calibrated", passed=False, text=text)
    truth = y[:, None]
    if spec.task == "multiclass":
        truth = (y[:, None] == np.arange(len(spec.classes))).astype(np.float64)
    with np.errstate(all="ignore"):
        errors, before = new - truth, old - truth
        bias, prior = np.abs(errors.mean(axis=0)), np.abs(before.mean(axis=0))
        error = errors.std(axis=0, ddof=1) / math.sqrt(len(y))
    excess = bias - float(ndtri(confidence)) * error - prior
    if not np.isfinite(excess).all():
        text = "the candidate's calibration cannot be measured"
        return GateCheck(name="calibrated", passed=False, text=text)
    worst = int(np.argmax(excess))
    ok, sides = bool(excess[worst] <= 0), f"{rounded(bias[worst])} against {rounded(prior[worst])}"
    what = "mean error" if spec.task == "regression" else "mean output's distance from base rate"
    text = f"{what} is {sides}" if ok else f"{what} is clearly worse: {sides}"
    return GateCheck(
        name="calibrated", passed=ok, text=text, value=float(bias[worst]), limit=float(prior[worst])
    )


def _reproduced(reproduces: bool | None) -> GateCheck:
    texts = {
        True: "saved and loaded again, the candidate gives the very same outputs",
        False: "saved and loaded again, the candidate gives other outputs",
        None: "nobody tried whether the candidate survives saving and loading",
    }
    return GateCheck(name="reproduces", passed=reproduces is True, text=texts[reproduces])


def _matrix(spec: ModelSpec, outputs: pd.DataFrame) -> np.ndarray:
    """Outputs as float64 (n, outputs); a column that is not there is NaN."""
    matrix: np.ndarray = outputs.reindex(columns=spec.outputs).to_numpy(np.float64)
    return matrix


def _least(y: np.ndarray) -> float:
    return float(np.nanmin(y)) if np.isfinite(y).any() else 0.0


def _most(y: np.ndarray) -> float:
    return float(np.nanmax(y)) if np.isfinite(y).any() else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
