"""What a backtest found, as values: a row per window, a summary per policy. This is the JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec import Struct

from core.spec import METRICS, Metric, ModelSpec
from monitor.measure.performance import aggregate

NEVER_POLICY, EVERY_POLICY = "never", "every:1"  # what every policy is held against
_DIGITS = 12  # of a number in the JSON: the last bits differ between processors


class WindowResult(Struct, frozen=True, kw_only=True):
    """One window of one policy's timeline."""

    start: str  # ISO 8601 UTC; rows with start <= time < end
    end: str  # the moment of the check and the decision
    rows: int
    labelled: int  # of these rows, that have a label in the history: the loss rests on them
    version: str  # that answered the rows
    loss: float | None  # of these rows once all their labels are known; None: no label
    metric: str
    verdict: str  # of the check at `end`, from what was known then
    alarm: bool  # a page was opened at `end`
    decision: str  # retrain, wait, ask or rollback
    reason: str
    fit: float  # training jobs at `end`, those of competing windows included
    probe: float  # what the policy's probe cost, in fits
    promoted: bool  # a candidate became champion: it answers the next window
    rejected: bool  # a candidate was refused, or its training failed
    rolled_back: bool
    known: int  # labels that the check at `end` could use
    page: str  # what the page says first
    outcome: str  # how the run ended


class Summary(Struct, frozen=True, kw_only=True):
    """One policy over all windows."""

    mean_loss: float | None  # over all labelled rows of all windows
    metric: str
    fits: float
    promotions: int
    rejected: int
    alarms: int
    rollbacks: int
    probe_fits: float  # what the policy's probes cost, in fits; on top of `fits`
    cost: float | None  # mean_loss x windows + (fits + probe_fits) x cost_of_fit x expected loss
    gain_vs_never: float | None  # share of the loss of never retraining that was saved
    regret_vs_every: float | None  # loss above that of retraining in every window, as a share


class PolicyResult(Struct, frozen=True, kw_only=True):
    """One policy's timeline and its summary."""

    summary: Summary
    windows: tuple[WindowResult, ...]


class Facts(Struct, frozen=True, kw_only=True):
    """What was replayed, and on what terms."""

    rows: int
    train_rows: int
    windows: int
    features: tuple[str, ...]
    task: str
    target: str
    metric: str
    expected_loss: float | None  # of the first model, on rows it had not seen
    cost_of_fit: float  # in expected losses of one window
    labels_known: str  # when labels are known
    estimator: str
    seed: int
    since: str
    until: str
    settings: dict[str, Any]  # what differs from the service's defaults, to take over
    notes: tuple[str, ...]


class Timeline(Struct, kw_only=True):
    """One policy's windows with the loss of every labelled row."""

    windows: list[WindowResult]
    losses: list[np.ndarray]

    def mean_loss(self, metric: Metric) -> float | None:
        """The metric over all labelled rows."""
        return number(aggregate(metric, np.concatenate([np.empty(0), *self.losses])))


def summarise(
    timeline: Timeline,
    never: float | None,
    every: float | None,
    *,
    metric: Metric,
    cost_of_fit: float,
    expected: float | None,
) -> Summary:
    """A policy's summary.

    Args:
        never, every: mean losses of never retraining and of retraining in every window.
        cost_of_fit: in expected losses of one window.
        expected: the first model's expected loss.
    """
    mean, windows = timeline.mean_loss(metric), timeline.windows
    fits = sum(window.fit for window in windows)
    probes = sum(window.probe for window in windows)
    cost = None
    if mean is not None:
        cost = mean * len(windows) + (fits + probes) * cost_of_fit * (expected or never or 0.0)
    return Summary(
        mean_loss=number(mean),
        metric=metric,
        fits=number(fits) or 0,
        promotions=sum(window.promoted for window in windows),
        rejected=sum(window.rejected for window in windows),
        alarms=sum(window.alarm for window in windows),
        rollbacks=sum(window.rolled_back for window in windows),
        probe_fits=number(probes) or 0,
        cost=number(cost),
        gain_vs_never=_share(never, mean, never),
        regret_vs_every=_share(mean, every, every),
    )


def _share(first: float | None, second: float | None, of: float | None) -> float | None:
    if first is None or second is None or not of:
        return None
    return number((first - second) / abs(of))


def number(value: float | None) -> float | None:
    """A number as the JSON has it: rounded, whole ones without a point, None for none."""
    if value is None or not math.isfinite(value):
        return None
    if float(value).is_integer() and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")


def loss_of(spec: ModelSpec, metric: Metric, losses: np.ndarray) -> float | None:
    """The metric of a window's labelled rows."""
    assert metric in METRICS[spec.task]  # noqa: S101 - checked when the spec was made
    return number(aggregate(metric, losses))
