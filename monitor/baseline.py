"""What travels with a model version: how its data looked and how well it did when it was made.

`build` makes it once, from rows the model was not fitted on where outputs and labels are concerned
(out-of-fold or held out); a check compares a window with it. Beside the baseline (`baseline.json`)
lies a sample of the same rows (`reference.parquet`) for the statistics that need rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import Struct

from core.errors import InputError
from core.spec import METRICS, Metric, ModelSpec
from core.times import utc
from monitor.measure.calibration import Calibration, Reference, calibrate
from monitor.measure.lives import Path
from monitor.measure.performance import aggregate, metric_interval, row_loss
from monitor.measure.profile import ColumnProfile, Values, is_numeric, profile_column, read_values

if TYPE_CHECKING:
    import pandas as pd


_PIECES = 16  # blocks of the expected loss's own variation
_BLOCK_ROWS = 20  # that each must hold


class ExpectedPerformance(Struct, frozen=True, kw_only=True):
    """How well the model did on rows it was not fitted on: what realised loss is held against."""

    metric: Metric
    value: float
    low: float | None  # 95 % interval
    high: float | None
    n: int
    how: str  # "out-of-fold", "holdout" or "reference"
    block_sd: float | None = None
    """Sd of the metric over the baseline's own time blocks: how much it wanders when nothing is
    wrong. Information for people and for forecasts; no interval or line is widened by it."""
    others: dict[Metric, float] = {}
    """Every metric of the task, so that another one can be chosen in the settings."""
    auc: float | None = None  # area under the ROC curve, binary only

    def of(self, metric: Metric) -> float | None:
        """The expected value of a metric; None if it was not measured."""
        return self.value if metric == self.metric else self.others.get(metric)


class Baseline(Struct, frozen=True, kw_only=True):
    """A model version's baseline; one to two kB a column as JSON."""

    spec: ModelSpec
    created: datetime
    rows: int
    trained_until: datetime | None  # event time of the newest training row
    since: datetime | None  # first and last event time of the reference rows
    until: datetime | None
    columns: tuple[ColumnProfile, ...]  # inputs, then outputs
    expected: ExpectedPerformance | None
    calibration: Calibration
    note: str = ""  # what is missing or should be known, for people
    lives: tuple[Path, ...] = ()  # back-tested on the training rows, for the first forecasts

    @property
    def inputs(self) -> tuple[ColumnProfile, ...]:
        return tuple(column for column in self.columns if column.role == "input")

    @property
    def outputs(self) -> tuple[ColumnProfile, ...]:
        return tuple(column for column in self.columns if column.role == "output")


def build(
    spec: ModelSpec,
    inputs: pd.DataFrame,
    outputs: pd.DataFrame | None,
    y: np.ndarray | None,
    times: Sequence[datetime] | None,
    *,
    created: datetime,
    how: str,
    trained_until: datetime | None,
    every: timedelta | None = None,
    window: timedelta | None = None,
) -> Baseline:
    """The baseline of reference rows, all arguments row by row alike.

    Args:
        inputs: one column per `spec.features`; more are ignored.
        outputs: the model's outputs (`spec.outputs`); rows with NaN (not predicted honestly) are
            left out of the output profile and the expected performance.
        y: encoded labels, NaN where there is none.
        times: event times, naive ones taken as UTC; None when unknown.
        how: where the outputs come from: "out-of-fold", "holdout" or "reference".
        every, window: how often checks will run and how far they will look back; they fix the time
            scales that natural variation is estimated for.

    Raises:
        InputError: no rows, a column of the spec that is not there, or lengths that differ.
    """
    _check(spec, inputs, outputs, y, times)
    order, since, until = _order(times)
    values = read_columns(spec, inputs, outputs)
    columns = _profiles(spec, values)
    seconds = _seconds(times)
    blocks = _blocks(seconds, window)
    expected = _expected(spec, outputs, y, order, how=how, blocks=blocks)
    calibration = calibrate(columns, values, seconds=seconds, part=every, window=window)
    notes = [f"{c.column}: {c.why}" for c in columns if c.why]
    if expected is None:
        notes.append("no expected performance: no row has both outputs and a label")
    return Baseline(
        spec=spec,
        created=utc(created),
        rows=len(inputs),
        trained_until=None if trained_until is None else utc(trained_until),
        since=since,
        until=until,
        columns=columns,
        expected=expected,
        calibration=calibration,
        note="; ".join(notes),
    )


