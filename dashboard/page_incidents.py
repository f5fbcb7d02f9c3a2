"""Incidents: what went wrong, who was told, and what was done?"""

from __future__ import annotations

from datetime import datetime

import streamlit as st

from core.errors import NotFound
from core.times import iso
from dashboard import acting, parts, routes, words
from dashboard.source import Desk
from dashboard.views import IncidentRow, IncidentView, Message

_SHOWN = {"open": "open", "resolved": "resolved", "all": "all"}
_STATES = {"open": "unresolved", "resolved": "resolved", "all": None}


@parts.guarded
def show(desk: Desk) -> None:
    asked = routes.parameter("id")
    if asked:
        if not asked.isdecimal() or len(asked) > 18:
            raise NotFound("incident", asked, "its number is whole")
        _one(desk, desk.incident(int(asked)))
        return
    st.header("What went wrong?", anchor=False)
    model = routes.parameter("model") or None
    shown = parts.choice("Which", "show", _SHOWN, otherwise="open")
    rows = desk.incidents(model, _STATES[shown])
    if not rows:
        kind = "" if shown == "all" else f"{shown} "
        st.info(
            f"No {kind}incidents. Drift that does not hurt never becomes one.",
            icon=":material/check:",
        )
    for row in rows:
        _row(desk.now, row)


def look(row: IncidentRow) -> words.Look:
    """An incident that is over looks over, whatever it was."""
    return words.look("resolved" if row.state == "resolved" else row.severity, words.INCIDENTS)


def _row(now: datetime, row: IncidentRow) -> None:
    with st.container(border=True):
        left, right = st.columns([7, 3], vertical_alignment="center")
        with left, parts.rows():
            title = words.plain(row.title, most=160)
            st.markdown(f"{words.mark(look(row))} {title}")
            parts.go("incidents", f"Incident {row.id}", id=str(row.id))
        with right, parts.rows():
            parts.go("model", words.plain(row.model, most=60), name=row.model)
            st.caption(_lasted(row, now))


def _lasted(row: IncidentRow, now: datetime) -> str:
    opened = f"opened {words.day(row.opened, now)}"
    if row.resolved is not None:
        return f"{opened} · lasted {words.age(row.resolved - row.opened)}"
    seen = f"found by {row.seen} check{'s' * (row.seen != 1)}"
    return f"{opened} · open for {words.age(now - row.opened)} · {seen}"


def _one(desk: Desk, view: IncidentView) -> None:
    row = view.row
    routes.link("incidents", "← All incidents")
    st.header(words.plain(row.title, most=200), anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(words.mark(look(row)), width="content")
        if row.state == "acknowledged":
            st.badge("acknowledged", color="gray")
        st.caption(f"incident {row.id} · {words.plain(row.cause)} · {_lasted(row, desk.now)}")
    with st.container(horizontal=True, vertical_alignment="center"):
        parts.go("model", words.plain(row.model, most=60), name=row.model)
        if row.run_id:
            parts.go("runs", f"Run {words.plain(row.run_id[:8])}", id=row.run_id)
        parts.mlflow(desk, row.model, row.version, f"MLflow v{words.plain(row.version, most=20)}")
    if row.state != "resolved":
        with parts.line():
            if row.state == "open":
                about = f"incident {row.id}"
                acting.button(desk, "acknowledge", row.model, about=about, incident=row.id)
            acting.silence(desk, row.id)
    if view.finding is not None and view.finding.text:
        st.markdown(words.plain(view.finding.text, most=1200))
    if view.finding is not None and view.finding.columns:
        with parts.line():
            for name in view.finding.columns[:20]:
                where = {"model": row.model, "name": name, "at": iso(row.updated)}
                parts.go("column", words.plain(name, most=60), **where)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _timeline(view, desk.now)
    with right:
        _told(view.messages, desk.now)
        st.subheader("Evidence", anchor=False)
        parts.report(desk, row.report, row.report_state, f"incident-{row.id}")
        if row.report_state not in ("ready", "wanted"):
            acting.button(desk, "report", row.model, subject=f"incident:{row.id}")
        st.caption("The same check, again and explained:")
        parts.command("check", row.model, "--at", iso(row.opened))


def _timeline(view: IncidentView, now: datetime) -> None:
    st.subheader("Timeline", anchor=False)
    if not view.events:
        st.caption("Nothing was written down.")
    with parts.rows():
        for event in view.events:
            kind = words.plain(event.kind.replace("_", " "))
            wide = 128 if event.at.year == now.year else 164
            with parts.entry(words.stamp(event.at, now), width=wide):
                st.markdown(f"**{kind}** · {words.plain(event.text, most=600)}")


def _told(messages: tuple[Message, ...], now: datetime) -> None:
    st.subheader("Who was told", anchor=False)
    if not messages:
        st.caption("Nobody: no receiver takes incidents of this severity.")
    with parts.rows():
        _messages(messages, now)


def _messages(messages: tuple[Message, ...], now: datetime) -> None:
    for message in messages:
        to = f"{words.plain(message.receiver)} · {words.plain(message.type)}"
        st.markdown(f"{_delivery(message)} {to}")
        facts = [words.stamp(message.created, now)]
        if message.delivered is None and message.error:
            facts.append(f"attempt {message.attempts}: {words.plain(message.error)}")
        elif message.status is not None:
            facts.append(f"answered {message.status}")
        st.caption(" · ".join(facts))


def _delivery(message: Message) -> str:
    kinds = {
        "delivered": ":green-badge[✓ delivered]",
        "pending": ":gray-badge[◷ on its way]",
        "failed": ":gray-badge[✗ not delivered]",
    }
    return kinds.get(message.state, f":gray-badge[{words.plain(message.state)}]")


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
