"""What is wrong with the data itself, before anybody asks whether it drifted.

A broken feed (a column gone, of another type, missing, stuck, full of unknown categories, or in
another unit) is a page of its own kind and never a reason to retrain. Milder issues are notes.

A share breaks the feed when it exceeds its setting and the lower end of its one-sided interval
(99.99 %, Clopper & Pearson 1934) exceeds half of it, on as many effective rows as the baseline's
own variation leaves: 3 missing of 10 rows break nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from scipy import special

from core.errors import shown
from core.settings import QualitySettings
from core.times import iso, spell
from monitor.measure.calibration import Spread
from monitor.measure.profile import ColumnProfile, Values, cells_of
from monitor.results import QualityIssue

_ERROR = 1e-4  # one-sided error rate of the lower bound
_STUCK = 1e-6  # a column is stuck when chance makes it constant more rarely than this
_NOTABLE = 0.01  # smaller shares are not worth a note
_WIDER = 10.0  # how many times the baseline's range still counts as the same unit


def inspect(
    profiles: Sequence[ColumnProfile],
    spreads: Mapping[str, Spread],
    window: Mapping[str, Values],
    settings: QualitySettings,
    *,
    rows: int,
    min_rows: int,
) -> tuple[QualityIssue, ...]:
    """The issues of all columns, in the columns' order; none when the window has no rows.

    Args:
        spreads: natural variation of each column's window, by `ColumnProfile.key`.
        window: by `ColumnProfile.key`; a column that is not there is absent from the feed.
        min_rows: with fewer rows nothing breaks the feed: issues are notes.
    """
    if not rows:
        return ()
    issues: list[QualityIssue] = []
    for profile in profiles:
        values = window.get(profile.key)
        if values is None:
            text = f"{profile.column} is absent from all {rows:,} rows"
            issues.append(_issue(profile, "absent", None, "the column to be there", text, True))
            continue
        view = _View(profile, values, spreads.get(profile.key, Spread(1.0, 1.0, 1.0)), settings)
        issues += [issue for rule in _RULES if (issue := rule(view)) is not None]
    if rows >= min_rows:
        return tuple(issues)
    return tuple(replace(issue, broken=False) for issue in issues)


def silence(
    *, at: datetime, newest: datetime | None, rows: int, after: timedelta
) -> QualityIssue | None:
    """No data where there used to be some; a model that was never asked is not silent.

    A silence longer than `after` is a page; a window without rows before that is a note.
    """
    if newest is None or (rows and at - newest <= after):
        return None
    quiet = at - newest
    text = f"no prediction for {spell(quiet)}, the newest is of {iso(newest)}"
    return QualityIssue(
        column="",
        kind="no_data",
        value=quiet.total_seconds(),
        expected=f"a prediction every {spell(after)}",
        text=text,
        broken=quiet > after,
    )


class _View(NamedTuple):
    """One column of the window beside its baseline."""

    profile: ColumnProfile
    values: Values
    spread: Spread
    settings: QualitySettings


def _wrong_type(view: _View) -> QualityIssue | None:
    column, rows, bad = view.profile.column, view.values.rows, view.values.invalid
    if not bad:
        return None
    kind, limit = view.profile.kind, view.settings.missing_points
    text = (
        f"{column} holds no {kind} value in {_share(bad, rows)}, such as "
        f"{shown(view.values.example)}"
    )
    broken = _breaks(bad, rows, 0.0, limit, 1.0)
    return _issue(view.profile, "type", bad / rows, f"{kind} values", text, broken)


def _missing(view: _View) -> QualityIssue | None:
    profile, rows, gone = view.profile, view.values.rows, view.values.missing
    usual, limit = profile.missing_share, view.settings.missing_points
    share = gone / rows
    broken = _breaks(gone, rows, usual, limit, view.spread.missing)
    if not broken and not (share - usual >= _NOTABLE and _more_often(view)):
        return None
    text = f"{profile.column} is missing in {_share(gone, rows)} (baseline {_percent(usual)})"
    expected = f"at most {_percent(min(usual + limit, 1.0))} missing"
    return _issue(profile, "missing", share, expected, text, broken)


def _more_often(view: _View) -> bool:
    """Whether values are missing significantly more often than in the baseline.

    The normal approximation of the two-sample test, with Yates's correction, on effective sizes.
    """
    n, m = view.values.rows / view.spread.missing, view.profile.n + view.profile.missing
    share, usual = view.values.missing / view.values.rows, view.profile.missing_share
    pooled = (share * n + usual * m) / (n + m)
    sd = np.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / n + 1 / m))
    return bool(special.ndtr(-(share - usual - 0.5 / n) / sd) < _ERROR)


def _stuck(view: _View) -> QualityIssue | None:
    profile, values = view.profile, view.values.values
    if profile.distinct < 2 or not len(values) or (values != values[0]).any():
        return None
    chance = profile.top_share ** (len(values) / view.spread.levels)
    if chance >= _STUCK:
        return None
    spelled = view.values.spelled()[0]
    only = shown(spelled.item() if isinstance(spelled, np.generic) else spelled)
    text = f"{profile.column} is {only} in all {len(values):,} rows that have a value"
    expected = f"more than one value (the baseline has {profile.distinct:,})"
    return _issue(profile, "constant", 1.0, expected, text, True)


def _unseen(view: _View) -> QualityIssue | None:
    profile, values = view.profile, view.values.values
    if profile.numeric or not profile.complete or profile.why or not len(values):
        return None
    new = cells_of(profile, view.values) == len(profile.levels)
    found, n, limit = int(new.sum()), len(values), view.settings.unseen_share
    broken = _breaks(found, n, 0.0, limit, view.spread.levels)
    if not broken and found / n < _NOTABLE:
        return None
    names = ", ".join(
        shown(level)
        for level in sorted({view.values.names[code] for code in set(values[new].tolist())})[:3]
    )
    text = f"{profile.column} holds categories the baseline never saw in {_share(found, n)}"
    expected = f"one of the baseline's {len(profile.levels):,} categories"
    return _issue(profile, "unseen", found / n, expected, f"{text}, such as {names}", broken)


def _out_of_range(view: _View) -> QualityIssue | None:
    profile, values = view.profile, view.values.values
    if profile.usual is None or not len(values):
        return None
    low, high = profile.usual
    reach = (_WIDER - 1) / 2 * (high - low)
    if not reach > 0 or not np.isfinite(reach):
        return None
    found = int(((values < low - reach) | (values > high + reach)).sum())
    n, limit = len(values), view.settings.out_of_range_share
    broken = _breaks(found, n, 0.0, limit, view.spread.loc)
    if not broken and found / n < _NOTABLE:
        return None
    middle = np.quantile(values, 0.5, method="inverted_cdf")  # the mean of two may overflow
    text = (
        f"{profile.column} is beyond ten times the baseline's usual range of {low:.3g} to "
        f"{high:.3g} in {_share(found, n)}; its median is {middle:.3g}"
    )
    expected = f"{low:.3g} to {high:.3g}, give or take"
    return _issue(profile, "range", found / n, expected, text, broken)


_RULES: tuple[Callable[[_View], QualityIssue | None], ...] = (
    _wrong_type,
    _missing,
    _stuck,
    _unseen,
    _out_of_range,
)


def _breaks(found: int, rows: int, usual: float, limit: float, phi: float) -> bool:
    """Whether a share rose over `usual` by more than `limit`, and surely by half of it."""
    if found / rows - usual <= limit:
        return False
    n = rows / phi
    k = found / phi
    low = float(special.betaincinv(k, n - k + 1, _ERROR)) if k > 0 else 0.0
    return low > usual + limit / 2


def _issue(
    profile: ColumnProfile, kind: str, value: float | None, expected: str, text: str, broken: bool
) -> QualityIssue:
    return QualityIssue(
        column=profile.column, kind=kind, value=value, expected=expected, text=text, broken=broken
    )


def _share(found: int, rows: int) -> str:
    return f"{_percent(found / rows)} of {rows:,} rows"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
