"""What the dashboard's queries answer: plain values, and pandas frames where a chart wants one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from monitor.results import CheckResult, Finding

if TYPE_CHECKING:
    import pandas as pd


class IncidentRow(Struct, frozen=True, kw_only=True):
    """One incident, as a list shows it."""

    id: int
    model: str
    version: str
    cause: str
    severity: str
    state: str  # open, acknowledged or resolved
    title: str
    opened: datetime
    updated: datetime
    resolved: datetime | None
    seen: int  # checks that found it
    run_id: str | None
    report: str | None  # Evidently HTML, relative to home
    report_state: str


class IncidentEvent(Struct, frozen=True, kw_only=True):
    """One line of an incident's timeline."""

    at: datetime
    kind: str
    text: str


class Message(Struct, frozen=True, kw_only=True):
    """One message to one receiver, and what became of it."""

    receiver: str
    type: str
    created: datetime
    attempts: int
    state: str  # pending, delivered or failed
    delivered: datetime | None
    status: int | None
    error: str


class IncidentView(Struct, frozen=True, kw_only=True):
    """One incident with everything that happened to it."""

    row: IncidentRow
    finding: Finding | None
    events: tuple[IncidentEvent, ...]
    messages: tuple[Message, ...]


class RunRow(Struct, frozen=True, kw_only=True):
    """One retraining run, as a list shows it."""

    id: str
    model: str
    trigger: str
    reason: str
    by: str
    state: str
    champion: str
    candidate: str | None
    started: datetime
    updated: datetime
    finished: datetime | None
    incident_id: int | None
    outcome: str
    step: str = ""  # the step it is at, or ended with
    gate: dict[str, Any] = {}  # retrain.gate.GateResult as plain values


class RunStep(Struct, frozen=True, kw_only=True):
    """One step of a run."""

    name: str
    state: str
    attempts: int
    started: datetime
    finished: datetime | None
    result: dict[str, Any]
    error: str


class RunView(Struct, frozen=True, kw_only=True):
    """One run, step by step."""

    row: RunRow
    steps: tuple[RunStep, ...]


class Promotion(Struct, frozen=True, kw_only=True):
    """The champion moved."""

    version: str
    previous: str
    kind: str
    at: datetime
    by: str
    reason: str
    run_id: str | None


class Decision(Struct, frozen=True, kw_only=True):
    """Whether to retrain, and why."""

    at: datetime
    version: str
    action: str
    reason: str
    detail: dict[str, Any]
    run_id: str | None
    repeated: int = 1  # decisions in a row with the same action and version, this the newest


class Worker(Struct, frozen=True, kw_only=True):
    """A serving process and what it answers with."""

    worker: str
    version: str
    seen: datetime  # wall clock
    error: str


class Spark(Struct, frozen=True, kw_only=True):
    """A metric's last days, one value a point (None: no value then), and its tolerance."""

    values: tuple[float | None, ...] = ()
    tolerated: float | None = None


class ModelRow(Struct, frozen=True, kw_only=True):
    """One model in the fleet."""

    model: str
    state: str  # a monitor.results.State, or "unchecked"
    reason: str = ""
    since: datetime | None = None  # in this state; None when that is not known
    version: str = ""  # the champion; what the last check looked at where nothing was promoted
    champion_since: datetime | None = None
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    expected: float | None = None
    tolerated: float | None = None
    n: int | None = None  # labelled rows the value rests on
    coverage: float | None = None  # share of the rows old enough to have a label that have one
    why: str = ""  # why there is no value
    spark: Spark = Spark()
    life: str = ""  # the remaining shelf life in words; empty where nothing can be said
    checked: datetime | None = None  # the last check
    every: timedelta | None = None  # how often checks came lately
    overdue: bool = False  # the next check is late by more than two of them
    incident: IncidentRow | None = None  # the gravest one that is not resolved
    incidents: int = 0  # how many are not resolved
    run: RunRow | None = None  # the unfinished one


class Fleet(Struct, frozen=True, kw_only=True):
    """Every model, worst first."""

    now: datetime
    checked: datetime | None  # the newest check of any model
    rows: tuple[ModelRow, ...]


class DriftMap(Struct, frozen=True, kw_only=True):
    """Columns x time: how far each column's worst statistic stands against its threshold.

    Attributes:
        frame: one row per cell: `column`, `role`, `start`, `end` (of the cell, UTC), `ratio`
            (statistic / threshold), `statistic`, `value`, `threshold`. Only columns that crossed.
        columns: those columns, furthest over first.
        quiet: how many columns never crossed.
        folded: columns that crossed but are left out to keep the map readable.
        every: one of how many checks is shown.
    """

    frame: pd.DataFrame
    columns: tuple[str, ...]
    quiet: int
    folded: int
    every: int


class Event(Struct, frozen=True, kw_only=True):
    """One thing that happened to a model."""

    at: datetime
    kind: str  # state, incident, resolved, run, finished or promotion
    text: str
    incident_id: int | None = None
    run_id: str | None = None


class ModelView(Struct, frozen=True, kw_only=True):
    """One model over a span of time.

    Attributes:
        checks: one row per check (`at`, `version`, `state`, `metric`, `value`, `low`, `high`,
            `expected`, `tolerated`, `rows`, `labelled`), oldest first, at most `history.POINTS`.
        every: one of how many checks is in `checks` (the worst of each is kept).
    """

    row: ModelRow
    checks: pd.DataFrame
    every: int
    promotions: tuple[Promotion, ...]
    drift: DriftMap
    latest: CheckResult | None
    incidents: tuple[IncidentRow, ...]
    decisions: tuple[Decision, ...]
    runs: tuple[RunRow, ...]
    workers: tuple[Worker, ...]
    estimates: pd.DataFrame  # per event-time window: at, value, low, high; the labels are missing
    events: tuple[Event, ...]
