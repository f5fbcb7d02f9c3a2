"""How a window differs from the baseline, column by column.

Effect sizes (`monitor.measure.effects`) say how much, each beside the line that chance would
cross. They never decide: PSI fires far too often on small windows, and one value of a million is
enough for Wasserstein.

The calibrated tests of `monitor.measure.alarms` decide, on counts, at every time scale of the
window; the strongest one of a column is shown as a z value beside its line: `location`, `spread`,
`shape`, `tail`, `missing`, `levels` (categories as a whole) or `level` (a single one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from msgspec import Struct
from scipy import special

from monitor.measure import alarms, effects, pairs, pvalues, tally, thresholds
from monitor.measure.calibration import MOST_CELLS, Reference, Spread
from monitor.measure.profile import ColumnProfile, Values
from monitor.results import ColumnDrift, Statistic

QUARTER = timedelta(days=90)
SHARE = 0.1  # of the budget, for pairs of columns (`monitor.measure.together`)
_MOST_PARTS = 512
MOST_SORTED = 100_000  # rows of a window that Wasserstein and Kolmogorov–Smirnov look at
_NUMBER_NAMES: tuple[str, ...] = ("location", "spread", "shape", "tail", "tail", "missing")
_LEVEL_NAMES: tuple[str, ...] = ("levels", "level", "missing")
DECIDING = (
    "location", "spread", "shape", "tail", "missing", "levels", "level",
    "correlation", "classifier", "evidently_above", "evidently_below",
)  # fmt: skip


class Budget(Struct, frozen=True, kw_only=True):
    """What the alarms may cost and what a check is."""

    false_alarms: float  # a quarter
    every: timedelta  # between checks: the time that one check adds
    window: timedelta  # that a check looks back over
    min_rows: int  # columns with fewer values are not measured


@dataclass(frozen=True)
class Column:
    """What a window knows of one column beside its counts."""

    rows: int
    missing: int
    invalid: int  # values of another type, or infinite
    sample: np.ndarray | None  # ascending values of a numeric column, thinned where they are many


@dataclass(frozen=True)
class Window:
    """The rows of a window as the comparison needs them.

    Attributes:
        counts: per part, oldest first.
        mix: float64 (parts, strata), rows of each part in each stratum.
        columns: by `ColumnProfile.key`; a column that is not there is absent from the window.
    """

    counts: tally.Tally
    mix: np.ndarray
    columns: Mapping[str, Column]
    scores: np.ndarray | None = (
        None  # of `pairs.scored`, newest rows last; None: not to be looked at
    )
    score_parts: np.ndarray | None = None  # intp, the part of each of those rows


def window_of(
    reference: Reference,
    values: Mapping[str, Values],
    ages: np.ndarray,
    seconds: np.ndarray,
    budget: Budget,
) -> Window:
    """A window from its rows.

    Args:
        values: by `ColumnProfile.key`, each of as many rows as `ages`.
        ages: float64 (rows,), seconds from each row's event time to the moment of the check.
        seconds: float64 (rows,), event time in seconds since 1970.
    """
    layout = reference.layout
    length, parts = parts_of(layout, budget)
    # Oldest first; a row of exactly the window's age belongs to the oldest part.
    part = parts - 1 - np.minimum(np.maximum(ages, 0.0) // length.total_seconds(), parts - 1)
    place = part.astype(np.intp)
    known = {p.key: values.get(p.key) or _absent(len(ages)) for p in layout.profiles}
    kinds = reference.stratum(seconds)
    mix = np.bincount(place * reference.kinds + kinds, minlength=parts * reference.kinds)
    numeric = {profile.key for profile in layout.numeric}
    scores = scored_parts = None
    if (related := reference.calibration.pairs) is not None and len(ages):
        step = -(-len(ages) // pairs.MOST_ROWS)
        profiles = reference.named(related.columns)
        scores = pairs.scored(profiles, {p.key: known[p.key] for p in profiles}, step)
        order = np.argsort(place[::step], kind="stable")
        scores, scored_parts = scores[order], place[::step][order]
    return Window(
        counts=tally.tally_blocks(layout, known, place, parts),
        mix=mix.reshape(parts, reference.kinds).astype(np.float64),
        columns={key: column_of(found, key in numeric) for key, found in values.items()},
        scores=scores,
        score_parts=scored_parts,
    )


def column_of(values: Values, numeric: bool) -> Column:
    """A column of rows that are all at hand."""
    sample = None
    if numeric:
        step = max(1, len(values.values) // MOST_SORTED)
        sample = np.sort(values.values[::step])
    return Column(values.rows, values.missing, values.invalid, sample)


class _Verdicts(Struct, frozen=True):
    """Each column's strongest calibrated test, by key, and the error rate of the whole window."""

    strongest: dict[str, Statistic]
    alpha: float


