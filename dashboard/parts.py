"""What several pages are made of: the state of the data, choices in the address, error pages."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from functools import wraps
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.elements.lib.layout_utils import HorizontalAlignment

from core import access
from core.errors import NotFound, ShelflifeError
from dashboard import acting, people, routes, words
from dashboard.source import Desk, read_environment
from dashboard.theme import DARK, Palette, palette
from dashboard.views import ModelRow

_LIVE = timedelta(seconds=5)


def guarded(page: Callable[[Desk], None]) -> Callable[[], None]:
    """A page that says what is wrong, and what to do, where it cannot be shown."""

    @wraps(page)
    def show() -> None:
        desk = None
        try:
            desk = Desk(read_environment())
            if not access.allows(desk.reader.identity, "read"):
                people.sign_in(desk.reader)
                return
            people.sign_out(desk.reader)
            acting.news(desk)
            page(desk)
        except (ShelflifeError, sa.exc.SQLAlchemyError) as error:
            _explain(error, known=desk is not None or not _guarded())

    return show


def _guarded() -> bool:
    """Whether people have to be recognised; yes where even that cannot be read."""
    try:
        return people.settings().enabled
    except ShelflifeError:
        return True


def _explain(error: Exception, *, known: bool) -> None:
    """What is wrong and what to do; nothing of either to those who were not recognised."""
    if not known:
        _problem("Nothing can be shown", "who you are cannot be found out at the moment", "")
    elif isinstance(error, NotFound):
        _problem("There is nothing here", str(error), "")
        routes.link("fleet", "← All models")
    elif isinstance(error, sa.exc.SQLAlchemyError):
        _problem("The ledger cannot be read", _database_said(error), _MEND)
    else:
        _problem("No data to show yet", str(error), _FIRST_STEPS)


_FIRST_STEPS = """
**What to do next**

- Try it on real data: `shelflife demo` trains, serves, watches and retrains a model in minutes.
- Watch your own model: `shelflife init`, then `shelflife register` and `shelflife up`.
- It runs already? `shelflife doctor` says which ledger it writes and what is wrong with it.
"""
_MEND = """
**What to do next**

- Reload this page: a busy or restarting database often answers a moment later.
- `shelflife doctor` checks the ledger, the disk and the clock.
"""


def _problem(title: str, said: str, steps: str) -> None:
    st.subheader(title, anchor=False)
    st.info(words.plain(words.first_upper(said), most=500), icon=":material/info:")
    if steps:
        st.markdown(steps)


def _database_said(error: sa.exc.SQLAlchemyError) -> str:
    """The driver's own sentence; never the statement or its values."""
    return str(getattr(error, "orig", None) or type(error).__name__)


def first_steps() -> None:
    """What a person sees who has no model yet."""
    st.subheader("No models yet", anchor=False)
    st.markdown("shelflife watches deployed models for decay; none has been registered here.")
    st.markdown(_FIRST_STEPS)


def colours() -> Palette:
    """The palette of the reader's theme."""
    theme = st.context.theme
    return palette(theme.type if theme else None)


def local_zone() -> tzinfo | None:
    """The reader's time zone, if the browser said."""
    name = st.context.timezone
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError):
        return None


def as_of(desk: Desk, checked: datetime | None) -> None:
    """When the newest check was made; renews itself, and the page when there is something new."""

    @st.fragment(run_every=_LIVE)
    def live() -> None:
        if desk.changed():
            st.rerun(scope="app")
        now = Desk(desk.source).now
        if checked is None:
            st.caption("no check yet")
            return
        if desk.source.replay:
            st.caption(f"replayed history, as of {words.clock(checked)}")
            return
        moment = words.clock(checked, local_zone(), now)
        st.caption(f"as of {moment}, {words.ago(checked, now)}")

    live()


_STYLE = """
<style>
[data-testid="stMainBlockContainer"] { padding-top: 4.5rem; padding-bottom: 3rem; }
[data-testid="stMain"] [data-testid="stPageLink-NavLink"] {
  padding-left: 0; padding-right: 0; background: transparent;
}
[data-testid="stMain"] [data-testid="stPageLink-NavLink"]:hover { text-decoration: underline; }
[data-testid="stCaptionContainer"] {
  color: color-mix(in srgb, currentcolor 80%, transparent) !important;
  opacity: 1 !important;
}
[data-testid="stMetric"] { font-variant-numeric: tabular-nums; }
</style>
"""


#: White on the dark theme's light accent cannot be read.
_DARK = """
<style>
[data-testid^="stBaseButton-primary"], [data-testid^="stBaseButton-primary"] p { color: #10151b; }
</style>
"""


