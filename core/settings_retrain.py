"""Settings of the gate and of the hyperparameter search, and the value types settings share.

`core.settings` gives all of these as its own; import them from there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from core import times
from core.spec import Metric

Duration = Annotated[str, Meta(pattern=times.DURATION)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]


class Guardrail(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another metric that a candidate must not spoil."""

    metric: Metric
    max_worse: Annotated[float, Meta(ge=0)] = 0.02
    """How much higher the candidate's value may be, as a share of the champion's."""


class GateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a candidate counts as better; docs/gate.md says what each check is and why."""

    rule: Literal["ahead", "superior", "not_worse"] = "ahead"
    """`ahead`: ahead at 75 % confidence, newer held-out rows weighing more; `superior`: ahead at
    `confidence`, all rows alike; `not_worse`: not clearly behind at `confidence`."""
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.9
    """One-sided, of the interval that is shown and of every "clearly worse"."""
    min_rows: Annotated[int, Meta(ge=20)] = 200
    """Labelled rows, newer than any training row, that the comparison needs."""
    max_rows: Annotated[int, Meta(ge=20)] = 1000
    """At most this many of the newest labelled rows are held out for it."""
    holdout_share: Annotated[float, Meta(gt=0, lt=0.9)] = 0.15
    """Share of the labelled rows held out, within those two bounds."""
    guardrails: tuple[Guardrail, ...] = ()
    """Other metrics of the task that must not get worse."""
    segments: tuple[str, ...] = ()
    """Input columns; on no level (or quarter, of a number) may the candidate be clearly worse."""
    segment_rows: Annotated[int, Meta(ge=10)] = 50
    """Held-out rows a segment needs to be judged; smaller ones are named, not judged."""
    min_train_share: Share = 0.2
    """Least training rows, as a share of the champion's, unless the window won its competition."""
    max_latency_ratio: Positive = 3.0
    """Most the candidate's p99 of a one-row prediction may be, over the champion's beside it."""
    latency_budget_ms: Positive | None = None
    """Most that p99 may be in milliseconds, where the trainer runs."""
    report: bool = True
    """Attach an Evidently report of both models on the held-out rows to the version."""
    champion_unavailable: Literal["ask", "baseline"] = "ask"
    """When the champion cannot be evaluated: `ask` a person, or let a candidate through that is
    ahead of always answering the training labels' mean (`baseline`)."""


class SearchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Search for hyperparameters before the candidate is fitted; off while `space` is empty."""

    space: dict[str, Any] = field(default_factory=dict)
    """Parameter of the pipeline -> list of values, or {low, high, log, int} of a range."""
    engine: Literal["sklearn", "optuna"] = "sklearn"
    """`sklearn`: random draws; `optuna`: its TPE sampler (needs `pip install optuna`)."""
    trials: Annotated[int, Meta(ge=1)] = 20
    """Trials, the first of which are the parameters the pipeline has; each counts as a fit."""
    timeout: Duration = "30m"
    """No new trial is begun after this time; the best one so far is taken."""
    folds: Annotated[int, Meta(ge=2, le=20)] = 3
    """Folds in order of time: each is judged by what was learned from the rows before it."""
    seed: Count = 0
