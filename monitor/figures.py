"""Performance as plain values: metrics, estimates, proof, forecasts, each with what it rests on.

Part of `monitor.results.CheckResult` and stored with it as JSON. A number that could not be
computed is None and says why; it is never zero.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

Answer = Literal["yes", "no", "cannot tell"]
Yardstick = Literal["absolute", "relative"]


class Source(Struct, frozen=True, kw_only=True):
    """The rows that numbers were computed from."""

    version: str  # that answered them
    rows: int
    since: datetime | None = None  # first and last event time of the rows
    until: datetime | None = None
    known_after: datetime | None = None  # their labels became known after this moment …
    known_at: datetime | None = None  # … until this one; None: labels play no part
    digest: str = ""  # blake2b of their ids, in order of time: the same rows have the same


class Figure(Struct, frozen=True, kw_only=True):
    """One metric over some rows."""

    name: str  # a key of `monitor.measure.metrics.NAMES`
    better: Literal["lower", "higher"]
    value: float | None
    low: float | None = None  # 95 % interval
    high: float | None = None
    n: int = 0  # rows it rests on
    expected: float | None = None  # on the baseline's rows
    tolerated: float | None = None  # as bad as the settings allow
    worse: bool | None = None  # the interval lies beyond `tolerated`; None: cannot tell
    why: str = ""  # why there is no value, or no verdict


class Segment(Struct, frozen=True, kw_only=True):
    """The metrics of a part of the rows."""

    column: str
    level: str  # a level, or a range of a number
    rows: int
    figures: tuple[Figure, ...]


class Measured(Struct, frozen=True, kw_only=True):
    """Every realised metric of the rows whose labels became known in the window."""

    source: Source
    coverage: float | None  # share of the rows old enough to have a label that have one
    figures: tuple[Figure, ...]
    segments: tuple[Segment, ...] = ()
    bad_labels: int = 0  # left out


class EstimatedWindow(Struct, frozen=True, kw_only=True):
    """The watched metric of one event-time window, estimated before its labels came."""

    start: datetime
    end: datetime
    version: str
    metric: str
    value: float
    low: float
    high: float
    n: int


class Track(Struct, frozen=True, kw_only=True):
    """How right the estimates were, over windows whose labels have come since."""

    windows: int
    n: int  # labelled rows of those windows
    since: datetime | None = None  # the first and last window
    until: datetime | None = None
    bias: float | None = None  # mean of estimate - realised; above zero: estimated too dark
    error: float | None = None  # mean |estimate - realised|
    constant: float | None = None  # the same of always saying what the baseline expects
    inside: float | None = None  # share of realised values inside the estimate's interval
    text: str = ""  # one sentence for people
    why: str = ""  # why nothing can be said yet


class Estimated(Struct, frozen=True, kw_only=True):
    """Metrics of the window's rows, estimated without their labels; the watched one first."""

    method: Literal["CBPE", "DLE", ""]
    source: Source
    figures: tuple[Figure, ...] = ()
    windows: tuple[EstimatedWindow, ...] = ()  # the watched metric by event time, oldest first
    track: Track | None = None  # how right such estimates have been so far
    why: str = ""  # why there is none, or what limits it


class Proof(Struct, frozen=True, kw_only=True):
    """Evidence that the loss is above its tolerance, which may be looked at after every label.

    `evidence` is an e-process since the promotion: were the loss never above the line, it would
    ever reach `line` in at most `alpha` of all models' lives, however often one looks.
    """

    metric: str
    tolerated: float  # the line itself, in the metric's own unit
    evidence: float
    line: float  # that proves: 1 / alpha
    alpha: float
    proven: bool
    n: int  # labelled rows seen since the promotion
    looks: int  # checks that brought new labels
    since: datetime | None = None  # when it was proven first
    until: datetime | None = None  # labels known up to here have been counted
    bets: tuple[float, ...] = ()  # what each bet's evidence has grown to (its logarithm)


class Arrivals(Struct, frozen=True, kw_only=True):
    """Rows that arrived since the check before, whatever their event time."""

    rows: int
    newest: datetime | None = None  # when the last one arrived
    delay: float | None = None  # median seconds from event time to arrival
    late: float = 0.0  # share of them later than the settings allow


class Within(Struct, frozen=True, kw_only=True):
    """The answer to "will it expire within so many days?"."""

    days: float
    probability: float
    answer: Answer


class Ahead(Struct, frozen=True, kw_only=True):
    """The loss ratio's quantiles in one future window: the chart's band (80 %) and its middle."""

    days: float  # from the newest window's end
    low: float
    middle: float
    high: float


class Forecast(Struct, frozen=True, kw_only=True):
    """What can be said of the remaining life, counted in days from the newest window's end.

    `median`, `low` and `high` (the 80 % interval) are None where the life outlasts `beyond` days in
    that many of the simulations; all of them, `within` and `band` are empty where `why` says that
    nothing can be said.
    """

    yardstick: Yardstick
    tolerance: float
    age: float  # days from the life's begin to its newest window
    points: int  # windows with a usable ratio
    missing: int  # windows without one
    lives: int  # other lives that were learned from
    rows: int  # labelled rows behind the points; 0 where nobody counted
    step: float | None = None  # days of a window
    level: float | None = None  # mean ratio of the newest SMOOTH windows
    expired: bool = False  # that mean is over the line now
    within: tuple[Within, ...] = ()
    median: float | None = None
    low: float | None = None
    high: float | None = None
    beyond: float | None = None
    band: tuple[Ahead, ...] = ()
    why: str | None = None


class ShelfLife(Struct, frozen=True, kw_only=True):
    """The remaining life of the checked version, by two yardsticks.

    Days in it are counted from `at`, the moment of the check (a forecast's own days, from the end
    of its newest window, are already turned into them); `unit` times a ratio is the metric.
    """

    at: datetime
    metric: str
    absolute: Forecast  # against the loss that was expected: what users feel
    relative: Forecast  # against a fresh model on the same rows: what a retraining would win
    unit: float | None  # the expected metric: ratio 1 of `absolute` on the chart's axis
    began: datetime | None = None  # when the life began
    provisional: str = ""  # why not to lean on it yet: it rests on back-tested lives alone
    text: tuple[str, ...] = ()  # sentences for people
