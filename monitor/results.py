"""What a check says: plain values with their interval, n and reason.

A number that could not be computed is None and says why; it is never zero. These structs are stored
as JSON in the ledger (`checks.result`, `incidents.finding`) and are what the policy, the messages,
the dashboard and the CLI read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

from monitor.figures import Arrivals, Estimated, Measured, Proof, ShelfLife

State = Literal["healthy", "drifting", "decaying", "stale", "broken_feed", "insufficient_data"]
Severity = Literal["page", "ticket", "note"]


class Statistic(Struct, frozen=True, kw_only=True):
    """One drift number beside the line it is judged by."""

    name: str  # an effect size (psi, js, …) or a calibrated test (location, …): `measure.drift`
    value: float | None  # of a calibrated test: the z value that its p-value amounts to
    threshold: float | None
    alarm: bool = False
    why: str = ""  # why there is no value or no line
    over_s: float | None = None  # a calibrated test: the newest so many seconds of the window …
    rows: int | None = None  # … and the rows in them


class ColumnDrift(Struct, frozen=True, kw_only=True):
    """How one column of the window differs from the baseline."""

    column: str
    role: Literal["input", "output"]
    kind: str
    n: int  # rows with a value
    missing_share: float
    statistics: tuple[Statistic, ...]
    drifted: bool
    why: str = ""  # why it could not be measured
    counts: tuple[int, ...] = ()  # values of the window in each cell of the baseline's profile


class QualityIssue(Struct, frozen=True, kw_only=True):
    """Something wrong with the data itself."""

    column: str  # empty: the whole feed
    kind: str  # missing, constant, unseen, range, type, absent or no_data
    value: float | None
    expected: str
    text: str  # one sentence for people
    broken: bool  # it breaks the feed (a page); otherwise a note


class Performance(Struct, frozen=True, kw_only=True):
    """The realised metric on rows whose labels have arrived. Losses: lower is better."""

    metric: str
    value: float | None
    low: float | None  # 95 % confidence interval
    high: float | None
    n: int  # labelled rows it rests on
    coverage: float | None  # share of the rows old enough to have a label that have one
    expected: float | None  # the baseline's
    tolerated: float | None  # expected x (1 + tolerance)
    worse: bool | None  # None: cannot tell
    since: datetime | None = None  # first and last event time of the rows
    until: datetime | None = None
    why: str = ""  # why there is no value, or what limits it
    bad_labels: int = 0  # labels that are no value of the target, left out


class LabelProblem(Struct, frozen=True, kw_only=True):
    """Labels that are left out of every number, by what is wrong with them."""

    kind: str  # null, text, boolean, not_finite, unknown_class, other or before_prediction
    count: int
    example: str
    text: str  # one sentence for people


class LabelFacts(Struct, frozen=True, kw_only=True):
    """How the labels behave that became known in the window, and how complete they are."""

    arrived: int  # predictions of any version whose label became known in the window
    lag: tuple[tuple[float, float], ...]  # (quantile, seconds from prediction to label)
    rows: int  # predictions with an event time in the window
    coverage: float | None  # share of them that have a label by now
    matured: int | None  # predictions of the checked version old enough to have one
    matured_coverage: float | None  # share of those that have one
    repeated: int | None = None  # arrived labels that say something for the second time ...
    corrected: int | None = None  # ... and something else
    unknown: int | None = None  # labels in the window for predictions the log does not hold
    problems: tuple[LabelProblem, ...] = ()  # of the arrived labels


class WindowScore(Struct, frozen=True, kw_only=True):
    """How good one version's answers in one event-time window turned out, by what is known now."""

    start: datetime
    end: datetime
    version: str
    metric: str
    value: float | None
    low: float | None  # 95 % confidence interval
    high: float | None
    n: int  # rows the value rests on
    rows: int  # rows answered
    labelled: int  # ... that have a label, usable or not
    bad_labels: int
    label_lag: float | None  # median seconds from prediction to label

    @property
    def coverage(self) -> float:
        """Share of the rows that have a label, 0 to 1."""
        return self.labelled / self.rows if self.rows else 0.0


