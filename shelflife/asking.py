"""Asking a version about rows: its model, loaded when first asked, for a limited time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from core.errors import ShelflifeError
from core.spec import ModelSpec
from shelflife.service import Service

if TYPE_CHECKING:
    import pandas as pd

    from monitor.measure.suspects import Predict
    from registry.versions import Version

_SECONDS = 20.0  # of answers in one check; a slow model is asked no more after that


def asking(
    service: Service, version: Version, spec: ModelSpec, seconds: float = _SECONDS
) -> Predict:
    """A function from inputs to outputs of a version; nothing is loaded until it is called.

    It raises what loading and predicting raise, and `ShelflifeError` once its answers have taken
    longer than `seconds` in all. One answer that hangs is not interrupted.
    """
    estimators: list[object] = []
    spent = 0.0

    def predict(inputs: pd.DataFrame) -> pd.DataFrame:
        from registry import loading

        nonlocal spent
        if spent > seconds:
            raise ShelflifeError(f"its answers took {spent:.0f} s, allowed are {seconds:.0f} s")
        if not estimators:
            folder = service.registry.fetch(version)
            trust = service.model(version.model).trust_pickle
            estimators.append(loading.load_estimator(folder, trust_pickle=trust))
        began = time.monotonic()
        try:
            return loading.predict(estimators[0], spec, inputs)
        finally:
            spent += time.monotonic() - began

    return predict
