"""How long a version lasts: what the ledger holds of lives, and old versions asked in shadow.

The I/O around `monitor.lifetimes`. A replaced version is asked again about the rows the champion
answered, a few windows in each tick, so that its life goes on where it can be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import sqlalchemy as sa

from core import schema
from core.errors import ShelflifeError
from core.settings import span
from core.spec import Metric, ModelSpec
from monitor import estimates, lifetimes, outcome
from monitor.check import recorded
from monitor.figures import ShelfLife
from monitor.lateness import late_after
from monitor.lifetimes import Born, Known, LifePoint
from monitor.log.arrivals import arrivals
from monitor.log.records import Rows
from monitor.measure import labels
from monitor.measure.performance import aggregate, row_loss
from monitor.results import CheckResult
from monitor.scores import Rescored
from retrain.probe import Observation
from shelflife.asking import asking
from shelflife.service import Service

if TYPE_CHECKING:
    from monitor.baseline import Baseline
    from monitor.check import Evidence
    from monitor.measure.suspects import Predict
    from registry.versions import Version

_WINDOWS = 8  # newest windows a replaced version is asked about in one tick
_ROWS = 2000  # of a window
_LEAST = 5  # labelled rows of a window that make a point
_SECONDS = 10.0  # of one replaced version's answers in one tick
_LOG = logging.getLogger(__name__)


def complete(
    service: Service,
    version: Version,
    evidence: Evidence,
    history: Sequence[CheckResult],
    *,
    at: datetime,
) -> None:
    """Add to a check's evidence what only the ledger knows: arrivals, the estimates' record, and
    how long the version lasts."""
    model, settings = version.model, service.model(version.model)
    told = recorded(service.ledger, model, at)
    if told is not None:  # by now rows may have been sealed, which forget when they arrived
        evidence.arrivals = told.arrivals
    else:
        since = history[0].at if history else evidence.window_start
        limit = late_after(settings)
        evidence.arrivals = arrivals(service.ledger, model, after=since, until=at, late=limit)
    if not service.foresees:
        return
    metric = outcome.chosen_metric(service.baseline(version)[0].spec, settings)
    evidence.track = estimates.track(service.ledger, model, metric, at=at)
    evidence.shelf_life = forecast(service, version, metric, at=at)


def forecast(
    service: Service, version: Version, metric: Metric, *, at: datetime
) -> ShelfLife | None:
    """The remaining life of a version as it could be told at a moment."""
    settings = service.model(version.model)
    return lifetimes.forecast(known(service, version, metric, at=at), settings, at=at)


def known(service: Service, version: Version, metric: Metric, *, at: datetime) -> Known:
    """What the ledger and the baselines hold of this model's lives at a moment."""
    model = version.model
    points = lifetimes.listed(service.ledger, model, metric=metric, until=at)
    began = _promoted(service, model, at)
    first = next(iter(began), version.version)
    baseline = service.baseline(version)[0]
    born = {version.version: Born(began=baseline.created, expected=_hoped(baseline, metric))}
    for name in {point.version for point in points} | {version.version}:
        one = baseline if name == version.version else _baseline(service, model, name)
        if one is not None:
            born[name] = Born(began=began.get(name, one.created), expected=_hoped(one, metric))
    oldest = _baseline(service, model, first)
    tested = baseline.lives or (oldest.lives if oldest else ())
    return Known(
        version=version.version,
        metric=metric,
        born=born,
        points=tuple(points),
        relative=tuple(_probed(service, model, version.version, metric, at)),
        tested=tested,
    )


def _hoped(baseline: Baseline, metric: Metric) -> float | None:
    return baseline.expected.of(metric) if baseline.expected else None


def _baseline(service: Service, model: str, version: str) -> Baseline | None:
    try:
        return service.baseline(service.registry.get(model, version))[0]
    except ShelflifeError:  # deleted in MLflow, or never ours: its life is not known
        return None


def _promoted(service: Service, model: str, at: datetime) -> dict[str, datetime]:
    """When each version first became champion, the first one first."""
    table = schema.promotions
    query = (
        sa.select(table.c.version, sa.func.min(table.c.at).label("first"))
        .where(table.c.model == model, table.c.at <= at)
        .group_by(table.c.version)
        .order_by(sa.func.min(table.c.at))
    )
    with service.ledger.read() as tx:
        return {row.version: row.first for row in tx.execute(query)}


