"""The log's page of the ledger: predictions, labels, the manifest, and what is on its way in.

`core.schema` gives all of these as its own; import them from there.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table, UniqueConstraint
from sqlalchemy import text as sql

from core.tables import Id, UtcTime, key, metadata, text, time

# --- monitor.log: what was asked, answered, and turned out true --------------------------------
predictions = Table(  # the hot part of the log; old rows move to sealed segments
    "predictions",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("source", String(256), nullable=False),
    Column("event_id", String(256), nullable=False),
    Column("prediction_id", String(256), nullable=False),
    Column("version", String(64), nullable=False),
    Column("role", String(16), nullable=False),  # champion, challenger, shadow or history
    time("time"),
    time("received"),
    text("inputs"),  # JSON object, column -> value
    text("outputs"),  # JSON object, output name -> float
    # The event id leads: it finds a prediction by its id as well, which is nearly always the same,
    # so that a row with a random id dirties one page of an index and not two.
    Index("predictions_by_event", "event_id", "source", unique=True),
    Index("predictions_by_time", "model", "time"),
    Index(
        "predictions_by_other_id",
        "model",
        "prediction_id",
        sqlite_where=sql("event_id <> prediction_id"),
        postgresql_where=sql("event_id <> prediction_id"),
    ),
    sqlite_autoincrement=True,
)
sealed_keys = Table(  # so that an event replayed after sealing is still recognised
    "sealed_keys",
    metadata,
    Column("event", String(32), primary_key=True),  # blake2b-128 of source and event id
    Column("prediction", String(32), nullable=False, index=True),  # of model and prediction id
    Column("segment", Id, nullable=False),  # the one it was sealed into: see `segment_parts`
    sqlite_with_rowid=False,
)
segments = Table(  # the manifest: one immutable Parquet file each
    "segments",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    text("path"),  # relative to the log's segment store
    Column("rows", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    time("min_time"),
    time("max_time"),
    text("columns"),  # JSON object, column -> Arrow type
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False),  # active or quarantined
    time("created"),
    UniqueConstraint("path"),
    Index("segments_by_time", "model", "min_time"),
    sqlite_autoincrement=True,
)
segment_parts = Table(  # where rows sealed into `part` lie since it was merged or rewritten
    "segment_parts",
    metadata,
    Column("part", Id, primary_key=True, autoincrement=False),
    Column("segment", Id, nullable=False, index=True),
)
segment_events = Table(  # what became of a segment: the lineage of every hash a dataset names
    "segment_events",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    time("at"),
    Column("kind", String(16), nullable=False),  # compact, forget, retain or quarantine
    Column("old", String(64), nullable=False, index=True),  # sha256
    Column("new", String(64), nullable=True, index=True),  # sha256; NULL: deleted
    Column("rows", Integer, nullable=False),  # of the old segment
    Column("removed", Integer, nullable=False, server_default="0"),
    text("path"),  # of the old file, until it is deleted
    text("reason"),
    text("by"),
    Index("segment_events_by_model", "model", "at"),
    sqlite_autoincrement=True,
)
sampling = Table(  # what was offered to the log and what of it was kept, exactly
    "sampling",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("hour", UtcTime, primary_key=True),  # of the event time
    Column("rate", Float, primary_key=True),  # the rate in force
    Column("seen", BigInteger, nullable=False, server_default="0"),  # rows offered
    Column("kept", BigInteger, nullable=False, server_default="0"),  # of them, in the sample
    Column("labels_seen", BigInteger, nullable=False, server_default="0"),  # by label time
    Column("labels_kept", BigInteger, nullable=False, server_default="0"),
)
labels = Table(  # every distinct statement of a truth; the last by `time` wins
    "labels",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("prediction_id", String(256), primary_key=True),
    Column("time", UtcTime, primary_key=True),  # when it became known
    text("value"),  # JSON scalar, as given
    text("source"),
    time("received"),
    Index("labels_by_time", "model", "time"),
    Index("labels_by_receipt", "model", "received"),
)
counters = Table(  # things counted and not kept: refused requests, shed rows
    "counters",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# --- shelflife.web: requests and responses that wait for each other ----------------------------
event_halves = Table(  # kept until its counterpart came or is given up, then as a mark for a while
    "event_halves",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("source", String(256), primary_key=True),
    Column("event_id", String(256), primary_key=True),
    Column("part", String(16), primary_key=True),  # request or response
    Column("state", String(16), nullable=False),  # waiting, paired, refused or lost
    text("body"),  # the payload, JSON; empty once it is no longer waiting
    Column("version", String(64), nullable=False, server_default=""),
    Column("role", String(16), nullable=False, server_default="champion"),
    time("time"),
    time("received"),
    Index("event_halves_by_state", "state", "received"),
)

# --- shelflife.importing: files and queries that were, or are being, imported --------------------
imports = Table(
    "imports",
    metadata,
    Column("id", String(32), primary_key=True),  # of the content and of how it is read
    Column("model", String(128), nullable=False),
    text("source"),  # as given, without secrets
    time("started"),  # `received` of all its rows and labels, whenever it is resumed
    time("finished", nullable=True),
    Column("position", BigInteger, nullable=False, server_default="0"),  # rows dealt with
    text("counts"),  # JSON object
)
