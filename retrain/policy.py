"""When to retrain: one decision, one sentence, the numbers, and what would change it. Pure.

The default policy asks what a run is worth (`retrain.worth`): it answers proven harm at once
(`decay`), staleness when what a probe would save pays for a run (`cost`), and an age the operator
does not allow (`stale`). Drift alone is no reason: it explains a loss, it does not make one. A
broken feed, an unfinished run, too few new labels, the cooldown and the budget each forbid a run.

`every:N`, `drift_share:X`, `threshold:X` and `never` are for those who want them, and for
comparison in a backtest; the same things forbid them a run.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct, field

from core.errors import InputError
from core.settings import RetrainSettings, span
from core.times import spell
from monitor.results import Performance, State
from retrain.label_first import LabelWish
from retrain.probe import Observation
from retrain.wording import METRIC_WORDS, plural, rounded
from retrain.worth import PATIENCE, Worth, worth

Action = Literal["retrain", "wait", "ask", "rollback"]
Trigger = Literal["decay", "cost", "stale", "calendar", "drift", "watch", "manual", ""]

BUDGET_SPAN = timedelta(days=90)  # the quarter that `budget_per_quarter` counts in


class PolicyEvidence(Struct, frozen=True, kw_only=True):
    """Everything a decision rests on; `retrain.evidence.gather` reads it from the ledger."""

    version: str
    state: State
    check_reason: str
    performance: Performance
    drifted: tuple[str, ...] = ()  # names of the columns that drifted
    columns: int = 0  # that drift was measured on
    series: tuple[Observation, ...] = ()  # since the promotion, oldest first
    # What a run costs, in losses per row times check windows; None: nothing is known to pay with.
    cost: float | None = None
    fits: float = 1.0  # training jobs it will probably take; they are in the cost
    windows_old: float = 0.0  # windows of labelled rows newer than the training data
    labelled_here: int = 0  # labelled rows that this very version answered
    # Labelled rows newer than the champion's training data; None: not counted, as no run is wanted.
    new_labels: int | None = None
    runs_in_quarter: int = 0  # runs started in the last 90 days
    last_run: datetime | None = None  # when the newest run started
    last_outcome: str = ""  # its state: promoted, refused, failed, abandoned
    windows_since_run: float | None = None  # since the newest run or the promotion; None: unknown
    refusals: int = 0  # runs in a row against this champion that came to nothing
    refused_labels: int = 0  # new labels that the last of those had
    refused_at: datetime | None = None  # when the last of those started
    active_run: str = ""  # id of the unfinished run, empty when there is none
    promoted: datetime | None = None
    age: timedelta | None = None  # since the version was registered
    max_age: timedelta | None = None  # the operator's limit
    rollback: str = ""  # why the watch wants the predecessor back; empty when it does not
    label_first: tuple[LabelWish, ...] = ()  # rows to label, when labels are missing


class Decision(Struct, frozen=True, kw_only=True):
    """What to do about one model at one moment."""

    action: Action
    reason: str  # one sentence with the numbers
    trigger: Trigger = ""
    numbers: dict[str, float] = field(default_factory=dict)
    would_change: str = ""  # what would have to be different for another decision
    label_first: tuple[LabelWish, ...] = ()  # when labels are missing: whose would tell most


class Need(Struct, frozen=True, kw_only=True):
    """What a policy wants, before anything forbids it."""

    trigger: Trigger  # empty: no run is wanted
    reason: str
    change: str


def decide(evidence: PolicyEvidence, settings: RetrainSettings, *, at: datetime) -> Decision:
    """What to do now: retrain, ask a person, roll back, or wait; always with the reason."""
    numbers = _numbers(evidence, settings, at)

    def decision(action: Action, reason: str, change: str, trigger: Trigger = "") -> Decision:
        missing = evidence.performance.value is None and action == "wait"
        return Decision(
            action=action,
            reason=reason,
            trigger=trigger,
            numbers=numbers,
            would_change=change,
            label_first=evidence.label_first if missing else (),
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
    need = need_of(evidence, settings)
    if not need.trigger:
        return decision("wait", need.reason, need.change)
    hindrance, until = _hindrance(evidence, settings, at)
    if hindrance:
        return decision("wait", f"{need.reason}, but {hindrance}", until, need.trigger)
    if settings.mode == "never":
        asked = f"{need.reason}; mode never leaves the run to a person"
        return decision("ask", asked, "`shelflife retrain`, or mode auto", need.trigger)
    reason = f"{need.reason}; {plural(evidence.new_labels or 0, 'new label')} can teach a successor"
    return decision("retrain", reason, need.change, need.trigger)


def run_wanted(evidence: PolicyEvidence, settings: RetrainSettings) -> bool:
    """Whether a run would be wanted if nothing hindered it: the labels need counting only then."""
    return bool(need_of(evidence, settings).trigger)


def need_of(evidence: PolicyEvidence, settings: RetrainSettings) -> Need:
    """What the chosen policy wants.

    Raises:
        InputError: `settings.policy` names no policy.
    """
    wanted, number = parse(settings.policy)
    return _POLICIES[wanted](evidence, number)


def parse(policy: str) -> tuple[str, float]:
    """A policy's name and its number: `every:5` is ("every", 5.0).

    Raises:
        InputError: no such policy, or a number it cannot have.
    """
    name, _, text = policy.partition(":")
    expected = "default, never, every:N, drift_share[:X] or threshold[:X]"
    if name not in _POLICIES or (text and name in ("default", "never")):
        raise InputError("policy", policy, expected)
    try:
        number = float(text) if text else _USUAL.get(name)
    except ValueError:
        number = None
    if number is None or not 0 <= number < float("inf") or (name == "every" and number < 1):
        raise InputError("policy", policy, expected)
    return name, number


_USUAL = {"default": 0.0, "never": 0.0, "drift_share": 0.5, "threshold": 0.1}


def worth_of(evidence: PolicyEvidence) -> Worth | None:
    """What the observations add up to; None where there are none, or no cost to hold against."""
    if evidence.cost is None or not evidence.series:
        return None
    return worth(
        evidence.series,
        cost=evidence.cost,
        age=evidence.windows_old,
        refusals=evidence.refusals,
        refused_at=evidence.refused_at,
    )


def _default(evidence: PolicyEvidence, _: float) -> Need:
    loss, found = _loss_text(evidence.performance), worth_of(evidence)
    decaying = evidence.state == "decaying"
    if found is not None and found.why == "harm":
        text = f"the loss is provably above normal (evidence {found.evidence:,.3g}, line "
        text += f"{PATIENCE:,.0f}) and has cost {_runs(found.lost, evidence)}"
        if found.now is not None:
            text += f", and a probe can learn {rounded(found.now, 2)} of it a row"
        return Need(trigger="decay", reason=text, change="a loss back at normal")
    if decaying and not evidence.refusals and (found is None or found.now is None):
        return Need(trigger="decay", reason=loss, change="a loss back within tolerance")
    if found is not None and found.why == "stale":
        text = f"a probe would save {rounded(found.now, 2)} of each row's loss "
        text += f"({rounded(evidence.series[-1].loss)} now), which at the model's age is worth "
        text += f"{_runs(found.due, evidence)} (price {_share(found.price, evidence)})"
        return Need(trigger="cost", reason=text, change="a probe that saves nothing")
    if _too_old(evidence):
        return _old(evidence)
    return _not_needed(evidence, found, loss)


def _never(evidence: PolicyEvidence, _: float) -> Need:
    reason = "policy never: a run starts only when a person asks for one"
    return Need(trigger="", reason=reason, change="another policy in the settings")


def _every(evidence: PolicyEvidence, windows: float) -> Need:
    since = evidence.windows_since_run
    if since is None or since >= windows - 1e-9:
        text = "no run is known" if since is None else f"{since:.3g} windows since the last run"
        return Need(trigger="calendar", reason=f"{text}, every {windows:g} is the rule", change="")
    text = f"{since:.3g} of {windows:g} windows have passed since the last run"
    return Need(trigger="", reason=text, change=f"{windows - since:.3g} more windows")


def _drift_share(evidence: PolicyEvidence, limit: float) -> Need:
    share = len(evidence.drifted) / max(evidence.columns, len(evidence.drifted), 1)
    text = f"{len(evidence.drifted)} of {plural(evidence.columns, 'column')} drifted ({share:.0%}"
    if evidence.drifted and share >= limit:
        return Need(
            trigger="drift", reason=f"{text}, limit {limit:.0%})", change="fewer drifted columns"
        )
    return Need(trigger="", reason=f"{text}, limit {limit:.0%}): not needed", change="more drift")


def _threshold(evidence: PolicyEvidence, tolerance: float) -> Need:
    found = evidence.performance
    if found.value is None or found.expected is None:
        return _not_needed(evidence, None, "")
    limit = found.expected * (1 + tolerance)
    name = METRIC_WORDS.get(found.metric, found.metric)
    text = f"{name} {rounded(found.value)}, threshold {rounded(limit)} (n {found.n:,})"
    if found.value > limit:
        return Need(trigger="decay", reason=f"{text}: above it", change="a loss below it")
    return Need(trigger="", reason=f"{text}: not needed", change="a loss above it")


_POLICIES: dict[str, Callable[[PolicyEvidence, float], Need]] = {
    "default": _default,
    "never": _never,
    "every": _every,
    "drift_share": _drift_share,
    "threshold": _threshold,
}


def _old(evidence: PolicyEvidence) -> Need:
    age = f"version {evidence.version} is {spell(evidence.age or timedelta())} old"
    limit = spell(evidence.max_age or timedelta())
    doubled = f", doubled for each refusal ({evidence.refusals})" if evidence.refusals else ""
    reason = f"{age}, over its limit of {limit}{doubled}"
    return Need(trigger="stale", reason=reason, change="a longer max_age")


def _not_needed(evidence: PolicyEvidence, found: Worth | None, loss: str) -> Need:
    performance = evidence.performance
    drift = f"drift on {plural(len(evidence.drifted), 'column')}" if evidence.drifted else ""
    if performance.value is None or performance.worse is None:
        why = performance.why or "no label of the window is known yet"
        told = f"{drift}, but the loss is not known" if drift else "the loss is not known"
        if not evidence.labelled_here:
            why = f"no label for a row that version {evidence.version} answered"
        return Need(trigger="", reason=f"{told}: {why}", change="labels for the rows it answered")
    said = f"{drift}, but {loss}" if drift else loss
    if found is None or found.now is None:
        reason, change = f"{said}: not needed", "a loss above the tolerance for certain"
        if evidence.state == "decaying":
            reason = f"{said}, but {_refused(evidence)} and no probe says yet what a run would save"
            change = "more labelled rows"
        if found is not None and found.paused:
            reason = f"{said}, but {_refused(evidence)}: what it saw does not count again"
            change = "labelled rows of more windows"
        return Need(trigger="", reason=reason, change=change)
    if found.harmed and found.doubted and found.brought is not None:
        reason = (
            f"{said}, and provably above normal, but the last run brought "
            f"{rounded(found.brought, 2)} a row and a probe would save {rounded(found.now, 2)}: "
            "another would not pay"
        )
        return Need(trigger="", reason=reason, change="savings that pay for a run")
    harder = evidence.state == "decaying" or found.harmed
    if harder and found.now <= 0:
        reason = (
            f"{said}, but a probe can learn none of it: the task is harder, the model not stale"
        )
        return Need(trigger="", reason=reason, change="a loss that earlier rows could have avoided")
    more = max(0.0, found.price - found.due)
    reason = f"{said}, and a probe would save {rounded(found.now, 2)} a row, worth "
    reason += f"{_runs(found.due, evidence)} at the model's age (price "
    reason += f"{_share(found.price, evidence)}): {'not worth it yet' if harder else 'not needed'}"
    change = f"savings worth {_runs(more, evidence)} more, or proven harm"
    return Need(trigger="", reason=reason, change=change)


def _refused(evidence: PolicyEvidence) -> str:
    return f"the last {plural(evidence.refusals, 'run')} came to nothing"


def _runs(loss: float, evidence: PolicyEvidence) -> str:
    share = loss / evidence.cost if evidence.cost else 0.0
    return f"{rounded(max(0.0, share), 2)} runs"


def _share(loss: float, evidence: PolicyEvidence) -> str:
    return f"{loss / evidence.cost:.3g}" if evidence.cost else "none"


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
        **_worth_numbers(evidence),
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


def _worth_numbers(evidence: PolicyEvidence) -> dict[str, float | None]:
    """What the observations say, in runs where they can be paid for."""
    found = worth_of(evidence)
    if found is None or not evidence.cost:
        return {}
    return {
        "excess": max(0.0, found.lost) / evidence.cost,
        "price": found.price / evidence.cost,
        "fits_ahead": evidence.fits,
        "saving": found.now,
        "due": found.due / evidence.cost,
        "evidence_of_harm": found.evidence,
        "brought": found.brought,
        "windows_observed": found.windows,
        "windows_old": evidence.windows_old,
    }