class Staleness(Struct, frozen=True, kw_only=True):
    """Ages in seconds at the moment of the check; None where there is nothing to age."""

    model: float | None  # since the version was registered
    training_row: float | None  # newest row the model was trained on
    prediction: float | None  # newest prediction logged
    label: float | None  # newest label known
    promotion: float | None  # since it became champion
    label_lag: float | None  # median time from prediction to label
    baseline: float | None = None  # since the baseline was made; None in older checks
    monitor: float | None = None  # since the check before this one; None: there was none
    received: float | None = None  # since the newest row arrived, whatever its event time
    arrival: float | None = None  # median delay of the rows that arrived since that check


class Crossed(Struct, frozen=True, kw_only=True):
    """A number that is over its line, as a message says it."""

    what: str
    value: float
    low: float | None = None  # 95 % confidence interval
    high: float | None = None
    line: float
    n: int

    @property
    def over(self) -> float:
        """How far over the line."""
        return self.value - self.line


class Finding(Struct, frozen=True, kw_only=True):
    """One cause for an incident. `cause` names it over time; numbers live in `text`."""

    cause: str  # decay, broken_feed, no_data, drift, stale, retrain_failed, rollback, monitor, ...
    severity: Severity
    title: str  # what a person reads first, one line, with numbers
    text: str = ""  # what crossed what, by how much, with interval and n
    since: datetime | None = None
    columns: tuple[str, ...] = ()
    clearing: bool = False  # under the opening line but not yet under the resolving one
    crossed: tuple[Crossed, ...] = ()  # the numbers of `text`, for machines; gravest first


class Cause(Struct, frozen=True, kw_only=True):
    """Something that carries a risen loss, by how much of it undoing it removes."""

    kind: Literal["shift", "broken", "prior", "segment"]
    columns: tuple[str, ...]  # the target for `prior`; several that cannot be told apart, or a rule
    text: str  # one sentence for people
    gain: float  # mean loss per row that undoing it removes; squared error for RMSE
    low: float  # 95 % confidence interval of the gain
    high: float
    share: float  # of the rise
    n: int  # labelled rows of the window it was measured on


class Causes(Struct, frozen=True, kw_only=True):
    """What carries the loss of a window, largest first; or why nobody is accused."""

    causes: tuple[Cause, ...] = ()
    rise: float | None = None  # mean loss of the window less the baseline's; None: cannot tell
    rise_se: float | None = None  # its standard error
    n: int = 0  # rows of the window with a loss
    why: str = ""  # why nothing was accused
    notes: tuple[str, ...] = ()  # what could not be tried


class CheckResult(Struct, frozen=True, kw_only=True):
    """Everything one check of one model at one moment found."""

    model: str
    version: str
    at: datetime
    window_start: datetime
    window_end: datetime
    rows: int
    labelled: int
    state: State
    reason: str
    quality: tuple[QualityIssue, ...]
    drift: tuple[ColumnDrift, ...]
    performance: Performance
    staleness: Staleness
    findings: tuple[Finding, ...]
    provisional: str = ""  # why the thresholds are provisional, if they are
    labels: LabelFacts | None = None  # None in checks from before it was measured
    not_logged: tuple[str, ...] = ()  # inputs that privacy settings keep out: not judged
    causes: tuple[Cause, ...] = ()  # what carries the loss; looked for only where it is worse
    joint: tuple[ColumnDrift, ...] = ()  # pairs, all columns at once, texts, metrics by name
    causes_why: str = ""  # why nothing is named although it is worse, and what was not tried
    measured: Measured | None = None  # every realised metric; None in older checks
    estimated: Estimated | None = None  # of rows whose labels are missing
    proof: Proof | None = None  # of a loss above the tolerance, at any time; None: no label yet
    arrivals: Arrivals | None = None  # when rows came, beside when they were asked
    shelf_life: ShelfLife | None = None  # how long the version lasts
