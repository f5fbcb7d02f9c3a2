"""Was the promotion right? The new champion against its predecessor, on rows it answered itself.

Labels arrive one by one and somebody looks at every tick, so a fixed-sample interval would roll
back a good model sooner or later. `judge` uses an asymptotic confidence sequence, which holds at
all looks at once: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences" (arXiv 2103.06476, one-sided form).
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import ShelflifeError
from core.ledger import Ledger
from core.settings import ModelSettings, span
from core.spec import ModelSpec
from core.times import spell
from monitor.log.records import Rows, SampleLog
from monitor.measure.performance import encode_labels, row_loss
from retrain.dataset import input_columns
from retrain.wording import plural, rounded

if TYPE_CHECKING:
    import pandas as pd

    from registry.versions import Registry

Action = Literal["keep", "rollback", "wait"]
_TUNED_FOR = 500  # rows at which the sequence is tightest


class Judgement(Struct, frozen=True, kw_only=True):
    """What the watch says, and the numbers. `harm` is the champion's loss minus its predecessor's
    on the same rows, per-row mean; below zero the promotion was right."""

    action: Action
    reason: str
    harm: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


def judge(
    champion: np.ndarray, predecessor: np.ndarray, confidence: float, *, min_rows: int = 50
) -> Judgement:
    """Keep, roll back, or wait for more labels. Pure; may be asked after every new label.

    Args:
        champion, predecessor: per-row losses of both on the same rows in order of arrival,
            shape (n,); rows where either is not finite are left out.
        confidence: that a rollback (or a keep) is right over all looks together.
        min_rows: below it the sequence's normal approximation is not trusted.
    """
    difference = champion - predecessor
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if n < min_rows:
        reason = f"only {plural(n, 'labelled row')} since the promotion, {min_rows:,} are needed"
        return Judgement(action="wait", reason=reason, n=n)
    harm, sd = float(difference.mean()), float(difference.std(ddof=1))
    half = sd * _half_width(n, 1 - confidence)
    low, high = harm - half, harm + half
    numbers = f"{rounded(harm, 2)} [{rounded(low, 2)}, {rounded(high, 2)}] a row, n {n:,}"
    action: Action = "wait"
    reason = f"no difference from the predecessor is proven yet: loss {numbers}"
    if low > 0:
        action = "rollback"
        reason = f"the champion loses more than its predecessor would have: {numbers}"
    elif high < 0:
        action = "keep"
        reason = f"the champion loses less than its predecessor would have: {numbers}"
    return Judgement(action=action, reason=reason, harm=harm, low=low, high=high, n=n)


def _half_width(n: int, alpha: float) -> float:
    """Half width of the one-sided sequence at n rows, in standard deviations."""
    spread = -2 * math.log(alpha)
    tuning = (spread + math.log(spread + 1)) / _TUNED_FOR  # rho squared
    inner = n * tuning + 1
    return math.sqrt(2 * inner / (n**2 * tuning) * math.log(1 + math.sqrt(inner) / (2 * alpha)))


class Watched(Struct, frozen=True, kw_only=True):
    """A promotion whose watch is not over."""

    version: str
    predecessor: str
    since: datetime


def watched(
    ledger: Ledger, model: str, champion: str, settings: ModelSettings, *, at: datetime
) -> Watched | None:
    """The promotion that made `champion` what it is, while it is still watched.

    None for a first version, after a rollback, or when the watch is over.
    """
    table = schema.promotions
    query = sa.select(table).where(table.c.model == model, table.c.at <= at)
    with ledger.read() as tx:
        row = tx.execute(query.order_by(table.c.id.desc()).limit(1)).first()
    if row is None or row.version != champion or not row.previous or row.kind == "rollback":
        return None
    if at - row.at > span(settings.retrain.watch):
        return None
    return Watched(version=champion, predecessor=row.previous, since=row.at)


def look(
    registry: Registry,
    log: SampleLog,
    spec: ModelSpec,
    promotion: Watched,
    settings: ModelSettings,
    *,
    at: datetime,
) -> Judgement:
    """Score the rows the champion answered, whose labels are known, by both models, and judge.

    The champion is judged by what it answered, its predecessor by what it answers now. A
    predecessor that cannot be fetched, loaded or asked (its files gone, say) is a reason to wait:
    nothing can be proven with it, and monitoring must go on.
    """
    rows = log.read(
        spec.name,
        start=promotion.since,
        known_at=at,
        roles=("champion",),
        version=promotion.version,
        labelled=True,
    )
    if len(rows) < settings.min_rows:
        none = np.empty(0)
        found = judge(none, none, settings.retrain.gate.confidence, min_rows=settings.min_rows)
        age = spell(at - promotion.since)
        return Judgement(action="wait", reason=f"{found.reason} ({age} on)", n=len(rows))
    try:
        predecessor = _answers(registry, spec, promotion.predecessor, rows, settings)
    except ShelflifeError as error:
        return Judgement(action="wait", reason=f"the two cannot be compared: {error}", n=len(rows))
    y, _ = encode_labels(spec, rows.meta["label"].tolist())
    return judge(
        row_loss(spec, rows.outputs[spec.outputs], y, settings.metric),  # as it answered then
        row_loss(spec, predecessor, y, settings.metric),
        settings.retrain.gate.confidence,
        min_rows=settings.min_rows,
    )


def _answers(
    registry: Registry, spec: ModelSpec, version: str, rows: Rows, settings: ModelSettings
) -> pd.DataFrame:
    from registry.loading import load_estimator, predict

    folder = registry.fetch(registry.get(spec.name, version))
    estimator = load_estimator(folder, trust_pickle=settings.trust_pickle)
    return predict(estimator, spec, input_columns(spec, rows.inputs))
