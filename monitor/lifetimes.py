"""The lives of a model's versions, kept point by point, and the forecast a check makes of them.

A point is one event-time window all of whose labels are due: the version's metric on its rows, and
that of a fresh model on the same rows where one is known. The champion's points come from
`monitor.scores`; replaced versions are asked again about the champion's newest windows (`due`,
`shadow_point`), so that their lives go on in shadow. `gather` reads, `record` writes in a tick's
transaction, `forecast` is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings
from monitor.figures import Ahead, Forecast, ShelfLife, Within, Yardstick
from monitor.measure import shelf_life
from monitor.measure.lives import Lives, Path
from monitor.results import WindowScore

HORIZONS = (7.0, 30.0)  # days
YARDSTICKS: tuple[Yardstick, ...] = ("absolute", "relative")
PREDECESSORS = 4  # replaced versions that are still asked in shadow
_CELL = 100  # labelled rows that one point of a forecast should rest on
_POINTS = 60  # most points of a path: longer lives are read in wider steps
_PROVISIONAL = "fewer than three windows have labels; lives back-tested on training rows stand in"
_DAY = 86_400.0


class LifePoint(Struct, frozen=True, kw_only=True):
    """One window of one version's life."""

    version: str
    start: datetime
    end: datetime
    metric: str
    value: float
    n: int
    fresh: float | None = None  # the metric of a fresh model on the same rows
    how: str = "served"  # or shadow


_FIELDS = LifePoint.__struct_fields__


def served(
    scores: Sequence[WindowScore], *, at: datetime, late: timedelta, least: int
) -> tuple[LifePoint, ...]:
    """Points of windows that were served, whose labels are due and which have enough of them."""
    return tuple(
        LifePoint(
            version=score.version,
            start=score.start,
            end=score.end,
            metric=score.metric,
            value=score.value,
            n=score.n,
        )
        for score in scores
        if score.value is not None and score.n >= least and score.end + late <= at
    )


def record(
    tx: sa.Connection, ledger: Ledger, model: str, points: Iterable[LifePoint], *, at: datetime
) -> None:
    """Keep points that are new or have changed (labels may have come since) as of a moment.

    What was known earlier stays, so that a forecast of the past finds what it found then.
    """
    table = schema.life_points
    for point in points:
        mine = (
            (table.c.model == model)
            & (table.c.version == point.version)
            & (table.c.start == point.start)
        )
        query = sa.select(table).where(mine, table.c.at <= at).order_by(table.c.at.desc()).limit(1)
        last = tx.execute(query).first()
        if last is not None:
            point = replace(point, fresh=last.fresh if point.fresh is None else point.fresh)
            if _point(last) == point:
                continue
        values = {name: getattr(point, name) for name in _FIELDS}
        tx.execute(ledger.insert_ignore(table).values(model=model, at=at, **values))


def _point(row: Any) -> LifePoint:
    return LifePoint(**{name: getattr(row, name) for name in _FIELDS})


def listed(
    ledger: Ledger, model: str, *, metric: str | None = None, until: datetime | None = None
) -> list[LifePoint]:
    """Every point as it was known before a moment (now when None), by version and time."""
    table = schema.life_points
    query = sa.select(table).where(table.c.model == model)
    if metric is not None:
        query = query.where(table.c.metric == metric)
    if until is not None:
        query = query.where(table.c.at < until)
    with ledger.read() as tx:
        rows: Sequence[Any] = tx.execute(query.order_by(table.c.at)).all()
    found = {(row.version, row.start): _point(row) for row in rows}
    return [found[key] for key in sorted(found)]


def due(
    points: Sequence[LifePoint], champion: str, versions: Sequence[str]
) -> dict[str, set[datetime]]:
    """By replaced version, the champion's windows it has no point for yet; newest versions first.

    Args:
        versions: replaced versions, the newest first; at most `PREDECESSORS` of them are asked.
    """
    known = {(point.version, point.start) for point in points}
    starts = {point.start for point in points if point.version == champion}
    asked = [version for version in versions if version != champion][:PREDECESSORS]
    found = {v: {start for start in starts if (v, start) not in known} for v in asked}
    return {version: missing for version, missing in found.items() if missing}


class Born(Struct, frozen=True, kw_only=True):
    """What is known of a version besides its points."""

    began: datetime  # when it became champion, or was registered
    expected: float | None  # the metric its baseline promises


class Known(Struct, frozen=True, kw_only=True):
    """Everything a forecast for one version rests on."""

    version: str
    metric: str
    born: Mapping[str, Born]
    points: tuple[LifePoint, ...] = ()
    relative: tuple[LifePoint, ...] = ()  # the version's own points that have a fresh model's value
    tested: tuple[Path, ...] = ()  # back-tested lives of the first training window


