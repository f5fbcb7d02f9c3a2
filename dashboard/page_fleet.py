"""Fleet: which model needs me? Worst first."""

from __future__ import annotations

from collections import Counter

import streamlit as st

from dashboard import charts, parts, routes, words
from dashboard.source import Desk
from dashboard.theme import Palette
from dashboard.views import Fleet, ModelRow

_PAGE = 25  # models shown at once


@parts.guarded
def show(desk: Desk) -> None:
    fleet = desk.fleet()
    with parts.line(apart=True):
        st.header("Which model needs you?", anchor=False, width="content")
        with st.container(width="content"):
            parts.as_of(desk, fleet.checked)
    if not fleet.rows:
        parts.first_steps()
        return
    _unwatched(fleet)
    wanted = _filter(fleet)
    rows = [row for row in fleet.rows if wanted in ("all", row.state)]
    _list(desk, rows, parts.colours())


def _unwatched(fleet: Fleet) -> None:
    late = [row for row in fleet.rows if row.overdue]
    if not late:
        return
    oldest = min((row for row in late if row.checked), key=lambda row: row.checked or fleet.now)
    who = words.plain(oldest.model, most=60)
    others = len(late) - 1
    what = f"{who} has" if not others else f"{who} and {others} other{'s' * (others > 1)} have"
    if oldest.checked and oldest.every:
        parts.overdue(what, oldest.checked, oldest.every, fleet.now)


def _filter(fleet: Fleet) -> str:
    """Every state that occurs, with how many models are in it; a click shows only those."""
    counted = Counter(row.state for row in fleet.rows)
    total = len(fleet.rows)
    options = {"all": f"{total} model{'s' * (total != 1)}"}
    for state in sorted(counted, key=lambda state: words.look(state).rank):
        seen = words.look(state)
        options[state] = f":{seen.colour}[{seen.shape}] {counted[state]} {seen.word}"
    return parts.choice("State", "state", options, otherwise="all")


def _list(desk: Desk, rows: list[ModelRow], colours: Palette) -> None:
    first = 0
    if len(rows) > _PAGE:
        pages = -(-len(rows) // _PAGE)
        asked = routes.parameter("page")
        start = min(int(asked), pages) if asked.isdecimal() and int(asked) else 1
        number = st.number_input(f"Page (of {pages})", 1, pages, start, width=160)
        routes.remember("page", str(number) if number > 1 else None)
        first = (number - 1) * _PAGE
    with st.container(gap="xsmall"):
        for row in desk.detailed(tuple(rows[first : first + _PAGE])):
            _row(desk, row, colours)
    st.caption(
        "Sorted by consequence. Sparklines: the last 30 days of the metric, its tolerance dashed. "
        "Every metric is a loss: lower is better."
    )


def _row(desk: Desk, row: ModelRow, colours: Palette) -> None:
    with st.container(border=True):
        who, what, trend, doing = st.columns([2.4, 2.4, 1.9, 3.3], vertical_alignment="center")
        with who, parts.rows():
            _who(desk, row)
        with what, parts.rows():
            _metric(row)
        with trend:
            picture = charts.sparkline(row.spark, colours)
            if picture:
                st.image(picture, width="stretch", alt=_said(row))
        with doing, parts.rows():
            _doing(row)


def _who(desk: Desk, row: ModelRow) -> None:
    with parts.line():
        parts.go("model", f"**{words.plain(row.model, most=60)}**", name=row.model)
        st.markdown(words.mark(words.look(row.state)), width="content")
    served = f"v{words.plain(row.version, most=20)}" if row.version else "no champion"
    if row.champion_since:
        served += f" for {words.age(desk.now - row.champion_since)}"
    checked = "" if row.checked is None else f" · checked {words.ago(row.checked, desk.now)}"
    st.caption(served + checked)


def _metric(row: ModelRow) -> None:
    if row.checked is None:
        st.caption("No check yet. The first comes with the next tick.")
        return
    name = words.first_upper(words.metric(row.metric))
    limit = f" :gray[of {words.number(row.tolerated)} tolerated]" if row.tolerated else ""
    st.markdown(f"{name} **{words.number(row.value)}**{limit}")
    if row.value is None:
        st.caption(words.plain(row.why or "no labels yet"))
        return
    facts = [words.interval(row.low, row.high), f"n {words.count(row.n)}"]
    if row.coverage is not None:
        facts.append(f"{words.share(row.coverage)} labelled")
    facts += [f"shelf life {row.life}"] if row.life else []
    st.caption(words.plain(" · ".join(fact for fact in facts if fact)))


def _said(row: ModelRow) -> str:
    """What the sparkline shows, for those who hear the page."""
    known = [value for value in row.spark.values if value is not None]
    return (
        f"{words.metric(row.metric)} over 30 days, from {words.number(known[0])} to "
        f"{words.number(known[-1])}, tolerated {words.number(row.tolerated)}"
    )


def _doing(row: ModelRow) -> None:
    if row.incident is not None:
        more = f" (+{row.incidents - 1} more)" if row.incidents > 1 else ""
        st.caption(words.plain(row.incident.title, most=160) + more)
    elif row.reason:
        st.caption(words.plain(row.reason, most=160))
    if row.incident is not None or row.run is not None:
        with parts.line():
            parts.incident_and_run(row)


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
