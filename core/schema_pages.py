"""The ledger's tables that pages and the API's gatekeeper stand on; a page of `core.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from core.tables import UtcTime, metadata, text, time

# --- monitor.profiles: how each version's columns looked when it was made ------------------------
baseline_profiles = Table(  # a copy for pages, which do not ask MLflow
    "baseline_profiles",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("version", String(64), primary_key=True),
    text("columns"),  # monitor.measure.profile.ColumnProfile, a list as JSON
)

# --- serving.heartbeat: what each worker answered -----------------------------------------------
traffic = Table(  # what each worker answered in each hour (wall clock); kept for 90 days
    "traffic",
    metadata,
    Column("worker", String(128), primary_key=True),
    Column("model", String(128), primary_key=True),  # empty: all of them together
    Column("version", String(64), primary_key=True),
    Column("hour", UtcTime, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("batches", BigInteger, nullable=False),
    text("cells"),  # requests by duration: serving.timings.Tally.cells as JSON
    Index("traffic_by_hour", "hour", "model"),
)

# --- core.tokens: who may use the API -------------------------------------------------------------
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),  # public: the middle of the token
    Column("hash", String(64), nullable=False),  # SHA-256 of the whole token; it is kept nowhere
    Column("name", String(128), nullable=False),
    text("scopes"),  # separated by spaces
    Column("per_minute", Integer, nullable=True),  # requests; NULL: as the settings say
    time("created"),
    Column("by", String(128), nullable=False),
    time("expires", nullable=True),
    time("revoked", nullable=True),
    time("used", nullable=True),
)

# --- shelflife.reports: Evidently reports that somebody asked for ---------------------------------
reports = Table(  # those of incidents are in `incidents`
    "reports",
    metadata,
    Column("subject", String(200), primary_key=True),  # check:ID or run:ID
    Column("model", String(128), nullable=False),
    Column("state", String(16), nullable=False),  # wanted, ready or failed
    Column("path", Text, nullable=True),  # HTML, relative to home
    time("asked"),
    Column("by", String(128), nullable=False),
    text("error"),
)