def style() -> None:
    """Less empty room above the page than Streamlit leaves, and captions that can be read (AA).
    No data comes near this text."""
    st.html(_STYLE)
    if colours() is DARK:
        st.html(_DARK)


def go(name: routes.Name, label: str, /, **parameters: str) -> None:
    """A link inside a text, in the colour of links; `label` is Markdown."""
    routes.link(name, f":primary[{label}]", **parameters)


def rows() -> DeltaGenerator:
    """A container whose lines stand close together."""
    return st.container(gap="xxsmall")


def line(*, apart: bool = False) -> DeltaGenerator:
    """A container whose elements stand side by side, and below each other where it is narrow."""
    along: HorizontalAlignment = "distribute" if apart else "left"
    return st.container(
        horizontal=True, vertical_alignment="center", horizontal_alignment=along, gap="small"
    )


def incident_and_run(row: ModelRow) -> None:
    """Links to what is going on with a model."""
    if row.incident is not None:
        go("incidents", f"Incident {row.incident.id}", id=str(row.incident.id))
    run = row.run
    if run is not None:
        at = "waits for approval" if run.state == "waiting" else run.step or "starting"
        go("runs", f"Run {words.plain(run.id[:8])}: {words.plain(at)}", id=run.id)


def entry(when: str, *, width: int = 64) -> DeltaGenerator:
    """A line of a timeline: when, and a container for what, beside it on every screen."""
    with st.container(horizontal=True, gap="small", wrap=False):
        st.caption(when, width=width)
        return st.container(gap="xxsmall")


def overdue(what: str, checked: datetime, every: timedelta, now: datetime) -> None:
    """Say that nobody is watching."""
    st.warning(
        f"**{what} not been checked for {words.age(now - checked)}**; checks came every "
        f"{words.age(every)}. What you see may be out of date. Is `shelflife up` running? "
        "`shelflife doctor` finds out.",
        icon=":material/schedule:",
    )


def choice(label: str, parameter: str, options: dict[str, str], *, otherwise: str) -> str:
    """One of a few options, kept in the address; the label and options are Markdown."""
    chosen = routes.parameter(parameter, tuple(options)) or otherwise
    picked = st.pills(
        label,
        list(options),
        default=chosen,
        format_func=lambda option: options[option],
        key=f"{parameter}:{chosen}",
        label_visibility="collapsed",
    )
    picked = picked or otherwise
    routes.remember(parameter, None if picked == otherwise else picked)
    if picked != chosen:
        st.rerun()
    return picked


def command(*arguments: str) -> None:
    """A command a person may copy."""
    st.code(
        shlex.join(("shelflife", *(words.clean(a, most=128) for a in arguments))), language=None
    )


def report(desk: Desk, relative: str | None, state: str, name: str) -> None:
    """The Evidently report: to download, or where it is on its way."""
    path = desk.report(relative)
    if path is None:
        said = {
            "wanted": "The Evidently report is being made.",
            "failed": "No Evidently report: making it failed; `shelflife watch` logged why.",
        }
        st.caption(said.get(state, "There is no Evidently report."))
        return
    st.download_button(
        "Evidently report (HTML)",
        data=path.read_bytes,
        file_name=f"{name}.html",
        mime="text/html",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption(f"{path.stat().st_size / 1e6:.1f} MB; opens in any browser, without a network.")


def asked_report(desk: Desk, model: str, subject: str) -> None:
    """The Evidently report of a check or a run: to download, on its way, or to be asked for."""
    state, path = desk.reported(subject)
    if state in ("ready", "wanted"):
        report(desk, path, state, subject.replace(":", "-"))
        return
    if state == "failed":
        st.caption("The report could not be made; `shelflife watch` logged why.")
    acting.button(desk, "report", model, subject=subject)


def pick_model(desk: Desk, page: routes.Name) -> None:
    """A page without a model: choose one."""
    fleet = desk.fleet().rows
    st.header("Which model?", anchor=False)
    if not fleet:
        first_steps()
    for row in fleet[:200]:
        with line():
            target = {"name": row.model} if page == "model" else {"model": row.model}
            go(page, words.plain(row.model, most=80), **target)
            st.markdown(words.mark(words.look(row.state)), width="content")


def mlflow(desk: Desk, model: str, version: str, label: str) -> None:
    """A link to a version in the MLflow UI, where one is known."""
    url = desk.mlflow_link(model, version)
    if url:
        st.link_button(label, url, icon=":material/open_in_new:", type="tertiary")
