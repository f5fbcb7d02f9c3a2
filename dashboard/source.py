"""Where the pages read from: the environment, one ledger per process, and short-lived caches.

| variable | meaning |
|---|---|
| `SHELFLIFE_LEDGER` | SQLAlchemy URL of the ledger |
| `SHELFLIFE_HOME` | home folder: Evidently reports lie below it |
| `SHELFLIFE_MLFLOW_UI` | address of the MLflow UI, for links |
| `SHELFLIFE_CLOCK` | `ledger` where it holds a replayed history: "now" is its newest moment |
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
import streamlit as st
from msgspec import Struct

from core.errors import ShelflifeError
from core.ledger import Ledger
from dashboard import (
    column_query,
    fleet_query,
    history,
    interpreters,
    people,
    queries,
    serving_query,
)
from dashboard.column_query import ColumnView
from dashboard.serving_query import ServingView
from dashboard.views import Fleet, IncidentRow, IncidentView, ModelRow, ModelView, RunRow, RunView

_FRESH = 3  # seconds an answer to "has anything changed?" is believed
_KEPT = 300  # seconds an answer is kept; it is keyed by what the ledger held


class Source(Struct, frozen=True, kw_only=True):
    """What the environment says."""

    url: str  # may hold a password: never shown, never a cache key
    home: Path | None
    mlflow_ui: str
    replay: bool

    @property
    def key(self) -> str:
        """A cache key that tells nothing of the URL."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return sa.make_url(self.url).render_as_string(hide_password=True)


def read_environment() -> Source:
    """The dashboard's settings.

    Raises:
        ShelflifeError: SHELFLIFE_LEDGER is not set, or not an SQLAlchemy URL.
    """
    url = os.environ.get("SHELFLIFE_LEDGER", "")
    if not url:
        raise ShelflifeError("SHELFLIFE_LEDGER is not set; `shelflife up` starts the dashboard")
    try:
        sa.make_url(url)
    except sa.exc.ArgumentError:
        expected = "an SQLAlchemy URL such as sqlite:////path/ledger.db"
        raise ShelflifeError(f"SHELFLIFE_LEDGER is not {expected}") from None
    home = os.environ.get("SHELFLIFE_HOME", "")
    ui = os.environ.get("SHELFLIFE_MLFLOW_UI", "").rstrip("/")
    return Source(
        url=url,
        home=Path(home) if home else None,
        mlflow_ui=ui if ui.startswith(("http://", "https://")) else "",
        replay=os.environ.get("SHELFLIFE_CLOCK", "") == "ledger",
    )


def open_ledger(source: Source) -> Ledger:
    """The process's ledger, opened once.

    Raises:
        ShelflifeError: no such file, or no shelflife ledger in it.
    """
    url = sa.make_url(source.url)
    missing = url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file()
    if missing:  # opening it would create an empty file
        raise ShelflifeError(f"there is no ledger at {source.shown}")
    return _engine(source.key, source)


@st.cache_resource(max_entries=4, show_spinner=False)
def _engine(key: str, _source: Source) -> Ledger:
    ledger = Ledger(_source.url)
    queries.ready(ledger)
    return ledger


