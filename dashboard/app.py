"""The script Streamlit runs: `streamlit run dashboard/app.py` (see `dashboard.launch`)."""

from __future__ import annotations

import streamlit as st

from dashboard import parts, routes

# A picture of our own: a named icon would be fetched from a foreign server.
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" width="16" height="16">'
    '<circle cx="8" cy="8" r="6.5" fill="none" stroke="#0072b2" stroke-width="2"/>'
    '<path d="M8 1.5a6.5 6.5 0 0 1 0 13z" fill="#0072b2"/></svg>'
)


def main() -> None:
    """Show the page the address names."""
    st.set_page_config(page_title="shelflife", page_icon=_ICON, layout="wide")
    parts.style()
    st.navigation(routes.pages(), position="top").run()


main()
