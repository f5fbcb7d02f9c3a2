"""A backtest's answer as a picture and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import altair as alt

from dashboard import words
from dashboard.history import POINTS
from dashboard.theme import Palette

if TYPE_CHECKING:
    import pandas as pd

_LANE = 22  # pixels of a policy's lane of marks
#: Besides the champion's accent: hues that no state has.
_HUES = ("#0072b2", "#8a94a0", "#cc79a7", "#56b4e9", "#6b5b95", "#3b7a57", "#a8977a")


def picture(found: Mapping[str, Any], colours: Palette, *, metric: str) -> Any:
    """The loss of each window by policy, and a lane of marks for each policy below."""
    frame = _windows(found)
    names = list(found)
    hues = [colours.champion, *_HUES[1:]]
    tint = alt.Color(
        "policy:N", title=None,
        scale=alt.Scale(domain=names, range=[hues[i % len(hues)] for i in range(len(names))]),
        legend=alt.Legend(orient="top", symbolType="stroke", columns=4),
    )  # fmt: skip
    x = alt.X("at:T", title=None, scale=alt.Scale(type="utc"))
    lines = (
        alt.Chart(frame)
        .mark_line(strokeWidth=2)
        .encode(
            x=x.axis(labels=False, ticks=False, grid=False),
            y=alt.Y(
                "loss:Q", title=metric, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)
            ),
            color=tint,
            tooltip=_TIP,
        )
        .properties(height=260)
    )
    marks = (
        alt.Chart(_marks(frame))
        .mark_point(size=70, opacity=1, strokeWidth=2)
        .encode(
            x=x.axis(grid=False, labelOverlap="greedy", tickCount=6, format="%-d %b %y"),
            y=alt.Y(
                "policy:N", title=None, sort=names,
                axis=alt.Axis(ticks=False, domain=False, grid=True),
            ),
            color=tint,
            shape=alt.Shape(
                "kind:N", legend=None,
                scale=alt.Scale(
                    domain=["promoted", "refused", "paged"],
                    range=["circle", "circle", "triangle-up"],
                ),
            ),
            fill=alt.condition("datum.kind != 'refused'", tint, alt.value("transparent")),
            tooltip=[*_TIP, alt.Tooltip("kind:N", title="what")],
        )
        .properties(height=_LANE * len(names) + 30)
    )  # fmt: skip
    return (
        alt.vconcat(lines, marks, spacing=4)
        .resolve_scale(x="shared", color="shared")
        .configure_view(strokeWidth=0)
    )


_TIP = [
    alt.Tooltip("policy:N", title="policy"),
    alt.Tooltip("when:N", title="window until"),
    alt.Tooltip("said:N", title="loss"),
    alt.Tooltip("version:N", title="version"),
    alt.Tooltip("why:N", title="decision"),
]


def _windows(found: Mapping[str, Any]) -> pd.DataFrame:
    """One row a policy and window; of very many windows every so manieth is drawn."""
    import pandas as pd

    rows = []
    total = sum(len(one.get("windows", [])) for one in found.values())
    step = max(1, -(-total // POINTS))
    for name, one in found.items():
        for index, window in enumerate(one.get("windows", [])):
            marked = window.get("promoted") or window.get("rejected") or window.get("alarm")
            if index % step and not marked:
                continue
            rows.append(
                {
                    "policy": words.clean(name, most=30),
                    "at": window.get("end"),
                    "loss": window.get("loss"),
                    "said": words.number(window.get("loss")),
                    "version": f"v{words.clean(str(window.get('version', '')), most=20)}",
                    "why": words.clean(
                        f"{window.get('decision', '')}: {window.get('reason', '')}", most=160
                    ),
                    "promoted": bool(window.get("promoted")),
                    "refused": bool(window.get("rejected")),
                    "paged": bool(window.get("alarm")),
                }
            )
    frame = pd.DataFrame(rows)
    frame["at"] = pd.to_datetime(frame["at"], utc=True, format="ISO8601")
    frame["when"] = [words.stamp(at.to_pydatetime()) for at in frame["at"]]
    frame["loss"] = frame["loss"].astype("float64")
    return frame


def _marks(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    kinds = [frame[frame[kind]].assign(kind=kind) for kind in ("promoted", "refused", "paged")]
    found = pd.concat(kinds)
    if len(found):
        return found
    return frame.head(0).assign(kind=pd.Series(dtype="object"))


def line(name: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """A policy as a row of the table."""
    saved = summary.get("gain_vs_never")
    return {
        "policy": words.clean(name, most=30),
        "mean loss": words.number(summary.get("mean_loss")),
        "saved of never": words.share(saved),
        "fits": words.number(summary.get("fits")),
        "promoted": words.count(summary.get("promotions")),
        "refused": words.count(summary.get("rejected")),
        "rollbacks": words.count(summary.get("rollbacks")),
        "pages": words.count(summary.get("alarms")),
        "cost": words.number(summary.get("cost")),
    }


def cheapest(summaries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The policy of the lowest cost, fits included; of equals the first."""
    known = {name: one["cost"] for name, one in summaries.items() if one.get("cost") is not None}
    return min(known, key=lambda name: known[name]) if known else None
