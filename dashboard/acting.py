"""Buttons that do something: each asks for a reason, says what will happen, tells the outcome."""

from __future__ import annotations

import time

import streamlit as st
from msgspec import Struct

from core import access
from core.errors import ShelflifeError
from dashboard import asking, words
from dashboard.source import Desk

_ASKED = "shelflife_asked"
_PATIENCE = 20.0  # seconds until we wonder whether anybody carries requests out
_REASON = 3  # characters


class Action(Struct, frozen=True, kw_only=True):
    """Something a person may ask for."""

    name: str
    label: str
    icon: str
    effect: str  # what it will do, for the dialog
    verb: str  # of the button that confirms


ACTIONS: dict[str, Action] = {
    action.name: action
    for action in (
        Action(
            name="check", label="Check now", icon="search", verb="Check",
            effect="The model is checked as of now; the check is recorded like any other and may "
            "open incidents or start a run.",
        ),
        Action(
            name="retrain", label="Retrain", icon="model_training", verb="Retrain",
            effect="A retraining run starts, whatever the policy says. The gate still decides "
            "whether its candidate is better.",
        ),
        Action(
            name="rollback", label="Roll back", icon="undo", verb="Roll back",
            effect="The version before becomes the champion again, at once.",
        ),
        Action(
            name="approve", label="Approve", icon="check", verb="Approve",
            effect="The run goes on with its candidate, which becomes the champion.",
        ),
        Action(
            name="reject", label="Reject", icon="close", verb="Reject",
            effect="The candidate is refused; the champion goes on serving.",
        ),
        Action(
            name="abandon", label="Give up", icon="block", verb="Give the run up",
            effect="The unfinished run ends here; the champion goes on serving.",
        ),
        Action(
            name="promote", label="Promote", icon="upgrade", verb="Promote",
            effect="This version becomes the champion by your word, whatever the gate said.",
        ),
        Action(
            name="acknowledge", label="Acknowledge", icon="done", verb="Acknowledge",
            effect="You look after it: it is not told again until it is resolved.",
        ),
        Action(
            name="report", label="Make an Evidently report", icon="lab_profile", verb="Make it",
            effect="An Evidently report of these rows is rendered in a process of its own.",
        ),
    )
}  # fmt: skip


def button(
    desk: Desk,
    name: str,
    model: str,
    /,
    *,
    about: str = "",
    label: str = "",
    primary: bool = False,
    **arguments: str | int,
) -> None:
    """A button for one action; it cannot be pressed by those who may not."""
    action = ACTIONS[name]
    allowed = desk.reader.may(name)
    scope = access.needed(name)
    role = next(role for role in access.ROLES if scope in access.HELD[role])
    key = f"act:{name}:{model}:" + ":".join(str(value) for value in arguments.values())
    pressed = st.button(
        label or action.label,
        icon=f":material/{action.icon}:",
        key=key,
        disabled=not allowed,
        help=None if allowed else f"Needs the role {role}.",
        type="primary" if primary else "secondary",
    )
    if pressed:
        _confirm(desk, action, model, about, dict(arguments))


def _confirm(
    desk: Desk, action: Action, model: str, about: str, arguments: dict[str, str | int]
) -> None:
    @st.dialog(action.label)
    def dialog() -> None:
        st.markdown(f"**{words.plain(model, most=80)}**" + (f": {about}" if about else ""))
        st.markdown(action.effect)
        with st.form("reason", border=False):
            reason = st.text_area(
                "Why?", max_chars=500, help="Recorded with your name.", placeholder="for the record"
            )
            sent = st.form_submit_button(action.verb, type="primary")
        if not sent:
            st.caption(f"recorded as asked by {words.plain(desk.reader.name, most=80)}")
            return
        if len(reason.strip()) < _REASON:
            st.error("Say why, in a few words: it is recorded.")
            return
        try:
            asked = asking.ask(
                desk.reader, desk.source.home, model, action.name, arguments, reason.strip()
            )
        except ShelflifeError as error:
            st.error(words.plain(words.first_upper(str(error)), most=500))
            return
        st.session_state[_ASKED] = (asked, time.monotonic())
        st.rerun()

    dialog()


_SPANS = {"1h": "1 hour", "4h": "4 hours", "1d": "1 day", "1w": "1 week"}


def silence(desk: Desk, incident: int) -> None:
    """The button that keeps an incident quiet for a while."""
    allowed = desk.reader.may("silence")
    pressed = st.button(
        "Silence",
        icon=":material/notifications_paused:",
        key=f"act:silence:{incident}",
        disabled=not allowed,
        help=None if allowed else "Needs the role operator.",
    )

    @st.dialog("Silence")
    def dialog() -> None:
        st.markdown(f"**Incident {incident}** is not told again until then; it stays open here.")
        with st.form("silence", border=False):
            span = st.selectbox("For", list(_SPANS), index=1, format_func=lambda s: _SPANS[s])
            reason = st.text_area("Why?", max_chars=500, placeholder="for the record")
            sent = st.form_submit_button("Silence", type="primary")
        if not sent:
            return
        if len(reason.strip()) < _REASON:
            st.error("Say why, in a few words: it is recorded.")
            return
        try:
            asking.silence(desk.reader, desk.source.home, incident, str(span), reason.strip())
        except ShelflifeError as error:
            st.error(words.plain(words.first_upper(str(error)), most=500))
            return
        st.rerun()

    if pressed:
        dialog()


def news(desk: Desk) -> None:
    """What became of what was asked last in this tab, until it is dismissed."""
    if _ASKED not in st.session_state:
        return
    identity, since = st.session_state[_ASKED]
    found = asking.outcome(desk.ledger, identity)
    if found is None:
        del st.session_state[_ASKED]
        return
    waiting = found.state in ("asked", "running")
    every = 1.0 if waiting else None

    @st.fragment(run_every=every)
    def live() -> None:
        now = asking.outcome(desk.ledger, identity)
        if now is None or (waiting and now.state not in ("asked", "running")):
            st.rerun(scope="app")
        if now is not None:
            _tell(now, time.monotonic() - since)

    live()


def _tell(found: asking.Asked, waited: float) -> None:
    label = ACTIONS[found.action].label if found.action in ACTIONS else found.action
    what = f"**{words.plain(label)}** for {words.plain(found.model, most=80)}"
    result = words.plain(found.result, most=400)
    if found.state == "done":
        st.success(f"{what}: {result or 'done'}", icon=":material/check:")
    elif found.state == "failed":
        st.error(f"{what} failed: {result}", icon=":material/error:")
    elif waited > _PATIENCE and found.state == "asked":
        st.warning(
            f"{what} waits for {words.age(waited)}: nobody has taken it up. Is `shelflife watch` "
            "running? `shelflife doctor` finds out.",
            icon=":material/schedule:",
        )
    else:
        st.info(f"{what}: {found.state} …", icon=":material/hourglass:")
    if found.state in ("done", "failed") and st.button("Dismiss", key=f"dismiss:{found.id}"):
        del st.session_state[_ASKED]
        st.rerun(scope="app")
