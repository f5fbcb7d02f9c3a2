"""Runs: was retraining worth it, step by step?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import streamlit as st

from core.errors import InputError
from core.times import parse_time
from dashboard import acting, parts, routes, words
from dashboard.source import Desk
from dashboard.views import RunRow, RunStep, RunView

_HASH = re.compile(r"^[0-9a-f]{32,128}$")
_ISO = re.compile(r"^\d{4}-\d\d-\d\dT")
_STEPS = {"done": ":green[✓]", "running": ":blue[▶]", "failed": ":gray[✗]"}


@parts.guarded
def show(desk: Desk) -> None:
    asked = routes.parameter("id")
    if asked:
        _one(desk, desk.run(asked))
        return
    st.header("Was retraining worth it?", anchor=False)
    rows = desk.runs(routes.parameter("model") or None)
    if not rows:
        st.info(
            "No retraining run yet. One starts when decay has cost more than a run does; the "
            "model's page says how far that is. `shelflife retrain MODEL` starts one now.",
            icon=":material/info:",
        )
    for row in rows:
        _row(desk.now, row)


def _row(now: datetime, row: RunRow) -> None:
    with st.container(border=True):
        left, right = st.columns([7, 3], vertical_alignment="center")
        with left, parts.rows():
            step = (
                f" :gray[at {words.plain(row.step)}]" if row.state == "running" and row.step else ""
            )
            reason = words.plain(row.reason, most=160)
            st.markdown(f"{words.mark(words.look(row.state, words.RUNS))}{step} {reason}")
            if row.outcome:
                st.caption(words.plain(row.outcome, most=200))
            parts.go("runs", f"Run {words.plain(row.id[:8])}", id=row.id)
        with right, parts.rows():
            parts.go("model", words.plain(row.model, most=60), name=row.model)
            st.caption(f"{_versions(row)} · {_when(row, now)}")


def _versions(row: RunRow) -> str:
    candidate = f" → v{words.plain(row.candidate, most=20)}" if row.candidate else ""
    return f"v{words.plain(row.champion, most=20)}{candidate}"


def _when(row: RunRow, now: datetime) -> str:
    started = f"started {words.day(row.started, now)}"
    if row.finished is None:
        return f"{started}, {words.ago(row.started, now)}"
    took = row.finished - row.started
    return f"{started}, took {words.age(took)}" if took.total_seconds() >= 1 else started


def _one(desk: Desk, view: RunView) -> None:
    row = view.row
    routes.link("runs", "← All runs")
    st.header(f"Run {words.plain(row.id[:8])}", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(words.mark(words.look(row.state, words.RUNS)), width="content")
        by = f"{words.plain(row.trigger)}, by {words.plain(row.by)}"
        st.caption(f"{by} · {_versions(row)} · {_when(row, desk.now)}")
    with st.container(horizontal=True, vertical_alignment="center"):
        parts.go("model", words.plain(row.model, most=60), name=row.model)
        if row.incident_id is not None:
            parts.go("incidents", f"Incident {row.incident_id}", id=str(row.incident_id))
        if row.candidate:
            parts.mlflow(
                desk, row.model, row.candidate, f"MLflow v{words.plain(row.candidate, most=20)}"
            )
    st.markdown(f"**Why** {words.plain(row.reason, most=600)}")
    if row.outcome:
        st.markdown(f"**Outcome** {words.plain(row.outcome, most=600)}")
    if row.state == "waiting":
        st.info("It waits for a person to let the candidate serve.", icon=":material/front_hand:")
        about = f"run {words.plain(row.id[:8])}, {_versions(row)}"
        with parts.line():
            acting.button(desk, "approve", row.model, about=about, primary=True, run=row.id)
            acting.button(desk, "reject", row.model, about=about, run=row.id)
    elif row.state == "running":
        acting.button(
            desk, "abandon", row.model, about=f"run {words.plain(row.id[:8])}", run=row.id
        )
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("Steps", anchor=False)
        if not view.steps:
            st.caption("No step has begun.")
        with parts.rows():
            for step in view.steps:
                _step(step)
    with right:
        st.subheader("Gate", anchor=False)
        _gate(row.gate)
        if row.gate:
            parts.go("compare", "Champion beside challenger", run=row.id)
            parts.asked_report(desk, row.model, f"run:{row.id}")


def _step(step: RunStep) -> None:
    took = ""
    if step.finished is not None and (step.finished - step.started).total_seconds() >= 1:
        took = f" · {words.age(step.finished - step.started)}"
    again = f" · attempt {step.attempts}" if step.attempts > 1 else ""
    mark = _STEPS.get(step.state, ":gray[?]")
    state = words.plain(step.state)
    st.markdown(f"{mark} **{words.plain(step.name)}** {state}{took}{again}")
    if step.error:
        st.code(words.clean(step.error, most=4000), language=None, wrap_lines=True)
    # The gate's result has its own place.
    facts = [] if step.name == "gate" else _facts(step.result)
    if facts:
        st.caption(" · ".join(f"{name} {value}" for name, value in facts))


def _gate(gate: dict[str, Any]) -> None:
    """A `retrain.gate.GateResult`, read as plain values so that an older one shows too."""
    if not gate:
        st.caption("No candidate has been compared yet.")
        return
    passed = gate.get("passed")
    mark = ":green-badge[✓ passed]" if passed else ":gray-badge[○ refused]"
    reason = words.plain(str(gate.get("reason", "")), most=600)
    st.markdown(f"{mark} {reason}" if passed is not None else reason)
    number = {key: gate.get(key) for key in ("champion", "candidate", "gain", "low", "high")}
    if all(isinstance(value, int | float) for value in number.values()):
        cells = st.columns(3)
        name = words.metric(str(gate.get("metric", "")))
        cells[0].metric("Champion", words.number(number["champion"]))
        cells[1].metric("Candidate", words.number(number["candidate"]))
        cells[2].metric("Gain", words.number(number["gain"]))
        rows = gate.get("n")
        n = words.count(rows) if isinstance(rows, int) else words.MISSING
        span = words.interval(number["low"], number["high"])
        facts = f"{name}, lower is better · gain {span} · n {n}"
        st.caption(words.plain(facts))
    checks = gate.get("checks")
    with parts.rows():
        _checks(checks if isinstance(checks, list) else [])


def _checks(checks: list[Any]) -> None:
    for check in checks:
        if isinstance(check, Mapping):
            held = ":green[✓]" if check.get("passed") else ":gray[✗]"
            name = words.plain(str(check.get("name", "")).replace("_", " "))
            st.markdown(f"{held} **{name}** {words.plain(str(check.get('text', '')))}")


def _facts(result: Mapping[str, Any], most: int = 12) -> list[tuple[str, str]]:
    """The plain values of a stored object, in words; one level of nesting is unfolded."""
    found: list[tuple[str, str]] = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            inner = [(f"{name}.{key}", _word(v)) for key, v in value.items()]
        else:
            inner = [(name, _word(value))]
        found += [(words.plain(key.replace("_", " ")), text) for key, text in inner if text]
    return found[:most]


def _word(value: object) -> str:
    """A JSON value in words; empty for what is better left out."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return words.count(value)
    if isinstance(value, float):
        return words.number(value)
    if isinstance(value, str):
        return words.plain(f"{value[:8]}…" if _HASH.match(value) else _moment(value), most=160)
    if isinstance(value, list) and all(isinstance(item, int | float | str) for item in value):
        few = len(value) <= 3
        return ", ".join(_word(item) for item in value) if few else words.count(len(value))
    return ""


def _moment(text: str) -> str:
    """An ISO 8601 moment as people read it; any other text as it is."""
    if not _ISO.match(text):
        return text
    try:
        return words.stamp(parse_time(text))
    except InputError:
        return text


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
