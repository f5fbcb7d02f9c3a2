"""Serving: who answers, how much, and how fast?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import streamlit as st

from dashboard import parts, pictures, routes, words
from dashboard.serving_query import Loaded, ServingView
from dashboard.source import Desk

_SPANS = {"1d": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days"}


@parts.guarded
def show(desk: Desk) -> None:
    model = routes.parameter("model") or None
    now = datetime.now(UTC)  # workers and traffic live by the wall clock, also after a replay
    with parts.line(apart=True):
        st.header("Who answers, and how fast?", anchor=False, width="content")
        with st.container(width="content"):
            st.caption(f"as of {words.clock(now, parts.local_zone(), now)}")
    with parts.line(apart=True):
        with st.container(width="content"):
            asked = routes.parameter("span", tuple(_SPANS)) or "7d"
            span = parts.choice("Span", "span", _SPANS, otherwise="7d")
        if model:
            with parts.line():
                parts.go("model", words.plain(model, most=60), name=model)
                parts.go("serving", "all models")
    view = desk.serving(model, timedelta(days=int((span or asked).removesuffix("d"))))
    if not view.workers and view.traffic.empty:
        st.info(
            "Nobody has served here yet. `shelflife up` or `shelflife serve` starts a worker.",
            icon=":material/info:",
        )
        return
    _silent(view, now)
    _traffic(desk, view, model)
    _workers(desk, view, now)
    _lost(view)


def _silent(view: ServingView, now: datetime) -> None:
    if any(worker.alive for worker in view.workers):
        return
    last = max((worker.seen for worker in view.workers), default=None)
    st.warning(
        f"**No worker is alive**; the last was seen {words.ago(last, now)}. Is `shelflife up` "
        "running? `shelflife doctor` finds out.",
        icon=":material/schedule:",
    )


def _traffic(desk: Desk, view: ServingView, model: str | None) -> None:
    frame = view.traffic
    if frame.empty:
        st.caption("No request in this span.")
        return
    requests, rows = int(frame["requests"].sum()), int(frame["rows"].sum())
    batches = max(1, int(frame["batches"].sum()))
    newest = frame[frame["at"] == frame["at"].max()]
    cells = [cell for pair in st.columns(2) for cell in pair.columns(2, wrap=False)]
    unit = "day" if view.by_day else "hour"
    for cell, label, value, below in (
        (cells[0], "Requests", words.count(requests), f"{words.count(rows)} rows"),
        (cells[1], "p50", f"{words.number(newest['p50'].max())} ms", f"newest {unit}"),
        (cells[2], "p99", f"{words.number(newest['p99'].max())} ms", f"newest {unit}"),
        (cells[3], "Rows a batch", words.number(rows / batches), f"{words.count(batches)} batches"),
    ):
        with cell, st.container(border=True, height="stretch"):
            st.metric(label, value)
            st.caption(below)
    champion = desk.model(model, None).row.version if model else "all"
    st.subheader("Traffic by version" if model else "Traffic", anchor=False)
    st.altair_chart(
        pictures.traffic(frame, parts.colours(), champion=champion, by_day=view.by_day),
        width="stretch",
        alt=f"requests per {unit} by version",
    )
    if model:
        st.caption(":primary[█] the champion · :gray[█] other versions")
    else:
        st.caption("All models together; a model's own page is one click below.")
    st.subheader("Latency", anchor=False)
    st.altair_chart(
        pictures.latency(frame, parts.colours()), width="stretch", alt="p50 and p99 latency"
    )
    st.caption(
        ":primary[━] p99 · :gray[━] p50 · inside the worker, from the decoded request to its "
        "answer, waiting for the model included; to within 10 %"
    )


def _workers(desk: Desk, view: ServingView, now: datetime) -> None:
    st.subheader("What is loaded where", anchor=False)
    if not view.workers:
        st.caption("No worker has said so.")
        return
    st.dataframe([_line(worker, now) for worker in view.workers[:500]], hide_index=True)
    for worker in view.workers:
        if worker.error:
            st.markdown(f":gray-badge[✗ cannot load] {words.plain(worker.error, most=400)}")
    names = sorted({worker.model for worker in view.workers})[:40]
    with parts.line():
        for name in names:
            parts.go("serving", words.plain(name, most=60), model=name)


def _line(worker: Loaded, now: datetime) -> dict[str, str]:
    alive = "● answers" if worker.alive and worker.version else "○ silent"
    line = {
        "": alive if not worker.error else "✗ cannot load",
        "model": words.clean(worker.model, most=60),
        "version": f"v{words.clean(worker.version, most=20)}" if worker.version else words.MISSING,
        "beside it": f"v{words.clean(worker.challenger, most=20)}" if worker.challenger else "",
        "loaded": f"{words.age(now - worker.loaded)} ago",
        "seen": words.ago(worker.seen, now),
        "worker": words.clean(worker.worker, most=60),
    }
    return line | {name: words.clean(text, most=60) for name, text in worker.more.items()}


def _lost(view: ServingView) -> None:
    rows = [
        {"model": words.clean(model, most=60), "what": _COUNTED.get(name, name), "count": count}
        for model, counted in sorted(view.counters.items())
        for name, count in sorted(counted.items())
    ]
    if rows:
        st.subheader("What did not go as asked", anchor=False)
        st.dataframe(rows, hide_index=True)
        st.caption("Since the beginning. Refused requests name their reason.")


_COUNTED = {
    "shed": "rows not logged: the queue was full",
    "failed": "requests the model failed on",
    "late": "rows committed later than promised",
    "unsampled": "rows left out by the sample rate",
    "canary_failed": "challenger failed, the champion answered",
    "shadow_failed": "rows the shadow failed on",
    "shadow_shed": "rows the shadow left out",
}


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
