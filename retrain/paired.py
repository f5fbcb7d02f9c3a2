"""Two versions' losses on the same rows: what one answered, against what the other answered beside
it in shadow, or answers now to the logged inputs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct

from core.settings import ModelSettings
from core.spec import ModelSpec
from monitor.log.records import Rows, SampleLog
from monitor.measure.performance import encode_labels, row_loss
from retrain.dataset import input_columns

if TYPE_CHECKING:
    import pandas as pd

    from registry.versions import Registry


class Pairs(Struct, frozen=True, kw_only=True):
    """Per-row losses in order of time, each of shape (n,); NaN where an answer cannot be scored."""

    answered: np.ndarray  # of the version that answered the callers
    other: np.ndarray
    computed: int = 0  # rows whose second answer was computed now

    def __len__(self) -> int:
        return len(self.answered)


def losses(
    registry: Registry,
    log: SampleLog,
    spec: ModelSpec,
    settings: ModelSettings,
    *,
    answered_by: str,
    role: Literal["champion", "challenger"],
    other: str,
    since: datetime,
    at: datetime,
    compute: bool,
) -> Pairs:
    """Losses on the labelled rows since a moment, labels as known at `at`.

    Args:
        answered_by, role: whose answers callers got, and as what it is logged.
        other: the version to compare with. Its shadow answers count where there are any.
        compute: ask it now for the rows it did not answer; otherwise those are left out. Fewer rows
            than `min_rows` are never computed.

    Raises:
        ShelflifeError: the other version cannot be fetched, loaded or asked.
    """
    rows = log.read(
        spec.name, start=since, known_at=at, roles=(role,), version=answered_by, labelled=True
    )
    beside = log.read(
        spec.name, start=since, known_at=at, roles=("shadow",), version=other, labelled=True
    )
    place = {name: i for i, name in enumerate(beside.meta["id"])}
    found = np.array([place.get(name, -1) for name in rows.meta["id"]], dtype=np.int64)
    answers = np.full((len(rows), len(spec.outputs)), np.nan)
    have = found >= 0
    if have.any():
        answers[have] = beside.outputs[spec.outputs].to_numpy(np.float64)[found[have]]
    missing = np.flatnonzero(~have)
    computed = 0
    if compute and len(rows) >= settings.min_rows and len(missing):
        answers[missing] = _answers(registry, spec, other, rows, missing, settings)
        computed = len(missing)
    keep = np.ones(len(rows), bool) if compute else have
    if not keep.any():
        return Pairs(answered=np.empty(0), other=np.empty(0))
    return _scored(spec, settings, rows, answers, keep, computed)


def _scored(
    spec: ModelSpec,
    settings: ModelSettings,
    rows: Rows,
    answers: np.ndarray,
    keep: np.ndarray,
    computed: int,
) -> Pairs:
    import pandas as pd

    y, _ = encode_labels(spec, rows.meta["label"][keep].tolist())
    ours = rows.outputs[spec.outputs][keep].reset_index(drop=True)
    theirs = pd.DataFrame(answers[keep], columns=list(spec.outputs))
    return Pairs(
        answered=row_loss(spec, ours, y, settings.metric),  # as it answered then
        other=row_loss(spec, theirs, y, settings.metric),
        computed=computed,
    )


def _answers(
    registry: Registry,
    spec: ModelSpec,
    version: str,
    rows: Rows,
    wanted: np.ndarray,
    settings: ModelSettings,
) -> np.ndarray:
    from registry.loading import predict

    estimator = registry.estimator(
        registry.get(spec.name, version), trust_pickle=settings.trust_pickle
    )
    inputs: pd.DataFrame = rows.inputs.iloc[wanted].reset_index(drop=True)
    found: np.ndarray = predict(estimator, spec, input_columns(spec, inputs))[
        list(spec.outputs)
    ].to_numpy(np.float64)
    return found
