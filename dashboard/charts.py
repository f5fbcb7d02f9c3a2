"""The pictures: a metric with its interval and its versions, drift over time, and a sparkline.

Every chart is a function of a query's answer and a palette. Time is UTC throughout. What data
writes (column names) reaches a chart only as text marks and tooltips, which Vega escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import altair as alt

from dashboard import futures, words
from dashboard.theme import Palette
from dashboard.views import DriftMap, Promotion, Spark
from monitor.figures import ShelfLife

if TYPE_CHECKING:
    import pandas as pd

_STEPS = [0.5, 1.0, 2.0]  # of statistic / threshold: where the drift map's colour changes
_HEIGHT = 320  # of the metric's chart, its axis included, in pixels
_ROW = 24  # of one column of the drift map
_AROUND = 52  # of its time axis


def metric_chart(
    checks: pd.DataFrame,
    promotions: Sequence[Promotion],
    colours: Palette,
    *,
    champion: str,
    metric: str,
    estimates: pd.DataFrame | None = None,
    life: ShelfLife | None = None,
) -> Any:
    """The realised metric per check with its 95 % interval, the baseline's expectation (dashed),
    the tolerance (solid), each promotion as a mark, and the state of each moment on the axis."""
    frame = _worded(checks, champion)
    span = _span(frame["at"].min(), frame["at"].max(), promotions)
    ahead = futures.band(life, span)
    span = [span[0], max([span[1], *ahead["at"]])] if len(ahead) else span
    x = _time("at", span)
    base = alt.Chart(frame)
    tint = alt.Color(
        "serving:N",
        legend=None,
        scale=alt.Scale(domain=["champion", "former"], range=[colours.champion, colours.former]),
    )
    y = alt.Y(
        "value:Q",
        title=words.first_upper(words.metric(metric)),
        scale=alt.Scale(domain=_height(frame), nice=False, zero=False),
        axis=alt.Axis(tickCount=5, format=_digits(frame["high"].max())),
    )
    band = base.mark_area(opacity=0.18, clip=True).encode(
        x=x, y=alt.Y("low:Q"), y2="high:Q", color=tint, detail="segment:N"
    )
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=tint, detail="segment:N")
    steps = {"interpolate": "step-after"}
    expected = base.mark_line(
        strokeDash=[5, 4], strokeWidth=1.5, color=colours.compared, **steps
    ).encode(x=x, y="expected:Q", detail="segment:N")
    tolerated = base.mark_line(strokeWidth=1.5, color=colours.compared, **steps).encode(
        x=x, y="tolerated:Q", detail="segment:N"
    )
    newest = (
        alt.Chart(frame[frame["value"].notna()].tail(1))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x=x, y=y, color=tint)
    )
    hover = base.mark_point(size=160, opacity=0).encode(x=x, y=y, tooltip=_METRIC_TOOLTIP)
    marks = _marks(promotions, span, colours, champion)
    layers = (
        *futures.forecast(ahead, colours, x),
        *futures.estimated(estimates, colours, x),
        band,
        tolerated,
        expected,
        line,
        newest,
        *marks,
        _state_strip(checks, colours, span),
        hover,
    )
    return (
        alt.layer(*layers)
        .resolve_scale(color="independent")
        .properties(height=_HEIGHT)
        .configure_view(strokeWidth=0)
    )


_METRIC_TOOLTIP = [
    alt.Tooltip("when:N", title="check"),
    alt.Tooltip("said:N", title="metric"),
    alt.Tooltip("limits:N", title="expected, tolerated"),
    alt.Tooltip("version:N", title="version"),
    alt.Tooltip("labelled:Q", title="labelled rows", format=","),
    alt.Tooltip("mood:N", title="state"),
]


def _span(first: Any, last: Any, promotions: Sequence[Promotion]) -> list[Any]:
    """From the first check to the last, and from the promotion just before the first."""
    import pandas as pd

    before = [pd.Timestamp(p.at) for p in promotions if pd.Timestamp(p.at) <= first]
    near = before and first - max(before) <= (last - first) / 10
    return [max(before) if near else first, last]


def _worded(checks: pd.DataFrame, champion: str) -> pd.DataFrame:
    """The checks with what the marks and tooltips need, in words."""
    frame = checks.copy()
    frame["serving"] = ["champion" if v == champion else "former" for v in frame["version"]]
    # A version that returns after a rollback is another segment, not a line across the gap.
    frame["segment"] = (frame["version"] != frame["version"].shift()).cumsum()
    frame["when"] = [words.clock(at.to_pydatetime()) for at in frame["at"]]
    frame["said"] = [
        f"{words.number(v)} {words.interval(_some(low), _some(high))}".strip()
        for v, low, high in zip(frame["value"], frame["low"], frame["high"], strict=True)
    ]
    frame["limits"] = [
        f"{words.number(e)}, {words.number(t)}"
        for e, t in zip(frame["expected"], frame["tolerated"], strict=True)
    ]
    frame["mood"] = [words.look(state).label for state in frame["state"]]
    frame["version"] = [f"v{words.clean(v, most=20)}" for v in frame["version"]]
    return frame


def _height(frame: pd.DataFrame) -> list[float]:
    """The metric's axis: what was measured and what it is held to, with room around.

    The interval of the first few labels can be many times as wide; it is cut, so that it does not
    flatten everything after it.
    """
    drawn = frame[["value", "expected", "tolerated"]]
    low, high = drawn.min().min(), drawn.max().max()
    if not low <= high:  # nothing is known
        return [0.0, 1.0]
    room = (high - low) * 0.25 or abs(high) * 0.1 or 1.0
    return [float(low - room), float(high + room)]


def _digits(largest: float) -> str:
    """A d3 format with about three significant digits for numbers up to this one."""
    if not largest >= 1:  # NaN where nothing is known
        return ".3f"
    return ".2f" if largest < 10 else ".1f" if largest < 100 else ",.0f"


def _some(value: float) -> float | None:
    return None if value != value else value


_DATES = alt.Axis(
    grid=False, labelOverlap="greedy", tickCount=6, labelFlush=True, format="%-d %b %y"
)


def _time(field: str, span: Sequence[Any], axis: Any = _DATES) -> Any:
    """A UTC time axis over exactly the span."""
    scale = alt.Scale(type="utc", domain=[moment.isoformat() for moment in span])
    return alt.X(f"{field}:T", title=None, scale=scale, axis=axis)


def _marks(
    promotions: Sequence[Promotion], span: Sequence[Any], colours: Palette, champion: str
) -> list[Any]:
    """Each promotion as a vertical rule with the version's number on top."""
    import pandas as pd

    first, last = span
    inside = [p for p in promotions if first <= pd.Timestamp(p.at) <= last]
    if not inside:
        return []
    frame = pd.DataFrame(
        {
            "at": [pd.Timestamp(p.at) for p in inside],
            "label": [f"v{words.clean(p.version, most=12)}" for p in inside],
            "serving": ["champion" if p.version == champion else "former" for p in inside],
            "how": [f"{p.kind}, by {words.clean(p.by, most=40)}" for p in inside],
            "when": [words.clock(p.at) for p in inside],
        }
    )
    tint = alt.condition(
        "datum.serving == 'champion'", alt.value(colours.champion), alt.value(colours.former)
    )
    base = alt.Chart(frame).encode(
        x=alt.X("at:T"),
        tooltip=[
            alt.Tooltip("label:N", title="became champion"),
            alt.Tooltip("when:N", title="at"),
            alt.Tooltip("how:N", title="how"),
        ],
    )
    rule = base.mark_rule(strokeWidth=1.5, opacity=0.8).encode(color=tint)
    style = {"align": "left", "baseline": "top", "dx": 4, "fontSize": 12, "fontWeight": "bold"}
    text = base.mark_text(**style).encode(y=alt.value(2), text="label:N", color=tint)
    return [rule, text]


