"""Findings of things that are late or near their end: rows, labels, the monitor itself, the model.

Each is a finding of its own, so that nobody looks for a dead feed when rows merely come late, or
for a dead model when it was the monitor that slept. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np

from core.settings import ModelSettings, span
from core.times import iso, spell
from monitor.figures import Arrivals, Forecast, ShelfLife
from monitor.results import CheckResult, Finding, Staleness

SOON = 7.0  # days: a life that ends within them, probably, is a ticket
_STAYS = 0.5  # probability under which an open ticket of it is closed
_MOST = 0.5  # share of the arrived rows that has to be late
_GAPS = 3  # usual distances between checks without one
_WINDOWS = 2  # check windows without a label


def late_after(settings: ModelSettings) -> timedelta:
    """The delay beyond which a row is late: by default it misses every check's window."""
    return span(settings.late_data_after or settings.window)


def no_labels_after(settings: ModelSettings) -> timedelta:
    """The silence of labels that is a finding: two windows and the label delay by default."""
    if settings.no_labels_after:
        return span(settings.no_labels_after)
    delay = span(settings.label_delay) if settings.label_delay else timedelta()
    return _WINDOWS * span(settings.window) + delay


def arriving(found: Arrivals | None, settings: ModelSettings) -> bool:
    """Whether rows do arrive, and most of them late."""
    if found is None or found.rows < settings.min_rows:
        return False
    return found.late > _MOST


def data(
    found: Arrivals | None, newest: datetime | None, at: datetime, settings: ModelSettings
) -> list[Finding]:
    """Rows that arrive after the windows they belong to: no check judges them."""
    if found is None or found.delay is None or not arriving(found, settings):
        return []
    limit = late_after(settings)
    title = (
        f"rows arrive {spell(timedelta(seconds=found.delay))} after they were asked (median of "
        f"{found.rows:,})"
    )
    text = (
        f"{title}; {100 * found.late:.0f} % of them later than {spell(limit)}, too late for any "
        f"check's window"
    )
    if newest is not None:
        text += f"; the newest row is of {iso(newest)}"
    silent = newest is None or at - newest > span(settings.window)
    severity = "page" if silent else "ticket"
    return [Finding(cause="late_data", severity=severity, title=title, text=text, since=at)]  # type: ignore[arg-type]


def labels(ages: Staleness, at: datetime, settings: ModelSettings) -> list[Finding]:
    """Labels that used to come and stopped, while there are predictions to be labelled."""
    limit = no_labels_after(settings)
    if ages.label is None or ages.prediction is None or ages.label <= limit.total_seconds():
        return []
    if ages.prediction > ages.label:  # nothing has been asked since: no label is due
        return []
    quiet = timedelta(seconds=ages.label)
    title = f"no label for {spell(quiet)}, expected within {spell(limit)}"
    text = f"{title}; until labels come again, decay cannot be seen, only estimated"
    since = at - quiet + limit
    return [Finding(cause="late_labels", severity="ticket", title=title, text=text, since=since)]


def monitor(history: Sequence[CheckResult], at: datetime, settings: ModelSettings) -> list[Finding]:
    """A gap in the monitor's own checks, told by the first check after it."""
    moments = [check.at for check in history]
    if len(moments) < _GAPS:
        return []
    steps = [(a - b).total_seconds() for a, b in itertools.pairwise(moments)]
    usual = max(float(np.median(steps)), span(settings.check_every).total_seconds())
    gap = (at - moments[0]).total_seconds()
    if gap <= _GAPS * usual:
        return []
    title = f"nobody watched for {spell(timedelta(seconds=gap))}: no check since {iso(moments[0])}"
    text = f"{title}, expected every {spell(timedelta(seconds=usual))}; `shelflife doctor` says why"
    return [Finding(cause="unwatched", severity="ticket", title=title, text=text, since=moments[0])]


def shelf_life(
    found: ShelfLife | None, version: str, earlier: Finding | None, at: datetime
) -> list[Finding]:
    """A life that will probably end within a week, by the yardstick that says it surest.

    Not told while it rests on back-tested lives alone, nor of a life that is over: that is decay,
    or a season, and labels tell.
    """
    if found is None or found.provisional:
        return []
    told = [(_soon(each), each) for each in (found.absolute, found.relative)]
    chance, surest = max(told, key=lambda pair: pair[0])
    opens = chance > 0.8
    if not opens and not (earlier is not None and chance > _STAYS):
        return []
    title = f"v{version}'s shelf life ends soon: within {SOON:.0f} d with P {chance:.2f}"
    if surest.median is not None:
        title += f", median {surest.median:,.0f} d"
    against = "what a fresh model would lose" if surest.yardstick == "relative" else "its baseline"
    text = f"{title}; its loss against {against} nears {1 + surest.tolerance:.3g} x"
    since = earlier.since if earlier is not None and earlier.since else at
    return [
        Finding(
            cause="shelf_life",
            severity="ticket",
            title=title,
            text=". ".join([text, *found.text]),
            since=since,
            clearing=not opens,
        )
    ]


def _soon(found: Forecast) -> float:
    if found.expired or found.why is not None:
        return 0.0
    return max((each.probability for each in found.within if each.days <= SOON), default=0.0)
