"""How long one row takes: candidate and champion measured in turn, in one process. Seconds count
only beside each other: the machine is shared, so ratios are judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

_ROUNDS, _CALLS = 3, 60
_WARM = 5
_BUDGET_S = 10.0  # for all of it; slow models get fewer calls


def measure(models: Sequence[Any], spec: ModelSpec, inputs: pd.DataFrame) -> list[float]:
    """The p99 of a one-row prediction of each model, milliseconds.

    Three rounds of up to 60 calls each, the models taking turns row by row; the smallest round's
    p99 counts, because whatever disturbs a round comes from the machine.
    """
    from registry.loading import predict_array

    rows = [inputs.iloc[[index]] for index in range(min(len(inputs), _CALLS))]
    for model in models:
        for row in rows[:_WARM]:
            predict_array(model, spec, row)
    end = time.perf_counter() + _BUDGET_S
    rounds = []
    for _ in range(_ROUNDS):
        taken: list[list[float]] = [[] for _ in models]
        for row in rows:
            for model, times in zip(models, taken, strict=True):
                start = time.perf_counter()
                predict_array(model, spec, row)
                times.append(time.perf_counter() - start)
            if time.perf_counter() > end:
                break
        rounds.append([float(np.quantile(times, 0.99)) for times in taken])
        if time.perf_counter() > end:
            break
    return [1e3 * min(values) for values in zip(*rounds, strict=True)]