def _state_strip(checks: pd.DataFrame, colours: Palette, span: Sequence[Any]) -> Any:
    """One thin bar: the state of every moment, runs of equal states merged."""
    import pandas as pd

    at, states = list(checks["at"]), list(checks["state"])
    starts = [0, *(i for i in range(1, len(at)) if states[i] != states[i - 1]), len(at)]
    rows = []
    for begin, end in pairwise(starts):
        until = at[min(end, len(at) - 1)]
        appearance = words.look(states[begin])
        rows.append(
            {
                "at": at[begin],
                "until": until,
                "mood": appearance.label,
                "colour": colours.states.get(states[begin], colours.former),
                "when": f"{words.day(at[begin])} to {words.day(until)}",
            }
        )
    return (
        alt.Chart(pd.DataFrame(rows))
        # On the time axis, at whatever height the page gives the chart.
        .mark_rect(y=alt.ExprRef(expr="height - 9"), y2=alt.ExprRef(expr="height"))
        .encode(
            x=_time("at", span),
            x2="until:T",
            color=alt.Color("colour:N", scale=None, legend=None),
            tooltip=[alt.Tooltip("mood:N", title="state"), alt.Tooltip("when:N", title="from, to")],
        )
    )


def drift_chart(drift: DriftMap, colours: Palette) -> Any:
    """Columns x time: the strongest statistic of each check against its own threshold."""
    frame = drift.frame.copy()
    frame["name"] = [words.clean(name, most=60) for name in frame["column"]]
    frame["when"] = [words.clock(at.to_pydatetime()) for at in frame["start"]]
    span = [frame["start"].min(), frame["end"].max()]
    return (
        alt.Chart(frame)
        .mark_rect()
        .encode(
            x=_time("start", span),
            x2="end:T",
            y=alt.Y(
                "name:N",
                title=None,
                sort=[words.clean(name, most=60) for name in drift.columns],
                scale=alt.Scale(paddingInner=0.12),
                axis=alt.Axis(labelLimit=190, labelOverlap=False, ticks=False, domain=False),
            ),
            color=alt.Color(
                "ratio:Q",
                scale=alt.Scale(type="threshold", domain=_STEPS, range=list(colours.ramp)),
                legend=None,
            ),
            tooltip=[
                alt.Tooltip("name:N", title="column"),
                alt.Tooltip("when:N", title="check"),
                alt.Tooltip("said:N", title="strongest test"),
                alt.Tooltip("ratio:Q", title="times its line", format=".3~g"),
            ],
        )
        .properties(height=len(drift.columns) * _ROW + _AROUND)
        .configure_view(strokeWidth=0)
    )


