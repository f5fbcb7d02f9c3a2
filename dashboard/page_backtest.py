"""Backtest: what would each policy have done with this history, and what would it have cost?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import streamlit as st
import yaml

from core import access
from core.errors import InputError, ShelflifeError
from dashboard import parts, policies, routes, words
from dashboard.replays import POLICIES, Replay, Replays, columns
from dashboard.source import Desk

_POLL = 2.0  # seconds between looks at a backtest that runs
_GUESS = "(guess)"
_NONE = "(upload a file)"


@parts.guarded
def show(desk: Desk) -> None:
    home = desk.source.home
    if home is None:
        raise ShelflifeError("SHELFLIFE_HOME is not set; `shelflife up` starts the dashboard")
    replays = Replays(home)
    asked = routes.parameter("id")
    if asked:
        _one(desk, replays, replays.get(asked))
        return
    st.header("What would each policy have done?", anchor=False)
    st.markdown(
        "Replay a history through the very code that watches and retrains live models: every "
        "check, decision, run and gate, under several policies side by side."
    )
    _form(desk, replays)
    _earlier(replays)


def _form(desk: Desk, replays: Replays) -> None:
    if not access.allows(desk.reader.identity, "operate"):
        st.info("Starting a backtest needs the role operator.", icon=":material/lock:")
        return
    names = replays.histories()
    picked = st.selectbox("A history on the server", [_NONE, *names]) if names else _NONE
    history: Path | bytes | None
    if picked != _NONE:
        history, name = replays.picked(picked), picked
    else:
        given = st.file_uploader(
            "A file with inputs, labels and times, one row per prediction",
            type=["parquet", "csv"],
        )
        history, name = (given.getvalue(), given.name) if given else (None, "")
    if history is None:
        st.caption("Files in the folder `histories` of the home folder can be picked as well.")
        return
    try:
        found = columns(history, name)
    except InputError as error:
        st.error(words.plain(str(error)))
        return
    _options(desk, replays, history, name, found)


def _options(
    desk: Desk, replays: Replays, history: Path | bytes, name: str, found: list[str]
) -> None:
    with st.form("backtest"):
        left, right = st.columns(2)
        target = left.selectbox("Target: the label", found, index=None)
        time = right.selectbox("Time of each row", [_GUESS, *found])
        delay = left.text_input(
            "Labels are known after", placeholder="30d", help="90s, 30m, 12h, 7d; at once if empty"
        )
        window = right.text_input(
            "Span of a window", placeholder="7d", help="forty windows if empty"
        )
        chosen = st.multiselect("Policies", POLICIES, default=["default", "every:5"])
        started = st.form_submit_button("Run the backtest", type="primary")
    if not started:
        return
    if not target:
        st.error("Choose the target: the column that the model predicts.")
        return
    try:
        identity = replays.start(
            history,
            name,
            target=target,
            time="" if time == _GUESS else str(time),
            label_delay=delay.strip(),
            window=window.strip(),
            policies=tuple(chosen),
            by=desk.reader.name,
            now=datetime.now(UTC),
        )
    except ShelflifeError as error:
        st.error(words.plain(words.first_upper(str(error)), most=400))
        return
    st.query_params["id"] = identity
    st.rerun()


def _earlier(replays: Replays) -> None:
    found = replays.listed()
    if not found:
        return
    st.subheader("Earlier", anchor=False)
    now = datetime.now(UTC)
    for replay in found:
        with parts.line():
            job = replay.job
            parts.go("backtest", words.plain(job.history, most=60), id=job.id)
            told = f"{_STATES[replay.state]} {', '.join(job.policies)} :gray[by "
            told += f"{words.plain(job.by, most=60)}, {words.ago(job.started, now)}]"
            st.markdown(told, width="content")


_STATES = {
    "running": ":blue-badge[▶ running]",
    "done": ":green-badge[✓ done]",
    "failed": ":gray-badge[✗ failed]",
}


def _one(desk: Desk, replays: Replays, replay: Replay) -> None:
    job = replay.job
    routes.link("backtest", "← Another history")
    st.header(f"Backtest of {words.plain(job.history, most=80)}", anchor=False)
    with parts.line():
        st.markdown(_STATES[replay.state], width="content")
        facts = [f"target {words.plain(job.target, most=60)}"]
        facts += [f"labels after {words.plain(job.label_delay)}"] if job.label_delay else []
        now = datetime.now(UTC)
        facts.append(f"by {words.plain(job.by, most=60)}, {words.ago(job.started, now)}")
        st.caption(" · ".join(facts))
    if replay.state == "running":
        _wait(replays, job.id)
    elif replay.state == "failed":
        st.error("The backtest ended without a result. It said:", icon=":material/error:")
        st.code(words.clean(replay.said, most=2000) or "nothing", language=None, wrap_lines=True)
        st.caption("The same on the command line: `shelflife backtest --help`.")
    else:
        _result(desk, replay)


def _wait(replays: Replays, identity: str) -> None:
    @st.fragment(run_every=_POLL)
    def live() -> None:
        replay = replays.get(identity)
        if replay.state != "running":
            st.rerun(scope="app")
        now = datetime.now(UTC)
        st.info(
            f"Replaying … started {words.ago(replay.job.started, now)}. You may leave this page; "
            "its address finds the result.",
            icon=":material/hourglass:",
        )

    live()


def _result(desk: Desk, replay: Replay) -> None:
    result = replay.result
    facts = result.get("history", {})
    found = result.get("policies", {})
    if not found:
        st.info("The history gave no window to replay.", icon=":material/info:")
        return
    metric = words.first_upper(words.metric(str(facts.get("metric", ""))))
    st.caption(
        words.plain(
            f"{words.count(facts.get('rows'))} rows, the first "
            f"{words.count(facts.get('train_rows'))} to train on · "
            f"{words.count(facts.get('windows'))} windows · {facts.get('estimator', '')}"
        )
    )
    st.subheader(f"{metric} over time", anchor=False)
    st.altair_chart(
        policies.picture(found, parts.colours(), metric=metric),
        width="stretch",
        alt="the metric under each policy, with retrainings and alarms below",
    )
    st.caption(
        "Below the lines: ● retrained and promoted · ○ retrained and refused · ▲ paged. "
        "Lower is better."
    )
    everything = {name: one.get("summary", {}) for name, one in found.items()}
    everything |= result.get("references", {})
    st.dataframe([policies.line(name, one) for name, one in everything.items()], hide_index=True)
    st.caption(
        words.plain(
            "cost: mean loss × windows, plus the fits at "
            f"{words.number(facts.get('cost_of_fit'))} expected losses of a window each"
        )
    )
    for note in (facts.get("notes") or [])[:10]:
        st.caption(words.plain(str(note), most=300))
    _take(desk, replay, facts, everything)


def _take(
    desk: Desk, replay: Replay, facts: Mapping[str, Any], summaries: dict[str, dict[str, Any]]
) -> None:
    best = policies.cheapest(summaries)
    st.subheader("Take it over", anchor=False)
    if best is None or best == "never":
        st.markdown(
            "Nothing beats never retraining on this history: watching it is enough. "
            "`retrain: {mode: never}` says so in the settings."
        )
        best = "never"
    models = [row.model for row in desk.fleet().rows]
    chosen = st.selectbox("For the model", models) if models else "YOUR_MODEL"
    policy = st.selectbox("Policy", list(summaries), index=list(summaries).index(best))
    settings = dict(facts.get("settings") or {})
    retrain = {**settings.pop("retrain", {}), "policy": policy}
    text = yaml.safe_dump(
        {"models": {str(chosen): {**settings, "retrain": retrain}}}, sort_keys=False
    )
    st.code(words.lines(text, most=4000), language="yaml")
    with parts.line():
        st.download_button(
            "Use these settings",
            data=text,
            file_name=f"{policy.replace(':', '-')}.yaml",
            mime="application/yaml",
            icon=":material/download:",
            type="primary",
            on_click="ignore",
        )
        if replay.picture is not None:
            st.download_button(
                "The picture (HTML)",
                data=replay.picture.read_bytes,
                file_name="backtest.html",
                mime="text/html",
                icon=":material/download:",
                on_click="ignore",
            )
    st.caption(
        "Merge it into shelflife.yaml and restart `shelflife up`: the settings file stays yours, "
        "no page writes it."
    )


if __name__ == "__main__":  # Streamlit runs a page's file as a script
    show()