def read_columns(
    spec: ModelSpec, inputs: pd.DataFrame, outputs: pd.DataFrame | None
) -> dict[str, Values]:
    """The usable values of every column of the spec that is there, by `ColumnProfile.key`."""
    found = {
        f"input:{feature.name}": read_values(feature.kind, inputs[feature.name])
        for feature in spec.features
        if feature.name in inputs.columns
    }
    for name in spec.outputs if outputs is not None else ():
        if outputs is not None and name in outputs.columns:
            found[f"output:{name}"] = read_values("numeric", outputs[name])
    return found


def _profiles(spec: ModelSpec, values: Mapping[str, Values]) -> tuple[ColumnProfile, ...]:
    inputs = tuple(
        profile_column(feature.name, "input", feature.kind, values[f"input:{feature.name}"])
        for feature in spec.features
    )
    outputs = tuple(
        profile_column(name, "output", "numeric", values[f"output:{name}"])
        for name in spec.outputs
        if f"output:{name}" in values
    )
    return inputs + outputs


def _check(
    spec: ModelSpec,
    inputs: pd.DataFrame,
    outputs: pd.DataFrame | None,
    y: np.ndarray | None,
    times: Sequence[datetime] | None,
) -> None:
    if not len(inputs):
        raise InputError("inputs", "0 rows", "the rows the model was fitted or tested on")
    absent = [name for name in spec.columns if name not in inputs.columns]
    if absent:
        raise InputError("inputs", list(inputs.columns), f"the columns {absent} too")
    for name, part in (("outputs", outputs), ("y", y), ("times", times)):
        if part is not None and len(part) != len(inputs):
            raise InputError(name, f"{len(part)} rows", f"{len(inputs)} rows, as many as inputs")


def _order(
    times: Sequence[datetime] | None,
) -> tuple[np.ndarray | None, datetime | None, datetime | None]:
    """Positions in order of time, first and last time; rows without a time come last."""
    if times is None:
        return None, None, None
    import pandas as pd

    stamps = pd.to_datetime(pd.Series(list(times), dtype=object), utc=True)
    if stamps.isna().all():
        return None, None, None
    order = stamps.reset_index(drop=True).sort_values(kind="stable", na_position="last").index
    return order.to_numpy(), stamps.min().to_pydatetime(), stamps.max().to_pydatetime()


def _expected(
    spec: ModelSpec,
    outputs: pd.DataFrame | None,
    y: np.ndarray | None,
    order: np.ndarray | None,
    *,
    how: str,
    blocks: int,
) -> ExpectedPerformance | None:
    if outputs is None or y is None:
        return None
    y = np.asarray(y, dtype=np.float64)
    losses = {metric: row_loss(spec, outputs, y, metric) for metric in METRICS[spec.task]}
    chosen = losses[spec.metric]
    usable = np.isfinite(chosen)
    values = {metric: aggregate(metric, rows) for metric, rows in losses.items()}
    if not math.isfinite(values[spec.metric]):
        return None
    low, high = metric_interval(spec.metric, chosen)
    return ExpectedPerformance(
        metric=spec.metric,
        value=values[spec.metric],
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        n=int(usable.sum()),
        how=how,
        block_sd=_block_sd(spec.metric, chosen, order, blocks),
        others={metric: value for metric, value in values.items() if math.isfinite(value)},
        auc=_auc(outputs["probability"].to_numpy()[usable], y[usable])
        if spec.task == "binary"
        else None,
    )