def forecast(known: Known, settings: ModelSettings, *, at: datetime) -> ShelfLife | None:
    """The remaining life by both yardsticks; None where the baseline promises nothing."""
    born = known.born.get(known.version)
    if born is None or not born.expected:
        return None
    found: dict[Yardstick, Forecast] = {}
    own = 0
    for yardstick in YARDSTICKS:
        path, others = _lives(known, yardstick, settings)
        tested = tuple(each for each in known.tested if each.yardstick == yardstick)
        lives = Lives.known([*others, *tested], at=at)
        told = shelf_life.forecast(
            path, lives, tolerance=settings.tolerance, horizons=_from_newest(path, at), seed=0
        )
        found[yardstick] = _from_now(told, path, at)
        own = max(own, told.points + sum(each.points for each in others))
    absolute, relative = found["absolute"], found["relative"]
    shown = ShelfLife(
        at=at,
        metric=known.metric,
        absolute=absolute,
        relative=relative,
        unit=born.expected,
        began=born.began,
        provisional="" if own >= 3 else _PROVISIONAL,
    )
    return replace(shown, text=words(shown))


def _lives(known: Known, yardstick: Yardstick, settings: ModelSettings) -> tuple[Path, list[Path]]:
    """The version's own path, and those of all others."""
    paths: dict[str, Path] = {}
    for version, born in known.born.items():
        points = [p for p in known.points if p.version == version]
        if yardstick == "relative":
            own = version == known.version
            points = list(known.relative) if own else [p for p in points if p.fresh is not None]
        bars = [p.fresh if yardstick == "relative" else born.expected for p in points]
        paths[version] = _path(points, bars, born.began, yardstick, settings)
    mine = paths.pop(known.version)
    return mine, [path for path in paths.values() if path.points]


def _path(
    points: Sequence[LifePoint],
    bars: Sequence[float | None],
    began: datetime,
    yardstick: Yardstick,
    settings: ModelSettings,
) -> Path:
    """Ratios by age, neighbouring windows put together until each rests on enough rows."""
    rows = [(p, bar) for p, bar in zip(points, bars, strict=True) if bar and p.end > began]
    if not rows:
        return Path(began=began, yardstick=yardstick)
    total = sum(p.n for p, _ in rows)
    enough = max(_CELL, settings.min_rows, total // _POINTS)
    ages, ratios, counts = [], [], []
    weight, value, since = 0, 0.0, 0
    for index, (point, bar) in enumerate(rows):
        weight += point.n
        value += point.n * point.value / (bar or 1.0)
        if weight >= enough or index == len(rows) - 1:
            if weight >= settings.min_rows or since == 0:
                ages.append((point.end - began).total_seconds() / _DAY)
                ratios.append(value / weight)
                counts.append(weight)
            weight, value, since = 0, 0.0, index + 1
    return Path(
        began=began,
        ages=tuple(ages),
        ratios=tuple(ratios),
        rows=tuple(counts),
        yardstick=yardstick,
    )


def _lag(path: Path, at: datetime) -> float:
    """Days from the newest window's end to the check: labels come late."""
    lived = (at - path.began).total_seconds() / _DAY
    return max(lived - path.ages[-1], 0.0) if path.ages else max(lived, 0.0)


def _from_newest(path: Path, at: datetime) -> tuple[float, ...]:
    lag = _lag(path, at) if path.ages else 0.0
    return tuple(days + lag for days in HORIZONS)


def _from_now(told: Forecast, path: Path, at: datetime) -> Forecast:
    """The forecast with its days counted from the check, not from the newest window's end."""
    lag = _lag(path, at) if path.ages else 0.0

    def less(days: float | None) -> float | None:
        return None if days is None else max(days - lag, 0.0)

    return replace(
        told,
        within=tuple(
            Within(days=days, probability=each.probability, answer=each.answer)
            for days, each in zip(HORIZONS, told.within, strict=False)
        ),
        median=less(told.median),
        low=less(told.low),
        high=less(told.high),
        beyond=less(told.beyond),
        band=tuple(
            Ahead(days=each.days - lag, low=each.low, middle=each.middle, high=each.high)
            for each in told.band
        ),
    )


def words(found: ShelfLife) -> tuple[str, ...]:
    """The forecast in sentences: absolute first, then relative to a fresh model."""
    lines = []
    names = {"absolute": "shelf life", "relative": "against a fresh model"}
    for each in (found.absolute, found.relative):
        lines.append(f"{names[each.yardstick]}: {_told(each)}")
    if found.provisional and any(each.why is None for each in (found.absolute, found.relative)):
        lines.append(f"provisional: {found.provisional}")
    return tuple(lines)


def _told(found: Forecast) -> str:
    if found.expired:
        return (
            f"over: {100 * ((found.level or 1) - 1):+.0f} % in the newest windows, tolerated "
            f"{100 * found.tolerance:+.0f} %"
        )
    if found.why is not None:
        return f"cannot be told: {found.why}"
    answers = ", ".join(
        f"within {each.days:.0f} d {each.answer} (P {each.probability:.2f})"
        for each in found.within
    )
    beyond = f"> {days_of(found.beyond)}" if found.beyond is not None else "long"
    median, low, high = (
        beyond if days is None else days_of(days) for days in (found.median, found.low, found.high)
    )
    return f"ends {answers}; median {median} d, 80 % between {low} and {high} d"


def days_of(days: float) -> str:
    """A number of days for people: whole from ten on."""
    return f"{days:,.0f}" if days >= 10 else f"{days:.2g}"
