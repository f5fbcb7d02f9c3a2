"""Compare: is the challenger better, on what, and by how much?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboard import acting, parts, pictures, routes, words
from dashboard.pictures import Interval
from dashboard.source import Desk
from dashboard.views import RunRow


@parts.guarded
def show(desk: Desk) -> None:
    asked, model = routes.parameter("run"), routes.parameter("model")
    if asked:
        _one(desk, desk.run(asked).row)
        return
    compared = [run for run in desk.runs(model or None) if run.gate]
    if model and compared:
        _one(desk, compared[0], others=compared[1:])
        return
    st.header("Is the challenger better?", anchor=False)
    if not compared:
        st.info(
            "Nothing has been compared yet: a retraining run's gate holds a challenger against "
            "the champion on the same rows.",
            icon=":material/info:",
        )
    for run in compared[:50]:
        with parts.line():
            label = f"{words.plain(run.model, most=60)} {_versions(run)}"
            parts.go("compare", label, run=run.id)
            seen = words.mark(words.look(run.state, words.RUNS))
            st.markdown(f"{seen} :gray[{words.day(run.started, desk.now)}]", width="content")


def _versions(run: RunRow) -> str:
    candidate = f" → v{words.plain(run.candidate, most=20)}" if run.candidate else ""
    return f"v{words.plain(run.champion, most=20)}{candidate}"


def _one(desk: Desk, run: RunRow, others: list[RunRow] | None = None) -> None:
    gate = run.gate
    st.header(f"{words.plain(run.model, most=60)}: {_versions(run)}", anchor=False)
    with parts.line():
        st.markdown(words.mark(words.look(run.state, words.RUNS)), width="content")
        parts.go("runs", f"Run {words.plain(run.id[:8])}", id=run.id)
        parts.go("model", words.plain(run.model, most=60), name=run.model)
        for version, who in ((run.champion, "champion"), (run.candidate or "", "challenger")):
            label = f"MLflow v{words.plain(version, most=20)} ({who})"
            parts.mlflow(desk, run.model, version, label)
    if not gate:
        st.info("This run has compared nothing.", icon=":material/info:")
        return
    _decided(gate)
    if run.state == "waiting":
        decide(desk, run)
    _table(gate)
    _forest(gate)
    _checks(gate)
    _interpreters(desk, run)
    st.subheader("Evidence", anchor=False)
    parts.asked_report(desk, run.model, f"run:{run.id}")
    for other in (others or [])[:5]:
        with parts.line():
            parts.go("compare", f"Before: {_versions(other)}", run=other.id)
            st.markdown(words.mark(words.look(other.state, words.RUNS)), width="content")


def decide(desk: Desk, run: RunRow) -> None:
    """The buttons of somebody who decides about a run that waits."""
    about = f"run {words.plain(run.id[:8])}, {_versions(run)}"
    with parts.line():
        acting.button(desk, "approve", run.model, about=about, primary=True, run=run.id)
        acting.button(desk, "reject", run.model, about=about, run=run.id)


def _decided(gate: Mapping[str, Any]) -> None:
    passed = gate.get("passed")
    mark = ":green-badge[✓ passed]" if passed else ":gray-badge[○ refused]"
    st.markdown(f"{mark} {words.plain(str(gate.get('reason', '')), most=600)}")
    facts = []
    if isinstance(gate.get("rule"), str):
        facts.append(f"rule {words.plain(str(gate['rule']))}")
    if isinstance(gate.get("confidence"), float):
        facts.append(f"confidence {words.share(gate['confidence'])}, one-sided")
    worth = _number(gate.get("worth"))
    if worth is not None:
        facts.append(f"the rows are worth {words.count(round(worth))} independent ones")
    st.caption(" · ".join(facts))


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good else None  # type: ignore[arg-type]


def _table(gate: Mapping[str, Any]) -> None:
    cells = st.columns(4)
    name = words.metric(str(gate.get("metric", "")))
    cells[0].metric(f"Champion's {name}", words.number(_number(gate.get("champion"))))
    cells[1].metric(f"Challenger's {name}", words.number(_number(gate.get("candidate"))))
    cells[2].metric("Gain", words.number(_number(gate.get("gain"))))
    n = gate.get("n")
    cells[3].metric("Rows compared", words.count(n if isinstance(n, int) else None))
    span = words.interval(_number(gate.get("low")), _number(gate.get("high")))
    st.caption(f"Lower is better. Gain {words.plain(span)}: both models answered the same rows.")


def intervals(gate: Mapping[str, Any]) -> list[Interval]:
    """The gate's differences: of all rows, then segment by segment."""
    found = []
    whole = _number(gate.get("gain"))
    n = gate.get("n")
    if whole is not None:
        found.append(
            Interval(
                name="all rows",
                gain=whole,
                low=_number(gate.get("low")),
                high=_number(gate.get("high")),
                n=n if isinstance(n, int) else 0,
                whole=True,
            )
        )
    segments = gate.get("segments")
    for part in segments if isinstance(segments, list) else []:
        gain = _number(part.get("gain")) if isinstance(part, Mapping) else None
        if gain is not None:
            size = part.get("n")
            found.append(
                Interval(
                    name=str(part.get("name", "")),
                    gain=gain,
                    low=_number(part.get("low")),
                    high=_number(part.get("high")),
                    n=size if isinstance(size, int) else 0,
                )
            )
    return found[:40]


def _forest(gate: Mapping[str, Any]) -> None:
    rows = intervals(gate)
    st.subheader("Where it is better, and where not", anchor=False)
    if not rows:
        st.caption("The gate could not compute a difference.")
        return
    st.altair_chart(
        pictures.forest(rows, parts.colours(), unit=words.metric(str(gate.get("metric", "")))),
        width="stretch",
        alt="difference between champion and challenger with its interval, over all and by segment",
    )
    if len(rows) == 1:
        st.caption(
            "No segments are protected; `retrain.gate.segments` names the columns whose levels "
            "the challenger may not be clearly worse on."
        )


def _checks(gate: Mapping[str, Any]) -> None:
    checks = gate.get("checks")
    rows = [
        {
            "": "✓" if check.get("passed") else "✗",
            "check": words.clean(str(check.get("name", "")).replace("_", " "), most=60),
            "value": words.number(_number(check.get("value"))),
            "line": words.number(_number(check.get("limit"))),
            "what was found": words.clean(str(check.get("text", "")), most=200),
        }
        for check in (checks if isinstance(checks, list) else [])
        if isinstance(check, Mapping)
    ]
    if rows:
        st.subheader("What decided", anchor=False)
        st.dataframe(rows, hide_index=True)


def _interpreters(desk: Desk, run: RunRow) -> None:
    """How each interpreter that was tried answered and how fast, where it was measured."""
    st.subheader("Interpreters", anchor=False)
    found = False
    for version, who in ((run.champion, "champion"), (run.candidate or "", "challenger")):
        rows = desk.interpreters(run.model, version) if version else []
        if rows:
            found = True
            st.markdown(f"v{words.plain(version, most=20)}, {who}")
            st.dataframe(rows, hide_index=True)
    if not found:
        st.caption("Not measured: the versions run in the interpreter they were registered with.")


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
