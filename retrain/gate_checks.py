"""The single conditions of the gate. Each gives a `GateCheck`: its number, its line, a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from core.settings import GateSettings, Guardrail
from core.spec import METRICS, Metric, ModelSpec
from core.times import iso
from monitor.measure.performance import aggregate, row_loss
from retrain.gate_data import TrainingFacts
from retrain.gate_rule import AHEAD, Evidence, Rule, ahead, correlation_time
from retrain.segments import Segment
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


def enough(n: int, wanted: int) -> GateCheck:
    """At least so many rows that both models answered."""
    text = f"{plural(n, 'row')} compared"
    if n < wanted:
        text = f"only {plural(n, 'row')} could be compared, {wanted:,} are needed"
    return GateCheck(name="rows", passed=n >= wanted, text=text, value=n, limit=wanted)


def evaluable(who: str, losses: np.ndarray) -> GateCheck:
    """Every row must have a loss: an output that is missing or infinite is no answer."""
    bad, n = int((~np.isfinite(losses)).sum()), len(losses)
    text = f"the {who} answers every row"
    if bad or not n:
        text = f"the {who} cannot be evaluated: no finite loss on {bad:,} of {plural(n, 'row')}"
    return GateCheck(name=f"{who}_finite", passed=n > 0 and not bad, text=text, value=bad, limit=0)


def in_range(
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


def not_constant(outputs: np.ndarray) -> GateCheck:
    """More than one distinct answer."""
    distinct = len(np.unique(outputs[np.isfinite(outputs).all(axis=1)], axis=0))
    text = f"the candidate gives {distinct:,} different outputs"
    if distinct < 2:
        text = "the candidate gives the same output for every row"
    return GateCheck(name="not_constant", passed=distinct > 1, text=text, value=distinct, limit=2)


def better(
    metric: Metric,
    means: Sequence[float | None],
    interval: Sequence[float | None],
    found: Evidence,
    settings: GateSettings,
) -> GateCheck:
    """The decision rule on the primary metric; `interval` is gain, low, high in its units."""
    name, (gain, low, high), n = METRIC_WORDS[metric], interval, found.n
    sides = f"{name} {rounded(means[1])} against the champion's {rounded(means[0])}"
    if gain is None or low is None or high is None:
        text = f"nothing is proven: {sides}, with no interval of the difference (n {n:,})"
        return GateCheck(name="better", passed=False, text=text, value=None, limit=0.0)
    numbers = f"{rounded(gain, 2)} [{rounded(low, 2)}, {rounded(high, 2)}] on {plural(n, 'row')}"
    passed = ahead(
        found.gain,
        found.z,
        n,
        newest_z=found.newest_z,
        rule=settings.rule,
        confidence=settings.confidence,
    )
    text = f"the candidate is ahead by {numbers}: {sides}"
    if passed and gain <= 0:
        text = f"the candidate is not clearly worse: {sides}, gain {numbers}"
    if not passed:
        word = "behind" if gain < 0 else "not provably ahead"
        text = f"the candidate is {word} {_at(settings.rule, settings.confidence)}: {sides}, "
        text += f"gain {numbers}"
    value, limit = _line(settings.rule, settings.confidence, found)
    return GateCheck(name="better", passed=passed, text=text, value=value, limit=limit)


def _at(rule: Rule, confidence: float) -> str:
    if rule == "ahead":
        return f"at {AHEAD:.0%} confidence with newer rows weighing more"
    return f"at {confidence:.0%} confidence"


def _line(rule: Rule, confidence: float, found: Evidence) -> tuple[float | None, float]:
    """The statistic the rule reads and what it is held to."""
    from scipy.special import ndtri

    if rule == "ahead":
        return found.newest_z, float(ndtri(AHEAD))
    return found.z, float(ndtri(confidence)) * (1 if rule == "superior" else -1)


def guardrail(
    spec: ModelSpec,
    rule: Guardrail,
    y: np.ndarray,
    champion: pd.DataFrame,
    candidate: pd.DataFrame,
) -> GateCheck:
    """Another metric may rise by at most a share of the champion's; unmeasured is not passed."""
    name, words = f"guardrail:{rule.metric}", METRIC_WORDS[rule.metric]
    if rule.metric not in METRICS[spec.task]:
        text = f"guardrail {words} does not exist for a {spec.task} model"
        return GateCheck(name=name, passed=False, text=text)
    old, new = (
        aggregate(rule.metric, row_loss(spec, outputs, y, rule.metric))
        for outputs in (champion, candidate)
    )
    if not (math.isfinite(old) and math.isfinite(new)):
        text = f"guardrail {words} cannot be measured"
        return GateCheck(name=name, passed=False, text=text)
    limit = old * (1 + rule.max_worse)
    text = f"guardrail {words} {rounded(new)} against {rounded(old)}"
    if new > limit:
        text += f": worse by more than {rule.max_worse:.3g} of it"
    return GateCheck(name=name, passed=new <= limit, text=text, value=new, limit=limit)


