"""The pages and their addresses: every view has a URL that messages can link to.

`/` (`?state=decaying`), `/model?name=repurchase` (`&range=90d`), `/incidents` (`?show=open`,
`?id=42`), `/runs` (`?model=repurchase`, `?id=8f3…`), `/column?model=repurchase&name=age`
(`&at=2026-10-12T14:00:00Z`), `/compare?run=8f3…` (`?model=repurchase`: its newest), `/serving`
(`?model=repurchase&span=30d`), `/backtest` (`?id=…`).
"""

from __future__ import annotations

from typing import Any, Literal

import streamlit as st

Name = Literal[
    "fleet", "model", "column", "compare", "runs", "incidents", "serving", "backtest"
]  # fmt: skip


_TITLES: dict[Name, str] = {
    "fleet": "Fleet",
    "model": "Model",
    "column": "Column",
    "compare": "Compare",
    "runs": "Runs",
    "incidents": "Incidents",
    "serving": "Serving",
    "backtest": "Backtest",
}


def page(name: Name) -> Any:
    """The Streamlit page of that name (equal wherever it is made): the file `page_<name>.py`."""
    script = f"page_{name}.py"
    if name == "fleet":
        return st.Page(script, title=_TITLES[name], default=True)
    return st.Page(script, title=_TITLES[name], url_path=name)


def pages() -> list[Any]:
    """All of them, in the order of the navigation."""
    return [page(name) for name in _TITLES]


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
