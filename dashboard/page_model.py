"""Model: how is it doing, and why?"""

from __future__ import annotations

from datetime import datetime, timedelta

import streamlit as st

from dashboard import acting, charts, parts, routes, tables, words
from dashboard.source import Desk
from dashboard.views import Decision, Event, ModelRow, ModelView
from monitor.figure_words import estimate_lines, proof_line, shelf_life_lines

_RANGES = {"30d": "30 days", "90d": "90 days", "365d": "1 year", "all": "all"}
_EVENTS = 12  # shown at once; the rest is folded


@parts.guarded
def show(desk: Desk) -> None:
    name = routes.parameter("name")
    if not name:
        parts.pick_model(desk, "model")
        return
    span = routes.parameter("range", tuple(_RANGES)) or "all"
    days = None if span == "all" else timedelta(days=int(span.removesuffix("d")))
    # Rounded to the minute, so that the answer is found again in the cache.
    start = None if days is None else desk.now.replace(second=0, microsecond=0) - days
    view = desk.model(name, start)
    with parts.rows():
        _head(desk, view)
    if view.row.checked is None:
        _unchecked()
        return
    if view.row.overdue and view.row.every:
        parts.overdue("This model has", view.row.checked, view.row.every, desk.now)
    _numbers(desk, view)
    _carried(view)
    _metric(view)
    _life(view)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _drift(view)
    with right:
        _retraining(desk, view)
    _happened(desk, view)
    tables.columns(view)
    tables.serving(view, desk.now)


def _head(desk: Desk, view: ModelView) -> None:
    row = view.row
    with parts.line(apart=True):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.header(words.plain(row.model, most=80), anchor=False, width="content")
            st.markdown(words.mark(words.look(row.state)), width="content")
        with st.container(width="content"):
            parts.as_of(desk, row.checked)
    facts = []
    if row.version and row.champion_since:
        since = words.day(row.champion_since, desk.now)
        served = words.age(desk.now - row.champion_since)
        facts.append(f"v{words.plain(row.version, most=20)} champion since {since} ({served})")
    elif row.version:
        facts.append(f"v{words.plain(row.version, most=20)}")
    if row.since is not None:
        held = words.age(desk.now - row.since)
        facts.append(
            f"{words.look(row.state).word} since {words.day(row.since, desk.now)} ({held})"
        )
    with parts.line():
        st.markdown(" · ".join(facts) or "no champion yet", width="content")
        parts.mlflow(desk, row.model, row.version, f"MLflow v{words.plain(row.version, most=20)}")
    if row.reason:
        st.markdown(words.plain(row.reason, most=600))
    with parts.line():
        parts.incident_and_run(row)
        parts.go("serving", "Serving", model=row.model)
        if view.runs:
            parts.go("compare", "Compare", model=row.model)
    with parts.line():
        for action in ("check", "retrain", "rollback"):
            acting.button(desk, action, row.model, about=_about(row))


def _about(row: ModelRow) -> str:
    return f"v{words.plain(row.version, most=20)} is the champion" if row.version else ""


def _unchecked() -> None:
    st.info(
        "**No check yet.** The first comes with the next tick, once predictions are in the log.",
        icon=":material/hourglass_empty:",
    )


def _numbers(desk: Desk, view: ModelView) -> None:
    """Four numbers a person asks for first."""
    row = view.row
    ages = view.latest.staleness if view.latest else None
    # Four in a row where it is wide, two where it is narrow.
    cells = [cell for pair in st.columns(2) for cell in pair.columns(2, wrap=False)]
    with cells[0]:
        _cell(
            words.first_upper(words.metric(row.metric)),
            words.number(row.value),
            f"95 % {words.interval(row.low, row.high)} · n {words.count(row.n)}"
            if row.value is not None
            else row.why or "no labels yet",
        )
    with cells[1]:
        _cell(
            "Tolerated",
            words.number(row.tolerated),
            f"expected {words.number(row.expected)} · lower is better",
        )
    with cells[2]:
        lag = words.age(ages.label_lag) if ages else words.MISSING
        _cell("Labels in", words.share(row.coverage), f"of rows old enough · lag {lag}")
    with cells[3]:
        newest = words.age(ages.prediction) if ages else words.MISSING
        rows = words.count(view.latest.rows) if view.latest else words.MISSING
        _cell("Rows in window", rows, f"newest prediction {newest} before the check")


def _carried(view: ModelView) -> None:
    """What carries the loss, where it is worse than tolerated."""
    latest = view.latest
    if latest is None or not (latest.causes or latest.causes_why):
        return
    st.subheader("What carries the loss", anchor=False)
    for cause in latest.causes:
        st.markdown(f"- {words.plain(cause.text, most=400)}")
    if latest.causes_why:
        st.caption(words.plain(latest.causes_why, most=400))


def _cell(label: str, value: str, below: str) -> None:
    with st.container(border=True, height="stretch"):
        st.metric(label, value)
        st.caption(words.plain(below))