def segments(found: Sequence[Segment], missing: Sequence[str], settings: GateSettings) -> GateCheck:
    """No protected segment with enough rows is clearly worse."""
    if missing:
        text = f"protected segments cannot be measured: no input {', '.join(missing)}"
        return GateCheck(name="segments", passed=False, text=text)
    judged = [part for part in found if part.judged]
    bad = [part for part in judged if part.clearly_worse]
    small = len(found) - len(judged)
    text = f"clearly worse on none of {plural(len(judged), 'segment')}"
    if small:
        text += f" ({small:,} too small to judge)"
    if not judged:
        text = f"no protected segment has {settings.segment_rows:,} rows"
    if bad:
        text = "clearly worse on " + ", ".join(
            f"{part.name} (gain {rounded(part.gain, 2)} [{rounded(part.low, 2)}, "
            f"{rounded(part.high, 2)}], n {part.n:,})"
            for part in bad[:5]
        )
    ok = bool(judged) and not bad
    return GateCheck(name="segments", passed=ok, text=text, value=len(bad), limit=0)


def calibrated(
    spec: ModelSpec, y: np.ndarray, old: np.ndarray, new: np.ndarray, confidence: float
) -> GateCheck:
    """Calibration in the large: |mean output - base rate| is not clearly above the champion's.

    Clearly: even the lower end of its one-sided interval, which respects autocorrelation, exceeds
    the champion's. For several classes the worst class counts; for regression the mean error.
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
        spread = errors.std(axis=0, ddof=1) / math.sqrt(len(y))
        spread = spread * np.sqrt([correlation_time(column) for column in errors.T])
    excess = bias - float(ndtri(confidence)) * spread - prior
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


def reproduced(reproduces: bool | None) -> GateCheck:
    """The very same outputs after saving and loading; not tried is not passed."""
    texts = {
        True: "saved and loaded again, the candidate gives the very same outputs",
        False: "saved and loaded again, the candidate gives other outputs",
        None: "nobody tried whether the candidate survives saving and loading",
    }
    return GateCheck(name="reproduces", passed=reproduces is True, text=texts[reproduces])


def training(facts: TrainingFacts, settings: GateSettings) -> tuple[GateCheck, ...]:
    """The conditions on how the candidate was trained."""
    return (
        _newer(facts),
        _share(facts, settings.min_train_share),
        _columns(facts),
        latency(facts, settings),
    )


def _newer(facts: TrainingFacts) -> GateCheck:
    new, old = facts.trained_until, facts.champion_until
    if new is None:
        text = "nobody wrote down until when the candidate was trained"
        return GateCheck(name="newer_data", passed=False, text=text)
    text = f"trained on rows until {iso(new)}"
    if old is None:
        return GateCheck(name="newer_data", passed=True, text=f"{text}; the champion's are unknown")
    if new <= old:
        text += f", no newer than the champion's ({iso(old)}): the feed of training rows is stale"
    return GateCheck(name="newer_data", passed=new > old, text=text)


def _share(facts: TrainingFacts, least: float) -> GateCheck:
    rows, before = facts.rows, facts.champion_rows
    if rows is None:
        text = "nobody counted the training rows"
        return GateCheck(name="train_rows", passed=False, text=text)
    text = f"trained on {plural(rows, 'row')}"
    if not before:
        return GateCheck(name="train_rows", passed=True, text=text, value=rows)
    limit = least * before
    text += f", the champion on {before:,}"
    passed = rows >= limit or facts.window_won
    if rows < limit:
        text += " (the window won its competition)" if passed else f": less than {least:.0%} of it"
    return GateCheck(name="train_rows", passed=passed, text=text, value=rows, limit=limit)


def _columns(facts: TrainingFacts) -> GateCheck:
    text = "no column of the training rows looks like another one's held-out values"
    if facts.swapped:
        pairs = ", ".join(f"{one} and {other}" for one, other in facts.swapped)
        text = f"columns look swapped in the training rows: {pairs}"
    count = len(facts.swapped)
    return GateCheck(name="columns", passed=not count, text=text, value=count, limit=0)


def latency(facts: TrainingFacts, settings: GateSettings) -> GateCheck:
    """The p99 of a one-row prediction, within the ratio to the champion's and the budget."""
    new, old = facts.latency_ms, facts.champion_latency_ms
    if new is None or not math.isfinite(new):
        text = "the candidate's latency was not measured"
        return GateCheck(name="latency", passed=False, text=text)
    text, limit = f"p99 of one row {rounded(new)} ms", settings.latency_budget_ms or math.inf
    if old is not None and math.isfinite(old) and old > 0:
        text += f" against the champion's {rounded(old)} ms"
        limit = min(limit, settings.max_latency_ratio * old)
    passed = new <= limit
    if not passed:
        text += f": more than {rounded(limit)} ms"
    line = limit if math.isfinite(limit) else None
    return GateCheck(name="latency", passed=passed, text=text, value=new, limit=line)


def _least(y: np.ndarray) -> float:
    return float(np.nanmin(y)) if np.isfinite(y).any() else 0.0


def _most(y: np.ndarray) -> float:
    return float(np.nanmax(y)) if np.isfinite(y).any() else 0.0
