"""Is the candidate better? A paired comparison on rows neither model was trained on. Pure.

Both models answered the same newest labelled rows. The gain is the mean difference of their per-row
losses (champion minus candidate: positive is better), which cancels how hard each row is; its
interval respects that neighbouring rows resemble each other (`retrain.gate_rule`). The candidate
passes when the rule says that it is ahead and every other named check holds (`retrain.gate_checks`;
docs/gate.md explains each). What cannot be measured never passes: a missing or constant number is a
refusal with its reason, not a pass.

There are four paths, and the result names its own: `compared`; `no_champion` (the champion cannot
be evaluated: held against always answering the training labels' mean, which a person or the setting
`champion_unavailable` decides on); `first` (there is no champion); `forced` (a person overrides the
gate, with name and reason).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from msgspec import Struct

from core.errors import GateRefused
from core.settings import GateSettings
from core.spec import Metric, ModelSpec
from monitor.measure.performance import aggregate, row_loss
from retrain import gate_checks, segments
from retrain.gate_checks import GateCheck
from retrain.gate_data import TrainingFacts
from retrain.gate_rule import Evidence, evidence
from retrain.segments import Segment
from retrain.wording import METRIC_WORDS, plural, rounded

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Difference", "GateCheck", "GateResult", "compare", "first_model", "forced", "paired"]

Path = Literal["compared", "no_champion", "first", "forced"]


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
    path: Path = "compared"
    rule: str = "superior"  # the default is that of results written before there were rules
    z: float | None = None  # gain over its standard error
    newest_z: float | None = None  # with newer rows weighing more
    worth: float | None = None  # how many independent rows the compared ones are worth
    segments: tuple[Segment, ...] = ()
    asks: bool = False  # the gate cannot decide: a person has to
    by: str = ""  # of a forced promotion: who, and why
    why: str = ""

    @property
    def refused(self) -> bool:
        """Whether the gate has said no: neither yes, nor that a person has to decide."""
        return not self.passed and not self.asks


class Difference(Struct, frozen=True, kw_only=True):
    """A paired difference of mean losses with its interval; None where it has none."""

    gain: float | None
    low: float | None
    high: float | None
    n: int


def paired(first: np.ndarray, second: np.ndarray, confidence: float) -> Difference:
    """Mean of first - second over rows where both are finite, rows in order of time.

    `low` is the lower end of the one-sided interval at `confidence`, `high` the upper. Without an
    interval (fewer than two rows, or differences that do not vary) both are None.
    """
    found = evidence(first - second, confidence)
    return Difference(gain=found.gain, low=found.low, high=found.high, n=found.n)


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
    inputs: pd.DataFrame | None = None,
    facts: TrainingFacts | None = None,
    trivial: np.ndarray | None = None,
) -> GateResult:
    """Compare two models' outputs on the same rows, which are in order of time.

    Args:
        y: encoded labels, shape (n,), all finite.
        champion, candidate: outputs, n rows with the columns `spec.outputs`.
        metric: the loss to compare by; the spec's when None.
        reproduces: whether the candidate gave the very same outputs after it was saved and
            loaded; None (nobody tried) does not pass.
        label_range: for regression, smallest and largest label known; those of `y` when None.
        inputs: the rows' inputs; needed where `settings.segments` protects some.
        facts: how both were trained; without it the checks of the training are not made.
        trivial: what a model without inputs would answer (the training labels' mean, or the share
            of each class), shape (outputs,); what stands in for a champion that cannot answer.
    """
    chosen = metric or spec.metric
    theirs, ours = (row_loss(spec, outputs, y, chosen) for outputs in (champion, candidate))
    path: Path = "compared"
    usable = gate_checks.evaluable("champion", theirs)
    if not usable.passed and len(y) and trivial is not None:
        path, champion = "no_champion", _always(spec, trivial, candidate)
        theirs = row_loss(spec, champion, y, chosen)
    found = evidence(theirs - ours, settings.confidence)
    both = np.isfinite(theirs) & np.isfinite(ours)
    means = [_finite(aggregate(chosen, losses[both])) for losses in (theirs, ours)]
    interval = _in_units(chosen, found, means)
    parts, checks = _judge(
        spec, y, champion, candidate, settings=settings, inputs=inputs, losses=(theirs, ours)
    )
    old, new = (_matrix(spec, outputs) for outputs in (champion, candidate))
    checks = (
        gate_checks.enough(found.n, settings.min_rows),
        usable,
        gate_checks.evaluable("candidate", ours),
        gate_checks.in_range(spec, new, y, label_range),
        gate_checks.not_constant(new),
        gate_checks.better(chosen, means, interval, found, settings),
        gate_checks.calibrated(spec, y, old, new, settings.confidence),
        gate_checks.reproduced(reproduces),
        *checks,
        *(gate_checks.training(facts, settings) if facts is not None else ()),
    )
    result = GateResult(
        passed=all(check.passed for check in checks),
        reason=_reason(checks),
        metric=chosen,
        champion=means[0],
        candidate=means[1],
        gain=interval[0],
        low=interval[1],
        high=interval[2],
        n=found.n,
        confidence=settings.confidence,
        checks=checks,
        rule=settings.rule,
        z=found.z,
        newest_z=found.newest_z,
        worth=found.worth,
        segments=parts,
    )
    return result if path == "compared" else _without_champion(result, usable, settings)


def _judge(
    spec: ModelSpec,
    y: np.ndarray,
    champion: pd.DataFrame,
    candidate: pd.DataFrame,
    *,
    settings: GateSettings,
    inputs: pd.DataFrame | None,
    losses: tuple[np.ndarray, np.ndarray],
) -> tuple[tuple[Segment, ...], tuple[GateCheck, ...]]:
    """Guardrail metrics and protected segments, where the settings name any."""
    checks = [
        gate_checks.guardrail(spec, rule, y, champion, candidate) for rule in settings.guardrails
    ]
    parts: tuple[Segment, ...] = ()
    if settings.segments:
        known = [] if inputs is None else [c for c in settings.segments if c in spec.columns]
        missing = [column for column in settings.segments if column not in known]
        if inputs is not None and not missing:
            parts = segments.judge(
                dict(segments.split(spec, inputs, known)),
                losses[0] - losses[1],
                min_rows=settings.segment_rows,
                confidence=settings.confidence,
            )
        checks.append(gate_checks.segments(parts, missing, settings))
    return parts, tuple(checks)


def first_model(
    spec: ModelSpec,
    y: np.ndarray,
    candidate: pd.DataFrame,
    *,
    trivial: np.ndarray,
    settings: GateSettings,
    metric: Metric | None = None,
    reproduces: bool | None = None,
    label_range: tuple[float, float] | None = None,
) -> GateResult:
    """A model that has no champion to beat: sound, and better than answering without inputs.

    Args: as `compare`.
    """
    result = compare(
        spec,
        y,
        _always(spec, trivial, candidate),
        candidate,
        settings=settings,
        metric=metric,
        reproduces=reproduces,
        label_range=label_range,
    )
    # Constant answers at the base rate are calibrated by construction: no model has to beat that.
    checks = tuple(check for check in result.checks if check.name != "calibrated")
    words = _against_trivial(result)
    failed = [check.text for check in checks if not check.passed]
    passed = not failed
    reason = f"first model, {words}" if passed else f"first model: {'; '.join(failed)}"
    return msgspec.structs.replace(
        result, path="first", checks=checks, passed=passed, reason=reason
    )


def forced(result: GateResult | None, *, by: str, why: str) -> GateResult:
    """The result of a person's overriding the gate; the checks stay as they were found.

    Raises:
        GateRefused: nobody is named, or no reason.
    """
    if not by.strip() or not why.strip():
        raise GateRefused("a forced promotion needs who forces it and why; name both")
    said = "the gate was not asked" if result is None else result.reason
    reason = f"forced by {by}: {why} (the gate said: {said})"
    if result is None:
        return GateResult(
            passed=True, reason=reason, metric="", champion=None, candidate=None, gain=None,
            low=None, high=None, n=0, confidence=0.0, checks=(), path="forced", by=by, why=why,
        )  # fmt: skip
    return msgspec.structs.replace(
        result, passed=True, reason=reason, path="forced", asks=False, by=by, why=why
    )


def _without_champion(result: GateResult, usable: GateCheck, settings: GateSettings) -> GateResult:
    """The champion has no loss: ask a person, or take what beats the trivial answer."""
    beside = [c for c in result.checks if c.name not in ("champion_finite", "calibrated")]
    failed = [check.text for check in beside if not check.passed]
    sound = not failed
    asks = sound and settings.champion_unavailable == "ask"
    reason = f"{usable.text}; {_against_trivial(result)}"
    if failed:
        reason = f"{usable.text}; and the candidate: {'; '.join(failed)}"
    elif asks:
        reason += (
            "; a person has to decide: `shelflife runs approve`, or set "
            "retrain.gate.champion_unavailable to baseline"
        )
    return msgspec.structs.replace(
        result, path="no_champion", passed=sound and not asks, asks=asks, reason=reason
    )


def _against_trivial(result: GateResult) -> str:
    name = METRIC_WORDS.get(result.metric, result.metric)
    return (
        f"{name} {rounded(result.candidate)} against {rounded(result.champion)} of always "
        f"answering the training labels' mean, on {plural(result.n, 'row')}"
    )


def _reason(checks: tuple[GateCheck, ...]) -> str:
    failed = [check.text for check in checks if not check.passed]
    return "; ".join(failed) or next(check.text for check in checks if check.name == "better")


def _always(spec: ModelSpec, answer: np.ndarray, like: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    row = np.asarray(answer, dtype=np.float64).reshape(1, -1)
    return pd.DataFrame(
        np.repeat(row, len(like), axis=0), index=like.index, columns=list(spec.outputs)
    )


def _in_units(
    metric: Metric, found: Evidence, means: list[float | None]
) -> tuple[float | None, float | None, float | None]:
    """The difference in the metric's units: squared errors a^2 - b^2 over a + b for RMSE."""
    numbers = (found.gain, found.low, found.high)
    scale = 1.0
    if metric == "rmse":
        scale = sum(mean or 0.0 for mean in means)
    if not math.isfinite(scale) or scale <= 0:
        return None, None, None
    gain, low, high = (None if x is None else _finite(x / scale) for x in numbers)
    return gain, low, high


def _matrix(spec: ModelSpec, outputs: pd.DataFrame) -> np.ndarray:
    """Outputs as float64 (n, outputs); a column that is not there is NaN."""
    matrix: np.ndarray = outputs.reindex(columns=spec.outputs).to_numpy(np.float64)
    return matrix


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
