"""More pictures: a column's distribution and past, a gate's intervals, traffic, and policies.

As in `dashboard.charts`: functions of a query's answer and a palette, time in UTC, text from data
only as marks and tooltips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
from msgspec import Struct

from dashboard import words
from dashboard.charts import _DATES
from dashboard.column_query import Bin
from dashboard.theme import Palette

if TYPE_CHECKING:
    import pandas as pd

_HEIGHT = 260
_WIDE = 0.98  # share of the baseline's values that the axis of a number shows


def distribution(bins: Sequence[Bin], colours: Palette, *, numeric: bool) -> Any:
    """Baseline (dashed, grey) and window (solid) on one axis: steps for numbers, bars for names."""
    return _steps(bins, colours) if numeric else _bars(bins, colours)


def _steps(bins: Sequence[Bin], colours: Palette) -> Any:
    import pandas as pd

    rows = []
    for each in _readable(bins):
        low, high = each.low or 0.0, each.high or 0.0
        width = (high - low) or 1.0
        said = f"{words.number(low)} to {words.number(high)}"
        for series, share in (("baseline", each.baseline), ("window", each.window)):
            rows.append(
                {
                    "low": low, "high": high, "series": series, "density": share / width,
                    "said": said, "share": words.share(share),
                }
            )  # fmt: skip
    frame = pd.DataFrame(rows)
    # A step needs its last edge as a point of its own.
    ends = frame[frame["low"] == frame["low"].max()].assign(low=lambda f: f["high"])
    outline = pd.concat([frame, ends])
    x = alt.X(
        "low:Q", title=None, scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(grid=False)
    )
    y = alt.Y("density:Q", title="share per unit", axis=alt.Axis(format=".2~g", tickCount=4))
    area = (
        alt.Chart(outline[outline["series"] == "window"])
        .mark_area(interpolate="step-after", opacity=0.18, color=colours.champion)
        .encode(x=x, y=y)
    )
    line = (
        alt.Chart(outline)
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(x=x, y=y, **_series(colours))
    )
    hover = (
        alt.Chart(frame)
        .mark_rect(opacity=0)
        .encode(x=x, x2="high:Q", tooltip=["said:N", "series:N", "share:N"])
    )
    return _framed(alt.layer(area, line, hover))


def _readable(bins: Sequence[Bin]) -> list[Bin]:
    """Without the far cells at either end that hold a hundredth of the values and half the axis."""
    kept = list(bins)
    spare = 1 - _WIDE
    while len(kept) > 8:
        total = (kept[-1].high or 0.0) - (kept[0].low or 0.0)
        first, last = kept[0], kept[-1]
        if _stretches(last, total) and max(last.baseline, last.window) < spare * 3:
            kept.pop()
        elif _stretches(first, total) and max(first.baseline, first.window) < spare * 3:
            kept.pop(0)
        else:
            break
    return kept


def _stretches(each: Bin, total: float) -> bool:
    return (each.high or 0.0) - (each.low or 0.0) > total / 3


def cut(bins: Sequence[Bin]) -> list[Bin]:
    """The cells that the picture leaves out, so that a text can name them."""
    shown = {(each.low, each.high) for each in _readable(bins)}
    return [each for each in bins if (each.low, each.high) not in shown]


def _series(colours: Palette) -> dict[str, Any]:
    both = ["baseline", "window"]
    return {
        "color": alt.Color(
            "series:N", legend=None,
            scale=alt.Scale(domain=both, range=[colours.compared, colours.champion]),
        ),
        "strokeDash": alt.StrokeDash(
            "series:N", legend=None, scale=alt.Scale(domain=both, range=[[5, 4], [1, 0]])
        ),
    }  # fmt: skip


def _bars(bins: Sequence[Bin], colours: Palette) -> Any:
    import pandas as pd

    rows = [
        {"name": words.clean(each.label, most=40), "series": series, "share": share,
         "said": words.share(share)}
        for each in bins
        for series, share in (("baseline", each.baseline), ("window", each.window))
    ]  # fmt: skip
    y = alt.Y(
        "name:N", title=None, sort=[words.clean(each.label, most=40) for each in bins],
        axis=alt.Axis(labelLimit=220, ticks=False, domain=False),
    )  # fmt: skip
    picture = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar()
        .encode(
            y=y,
            yOffset=alt.YOffset("series:N", sort=["baseline", "window"]),
            x=alt.X("share:Q", title="share of values", axis=alt.Axis(format=".0%", tickCount=5)),
            color=_series(colours)["color"],
            tooltip=["name:N", "series:N", "said:N"],
        )
    )
    return _framed(picture, height=max(120, 30 * len(bins) + 40))


def past(frame: pd.DataFrame, colours: Palette) -> Any:
    """The strongest deciding test of each check as a multiple of its line, which is at 1."""
    import pandas as pd

    data = frame[frame["ratio"].notna()].copy()
    data["when"] = [words.clock(at.to_pydatetime()) for at in data["at"]]
    x = alt.X("at:T", title=None, scale=alt.Scale(type="utc"), axis=_DATES)
    y = alt.Y(
        "ratio:Q", title="times its line",
        scale=alt.Scale(domain=[0, max(2.0, float(data["ratio"].max()) * 1.05)]),
        axis=alt.Axis(tickCount=4),
    )  # fmt: skip
    tip = [
        alt.Tooltip("when:N", title="check"),
        alt.Tooltip("ratio:Q", title="times its line", format=".3~g"),
        alt.Tooltip("psi:Q", title="PSI", format=".3~g"),
        alt.Tooltip("n:Q", title="n", format=","),
    ]
    line = alt.Chart(data).mark_line(strokeWidth=2, color=colours.champion).encode(x=x, y=y)
    points = alt.Chart(data).mark_point(size=120, opacity=0).encode(x=x, y=y, tooltip=tip)
    rule = (
        alt.Chart(pd.DataFrame({"ratio": [1.0]}))
        .mark_rule(color=colours.compared, strokeDash=[5, 4])
        .encode(y="ratio:Q")
    )
    return _framed(alt.layer(rule, line, points), height=200)


class Interval(Struct, frozen=True, kw_only=True):
    """One row of a forest plot."""

    name: str
    gain: float
    low: float | None
    high: float | None
    n: int
    whole: bool = False  # of all rows, not of a segment


def forest(rows: Sequence[Interval], colours: Palette, *, unit: str) -> Any:
    """Differences with their intervals, one a row, the zero line drawn."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "name": [words.clean(row.name, most=60) for row in rows],
            "gain": [row.gain for row in rows],
            "low": [row.gain if row.low is None else row.low for row in rows],
            "high": [row.gain if row.high is None else row.high for row in rows],
            "n": [row.n for row in rows],
            "said": [
                f"{words.number(row.gain)} {words.interval(row.low, row.high)}" for row in rows
            ],
            "whole": [row.whole for row in rows],
        }
    )
    y = alt.Y(
        "name:N", title=None, sort=list(frame["name"]),
        axis=alt.Axis(labelLimit=240, ticks=False, domain=False),
    )  # fmt: skip
    x = alt.X(
        "low:Q", title=f"{unit}: champion − challenger (right of 0: the challenger is better)",
        axis=alt.Axis(tickCount=6),
    )  # fmt: skip
    tint = alt.condition(
        "datum.whole", alt.value(colours.champion), alt.value(colours.former)
    )  # fmt: skip
    tip = [
        alt.Tooltip("name:N", title="on"),
        alt.Tooltip("said:N", title="gain"),
        alt.Tooltip("n:Q", title="n", format=","),
    ]
    base = alt.Chart(frame)
    bars = base.mark_rule(strokeWidth=3).encode(y=y, x=x, x2="high:Q", color=tint, tooltip=tip)
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=y, x="gain:Q", color=tint, tooltip=tip
    )
    zero = (
        alt.Chart(pd.DataFrame({"zero": [0.0]}))
        .mark_rule(color=colours.text, strokeWidth=1)
        .encode(x="zero:Q")
    )
    return _framed(alt.layer(zero, bars, dots), height=max(130, 34 * len(rows) + 70))