def _metric(view: ModelView) -> None:
    name = words.metric(view.row.metric)
    with parts.line(apart=True):
        title = f"{words.first_upper(name)} over time"
        st.subheader(title, anchor=False, width="content")
        with st.container(width="content"):
            parts.choice("Range", "range", _RANGES, otherwise="all")
    if view.checks.empty:
        st.caption("No check in this range.")
        return
    if not view.checks["value"].notna().any():
        st.caption(
            "No labels have arrived in this range: the states are shown, the metric is not known."
        )
    picture = charts.metric_chart(
        view.checks,
        view.promotions,
        parts.colours(),
        champion=view.row.version,
        metric=view.row.metric,
        estimates=view.estimates,
        life=view.latest.shelf_life if view.latest else None,
    )
    st.altair_chart(picture, width="stretch", alt=f"{name} over time with its 95 % interval")
    every = "" if view.every == 1 else f" One of {view.every} checks is shown, the worst of each."
    st.caption(
        ":primary[━] realised by the champion, with its 95 % interval · :gray[━] by earlier "
        "versions · :primary[┄] estimated without labels · :primary[▒] forecast, 80 % of futures · "
        ":gray[╌] expected · :gray[─] tolerated · │ promotions · on the axis: the state." + every
    )


def _life(view: ModelView) -> None:
    """How long this version will do, in sentences; and what the estimates are worth."""
    latest = view.latest
    if latest is None or (latest.shelf_life is None and latest.estimated is None):
        return
    left, right = st.columns(2, gap="large")
    if latest.shelf_life is not None:
        with left:
            st.subheader("Remaining shelf life", anchor=False)
            for text in shelf_life_lines(latest.shelf_life):
                st.markdown(words.plain(words.first_upper(text), most=400))
            if latest.shelf_life.provisional:
                st.caption(f"provisional: {words.plain(latest.shelf_life.provisional, most=300)}")
    with right:
        if latest.estimated is not None:
            st.subheader("Estimated without labels", anchor=False)
            for text in estimate_lines(latest.estimated):
                st.markdown(words.plain(words.first_upper(text), most=400))
        if latest.proof is not None:
            st.caption(words.plain(proof_line(latest.proof), most=300))


def _drift(view: ModelView) -> None:
    st.subheader("Drift against threshold", anchor=False)
    drift = view.drift
    if not drift.columns:
        said = f"None of {drift.quiet} columns crossed its threshold." if drift.quiet else ""
        st.caption(said or "No drift was measured in this range.")
        return
    st.image(charts.drift_legend(parts.colours()), alt="lighter is quieter, darker is further over")
    st.altair_chart(
        charts.drift_chart(drift, parts.colours()),
        width="stretch",
        alt="drift of each column over time, as a multiple of its threshold",
    )
    with parts.line():
        for name in drift.columns[:8]:
            parts.go("column", words.plain(name, most=60), model=view.row.model, name=name)
    facts = ["Each cell: the strongest deciding test of a check against its threshold"]
    if drift.quiet:
        facts.append(f"{drift.quiet} quiet column{'s' * (drift.quiet != 1)}")
    if drift.folded:
        facts.append(f"{drift.folded} more crossed")
    if drift.every > 1:
        facts.append(f"one of {drift.every} checks shown")
    if view.latest and view.latest.provisional:
        facts.append(f"thresholds are provisional: {words.plain(view.latest.provisional)}")
    st.caption(" · ".join(facts))


def _retraining(desk: Desk, view: ModelView) -> None:
    st.subheader("Retraining", anchor=False)
    if not view.decisions:
        st.caption("Nothing has been decided yet.")
        return
    latest = view.decisions[0]
    action = _ACTIONS.get(latest.action, words.plain(latest.action))
    st.markdown(f"**{action}** :gray[decided {words.stamp(latest.at, desk.now)}]")
    st.markdown(words.plain(latest.reason, most=600))
    change = latest.detail.get("would_change")
    if isinstance(change, str) and change:
        st.caption(f"What would change this: {words.plain(change, most=400)}")
    with st.expander(f"Decisions ({len(view.decisions)})"):
        for decision in view.decisions[:20]:
            _decision(desk.now, decision)
    for run in view.runs[:5]:
        with parts.line():
            parts.go("runs", f"Run {words.plain(run.id[:8])}", id=run.id)
            seen = words.mark(words.look(run.state, words.RUNS))
            st.markdown(f"{seen} :gray[{words.day(run.started, desk.now)}]", width="content")


_ACTIONS = {
    "retrain": "Retrain",
    "wait": "Not now",
    "ask": "Waits for a person",
    "rollback": "Roll back",
}


def _decision(now: datetime, decision: Decision) -> None:
    times = f" ×{decision.repeated}" if decision.repeated > 1 else ""
    action = _ACTIONS.get(decision.action, words.plain(decision.action))
    when = words.day(decision.at, now)
    st.markdown(f"{when} · **{action}**{times} · {words.plain(decision.reason, most=300)}")


def _happened(desk: Desk, view: ModelView) -> None:
    st.subheader("What happened", anchor=False)
    if not view.events:
        st.caption("Nothing in this range.")
    with parts.rows():
        for event in view.events[:_EVENTS]:
            _event(desk.now, event)
    rest = view.events[_EVENTS : _EVENTS + 100]
    if rest:
        with st.expander(f"Earlier ({len(rest)})"), parts.rows():
            for event in rest:
                _event(desk.now, event)


def _event(now: datetime, event: Event) -> None:
    old = event.at.year != now.year
    with parts.entry(words.day(event.at, now), width=88 if old else 56), parts.line():
        st.markdown(words.plain(event.text, most=260), width="content")
        if event.incident_id is not None:
            parts.go("incidents", "open", id=str(event.incident_id))
        elif event.run_id is not None:
            parts.go("runs", "open", id=event.run_id)


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