def _seconds(times: Sequence[datetime] | None) -> np.ndarray | None:
    """Event times in seconds since 1970, float64, NaN where there is none."""
    if times is None:
        return None
    import pandas as pd

    stamps = pd.to_datetime(pd.Series(list(times), dtype=object), utc=True)
    if stamps.isna().all():
        return None
    since = stamps - pd.Timestamp(0, tz="UTC")
    seconds: np.ndarray = since.dt.total_seconds().to_numpy(np.float64)
    return seconds


def _blocks(seconds: np.ndarray | None, window: timedelta | None) -> int:
    """How many windows the baseline spans: eight to two hundred, sixteen when nobody says."""
    if seconds is None or window is None:
        return _PIECES
    span = float(np.nanmax(seconds) - np.nanmin(seconds))
    return int(min(max(span // window.total_seconds(), _PIECES // 2), 200))


def _block_sd(
    metric: Metric, losses: np.ndarray, order: np.ndarray | None, blocks: int
) -> float | None:
    if order is None:
        return None
    ordered = losses[order]
    ordered = ordered[np.isfinite(ordered)]
    if len(ordered) < blocks * _BLOCK_ROWS:
        return None
    return float(np.std([aggregate(metric, b) for b in np.array_split(ordered, blocks)], ddof=1))


def _auc(score: np.ndarray, y: np.ndarray) -> float | None:
    """Area under the ROC curve by the Mann–Whitney statistic; None with one class only."""
    from scipy.stats import rankdata

    positive = y == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return None
    return float((rankdata(score)[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def reference_sample(
    inputs: pd.DataFrame,
    outputs: pd.DataFrame | None,
    y: np.ndarray | None,
    times: Sequence[datetime] | None,
    *,
    seed: int = 0,
    rows: int = 5000,
) -> pd.DataFrame:
    """At most `rows` of the reference rows, drawn by a seed, in their order.

    Columns: `in:<name>`, `out:<name>`, `y` (float64, NaN where unknown), `time` (UTC, NaT where
    unknown). Written as Parquet beside the baseline.
    """
    import pandas as pd

    n = len(inputs)
    picked = np.arange(n)
    if n > rows:
        picked = np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False))
    columns = {f"in:{name}": inputs[name].iloc[picked].reset_index(drop=True) for name in inputs}
    if outputs is not None:
        for name in outputs:
            columns[f"out:{name}"] = outputs[name].iloc[picked].reset_index(drop=True)
    truth = np.full(n, np.nan) if y is None else np.asarray(y, dtype=np.float64)
    moments = pd.Series(list(times) if times is not None else [pd.NaT] * n, dtype=object)
    columns["y"] = pd.Series(truth[picked])
    stamps = pd.to_datetime(moments.iloc[picked], utc=True).reset_index(drop=True)
    columns["time"] = stamps.astype("datetime64[us, UTC]")
    return pd.DataFrame(columns)


def sorted_reference(baseline: Baseline, reference: pd.DataFrame) -> dict[str, np.ndarray]:
    """The reference sample's numeric columns, each ascending, by `ColumnProfile.key`.

    It depends on the version alone and may be kept between checks.
    """
    found = {}
    for profile in baseline.columns:
        name = f"{'in' if profile.role == 'input' else 'out'}:{profile.column}"
        if is_numeric(profile.kind) and name in reference.columns:
            found[profile.key] = np.sort(read_values(profile.kind, reference[name]).values)
    return found


def reference_of(baseline: Baseline) -> Reference:
    """The calibration made ready for checks; it may be kept between them."""
    return Reference(baseline.columns, baseline.calibration)


def dump(baseline: Baseline) -> bytes:
    """The baseline as JSON."""
    return msgspec.json.encode(baseline)


def load(data: bytes) -> Baseline:
    """The inverse of `dump`.

    Raises:
        InputError: the bytes are no baseline.
    """
    try:
        return msgspec.json.decode(data, type=Baseline)
    except msgspec.MsgspecError as error:
        raise InputError("baseline", str(error), "the JSON that `dump` wrote") from None
