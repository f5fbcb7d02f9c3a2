"""How things are said: states, numbers, ages and moments, and text from data made harmless.

Numbers have three significant digits and their unit; counts are exact. A missing number is an en
dash, never a zero.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timedelta, tzinfo

from msgspec import Struct

from core.times import spell, utc
from monitor.figures import ShelfLife

MISSING = "–"


class Look(Struct, frozen=True, kw_only=True):
    """A state as people see it: always a shape, a word and a colour."""

    shape: str
    word: str
    colour: str  # a colour name of Streamlit's Markdown
    rank: int  # lower needs a person sooner

    @property
    def label(self) -> str:
        return f"{self.shape} {self.word}"


STATES: dict[str, Look] = {
    "broken_feed": Look(shape="■", word="broken feed", colour="red", rank=0),
    "decaying": Look(shape="▲", word="decaying", colour="orange", rank=1),
    "stale": Look(shape="◷", word="stale", colour="violet", rank=2),
    "drifting": Look(shape="◐", word="drifting", colour="blue", rank=3),
    "insufficient_data": Look(shape="◌", word="insufficient data", colour="gray", rank=4),
    "unchecked": Look(shape="○", word="no check yet", colour="gray", rank=5),
    "healthy": Look(shape="●", word="healthy", colour="green", rank=6),
}

#: Severity or progress of an incident, and the state of a run, in the same three ways. Nothing here
#: is orange or red: those belong to the states above, save a page that is still open.
INCIDENTS: dict[str, Look] = {
    "page": Look(shape="▲", word="page", colour="orange", rank=0),
    "ticket": Look(shape="◆", word="ticket", colour="gray", rank=1),
    "note": Look(shape="·", word="note", colour="gray", rank=2),
    "resolved": Look(shape="✓", word="resolved", colour="green", rank=3),
}
RUNS: dict[str, Look] = {
    "running": Look(shape="▶", word="running", colour="blue", rank=0),
    "waiting": Look(shape="◷", word="waits for approval", colour="violet", rank=1),
    "promoted": Look(shape="✓", word="promoted", colour="green", rank=2),
    "refused": Look(shape="○", word="refused", colour="gray", rank=3),
    "failed": Look(shape="✗", word="failed", colour="gray", rank=4),
    "abandoned": Look(shape="–", word="abandoned", colour="gray", rank=5),
}
METRICS = {"brier": "Brier score", "log_loss": "log loss", "mae": "MAE", "rmse": "RMSE"}


def look(state: str, table: dict[str, Look] = STATES) -> Look:
    """The look of a state; a state of a newer shelflife shows its own name."""
    return table.get(state) or Look(shape="?", word=state.replace("_", " "), colour="gray", rank=4)


def metric(name: str) -> str:
    """`brier` as `Brier score`."""
    return METRICS.get(name, name.replace("_", " ") or "metric")


def number(value: float | None) -> str:
    """Three significant digits: `0.213`, `4.10`, `1,310`; an en dash for None and NaN."""
    if value is None or value != value:
        return MISSING
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    text = f"{value:.3g}"
    return (
        f"{float(text):,.0f}" if "e" in text or abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    )


def count(value: int | None) -> str:
    """`1,312`."""
    return MISSING if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """`0.623` as `62 %`."""
    return MISSING if value is None or value != value else f"{value:.0%}".replace("%", " %")


def interval(low: float | None, high: float | None) -> str:
    """`[0.205, 0.221]`, or nothing where there is none."""
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def age(span: timedelta | float | None) -> str:
    """A duration or a number of seconds as `41 d`, `3 min`."""
    if span is None:
        return MISSING
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    return spell(timedelta(seconds=_round(max(seconds, 0))))


def _round(seconds: float) -> float:
    """Whole units only: an age of 3.27 min is read as 3 min."""
    for unit in (86400.0, 3600.0, 60.0, 1.0):
        if seconds >= unit:
            return seconds // unit * unit
    return 0.0


def life(found: ShelfLife | None) -> str:
    """`6 d [3, 11]`, `over 90 d`, `expired`; empty where nothing can be said."""
    if found is None or found.absolute.why:
        return ""
    forecast = found.absolute
    if forecast.expired:
        return "expired"
    if forecast.median is None:
        return f"over {forecast.beyond:.0f} d" if forecast.beyond else ""
    low = f"{forecast.low:.0f}" if forecast.low is not None else "0"
    high = f"{forecast.high:.0f}" if forecast.high is not None else "…"
    return f"{forecast.median:.0f} d [{low}, {high}]"


def ago(moment: datetime | None, now: datetime) -> str:
    """`3 min ago`; `just now` for what is not older than a second (or is in the future)."""
    if moment is None:
        return "never"
    span = now - moment
    return "just now" if span < timedelta(seconds=1) else f"{age(span)} ago"


def day(moment: datetime, now: datetime | None = None) -> str:
    """`9 Oct`, with the year where it is not this one."""
    moment = utc(moment)
    year = "" if now is not None and moment.year == now.year else f" {moment.year}"
    return f"{moment.day} {moment:%b}{year}"


def clock(moment: datetime, local: tzinfo | None = None, now: datetime | None = None) -> str:
    """`9 Oct, 14:02 UTC`, and the reader's own time where it differs: `(16:02 your time)`."""
    moment = utc(moment)
    text = f"{day(moment, now)}, {moment:%H:%M} UTC"
    if now is not None and moment.date() == now.date():
        text = f"{moment:%H:%M} UTC"
    if local is None or moment.astimezone(local).utcoffset() == timedelta(0):
        return text
    return f"{text} ({moment.astimezone(local):%H:%M} your time)"


def stamp(moment: datetime, now: datetime | None = None) -> str:
    """`9 Oct, 14:02 UTC`: one line of a list."""
    return f"{day(moment, now)}, {utc(moment):%H:%M} UTC"


def clean(text: str, *, most: int = 300) -> str:
    """Text from data on one line: no control or direction marks, cut to a readable length."""
    kept = (" " if c.isspace() else c for c in text)
    line = "".join(c for c in kept if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})
    line = re.sub(r" {2,}", " ", line).strip()
    return line if len(line) <= most else line[: most - 1] + "…"


def lines(text: str, *, most: int = 2000) -> str:
    """Text of several lines for a code block, each made harmless, the whole cut to a length."""
    kept = "\n".join(
        line[: len(line) - len(line.lstrip(" "))] + clean(line, most=200)
        for line in text.splitlines()
    )
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def plain(text: str, *, most: int = 300) -> str:
    """Text from data for a Markdown place: shown as it is, never as markup, link or colour."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=&])", r"\\\1", clean(text, most=most))


def mark(appearance: Look) -> str:
    """A look as a coloured Markdown badge."""
    return f":{appearance.colour}-badge[{appearance.label}]"


def first_upper(text: str) -> str:
    """The sentence with a capital, its other letters untouched."""
    return text[:1].upper() + text[1:]