def _probed(
    service: Service, model: str, version: str, metric: Metric, at: datetime
) -> Iterator[LifePoint]:
    """The version's windows with what a probe says a fresh model would have lost on them."""
    table = schema.observations
    query = sa.select(table.c.detail).where(
        table.c.model == model, table.c.version == version, table.c.at < at
    )
    with service.ledger.read() as tx:
        texts = tx.scalars(query.order_by(table.c.at)).all()
    root = metric == "rmse"
    for text in texts:
        seen = msgspec.json.decode(text, type=Observation)
        if not seen.gains or seen.until is None or seen.loss <= 0:
            continue
        gain = min(max(float(np.mean(list(seen.gains.values()))), 0.0), 0.9 * seen.loss)
        value, fresh = seen.loss, seen.loss - gain
        yield LifePoint(
            version=version,
            start=seen.since or seen.until,
            end=seen.until,
            metric=metric,
            value=value**0.5 if root else value,
            fresh=fresh**0.5 if root else fresh,
            n=seen.rows,
        )


def late(result: CheckResult) -> timedelta | None:
    """How late the labels of a check were, all but the latest; None without any."""
    lag = dict(result.labels.lag) if result.labels else {}
    return timedelta(seconds=max(lag[0.95], 0.0)) if 0.95 in lag else None


def lived(
    service: Service,
    champion: Version,
    result: CheckResult,
    scored: Rescored | None,
    *,
    at: datetime,
) -> list[LifePoint]:
    """The new points of a tick: windows whose labels are due, and old versions asked about them.

    Args:
        scored: the windows that this tick scored, if it did.
    """
    if scored is None or not service.foresees:
        return []
    delay = service.model(champion.model).label_delay
    due = span(delay) if delay else late(result) or timedelta()
    served = lifetimes.served(scored.scores, at=at, late=due, least=_LEAST)
    return [*served, *_shadows(service, champion, served, scored.metric, at)]


def _shadows(
    service: Service,
    champion: Version,
    served: Sequence[LifePoint],
    metric: Metric,
    at: datetime,
) -> Iterator[LifePoint]:
    model, spec = champion.model, service.baseline(champion)[0].spec
    versions = list(reversed(_promoted(service, model, at)))
    if len(versions) < 2:
        return
    points = lifetimes.listed(service.ledger, model, metric=metric, until=at)
    ends = {p.start: p.end for p in (*points, *served)}
    due = lifetimes.due([*points, *served], champion.version, versions)
    rows: dict[datetime, Rows] = {}
    for version, missing in due.items():
        try:
            old = service.registry.get(model, version)
            predict = asking(service, old, spec, _SECONDS)
            for start in sorted(missing, reverse=True)[:_WINDOWS]:
                if start not in rows:
                    rows[start] = service.log.read(
                        model, start=start, end=ends[start], known_at=at,
                        version=champion.version, labelled=True, newest=_ROWS,
                    )  # fmt: skip
                point = _asked(spec, metric, rows[start], predict, version, start, ends[start])
                if point is not None:
                    yield point
        except ShelflifeError as error:
            _LOG.info("v%s of %s cannot be asked in shadow: %s", version, model, error)
        except Exception as error:  # a model's own code may raise anything; it decides nothing here
            _LOG.warning("v%s of %s failed in shadow: %r", version, model, error)


def _asked(
    spec: ModelSpec,
    metric: Metric,
    rows: Rows,
    predict: Predict,
    version: str,
    start: datetime,
    end: datetime,
) -> LifePoint | None:
    """What a replaced version would have scored on the champion's rows, beside what that scored."""
    from core.frames import to_frame

    y, _ = labels.usable(spec, rows.meta)
    usable = np.isfinite(y)
    if usable.sum() < _LEAST or any(name not in rows.inputs for name in spec.columns):
        return None
    columns = {name: rows.inputs[name].to_numpy(dtype=object)[usable] for name in spec.columns}
    outputs = predict(to_frame(spec, columns))
    old = row_loss(spec, outputs, y[usable], metric)
    new = row_loss(spec, rows.outputs[usable], y[usable], metric)
    both = np.isfinite(old) & np.isfinite(new)
    if both.sum() < _LEAST:
        return None
    fresh = aggregate(metric, new[both])
    return LifePoint(
        version=version,
        start=start,
        end=end,
        metric=metric,
        value=aggregate(metric, old[both]),
        n=int(both.sum()),
        fresh=fresh if fresh > 0 else None,
        how="shadow",
    )
