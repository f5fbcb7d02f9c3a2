"""One column: the baseline beside a check's window, and how it came there."""

from __future__ import annotations

from datetime import datetime
from math import erfc, sqrt
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import NotFound
from core.ledger import Ledger
from dashboard.queries import check_result
from monitor import profiles
from monitor.measure.drift import DECIDING
from monitor.measure.profile import ColumnProfile
from monitor.results import ColumnDrift, QualityIssue, Statistic

if TYPE_CHECKING:
    import pandas as pd

_LEVELS = 15  # categories drawn one by one
_CHECKS = 240  # checks the column's past is drawn from


class Bin(Struct, frozen=True, kw_only=True):
    """A cell of the baseline: its values, and their share in both."""

    label: str
    low: float | None  # numeric: open ends are None
    high: float | None
    baseline: float  # share of the values
    window: float


class ColumnView(Struct, frozen=True, kw_only=True):
    """What the column page shows.

    Attributes:
        bins: the inner cells of a number or the most frequent categories; empty where the check
            is from before counts were kept.
        tails: what lies below and above the baseline's range, or in all other categories.
        past: one row a check: `at`, `ratio` (strongest deciding test / its line), `psi`, `missing`.
    """

    model: str
    check_id: int
    at: datetime
    version: str
    rows: int
    drift: ColumnDrift
    profile: ColumnProfile | None
    bins: tuple[Bin, ...]
    tails: tuple[Bin, ...]
    issues: tuple[QualityIssue, ...]
    past: pd.DataFrame
    others: tuple[tuple[str, str], ...]  # (role, column) of every column of the check


class _Past(msgspec.Struct):
    drift: tuple[ColumnDrift, ...]


def column_view(
    ledger: Ledger, model: str, column: str, role: str, at: datetime | None
) -> ColumnView:
    """A column as of a check: the newest one, or the last at or before `at`.

    Raises:
        NotFound: no such check, or it has no such column.
    """
    table = schema.checks
    query = sa.select(table).where(table.c.model == model).order_by(table.c.at.desc()).limit(1)
    with ledger.read() as tx:
        row = tx.execute(query if at is None else query.where(table.c.at <= at)).first()
        result = check_result(row.result) if row else None
        if row is None or result is None:
            raise NotFound("check of", model, "the fleet page lists models and their checks")
        found = {(c.role, c.column): c for c in result.drift}
        if not role:
            role = next((r for r, name in found if name == column), "input")
        drift = found.get((role, column))  # type: ignore[arg-type]
        if drift is None:
            raise NotFound("column", column, f"{model} is checked for {len(found)} other columns")
        known = profiles.load(tx, model, row.version)
        past = _past(tx, model, row.at, column, role)
    profile = next((p for p in known if (p.role, p.column) == (role, column)), None)
    bins, tails = cells(profile, drift)
    return ColumnView(
        model=model,
        check_id=row.id,
        at=row.at,
        version=row.version,
        rows=row.rows,
        drift=drift,
        profile=profile,
        bins=bins,
        tails=tails,
        issues=tuple(issue for issue in result.quality if issue.column == column),
        past=past,
        others=tuple(found),
    )


def cells(
    profile: ColumnProfile | None, drift: ColumnDrift
) -> tuple[tuple[Bin, ...], tuple[Bin, ...]]:
    """The cells of both, and what lies outside them; empty where one of them is not known."""
    if profile is None or not drift.counts or len(drift.counts) != len(profile.counts):
        return (), ()
    before, now = sum(profile.counts) or 1, sum(drift.counts) or 1
    shares = [
        (b / before, w / now) for b, w in zip(profile.counts, drift.counts, strict=True)
    ]  # fmt: skip
    return _numbers(profile, shares) if profile.numeric else _levels(profile, shares)


def _numbers(
    profile: ColumnProfile, shares: list[tuple[float, float]]
) -> tuple[tuple[Bin, ...], tuple[Bin, ...]]:
    edges = profile.edges
    found = [
        Bin(label="", low=edges[i], high=edges[i + 1], baseline=b, window=w)
        for i, (b, w) in enumerate(shares[1:-1])
        if i + 1 < len(edges)
    ]
    if not edges:
        return (), ()
    below = Bin(
        label="below the baseline's range", low=None, high=edges[0],
        baseline=shares[0][0], window=shares[0][1],
    )  # fmt: skip
    above = Bin(
        label="above the baseline's range", low=edges[-1], high=None,
        baseline=shares[-1][0], window=shares[-1][1],
    )  # fmt: skip
    return tuple(found), (below, above)


def _levels(
    profile: ColumnProfile, shares: list[tuple[float, float]]
) -> tuple[tuple[Bin, ...], tuple[Bin, ...]]:
    named = [
        Bin(label=level, low=None, high=None, baseline=b, window=w)
        for level, (b, w) in zip(profile.levels, shares, strict=False)
    ]
    ordered = sorted(named, key=lambda each: -max(each.baseline, each.window))
    shown, folded = ordered[:_LEVELS], ordered[_LEVELS:]
    tails = []
    if folded:
        tails.append(
            Bin(
                label=f"{len(folded)} rarer categories", low=None, high=None,
                baseline=sum(each.baseline for each in folded),
                window=sum(each.window for each in folded),
            )
        )  # fmt: skip
    rest = shares[len(profile.levels) :]
    if rest:
        what = "never seen in the baseline" if profile.complete else "all others"
        tails.append(
            Bin(
                label=what, low=None, high=None,
                baseline=sum(b for b, _ in rest), window=sum(w for _, w in rest),
            )
        )  # fmt: skip
    return tuple(shown), tuple(tails)


def _past(tx: sa.Connection, model: str, until: datetime, column: str, role: str) -> pd.DataFrame:
    import pandas as pd

    table = schema.checks
    moments = sa.select(table.c.at).where(table.c.model == model, table.c.at <= until)
    every = list(tx.scalars(moments.order_by(table.c.at.desc())))
    step = max(1, -(-len(every) // _CHECKS))
    wanted = every[::step]
    query = sa.select(table.c.at, table.c.result).where(
        table.c.model == model, table.c.at.in_(wanted)
    )
    rows = []
    for at, text in tx.execute(query.order_by(table.c.at)):
        try:
            found = msgspec.json.decode(text, type=_Past).drift
        except msgspec.MsgspecError:
            continue
        mine = next((c for c in found if (c.role, c.column) == (role, column)), None)
        if mine is not None:
            rows.append((at, strongest(mine), _value(mine, "psi"), mine.missing_share, mine.n))
    frame = pd.DataFrame(rows, columns=["at", "ratio", "psi", "missing", "n"])
    frame["at"] = pd.to_datetime(frame["at"], utc=True)
    for name in ("ratio", "psi", "missing"):
        frame[name] = frame[name].astype("float64")
    return frame


def strongest(drift: ColumnDrift) -> float | None:
    """The deciding test's value as a multiple of its line; None where nothing was tested."""
    tests = [
        s.value / s.threshold
        for s in drift.statistics
        if s.name in DECIDING and s.value is not None and s.threshold
    ]
    return max(tests, default=None)


def _value(drift: ColumnDrift, name: str) -> float | None:
    return next((s.value for s in drift.statistics if s.name == name), None)


def chance(statistic: Statistic) -> float | None:
    """How often a deciding test crosses its line where nothing changed, per look; else None."""
    if statistic.name not in DECIDING or not statistic.threshold:
        return None
    return erfc(statistic.threshold / sqrt(2))
