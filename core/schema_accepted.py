"""The ledger's page of what people accepted; part of `core.schema`."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, String, Table

from core.tables import key, metadata, text, time

# --- shelflife.accepting: rows that a person accepted as what a version is held against ---------
accepted_baselines = Table(  # only added to; in force from `at` on
    "accepted_baselines",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    time("at"),
    time("since"),  # event time of the first row
    Column("rows", Integer, nullable=False),
    Column("by", String(128), nullable=False),
    text("reason"),
    text("baseline"),  # monitor.baseline.Baseline as JSON
    Column("reference", LargeBinary, nullable=False),  # its sample, Parquet
    Index("accepted_by_model", "model", "version", "at"),
    sqlite_autoincrement=True,
)
