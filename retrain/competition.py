"""Windows compete: each fits on the rows before the newest training rows and answers those.

Runs in the training subprocess. The gate's rows take no part: whoever wins here is still new to
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from core.spec import Metric, ModelSpec
from monitor.measure.performance import row_loss
from retrain import fitting
from retrain.windows import Choice, Window, choose, settled

if TYPE_CHECKING:
    import pandas as pd

_LEAST = 30  # judged rows; fewer decide nothing


def compete(
    spec: ModelSpec,
    windows: Sequence[Window],
    inputs: pd.DataFrame,
    y: np.ndarray,
    labels: np.ndarray,
    fit: Callable[[Window, pd.DataFrame, np.ndarray], Any],
    *,
    judged_rows: int,
    past: Sequence[dict[str, float]],
    indifferent: float | None,
    metric: Metric | None,
) -> Choice | None:
    """Which window wins; None where there is nothing to choose from.

    No window is fitted where earlier runs have settled the question (`retrain.windows.settled`).

    Args:
        inputs, y, labels: the training rows in order of time, labels encoded and as spelled.
        fit: fits one window on the rows it is given; what it raises counts the window out.
        judged_rows: newest rows to be judged on; at most a fourth of all.
        past: see `retrain.windows.choose`.
        indifferent: see `retrain.windows.settled`.
    """
    judged = min(judged_rows, len(inputs) // 4)
    single = [window for window in windows if not window.parts]
    if len(single) < 2 or judged < _LEAST:
        return None
    known = settled(windows, past, indifferent=indifferent)
    if known is not None:
        return known
    cut = len(inputs) - judged
    before, after, truth = inputs.iloc[:cut], inputs.iloc[cut:].reset_index(drop=True), y[cut:]
    outputs: dict[str, pd.DataFrame] = {}
    for window in single:
        found = _answers(spec, window, fit, before, labels[:cut], after)
        if found is not None:
            outputs[window.name] = found
    for window in windows:
        if window.parts and all(part in outputs for part in window.parts):
            parts = [outputs[part] for part in window.parts]
            total = parts[0].copy()
            for part in parts[1:]:
                total += part
            outputs[window.name] = total / len(parts)
    losses = {name: row_loss(spec, answers, truth, metric) for name, answers in outputs.items()}
    running = [window for window in windows if window.name in losses]
    if not running:
        return None
    return msgspec.structs.replace(choose(running, losses, past), fits=len(single))


def _answers(
    spec: ModelSpec,
    window: Window,
    fit: Callable[[Window, pd.DataFrame, np.ndarray], Any],
    before: pd.DataFrame,
    labels: np.ndarray,
    after: pd.DataFrame,
) -> pd.DataFrame | None:
    from registry.loading import predict

    try:
        return predict(fit(window, before, labels), spec, after)
    except Exception as error:  # a class this window lacks, an estimator without weights, …
        print(f"window {window.name} does not compete: {error}", flush=True)  # noqa: T201
        return None


def settle(
    choice: Choice | None,
    windows: Sequence[Window],
    fit: Callable[[Window | None], Any],
    spec: ModelSpec,
) -> tuple[Any, int]:
    """The candidate on the window that won (all rows where none did), and how many fits it took."""
    if choice is None:
        only = windows[0] if len(windows) == 1 else None
        return fit(only), 1
    parts = [window for window in windows if window.name in choice.window.parts]
    if not parts:
        return fit(choice.window), 1
    return fitting.blend(spec, [(part.name, fit(part)) for part in parts]), len(parts)
