"""Column: what changed in it, and how far beyond its lines?"""

from __future__ import annotations

from datetime import datetime

import streamlit as st

from core.errors import InputError, NotFound
from core.times import iso, parse_time
from dashboard import parts, pictures, routes, words
from dashboard.column_query import Bin, ColumnView, chance, strongest
from dashboard.source import Desk
from monitor.measure.drift import DECIDING
from monitor.results import Statistic
from monitor.wording import STATISTICS


@parts.guarded
def show(desk: Desk) -> None:
    model, column = routes.parameter("model"), routes.parameter("name")
    role = routes.parameter("role", ("input", "output"))
    if not model:
        parts.pick_model(desk, "column")
        return
    view = desk.column(model, column, role, _moment()) if column else None
    if view is None:
        _pick(desk, model)
        return
    with parts.rows():
        _head(desk, view)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _distribution(view)
    with right:
        _missing(view)
    _past(view)
    _numbers(view)
    _evidence(desk, view)


def _moment() -> datetime | None:
    asked = routes.parameter("at")
    try:
        return parse_time(asked, field="at") if asked else None
    except InputError:
        raise NotFound("check at", asked, "a moment looks like 2026-10-12T14:00:00Z") from None


def _pick(desk: Desk, model: str) -> None:
    """The page without a column: choose one, the furthest over its line first."""
    latest = desk.model(model, None).latest
    st.header("Which column?", anchor=False)
    parts.go("model", words.plain(model, most=80), name=model)
    if latest is None or not latest.drift:
        st.info("No check has measured columns yet.", icon=":material/hourglass_empty:")
        return
    for column in sorted(latest.drift, key=lambda c: -(strongest(c) or 0.0)):
        with parts.line():
            name = words.plain(column.column, most=80)
            parts.go("column", name, model=model, name=column.column, role=column.role)
            ratio = strongest(column)
            said = f"{words.number(ratio)} × its line" if ratio is not None else "not measured"
            st.markdown(f":gray[{said}]", width="content")


def _head(desk: Desk, view: ColumnView) -> None:
    drift = view.drift
    with parts.line(apart=True):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.header(words.plain(drift.column, most=80), anchor=False, width="content")
            st.markdown(
                words.mark(words.look("drifting"))
                if drift.drifted
                else ":gray-badge[· within its lines]",
                width="content",
            )
        with st.container(width="content"):
            parts.as_of(desk, view.at)
    with parts.line():
        parts.go("model", words.plain(view.model, most=60), name=view.model)
        facts = f"{drift.role}, {drift.kind} · v{words.plain(view.version, most=20)} · n "
        st.caption(facts + f"{words.count(drift.n)} of {words.count(view.rows)} rows")
        parts.mlflow(desk, view.model, view.version, "its baseline in MLflow")
    for issue in view.issues:
        st.markdown(f":gray-badge[data quality] {words.plain(issue.text)}")
    if drift.why:
        st.info(words.plain(words.first_upper(drift.why)), icon=":material/info:")


def _distribution(view: ColumnView) -> None:
    st.subheader("Baseline beside window", anchor=False)
    if not view.bins:
        st.caption(
            "This check is from before counts were kept, or found too few values. The next one "
            "has them."
        )
        return
    numeric = view.profile is not None and view.profile.numeric
    st.altair_chart(
        pictures.distribution(view.bins, parts.colours(), numeric=numeric),
        width="stretch",
        alt="distribution of the column in the baseline and in the window",
    )
    marks = (":gray[╌]", ":primary[━]") if numeric else (":gray[█]", ":primary[█]")
    st.caption(f"{marks[0]} baseline · {marks[1]} window")
    tails = [*view.tails, *_named(pictures.cut(view.bins) if numeric else [])]
    with parts.rows():
        for tail in tails:
            st.markdown(
                f"{words.plain(tail.label)}: {words.share(tail.baseline)} → "
                f"**{words.share(tail.window)}** of the values"
            )


def _named(bins: list[Bin]) -> list[Bin]:
    """The cells that the picture leaves out, in words."""
    return [
        Bin(
            label=f"{words.number(each.low)} to {words.number(each.high)}, not drawn",
            low=each.low,
            high=each.high,
            baseline=each.baseline,
            window=each.window,
        )
        for each in bins
    ]


def _missing(view: ColumnView) -> None:
    st.subheader("Missing", anchor=False)
    before = view.profile.missing_share if view.profile else None
    cells = st.columns(2)
    cells[0].metric("Baseline", words.share(before))
    cells[1].metric("Window", words.share(view.drift.missing_share))
    profile = view.profile
    if profile is not None and profile.numeric and profile.mean is not None:
        st.subheader("Baseline in numbers", anchor=False)
        low, high = profile.usual or (None, None)
        st.markdown(
            f"mean {words.number(profile.mean)} · sd {words.number(profile.sd)} · usual range "
            f"{words.interval(low, high) or words.MISSING} · n {words.count(profile.n)}"
        )
    elif profile is not None and profile.levels:
        st.caption(f"{words.count(profile.distinct)} categories in the baseline")


def _past(view: ColumnView) -> None:
    st.subheader("How it came there", anchor=False)
    if view.past["ratio"].notna().sum() < 2:
        st.caption("Too few checks to draw.")
        return
    st.altair_chart(
        pictures.past(view.past, parts.colours()),
        width="stretch",
        alt="the strongest test of the column over time, as a multiple of its line",
    )
    st.caption("The strongest deciding test of each check; above 1 (dashed) it is beyond its line.")


def _numbers(view: ColumnView) -> None:
    st.subheader("Every number and its line", anchor=False)
    rows = [_number(statistic) for statistic in view.drift.statistics]
    if not rows:
        st.caption("Nothing could be measured.")
        return
    st.dataframe(rows, hide_index=True)
    st.caption(
        "Tests with a chance decide; all columns, tests and time scales together are held to the "
        "false alarms per quarter that the settings tolerate. The others say how much it moved, "
        "beside the line that chance would cross."
    )


def _number(statistic: Statistic) -> dict[str, str]:
    odds = chance(statistic)
    beyond = "◐ beyond" if statistic.alarm else "within"
    unknown = words.clean(statistic.why, most=80) or words.MISSING
    return {
        "number": STATISTICS.get(statistic.name, words.clean(statistic.name, most=40)),
        "value": words.number(statistic.value),
        "line": words.number(statistic.threshold),
        "": beyond if statistic.threshold is not None else unknown,
        "decides": "yes" if statistic.name in DECIDING else "no",
        "over": words.age(statistic.over_s) if statistic.over_s else "the window",
        "rows": words.count(statistic.rows),
        "crossed by chance": f"1 in {words.number(1 / odds)} looks" if odds else words.MISSING,
    }


def _evidence(desk: Desk, view: ColumnView) -> None:
    st.subheader("Evidence", anchor=False)
    parts.asked_report(desk, view.model, f"check:{view.check_id}")
    st.caption("The same check, again and explained:")
    parts.command("check", view.model, "--at", iso(view.at))


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
