"""The settings of a replay: the service's own, with spans that fit the history's windows.

The service's defaults are meant for checks that look back over a week. Where windows last longer or
shorter, what is counted in windows (cooldown, budget, watch) keeps its number of windows.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import numpy as np

from core.settings import ModelSettings, span
from core.spec import Metric
from shelflife.backtest.history import History
from shelflife.backtest.replica import seconds

_FEW = 10  # rows a check must at least be allowed to judge


def terms(
    history: History,
    given: ModelSettings | None,
    *,
    metric: Metric | None,
    cost_of_fit: float | None,
) -> ModelSettings:
    """The settings of the model in the replay.

    Args:
        given: from a settings file: taken as they are, apart from the window and the label delay.
    """
    settings = given or _scaled(history)
    window = usual_window(history)
    delay = history.label_delay
    changes: dict[str, Any] = {"window": seconds(window), "check_every": seconds(window)}
    if delay is not None and delay > timedelta():
        changes["label_delay"] = seconds(delay)
    if metric is not None:
        changes["metric"] = metric
    if cost_of_fit is not None:
        changes["retrain"] = msgspec.structs.replace(settings.retrain, cost_of_run=cost_of_fit)
    return msgspec.structs.replace(settings, **changes)


def usual_window(history: History) -> timedelta:
    """How long the median window lasts."""
    lengths = [window.end - window.start for window in history.windows]
    return _round(sorted(lengths)[len(lengths) // 2])


def _round(length: timedelta) -> timedelta:
    """Down to whole days, hours, minutes or seconds, whichever there are at least two of."""
    for size in (86_400, 3_600, 60, 1):
        unit = timedelta(seconds=size)
        if length >= 2 * unit or length == unit:
            return length // unit * unit
    return length


def _scaled(history: History) -> ModelSettings:
    defaults = ModelSettings()
    retrain, window = defaults.retrain, usual_window(history)
    ratio = window / span(defaults.window)
    rows = int(np.median([window.last - window.first for window in history.windows]))
    shortest = min(window.end - window.start for window in history.windows)
    gate = msgspec.structs.replace(retrain.gate, min_rows=min(retrain.gate.min_rows, max(20, rows)))
    return msgspec.structs.replace(
        defaults,
        min_rows=min(defaults.min_rows, max(_FEW, rows // 2)),
        retrain=msgspec.structs.replace(
            retrain,
            cooldown=seconds(_round(min(shortest, window))),
            budget_per_quarter=max(1, round(retrain.budget_per_quarter / ratio)),
            min_new_labels=min(retrain.min_new_labels, max(20, rows)),
            watch=seconds(_round(span(retrain.watch) * ratio)),
            gate=gate,
        ),
    )


def differing(settings: ModelSettings) -> dict[str, Any]:
    """What differs from the service's defaults, as the settings file spells it."""
    return _difference(msgspec.to_builtins(settings), msgspec.to_builtins(ModelSettings()))


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in ours.items():
        if isinstance(value, dict):
            if inner := _difference(value, theirs.get(key, {})):
                found[key] = inner
        elif value != theirs.get(key):
            found[key] = value
    return found
