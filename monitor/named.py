"""Evidently's own metrics and text descriptors, by name, on frames; beside `monitor.report` the
only file that knows Evidently.

Whatever Evidently raises is an answer of its own (`Unknown`): a metric that is broken spoils
neither its neighbours nor the check. Importing Evidently costs seconds, so it happens only where a
model's settings name something of it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.settings_monitor import EvidentlyMetric

if TYPE_CHECKING:
    import pandas as pd

#: What is measured of a text, and Evidently's descriptor for it.
DESCRIPTORS = {
    "length": "TextLength",
    "non-letters": "NonLetterCharacterPercentage",
    "unknown words": "OOVWordsPercentage",
}
_WHY = 160  # characters of an error


class Unknown(Exception):
    """Why there is no value, for people."""


def value(wanted: EvidentlyMetric, reference: pd.DataFrame, current: pd.DataFrame) -> float:
    """The metric of `current`, held against `reference` where it compares.

    Args:
        reference, current: float64 and str columns by the names people know.

    Raises:
        Unknown: no such metric, wrong arguments, no single number, or whatever Evidently says.
    """
    evidently = _evidently()
    made = getattr(evidently.metrics, wanted.metric, None)
    if not isinstance(made, type):
        raise Unknown(f"evidently.metrics has no {wanted.metric}")
    arguments = {**({"column": wanted.column} if wanted.column else {}), **wanted.options}
    if wanted.column and wanted.column not in current.columns:
        raise Unknown(f"there is no column {wanted.column!r}")
    numbers = [str(name) for name in reference if reference[name].dtype.kind == "f"]
    definition = evidently.DataDefinition(
        numerical_columns=numbers,
        categorical_columns=[str(name) for name in reference if name not in numbers],
    )
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            before, now = (
                evidently.Dataset.from_pandas(frame, data_definition=definition)
                for frame in (reference, current)
            )
            found = evidently.Report([made(**arguments)]).run(now, before)
            answer = found.dict()["metrics"][0]["value"]
    except Exception as error:  # Evidently and what it calls raise anything
        raise Unknown(f"Evidently says {type(error).__name__}: {_short(error)}") from None
    return _number(wanted, answer)


def _number(wanted: EvidentlyMetric, answer: Any) -> float:
    if isinstance(answer, Mapping):
        if wanted.part not in answer:
            parts = ", ".join(map(str, answer)) or "none"
            raise Unknown(f"{wanted.metric} has several numbers; `part` is one of: {parts}")
        answer = answer[wanted.part]
    try:
        number = float(answer)
    except (TypeError, ValueError):
        raise Unknown(f"{wanted.metric} is {type(answer).__name__}, not one number") from None
    if not math.isfinite(number):
        raise Unknown(f"{wanted.metric} is {number}")
    return number


def described(texts: Sequence[object], descriptor: str) -> np.ndarray:
    """A descriptor of each text, float64; NaN where there is no text.

    Args:
        descriptor: a key of `DESCRIPTORS`.

    Raises:
        Unknown: Evidently cannot compute it, such as unknown words without NLTK's word lists.
    """
    import pandas as pd

    known = np.array([isinstance(text, str) for text in texts], dtype=bool)
    found = np.full(len(known), np.nan)
    if not known.any():
        return found
    frame = pd.DataFrame({"text": [t for t in texts if isinstance(t, str)]}, dtype="str")
    evidently = _evidently()
    made = getattr(evidently.descriptors, DESCRIPTORS[descriptor])("text", alias="found")
    definition = evidently.DataDefinition(text_columns=["text"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = evidently.Dataset.from_pandas(
                frame, data_definition=definition, descriptors=[made]
            ).as_dataframe()["found"]
        found[known] = answer.to_numpy(np.float64)
    except Exception as error:  # NLTK's data, and whatever else a text sets off
        raise Unknown(f"Evidently says {type(error).__name__}: {_short(error)}") from None
    return found


def _evidently() -> Any:
    """The package, with its metrics and descriptors; silent, and nothing told to anybody."""
    os.environ["DO_NOT_TRACK"] = os.environ["EVIDENTLY_DISABLE_TELEMETRY"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import evidently
        import evidently.descriptors
        import evidently.metrics
    return evidently


def _short(error: Exception) -> str:
    text = " ".join(str(error).replace("*", " ").split())
    return text[:_WHY] + ("…" if len(text) > _WHY else "")
