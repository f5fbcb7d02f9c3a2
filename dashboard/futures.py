"""What is not known yet on the metric's chart: estimates without labels, the shelf life's band."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import altair as alt

from dashboard import words
from dashboard.theme import Palette
from monitor.figures import ShelfLife

if TYPE_CHECKING:
    import pandas as pd

_AHEAD = 0.35  # of the span that was drawn: how far the forecast reaches at most


def band(life: ShelfLife | None, span: Sequence[Any]) -> pd.DataFrame:
    """The forecast in the metric's unit (`at`, `low`, `middle`, `high`); empty if there is none."""
    import pandas as pd

    names = ["at", "low", "middle", "high"]
    if life is None or life.unit is None or not life.absolute.band:
        return pd.DataFrame(columns=names)
    unit, until = life.unit, span[1] + (span[1] - span[0]) * _AHEAD
    rows = [
        (life.at + timedelta(days=each.days), each.low * unit, each.middle * unit, each.high * unit)
        for each in life.absolute.band
    ]
    frame = pd.DataFrame(rows, columns=names)
    frame["at"] = pd.to_datetime(frame["at"], utc=True)
    kept: pd.DataFrame = frame[(frame["at"] <= until) & (frame["at"] >= span[0])]
    return kept


def forecast(frame: pd.DataFrame, colours: Palette, x: Any) -> list[Any]:
    """The band (80 %) and its middle, dotted."""
    if not len(frame):
        return []
    data = frame.assign(
        said=[
            f"{words.number(m)} {words.interval(low, high)}"
            for m, low, high in zip(frame["middle"], frame["low"], frame["high"], strict=True)
        ],
        when=[words.day(at.to_pydatetime()) for at in frame["at"]],
    )
    base = alt.Chart(data)
    tip = [
        alt.Tooltip("when:N", title="forecast for"),
        alt.Tooltip("said:N", title="80 % of futures"),
    ]
    area = base.mark_area(opacity=0.12, color=colours.champion, clip=True).encode(
        x=x, y="low:Q", y2="high:Q", tooltip=tip
    )
    line = base.mark_line(
        strokeDash=[1, 4], strokeWidth=2, color=colours.champion, clip=True
    ).encode(x=x, y="middle:Q", tooltip=tip)
    return [area, line]


def estimated(frame: pd.DataFrame | None, colours: Palette, x: Any) -> list[Any]:
    """The metric as it is estimated where labels are missing, dashed, with its interval."""
    if frame is None or not len(frame):
        return []
    data = frame.assign(
        said=[
            f"{words.number(v)} {words.interval(low, high)}"
            for v, low, high in zip(frame["value"], frame["low"], frame["high"], strict=True)
        ],
        when=[words.clock(at.to_pydatetime()) for at in frame["at"]],
    )
    base = alt.Chart(data)
    tip = [
        alt.Tooltip("when:N", title="window around"),
        alt.Tooltip("said:N", title="estimated"),
        alt.Tooltip("n:Q", title="rows", format=","),
        alt.Tooltip("method:N", title="by"),
    ]
    area = base.mark_area(opacity=0.1, color=colours.champion, clip=True).encode(
        x=x, y="low:Q", y2="high:Q"
    )
    line = base.mark_line(
        strokeDash=[4, 3], strokeWidth=1.5, color=colours.champion, clip=True
    ).encode(x=x, y="value:Q", tooltip=tip)
    return [area, line]
