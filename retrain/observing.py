"""The live service's side of the probe: thin I/O around `retrain.probe`.

Once a check window the labelled rows that are new since the last observation become the next one.
Rows count when their label arrives, so a late label is in the observation in which it arrives, and
none is counted twice however often one looks. Lessons are not kept: they are learned anew from the
rows of the last observations, which the log still has.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings, span
from core.spec import Metric
from monitor.baseline import Baseline
from monitor.log.records import Rows, SampleLog
from monitor.measure.performance import encode_labels, row_loss
from monitor.measure.sequential import Line, line
from retrain.dataset import input_columns
from retrain.probe import KEPT, Lesson, Observation, Part, Probe, learn, observe, part, probe
from retrain.worth import normal_after_refusal

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 5_000  # of one part that a lesson is learned from, and that it is judged on


#: Lessons by version and moment of the observation whose rows taught them; None: none were left.
Learned = dict[tuple[str, datetime], Lesson | None]


class Normal(Struct, frozen=True, kw_only=True):
    """What counts as normal for the champion now, in losses per row (squared errors for RMSE)."""

    expected: float
    refused_at: datetime | None = None
    fresh: float | None = None  # what the refused candidate lost on its held-out rows


def observations(
    tx: sa.Connection, model: str, version: str, *, since: datetime | None, at: datetime
) -> tuple[Observation, ...]:
    """The version's observations made in (since, at), oldest first."""
    table = schema.observations
    query = sa.select(table.c.detail).where(
        table.c.model == model, table.c.version == version, table.c.at < at
    )
    if since is not None:
        query = query.where(table.c.at > since)
    found = tx.scalars(query.order_by(table.c.at)).all()
    return tuple(msgspec.json.decode(text, type=Observation) for text in found)


def record(tx: sa.Connection, ledger: Ledger, model: str, version: str, seen: Observation) -> None:
    """Keep an observation, in the caller's transaction; one already kept stays as it is."""
    tx.execute(
        ledger.insert_ignore(schema.observations).values(
            model=model,
            version=version,
            at=seen.at,
            rows=seen.rows,
            loss=seen.loss,
            expected=seen.expected,
            detail=msgspec.json.encode(seen).decode(),
        )
    )


def expected_loss(baseline: Baseline, metric: Metric) -> float | None:
    """The expected loss of a row; None where the baseline has none."""
    value = baseline.expected.of(metric) if baseline.expected else None
    return None if value is None else (value**2 if metric == "rmse" else value)


def look(
    ledger: Ledger,
    log: SampleLog,
    baseline: Baseline,
    reference: pd.DataFrame,
    version: str,
    settings: ModelSettings,
    *,
    promoted: datetime | None,
    normal: Normal,
    eager: bool,
    learned: Learned | None = None,
    at: datetime,
) -> Observation | None:
    """The next observation, if one is due; reads, and writes nothing.

    Args:
        learned: lessons of earlier looks, added to; for a replay, whose log keeps nothing back. A
            service learns anew, so that a restart changes nothing.
        normal: see there; `expected` is the baseline's, before any refusal.
        eager: do not wait for a whole window: something else says that the model does harm.
    """
    model, window = baseline.spec.name, span(settings.window)
    with ledger.read() as tx:
        series = observations(tx, model, version, since=promoted, at=at)
    before = series[-1].at if series else promoted
    if before is not None and at - before < window and not eager:
        return None
    new = log.read(
        model, known_at=at, known_after=before, version=version, labelled=True, inputs=False
    )
    if len(new) < settings.min_rows:
        return None
    metric = settings.metric or baseline.spec.metric
    made = probe(baseline.spec, _reference_outputs(baseline, reference), metric)
    first = series[-KEPT].since if len(series) >= KEPT else promoted
    earlier = series[-KEPT:]
    kept = learned is not None and all((version, one.at) in learned for one in earlier)
    start = before if kept else first
    rows = log.read(model, known_at=at, known_after=start, version=version, labelled=True)
    parts = _parts(made, rows, () if kept else earlier, before, at)
    if parts[-1] is None:
        return None
    if learned is not None and kept:
        found = [learned[version, one.at] for one in earlier]
    else:
        found = [None if one is None else learn(made, one) for one in parts[:-1]]
    if learned is not None:
        learned.update(zip(((version, one.at) for one in earlier), found, strict=True))
        learned[version, at] = learn(made, parts[-1])
    lessons = [one for one in found if one is not None]
    expected = normal.expected
    if normal.refused_at is not None:
        past = [seen for seen in series if seen.at <= normal.refused_at]
        expected = normal_after_refusal(past, expected, normal.fresh)
    until = new.meta["time"].max().to_pydatetime()
    started = series[-1].until if series else promoted
    started = started or new.meta["time"].min().to_pydatetime()
    seen = observe(
        made,
        lessons,
        _line(baseline, reference, metric, expected),
        parts[-1],
        at=at,
        windows=max((until - started) / window, 1e-3),
        expected=expected,
    )
    newest = max(until, series[-1].until) if series and series[-1].until else until
    return msgspec.structs.replace(seen, since=before, until=newest)


def _parts(
    made: Probe,
    rows: Rows,
    series: Sequence[Observation],
    before: datetime | None,
    at: datetime,
) -> list[Part | None]:
    """Rows by the observation in whose stretch their label arrived; the newest part last."""
    import pandas as pd

    known, asked = rows.meta["label_time"], rows.meta["time"]
    found: list[Part | None] = []
    for start, end in [*((seen.since, seen.at) for seen in series), (before, at)]:
        # A row of the very moment belongs to the next stretch: whether it was there is luck.
        mine = (known <= pd.Timestamp(end)) & (asked < pd.Timestamp(end))
        if start is not None:
            mine &= known > pd.Timestamp(start)
        found.append(_part(made, rows, np.flatnonzero(mine.to_numpy(bool))))
    return found


def _part(made: Probe, rows: Rows, places: np.ndarray) -> Part | None:
    if len(places) > _MOST_ROWS:  # evenly thinned: the stretch stays what it was
        places = places[np.linspace(0, len(places) - 1, _MOST_ROWS).astype(np.intp)]
    if not len(places):
        return None
    y, _ = encode_labels(made.spec, rows.meta["label"].iloc[places].tolist())
    outputs = rows.outputs.reindex(columns=made.spec.outputs).iloc[places]
    inputs = input_columns(made.spec, rows.inputs.iloc[places])
    found = part(made, inputs, outputs.to_numpy(np.float64), y)
    return found if len(found) else None


def _reference_outputs(baseline: Baseline, reference: pd.DataFrame) -> np.ndarray:
    names = [f"out:{name}" for name in baseline.spec.outputs]
    outputs: np.ndarray = reference.reindex(columns=names).to_numpy(np.float64)
    return outputs


def _line(
    baseline: Baseline, reference: pd.DataFrame, metric: Metric, expected: float
) -> Line | None:
    """The e-detector's line, from the reference rows that have outputs and a label."""
    import pandas as pd

    if "y" not in reference.columns:
        return None
    outputs = pd.DataFrame(_reference_outputs(baseline, reference), columns=baseline.spec.outputs)
    losses = row_loss(baseline.spec, outputs, reference["y"].to_numpy(np.float64), metric)
    losses = losses[np.isfinite(losses)]
    return line(losses, expected=expected) if len(losses) else None
