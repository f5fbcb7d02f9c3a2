"""When to retrain: one decision, one sentence, the numbers, and what would change it. Pure.

A run is worth its price when decay is proven (`decay`), when what decay has cost since the
promotion pays for a run (`cost`), or when the model is older than the operator allows (`stale`).
Drift alone is no reason: it explains a loss, it does not make one. A broken feed, an unfinished
run, too few new labels, the cooldown and the budget each forbid a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct, field

from core.settings import RetrainSettings, span
from core.times import spell
from monitor.results import Performance, State
from retrain.wording import METRIC_WORDS, plural, rounded

Action = Literal["retrain", "wait", "ask", "rollback"]
Trigger = Literal["decay", "cost", "stale", "watch", "manual", ""]

BUDGET_SPAN = timedelta(days=90)  # the quarter that `budget_per_quarter` counts in


class Measured(Struct, frozen=True, kw_only=True):
    """The realised loss that one check found, as far as the policy needs it."""

    at: datetime
    value: float
    expected: float


class PolicyEvidence(Struct, frozen=True, kw_only=True):
    """Everything a decision rests on; `retrain.evidence.gather` reads it from the ledger."""

    version: str
    state: State
    check_reason: str
    performance: Performance
    drifted: tuple[str, ...] = ()  # names of the columns that drifted
    excess: float = 0.0  # what decay has cost since the promotion, in runs (see `excess_cost`)
    labelled_here: int = 0  # labelled rows that this very version answered
    # Labelled rows newer than the champion's training data; None: not counted, as no run is wanted.
    new_labels: int | None = None
    runs_in_quarter: int = 0  # runs started in the last 90 days
    last_run: datetime | None = None  # when the newest run started
    last_outcome: str = ""  # its state: promoted, refused, failed, abandoned
    refusals: int = 0  # runs that the gate refused in a row, against this champion
    refused_labels: int = 0  # new labels that the last of those had
    active_run: str = ""  # id of the unfinished run, empty when there is none
    promoted: datetime | None = None
    age: timedelta | None = None  # since the version was registered
    max_age: timedelta | None = None  # the operator's limit
    rollback: str = ""  # why the watch wants the predecessor back; empty when it does not


class Decision(Struct, frozen=True, kw_only=True):
    """What to do about one model at one moment."""

    action: Action
    reason: str  # one sentence with the numbers
    trigger: Trigger = ""
    numbers: dict[str, float] = field(default_factory=dict)
    would_change: str = ""  # what would have to be different for another decision


def excess_cost(
    history: Sequence[Measured], *, promoted: datetime, window: timedelta, cost_of_run: float
) -> float:
    """What decay has cost since the promotion, in units of one run.

    A run costs `cost_of_run` expected losses of one check window. A check at `at` answers for the
    time since the measured check before it (the first: since the promotion), at most one window,
    because windows overlap when checks are more frequent than windows are long:

        cost <- max(0, cost + (value - expected) / expected  x  share / cost_of_run)
        share = min(1, (at - at of the measured check before) / window)

    A loss below what was expected cancels earlier excess, never below nothing: otherwise the noise
    of small windows alone would add up to a run.

    Args:
        history: checks of this version that have a value, in any order; those before the
            promotion and those with an expected loss of zero or less are left out.
    """
    total, before = 0.0, promoted
    for check in sorted(history, key=lambda check: check.at):
        if check.at <= promoted or check.expected <= 0:
            continue
        share = min(1.0, (check.at - before) / window)
        total = max(0.0, total + (check.value - check.expected) / check.expected * share)
        before = check.at
    return total / cost_of_run


def decide(evidence: PolicyEvidence, settings: RetrainSettings, *, at: datetime) -> Decision:
    """What to do now: retrain, ask a person, roll back, or wait; always with the reason."""
    numbers = _numbers(evidence, settings, at)

    def decision(action: Action, reason: str, change: str, trigger: Trigger = "") -> Decision:
        return Decision(
            action=action, reason=reason, trigger=trigger, numbers=numbers, would_change=change
        )

    if evidence.state == "broken_feed":
        reason = f"the feed is broken ({evidence.check_reason}): its rows can teach a model nothing"
        return decision("wait", reason, "a check that finds the feed whole again")
    if evidence.rollback:
        if settings.mode == "auto":
            return decision("rollback", evidence.rollback, "a watch that stays undecided", "watch")
        reason = f"{evidence.rollback}; mode {settings.mode} leaves the rollback to a person"
        return decision("ask", reason, "`shelflife rollback`, or mode auto", "watch")
    if evidence.active_run:
        reason = f"run {evidence.active_run} is not finished: one run per model at a time"
        return decision("wait", reason, "the end of that run")
    trigger, because, change = _need(evidence)
    if not trigger:
        return decision("wait", because, change)
    hindrance, until = _hindrance(evidence, settings, at)
    if hindrance:
        return decision("wait", f"{because}, but {hindrance}", until, trigger)
    if settings.mode == "never":
        asked = f"{because}; mode never leaves the run to a person"
        return decision("ask", asked, "`shelflife retrain`, or mode auto", trigger)
    reason = f"{because}; {plural(evidence.new_labels or 0, 'new label')} can teach a successor"
    return decision("retrain", reason, change, trigger)


def run_wanted(evidence: PolicyEvidence) -> bool:
    """Whether a run would be wanted if nothing hindered it: the labels need counting only then."""
    return bool(_need(evidence)[0])


def _need(evidence: PolicyEvidence) -> tuple[Trigger, str, str]:
    """The trigger (empty: none), the sentence behind it, and what would change it."""
    found, price = evidence.performance, 2.0**evidence.refusals
    loss, cost = _loss_text(found), f"{rounded(evidence.excess, 2)} runs' worth"
    refused = f"the gate refused the last {plural(evidence.refusals, 'run')}"
    if evidence.state == "decaying" and (not evidence.refusals or evidence.excess >= price):
        since = f" and has cost {cost} since the promotion" if evidence.excess else ""
        return "decay", f"{loss}{since}", "a loss back within tolerance"
    above = None not in (found.value, found.expected) and found.value > found.expected  # type: ignore[operator]
    if evidence.excess >= price and above:
        reason = (
            f"excess loss since the promotion is {rounded(evidence.excess)} runs' worth "
            f"(price {price:.3g}) and {_above_text(found)}"
        )
        return "cost", reason, "a loss back at what is expected"
    if _too_old(evidence):
        age = f"version {evidence.version} is {spell(evidence.age or timedelta())} old"
        limit = spell(evidence.max_age or timedelta())
        doubled = f", doubled for each refusal ({evidence.refusals})" if evidence.refusals else ""
        return "stale", f"{age}, over its limit of {limit}{doubled}", "a longer max_age"
    if evidence.state == "decaying":
        reason = (
            f"{loss}, but {refused} and {cost} of excess loss is below the price of {price:.3g}"
        )
        return "", reason, f"{rounded(price - evidence.excess)} more runs' worth of excess loss"
    return "", *_not_needed(evidence, price, loss)


def _not_needed(evidence: PolicyEvidence, price: float, loss: str) -> tuple[str, str]:
    found = evidence.performance
    drift = f"drift on {plural(len(evidence.drifted), 'column')}" if evidence.drifted else ""
    if found.value is None or found.worse is None:
        why = found.why or "no label of the window is known yet"
        told = f"{drift}, but the loss is not known" if drift else "the loss is not known"
        if not evidence.labelled_here:
            why = f"no label for a row that version {evidence.version} answered"
        return f"{told}: {why}", "labels for the rows it answered"
    limit = "the loss it is expected to have" if found.tolerated is None else "the tolerance"
    more = max(0.0, price - evidence.excess)
    change = f"a loss above {limit} for certain, or {rounded(more)} more runs' worth of excess loss"
    if evidence.excess >= price:
        change = "a loss above what is expected"
    if drift:
        return f"{drift}, but {loss}: not needed", change
    cost = f" and has cost {rounded(evidence.excess, 2)} runs' worth since the promotion"
    return f"{loss}{cost if evidence.excess else ''}: not needed", change


def _hindrance(
    evidence: PolicyEvidence, settings: RetrainSettings, at: datetime
) -> tuple[str, str]:
    """Why a needed run may not start now, and what would free it; empty when it may."""
    wanted = max(settings.min_new_labels, settings.gate.min_rows)
    if evidence.refusals:
        wanted = max(wanted, evidence.refused_labels + settings.min_new_labels)
    labels = evidence.new_labels or 0
    if labels < wanted:
        missing = plural(wanted - labels, "more label")
        than = "than the refused run had" if evidence.refusals else "than the training data"
        have = f"only {plural(labels, 'label')} newer than the training data"
        if evidence.refusals:
            than += f" plus {settings.min_new_labels:,}"
            return f"{have} and a retry needs {wanted:,} ({missing} {than})", missing
        return f"{have} and a run needs {wanted:,}", f"{missing} newer {than}"
    if evidence.last_run is not None:
        rest = evidence.last_run + span(settings.cooldown) - at
        if rest > timedelta():
            ago = spell(at - evidence.last_run)
            hindrance = f"the last run ({evidence.last_outcome or 'unknown'}) started {ago} ago"
            return f"{hindrance} and the cooldown is {settings.cooldown}", f"{spell(rest)} more"
    if evidence.runs_in_quarter >= settings.budget_per_quarter:
        used = f"{plural(evidence.runs_in_quarter, 'run')} started in the last 90 days"
        hindrance = f"{used} and the budget is {settings.budget_per_quarter}"
        return hindrance, "a larger budget_per_quarter, or time"
    return "", ""


def _too_old(evidence: PolicyEvidence) -> bool:
    if evidence.age is None or evidence.max_age is None:
        return False
    # A refusal says that a fresh model is no better: the age limit doubles as the price does.
    limit: timedelta = evidence.max_age * 2**evidence.refusals
    return evidence.age > limit


def _loss_text(found: Performance) -> str:
    """`Brier 0.176 is within tolerance 0.196 (n 1,204)`, or above it."""
    if found.value is None:
        return "the loss is not known"
    metric = METRIC_WORDS.get(found.metric, found.metric)
    text = f"{metric} {rounded(found.value)}"
    if found.tolerated is None:
        return f"{text} has nothing to be compared with (n {found.n:,})"
    if found.worse or found.value > found.tolerated:
        certain = "is above" if found.worse else "is not provably above"
        return f"{text} {certain} tolerance {rounded(found.tolerated)} (n {found.n:,})"
    return f"{text} is within tolerance {rounded(found.tolerated)} (n {found.n:,})"


def _above_text(found: Performance) -> str:
    metric = METRIC_WORDS.get(found.metric, found.metric)
    return (
        f"{metric} {rounded(found.value)} is still above the expected {rounded(found.expected)} "
        f"(n {found.n:,})"
    )


def _numbers(evidence: PolicyEvidence, settings: RetrainSettings, at: datetime) -> dict[str, float]:
    found = evidence.performance
    numbers: dict[str, float | None] = {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "expected": found.expected,
        "tolerated": found.tolerated,
        "n": float(found.n),
        "drifted": float(len(evidence.drifted)),
        "excess": evidence.excess,
        "price": 2.0**evidence.refusals,
        "new_labels": None if evidence.new_labels is None else float(evidence.new_labels),
        "min_new_labels": float(settings.min_new_labels),
        "runs_in_quarter": float(evidence.runs_in_quarter),
        "budget": float(settings.budget_per_quarter),
        "refusals": float(evidence.refusals),
        "days_since_last_run": _days(evidence.last_run, at),
        "days_since_promotion": _days(evidence.promoted, at),
        "age_days": None if evidence.age is None else evidence.age / timedelta(days=1),
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _days(moment: datetime | None, at: datetime) -> float | None:
    return None if moment is None else (at - moment) / timedelta(days=1)
