"""Settings of retraining: runs, rollout, gate, search; and the value types settings share.

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
NUMBER = r"\d+(\.\d+)?"
POLICY = rf"^(default|never|every:{NUMBER}|(drift_share|threshold)(:{NUMBER})?)$"


class Guardrail(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another metric that a candidate must not spoil."""

    metric: Metric
    """The metric that may not become worse."""
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
    """Of the search, so that it can be repeated."""


class RolloutSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate goes through between the gate and being champion; nothing by default."""

    shadow: Duration | Count = "0s"
    """Answer a copy of the requests for so long (`2d`), or so many rows (`5000`), unseen by
    callers. Ends early when the candidate is proven better or worse. `0s` skips it."""
    canary: Share = 0.0
    """Then answer this share of the callers, chosen by a hash of the prediction id. 0 skips it."""
    canary_for: Duration | Count = "1d"
    """For so long, or so many rows answered by the candidate; ends early as well."""
    undecided: Literal["promote", "refuse"] = "promote"
    """What becomes of a candidate about which nothing was proven by the end. The gate passed it
    already, so it goes on unless told otherwise."""
    watch_in_shadow: bool = False
    """Let the old champion answer a copy of the requests while the new one is watched. Without it
    its answers are computed from the logged inputs, which gives the same rows later."""
    shadow_challenger: bool = True
    """Let a version that a person makes `challenger`, in MLflow or by registering it, answer a copy
    of the requests, while no run has a candidate in a stage of its own."""


class RetrainSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether, when and how the model is retrained."""

    mode: Literal["auto", "approve", "never"] = "auto"
    """`approve`: a person moves the alias or runs `shelflife promote`; `never`: only told."""
    policy: Annotated[str, Meta(pattern=POLICY)] = "default"
    """`default` weighs what a run is worth; `every:N` (check windows), `drift_share[:X]`,
    `threshold[:X]` (loss above expected by the share X) and `never` are for comparison."""
    cooldown: Duration = "7d"
    """Least time between the starts of two runs."""
    budget_per_quarter: Count = 12
    """Most runs in any 90 days."""
    min_new_labels: Count = 200
    """Labels newer than the champion's training data that a run needs."""
    cost_of_run: Positive = 0.2
    """What one training job of a run costs, in expected losses of one check window. A run is worth
    it when the decay it mends costs more than its training jobs, those of competing windows and of
    a search included."""
    rows: Count = 0
    """Train on at most this many of the newest rows; 0 takes the whole history."""
    windows: tuple[Literal["recent", "all", "since_change", "decay", "blend"], ...] = (
        "recent",
        "all",
        "since_change",
        "blend",
    )
    """Stretches of history that compete on the newest training rows; one name: no competition.
    `decay`: all rows, older ones weighing less; `blend`: the average of the models of `recent` and
    `all`, which costs twice the time per prediction."""
    recent_rows: Count = 0
    """Rows of the window `recent`; 0 takes as many as the first version was registered with."""
    source: str = ""
    """Where labelled rows come from instead of the log: `package.module:function`, a Parquet file
    or folder, or `sql:env:NAME` (a database URL) with `source_query`."""
    source_query: str = ""
    """SELECT with the columns id, time, label_time, the target and the inputs."""
    source_environment: tuple[str, ...] = ()
    """Environment variables that a source function may see; others are kept from it."""
    trainer: str = ""
    """`package.module:function` instead of refitting the champion's own pipeline."""
    search: SearchSettings = field(default_factory=SearchSettings)
    time_limit: Duration = "1h"
    """Longest a trainer may work; then the run fails."""
    memory_limit_gb: Positive = 8.0
    """Most memory of a trainer in gigabytes."""
    watch: Duration = "60d"
    """How long a new champion is compared with its predecessor, which a rollback returns to."""
    rollback_of_people: bool = False
    """Let the watch take back what a person promoted too; otherwise it only tells and asks."""
    approval_expires: Duration = "30d"
    """How long a run waits for a person in mode `approve`; then it is abandoned. 0s: for ever."""
    keep_runs: Duration = "30d"
    """How long a finished run's work folder, and a prepared version nobody serves, is kept."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    gate: GateSettings = field(default_factory=GateSettings)