class Desk:
    """One page's view of the ledger: as it was when the page began."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.ledger = open_ledger(source)
        self.reader = people.reader(self.ledger)
        self.version = _version(source.key, self.ledger)
        self.now = self._now()

    def _now(self) -> datetime:
        found = _newest(self.source.key, self.version, self.ledger) if self.source.replay else None
        return found or datetime.now(UTC)

    def _minute(self) -> datetime:
        return self.now.replace(second=0, microsecond=0)

    def changed(self) -> bool:
        """Whether the ledger holds anything this page does not show."""
        return _version(self.source.key, self.ledger) != self.version

    def fleet(self) -> Fleet:
        return _fleet(self.source.key, self.version, self._minute(), self.ledger)

    def detailed(self, rows: tuple[ModelRow, ...]) -> tuple[ModelRow, ...]:
        """Fleet rows with what is only asked for those that are shown."""
        names = ",".join(row.model for row in rows)
        return _detailed(self.source.key, self.version, names, rows, self.ledger)

    def model(self, name: str, start: datetime | None) -> ModelView:
        minute = self._minute()
        return _model(self.source.key, self.version, name, minute, start, self.ledger)

    def incidents(self, model: str | None, state: str | None) -> tuple[IncidentRow, ...]:
        return queries.incidents(self.ledger, model=model, state=state)

    def incident(self, incident_id: int) -> IncidentView:
        return queries.incident(self.ledger, incident_id)

    def runs(self, model: str | None) -> tuple[RunRow, ...]:
        return queries.runs(self.ledger, model=model)

    def run(self, run_id: str) -> RunView:
        return queries.run(self.ledger, run_id)

    def column(self, model: str, column: str, role: str, at: datetime | None) -> ColumnView:
        return _column(self.source.key, self.version, model, column, role, at, self.ledger)

    def serving(self, model: str | None, span: timedelta) -> ServingView:
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        return _serving(self.source.key, minute, model, span, self.ledger)

    def reported(self, subject: str) -> tuple[str, str | None]:
        """State and path of the report somebody asked for; ("", None) where nobody did."""
        return queries.reported(self.ledger, subject)

    def interpreters(self, model: str, version: str) -> list[dict[str, str]]:
        """The measured interpreters of a version, a row each; none where nothing was measured."""
        return interpreters.rows(self.source.home, model, version)

    def mlflow_link(self, model: str, version: str) -> str:
        """The version's page in the MLflow UI; empty where no UI is known."""
        if not self.source.mlflow_ui or not version:
            return ""
        name = quote(model, safe="")
        return f"{self.source.mlflow_ui}/#/models/{name}/versions/{quote(version, safe='')}"

    def report(self, relative: str | None) -> Path | None:
        """An incident's Evidently report, if it exists and lies below home."""
        if self.source.home is None or not relative:
            return None
        home = self.source.home.resolve()
        path = (home / relative).resolve()
        return path if path.is_relative_to(home) and path.is_file() else None


@st.cache_data(ttl=_FRESH, max_entries=16, show_spinner=False)
def _version(key: str, _ledger: Ledger) -> str:
    return queries.version(_ledger)


@st.cache_data(ttl=_KEPT, max_entries=16, show_spinner=False)
def _newest(key: str, version: str, _ledger: Ledger) -> datetime | None:
    return queries.newest(_ledger)


@st.cache_data(ttl=_KEPT, max_entries=16, show_spinner="Reading the ledger …")
def _fleet(key: str, version: str, now: datetime, _ledger: Ledger) -> Fleet:
    return fleet_query.fleet(_ledger, now)


@st.cache_data(ttl=_KEPT, max_entries=32, show_spinner=False)
def _detailed(
    key: str, version: str, names: str, _rows: tuple[ModelRow, ...], _ledger: Ledger
) -> tuple[ModelRow, ...]:
    return fleet_query.detailed(_ledger, _rows)


@st.cache_data(ttl=_KEPT, max_entries=32, show_spinner="Reading the ledger …")
def _model(
    key: str, version: str, name: str, now: datetime, start: datetime | None, _ledger: Ledger
) -> ModelView:
    return history.model_view(_ledger, name, now, start=start)


@st.cache_data(ttl=_KEPT, max_entries=32, show_spinner="Reading the ledger …")
def _column(
    key: str,
    version: str,
    model: str,
    column: str,
    role: str,
    at: datetime | None,
    _ledger: Ledger,
) -> ColumnView:
    return column_query.column_view(_ledger, model, column, role, at)


@st.cache_data(ttl=_FRESH, max_entries=32, show_spinner="Reading the ledger …")
def _serving(
    key: str, minute: datetime, model: str | None, span: timedelta, _ledger: Ledger
) -> ServingView:
    now = datetime.now(UTC)
    return serving_query.serving_view(_ledger, now, model=model, span=span)