def drift_legend(colours: Palette) -> str:
    """What the drift map's colours mean, as a small SVG without data."""
    meanings = ("below half", "below", "over", "over twice its threshold")
    shapes: list[str] = []
    x = 0
    for colour, text in zip(colours.ramp, meanings, strict=True):
        shapes.append(
            f'<rect x="{x}" y="4" width="14" height="14" rx="2" fill="{colour}" '
            f'stroke="{colours.faint}"/>'
            f'<text x="{x + 20}" y="15" fill="{colours.text}" font-size="12" '
            f'font-family="sans-serif">{text}</text>'
        )
        x += 38 + 7 * len(text)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="22">{"".join(shapes)}</svg>'
    )


def sparkline(spark: Spark, colours: Palette, *, width: int = 220, height: int = 40) -> str:
    """The last days as a small SVG: the metric in the champion's colour, the tolerance in grey.

    Only numbers reach the text, so that nothing in it can be markup. Parts without a value are
    bridged: checks may be rarer than parts. Empty where there is no value at all.
    """
    known = [value for value in spark.values if value is not None]
    if not known:
        return ""
    marks = [*known, *([spark.tolerated] if spark.tolerated is not None else [])]
    low, high = min(marks), max(marks)
    room = (high - low) or abs(high) or 1.0
    step = (width - 8) / max(1, len(spark.values) - 1)

    def y(value: float) -> float:
        return round(4 + (height - 8) * (1 - (value - low) / room), 1)

    shapes = []
    if spark.tolerated is not None:
        at = y(spark.tolerated)
        shapes.append(
            f'<line x1="0" x2="{width}" y1="{at}" y2="{at}" stroke="{colours.compared}" '
            'stroke-width="1" stroke-dasharray="3 3"/>'
        )
    points = [(4 + i * step, v) for i, v in enumerate(spark.values)]
    known_points = [(round(x, 1), y(v)) for x, v in points if v is not None]
    path = " ".join(f"{x},{at}" for x, at in known_points)
    shapes.append(
        f'<polyline points="{path}" fill="none" stroke="{colours.champion}" stroke-width="1.8" '
        'stroke-linejoin="round" stroke-linecap="round"/>'
    )
    x, at = known_points[-1]
    over = spark.tolerated is not None and known[-1] > spark.tolerated
    end = colours.states["decaying"] if over else colours.champion
    shapes.append(f'<circle cx="{x}" cy="{at}" r="3.2" fill="{end}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(shapes)}</svg>'
    )