def traffic(frame: pd.DataFrame, colours: Palette, *, champion: str, by_day: bool) -> Any:
    """Requests an hour (or day) by version, stacked: the champion in its colour, others in grey."""
    data = _stamped(frame)
    versions = sorted(set(data["version"]), key=lambda v: (v == champion, v))
    greys = [colours.former, colours.compared, colours.faint]
    tints = [
        colours.champion if v in (champion, "all") else greys[i % 3]
        for i, v in enumerate(reversed(versions))
    ][::-1]
    title = "requests a day" if by_day else "requests an hour"
    picture = (
        alt.Chart(data)
        .mark_bar(size=max(2, min(24, 700 // max(1, data["at"].nunique()))))
        .encode(
            x=alt.X("at:T", title=None, scale=alt.Scale(type="utc"), axis=_DATES_AND_HOURS),
            y=alt.Y("requests:Q", title=title, axis=alt.Axis(tickCount=4, format="~s")),
            color=alt.Color(
                "version:N", legend=None, scale=alt.Scale(domain=versions, range=tints)
            ),
            tooltip=_TRAFFIC_TIP,
        )
    )
    return _framed(picture, height=220)


def latency(frame: pd.DataFrame, colours: Palette) -> Any:
    """p50 and p99 in milliseconds, on a logarithmic axis."""
    import pandas as pd

    data = _stamped(frame)
    long = pd.concat(
        [data.assign(quantile=name, ms=data[name].astype("float64")) for name in ("p50", "p99")]
    )
    long["series"] = long["version"] + long["quantile"]
    picture = (
        alt.Chart(long)
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28, filled=True))
        .encode(
            x=alt.X("at:T", title=None, scale=alt.Scale(type="utc"), axis=_DATES_AND_HOURS),
            y=alt.Y(
                "ms:Q", title="ms", scale=alt.Scale(type="log", nice=True),
                axis=alt.Axis(tickCount=3, format="~g", grid=False),
            ),
            color=alt.Color(
                "quantile:N", legend=None,
                scale=alt.Scale(domain=["p50", "p99"], range=[colours.compared, colours.champion]),
            ),
            detail="series:N",
            tooltip=_TRAFFIC_TIP,
        )
    )  # fmt: skip
    return _framed(picture, height=200)


_DATES_AND_HOURS = alt.Axis(
    grid=False, labelOverlap="greedy", tickCount=6, labelFlush=True, format="%-d %b %H:%M"
)
_TRAFFIC_TIP = [
    alt.Tooltip("when:N", title="from"),
    alt.Tooltip("version:N", title="version"),
    alt.Tooltip("requests:Q", title="requests", format=","),
    alt.Tooltip("p50:Q", title="p50, ms", format=".3~g"),
    alt.Tooltip("p99:Q", title="p99, ms", format=".3~g"),
    alt.Tooltip("batch:Q", title="rows a batch", format=".3~g"),
]


def _stamped(frame: pd.DataFrame) -> pd.DataFrame:
    data = frame.copy()
    data["when"] = [words.clock(at.to_pydatetime()) for at in data["at"]]
    data["batch"] = data["rows"] / data["batches"].clip(lower=1)
    data["version"] = [words.clean(v, most=20) for v in data["version"]]
    return data


def _framed(picture: Any, height: int = _HEIGHT) -> Any:
    return picture.properties(height=height).configure_view(strokeWidth=0)
