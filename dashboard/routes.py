"""The pages and their addresses: every view has a URL that messages can link to.

`/` (`?state=decaying`), `/model?name=repurchase` (`&range=90d`), `/incidents` (`?show=open`,
`?id=42`), `/runs` (`?model=repurchase`, `?id=8f3…`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import streamlit as st

Name = Literal["fleet", "model", "incidents", "runs"]


def page(name: Name) -> Any:
    """The Streamlit page of that name (equal wherever it is made)."""
    functions: dict[Name, tuple[Callable[[], None], str]] = _functions()
    function, title = functions[name]
    if name == "fleet":
        return st.Page(function, title=title, default=True)
    return st.Page(function, title=title, url_path=name)


def _functions() -> dict[Name, tuple[Callable[[], None], str]]:
    # Imported here: the pages import this module for their links.
    from dashboard import page_fleet, page_incidents, page_model, page_runs

    return {
        "fleet": (page_fleet.show, "Fleet"),
        "model": (page_model.show, "Model"),
        "incidents": (page_incidents.show, "Incidents"),
        "runs": (page_runs.show, "Runs"),
    }


def link(name: Name, label: str, /, **parameters: str) -> None:
    """A link to a view; `label` is Markdown, so text from data must have been made plain."""
    st.page_link(page(name), label=label, query_params=parameters)


def parameter(name: str, allowed: tuple[str, ...] | None = None) -> str:
    """A parameter of this view's address; empty where it is absent or not one of the allowed."""
    value = st.query_params.get(name, "")
    return value if allowed is None or value in allowed else ""


def remember(name: str, value: str | None) -> None:
    """Put a choice into the address, or take it out."""
    if value:
        if st.query_params.get(name) != value:
            st.query_params[name] = value
    elif name in st.query_params:
        del st.query_params[name]