def measure(
    reference: Reference,
    profiles: Sequence[ColumnProfile],
    sample: Mapping[str, np.ndarray],
    window: Window,
    budget: Budget,
) -> tuple[ColumnDrift, ...]:
    """Every column of the window against the baseline; one broken column spoils only itself.

    Args:
        sample: ascending values of the reference sample's numeric columns by `ColumnProfile.key`;
            they may be kept between checks.
    """
    verdicts = _Verdicts({}, 0.05)
    if reference.layout.profiles and window.counts.rows.sum():
        verdicts = _judge(reference, window, budget)
    counts = _per_column(reference.layout, window.counts.total())
    return tuple(
        _measure_column(
            profile,
            reference,
            verdicts,
            sample.get(profile.key),
            window.columns.get(profile.key),
            counts.get(profile.key),
            budget,
        )
        for profile in profiles
    )


def _per_column(layout: tally.Layout, total: tally.Tally) -> dict[str, np.ndarray]:
    found = {
        profile.key: total.numeric[0, index, : len(profile.counts)]
        for index, profile in enumerate(layout.numeric)
    }
    for profile, table in zip(layout.categorical, total.levels, strict=True):
        found[profile.key] = table[0]
    return found


def _judge(reference: Reference, window: Window, budget: Budget) -> _Verdicts:
    layout, rows = reference.layout, float(window.counts.rows.sum())
    length, parts = parts_of(layout, budget)
    scales = alarms.scales_for(parts, rows / parts)
    found = alarms.windows(window.counts, window.mix, scales)
    checks = max(QUARTER / budget.every, 1.0)
    rate = max(length / budget.every, 1.0)  # checks that a part amounts to
    tests = alarms.tests_of(layout)
    allowed = budget.false_alarms * (1 - (SHARE if window.scores is not None else 0.0))
    alphas = [
        alarms.alpha(allowed, checks, max(round(s * rate), 1), len(scales), tests) for s in scales
    ]
    variation = reference.over(
        [(length * s, float(n)) for s, n in zip(scales, found.counts.rows, strict=True)]
    )
    base = alarms.standardised(reference.sums, found.mix)
    looks = alarms.look(layout, found, base, variation, alphas)
    return _Verdicts(_strongest(reference, looks, length), alphas[-1])


def parts_of(layout: tally.Layout, budget: Budget) -> tuple[timedelta, int]:
    """Length and number of the window's parts: one a check, or more where that makes too many."""
    length = min(budget.every, budget.window)
    most = min(_MOST_PARTS, MOST_CELLS // max(len(layout.numeric) * layout.cells, 1))
    while budget.window / length > max(most, 1):
        length *= 2
    return length, max(round(budget.window / length), 1)


def _absent(rows: int) -> Values:
    return Values(np.empty(0), np.zeros(rows, dtype=bool), rows, 0)


def _strongest(
    reference: Reference, looks: alarms.Looks, length: timedelta
) -> dict[str, Statistic]:
    found = {}
    numbers = len(reference.layout.numeric)
    for index, profile in enumerate(reference.layout.ordered):
        if index < numbers:
            tests, names = looks.numbers[:, index], _NUMBER_NAMES
        else:
            tests, names = looks.names[:, index - numbers], _LEVEL_NAMES
        if profile.role == "output":  # rows that nobody was asked about have no output
            tests = tests[:, :-1]
        margin = np.log(np.maximum(tests, 1e-300)) - np.log(looks.alphas)[:, None]
        scale, test = np.unravel_index(int(margin.argmin()), margin.shape)
        p, alpha = float(tests[scale, test]), float(looks.alphas[scale])
        found[profile.key] = Statistic(
            name=names[int(test)],
            value=z_of(p),
            threshold=z_of(alpha),
            alarm=p < alpha,
            over_s=(length * looks.scales[int(scale)]).total_seconds(),
            rows=int(looks.rows[scale]),
        )
    return found


def z_of(p: float) -> float:
    """The two-sided normal quantile of a p-value: 0 for 1, 5.0 for 6e-7, at most 37."""
    return abs(float(special.ndtri(max(p, 1e-300) / 2)))


def _measure_column(
    profile: ColumnProfile,
    reference: Reference,
    verdicts: _Verdicts,
    sample: np.ndarray | None,
    column: Column | None,
    counts: np.ndarray | None,
    budget: Budget,
) -> ColumnDrift:
    """One column; `why` says why it could not be measured."""
    n = 0 if counts is None or column is None else int(counts.sum())
    why = _unmeasurable(profile, column, n, budget.min_rows)
    decided = None if why else verdicts.strongest.get(profile.key)
    statistics: tuple[Statistic, ...] = ()
    if column is not None and counts is not None and not why:
        spread = reference.spread(profile.key, budget.window, n)
        counted = _counted(profile, spread, counts, verdicts.alpha)
        w1 = reference.calibration.w1.get(profile.key)
        ranked = _ranked(profile, spread.loc, w1, sample, column.sample, verdicts.alpha)
        statistics = (*counted[:4], *ranked, *counted[4:])
    return ColumnDrift(
        column=profile.column,
        role=profile.role,
        kind=profile.kind,
        n=n,
        missing_share=0.0 if column is None else column.missing / max(column.rows, 1),
        statistics=(*statistics, decided) if decided else statistics,
        drifted=decided is not None and decided.alarm,
        why=why,
        counts=() if counts is None else tuple(int(count) for count in counts),
    )


def _unmeasurable(profile: ColumnProfile, column: Column | None, n: int, min_rows: int) -> str:
    if profile.why:
        return profile.why
    if column is None:
        return "the window does not have this column"
    if n >= max(min_rows, 1):
        return ""
    if column.invalid:
        return f"{column.invalid:,} of {column.rows:,} values are no {profile.kind} values"
    if n == 0 and column.rows:
        return f"all {column.rows:,} values are missing"
    return f"{n:,} values, fewer than the {min_rows:,} a comparison needs"


def _counted(
    profile: ColumnProfile, spread: Spread, window: np.ndarray, alpha: float
) -> list[Statistic]:
    """Effect sizes from counts per cell."""
    baseline = np.asarray(profile.counts)
    n, m = int(window.sum()), int(baseline.sum())
    filled = int(((window + baseline) > 0).sum())
    phi = spread.loc if profile.numeric else spread.levels
    line = thresholds.psi_line(n, m, filled, alpha, phi)
    found = [
        _judged("psi", effects.psi(window, baseline), line),
        _judged("js", effects.jensen_shannon(window, baseline), thresholds.js_line(line)),
        # Near equality Hellinger's square and the JS divergence are both PSI / 8.
        _judged("hellinger", effects.hellinger(window, baseline), thresholds.js_line(line)),
        _judged("tv", effects.total_variation(window, baseline), None, "shown without a line"),
    ]
    w, r = window.astype(np.float64), baseline.astype(np.float64)
    if profile.numeric:
        cells = pvalues.coarse_cells(r, n)
        w, r = pvalues.folded(w, cells), pvalues.folded(r, cells)
    value, df, variance = pvalues.level_statistic(w, r)
    if df < 1:
        found.append(_unknown("chi2", "all values lie in one cell"))
    else:
        limit = thresholds.chi2_line(int(df), float(variance), alpha, phi)
        found.append(_judged("chi2", float(value), limit))
    return found


def _ranked(
    profile: ColumnProfile,
    phi: float,
    w1: tuple[float, float] | None,
    sample: np.ndarray | None,
    window: np.ndarray | None,
    alpha: float,
) -> list[Statistic]:
    """Wasserstein and Kolmogorov–Smirnov from the rows themselves; numeric columns only."""
    if not profile.numeric or window is None:
        return []
    if sample is None or not len(sample):
        why = "the reference sample has no value in this column"
        return [_unknown("wasserstein", why), _unknown("ks", why)]
    n, m = len(window), len(sample)
    ks, distance = effects.ks_and_wasserstein(sample, window)
    distance = distance / profile.sd if profile.sd else np.nan
    mean, sd = w1 or (None, None)
    limit = thresholds.wasserstein_line(n, m, alpha, mean, sd, phi)
    why = "the baseline is constant" if profile.sd == 0 else "the values are too large for it"
    return [
        _judged("wasserstein", distance, limit)
        if np.isfinite(distance)
        else _unknown("wasserstein", why),
        _judged("ks", ks, thresholds.ks_line(n, m, alpha, phi)),
    ]


def _judged(
    name: str, value: float, threshold: float | None, why: str = "too few rows for a line"
) -> Statistic:
    value = float(value)  # NumPy's scalars are not JSON's
    if threshold is None:
        return Statistic(name=name, value=value, threshold=None, why=why)
    limit = float(threshold)
    return Statistic(name=name, value=value, threshold=limit, alarm=value > limit)


def _unknown(name: str, why: str) -> Statistic:
    return Statistic(name=name, value=None, threshold=None, why=why)
