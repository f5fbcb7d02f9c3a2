"""The ledger on one page: every SQL table, who writes it, and what a row means.

Each table has one owning room that writes it; everybody may read. Moments are `UtcTime` columns
(whole microseconds since 1970 in a BIGINT, so that SQLite and PostgreSQL sort them alike).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from core.times import from_micros, micros

#: Grows when this page does; additions only (see `core.upgrade`).
VERSION = 2


class UtcTime(TypeDecorator[datetime]):
    """A timezone-aware UTC moment, stored as whole microseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


metadata = MetaData()
# SQLite autoincrements only INTEGER primary keys; PostgreSQL should have 64 bits.
Id = BigInteger().with_variant(Integer, "sqlite")


def _key() -> Column[int]:
    return Column("id", Id, primary_key=True, autoincrement=True)


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, **{"nullable": False, "server_default": "", **options})


def _time(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, UtcTime, nullable=nullable)


# --- core: what version of this page the database follows -------------------------------------
meta = Table("meta", metadata, Column("key", String(64), primary_key=True), _text("value"))

# --- monitor.log: what was asked, answered, and turned out true --------------------------------
predictions = Table(  # the hot part of the log; old rows move to sealed segments
    "predictions",
    metadata,
    _key(),
    Column("model", String(128), nullable=False),
    Column("source", String(256), nullable=False),
    Column("event_id", String(256), nullable=False),
    Column("prediction_id", String(256), nullable=False),
    Column("version", String(64), nullable=False),
    Column("role", String(16), nullable=False),  # champion, challenger, shadow or history
    _time("time"),
    _time("received"),
    _text("inputs"),  # JSON object, column -> value
    _text("outputs"),  # JSON object, output name -> float
    # The event id leads: it finds a prediction by its id as well, which is nearly always the same,
    # so that a row with a random id dirties one page of an index and not two.
    Index("predictions_by_event", "event_id", "source", unique=True),
    Index("predictions_by_time", "model", "time"),
    Index(
        "predictions_by_other_id",
        "model",
        "prediction_id",
        sqlite_where=text("event_id <> prediction_id"),
        postgresql_where=text("event_id <> prediction_id"),
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
    _key(),
    Column("model", String(128), nullable=False),
    _text("path"),  # relative to the log's segment store
    Column("rows", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    _time("min_time"),
    _time("max_time"),
    _text("columns"),  # JSON object, column -> Arrow type
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False),  # active or quarantined
    _time("created"),
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
    _key(),
    Column("model", String(128), nullable=False),
    _time("at"),
    Column("kind", String(16), nullable=False),  # compact, forget, retain or quarantine
    Column("old", String(64), nullable=False, index=True),  # sha256
    Column("new", String(64), nullable=True, index=True),  # sha256; NULL: deleted
    Column("rows", Integer, nullable=False),  # of the old segment
    Column("removed", Integer, nullable=False, server_default="0"),
    _text("path"),  # of the old file, until it is deleted
    _text("reason"),
    _text("by"),
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
    _text("value"),  # JSON scalar, as given
    _text("source"),
    _time("received"),
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
    _text("body"),  # the payload, JSON; empty once it is no longer waiting
    Column("version", String(64), nullable=False, server_default=""),
    Column("role", String(16), nullable=False, server_default="champion"),
    _time("time"),
    _time("received"),
    Index("event_halves_by_state", "state", "received"),
)

# --- shelflife.scheduler: what is due, and who does it ------------------------------------------
leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),  # "check:repurchase", "registry", "outbox"
    _time("due", nullable=True),
    Column("holder", String(128), nullable=True),
    Column("token", BigInteger, nullable=False, server_default="0"),  # grows with each new holder
    _time("expires", nullable=True),
)

# --- monitor.check: one row per model and moment ------------------------------------------------
checks = Table(
    "checks",
    metadata,
    _key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    _time("at"),
    _time("window_start"),
    _time("window_end"),
    Column("rows", Integer, nullable=False),
    Column("labelled", Integer, nullable=False),
    Column("state", String(32), nullable=False),
    _text("reason"),
    Column("metric", String(32), nullable=False, server_default=""),
    Column("value", Float, nullable=True),
    Column("low", Float, nullable=True),
    Column("high", Float, nullable=True),
    Column("expected", Float, nullable=True),
    Column("tolerated", Float, nullable=True),
    _text("result"),  # the whole monitor.results.CheckResult as JSON
    _time("created"),
    UniqueConstraint("model", "at"),
    sqlite_autoincrement=True,
)

# --- monitor.scores: how good each past window turned out to be, as far as labels tell by now ----
window_scores = Table(  # rewritten when labels landed since; dropped beyond the horizon
    "window_scores",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("start", UtcTime, primary_key=True),  # event time, a multiple of the width
    Column("version", String(64), primary_key=True),
    _time("end"),
    Column("metric", String(32), nullable=False),
    Column("value", Float, nullable=True),
    Column("low", Float, nullable=True),
    Column("high", Float, nullable=True),
    Column("n", Integer, nullable=False),  # rows that were scored
    Column("rows", Integer, nullable=False),  # rows that were answered
    Column("labelled", Integer, nullable=False),  # ... that have a label, usable or not
    Column("bad_labels", Integer, nullable=False),
    Column("label_lag", Float, nullable=True),  # median seconds from prediction to label
    _time("scored"),  # the check that found these numbers
)
score_marks = Table(  # up to where each model's scores are
    "score_marks",
    metadata,
    Column("model", String(128), primary_key=True),
    _time("at"),  # of the newest check that scored
    _time("received", nullable=True),  # newest receipt of a row or label that it saw
    _text("recent"),  # count and sum of the receipts of the hour before it: late commits change it
    Column("segment", Id, nullable=False),  # newest segment that it saw
    Column("width", BigInteger, nullable=False),  # microseconds
    Column("metric", String(32), nullable=False),
)

# --- shelflife.importing: files and queries that were, or are being, imported --------------------
imports = Table(
    "imports",
    metadata,
    Column("id", String(32), primary_key=True),  # of the content and of how it is read
    Column("model", String(128), nullable=False),
    _text("source"),  # as given, without secrets
    _time("started"),  # `received` of all its rows and labels, whenever it is resumed
    _time("finished", nullable=True),
    Column("position", BigInteger, nullable=False, server_default="0"),  # rows dealt with
    _text("counts"),  # JSON object
)

# --- monitor.alert: who is told -----------------------------------------------------------------
incidents = Table(
    "incidents",
    metadata,
    _key(),
    Column("model", String(128), nullable=False),
    Column("cause", String(64), nullable=False),
    Column("version", String(64), nullable=False, server_default=""),
    Column("severity", String(16), nullable=False),  # page or ticket
    Column("state", String(16), nullable=False),  # open, acknowledged or resolved
    _text("title"),
    _text("finding"),  # the newest monitor.results.Finding as JSON
    _time("opened"),
    _time("updated"),
    _time("resolved", nullable=True),
    Column("seen", Integer, nullable=False, server_default="1"),  # checks that found it
    Column("clear", Integer, nullable=False, server_default="0"),  # clear checks in a row
    Column("report", Text, nullable=True),  # Evidently HTML, relative to home
    Column("report_state", String(16), nullable=False, server_default="wanted"),
    Column("run_id", String(64), nullable=True),
    # At most one unresolved incident per model and cause: the key is nulled on resolution.
    Column("open_key", String(200), nullable=True, unique=True),
    Index("incidents_by_model", "model", "opened"),
    sqlite_autoincrement=True,
)
incident_events = Table(
    "incident_events",
    metadata,
    _key(),
    Column("incident_id", Id, nullable=False, index=True),
    _time("at"),
    Column("kind", String(32), nullable=False),
    _text("text"),
    sqlite_autoincrement=True,
)
outbox = Table(  # written in the transaction of the decision it tells of
    "outbox",
    metadata,
    _key(),
    Column("message_id", String(64), nullable=False),  # webhook-id: the same over all attempts
    Column("incident_id", Id, nullable=True, index=True),
    Column("receiver", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    _text("body"),
    _time("created"),
    _time("next_attempt"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False),  # pending, delivered or failed
    _time("delivered", nullable=True),
    Column("status", Integer, nullable=True),
    _text("error"),
    UniqueConstraint("message_id", "receiver"),
    Index("outbox_by_state", "state", "next_attempt"),
    sqlite_autoincrement=True,
)

# --- retrain: when, on what, how, and whether it was better -----------------------------------
decisions = Table(
    "decisions",
    metadata,
    _key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    _time("at"),
    Column("check_id", Id, nullable=True),
    Column("action", String(16), nullable=False),  # retrain, wait, ask or rollback
    _text("reason"),
    _text("detail"),  # retrain.policy.Decision as JSON
    Column("run_id", String(64), nullable=True),
    Index("decisions_by_model", "model", "at"),
    sqlite_autoincrement=True,
)
runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("trigger", String(32), nullable=False),  # decay, stale, manual, ...
    _text("reason"),
    Column("by", String(128), nullable=False),
    # running, waiting (for approval), promoted, refused, failed or abandoned
    Column("state", String(16), nullable=False),
    Column("champion", String(64), nullable=False),
    Column("candidate", String(64), nullable=True),
    _time("started"),
    _time("updated"),
    _time("finished", nullable=True),
    Column("incident_id", Id, nullable=True),
    _text("outcome"),
    _text("gate"),  # retrain.gate.GateResult as JSON
    # At most one unfinished run per model: the model's name while unfinished, then NULL.
    Column("active", String(128), nullable=True, unique=True),
    Column("told", String(16), nullable=True),  # the state people were told of; NULL: not our time
    Index("runs_by_model", "model", "started"),
)
run_steps = Table(
    "run_steps",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("state", String(16), nullable=False),  # running, done or failed
    Column("attempts", Integer, nullable=False, server_default="0"),
    _time("started"),
    _time("finished", nullable=True),
    _text("result"),  # JSON
    _text("error"),
)

# --- registry: what moved the champion ----------------------------------------------------------
promotions = Table(
    "promotions",
    metadata,
    _key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    Column("previous", String(64), nullable=False, server_default=""),
    # first, gate, human (seen in MLflow), forced or rollback
    Column("kind", String(16), nullable=False),
    _time("at"),
    Column("by", String(128), nullable=False),
    _text("reason"),
    Column("sha256", String(64), nullable=False),
    Column("run_id", String(64), nullable=True),
    Column("token", BigInteger, nullable=False, server_default="0"),  # of the lease it moved under
    Index("promotions_by_model", "model", "at"),
    sqlite_autoincrement=True,
)

# --- serving: which worker answers with which version -------------------------------------------
workers = Table(
    "workers",
    metadata,
    Column("worker", String(128), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    _time("loaded"),
    _time("seen"),  # heartbeat, wall clock
    _text("error"),
    Column("challenger", String(64), nullable=False, server_default=""),  # beside the champion
    _text("challenger_error"),
)

# --- shelflife.api: what people asked for; the scheduler carries it out -------------------------
commands = Table(
    "commands",
    metadata,
    _key(),
    Column("model", String(128), nullable=False),
    Column("action", String(32), nullable=False),  # see shelflife.commands.ACTIONS
    _text("arguments"),  # JSON object
    Column("by", String(128), nullable=False),
    _text("reason"),
    _time("requested"),
    Column("state", String(16), nullable=False),  # asked, running, done or failed
    _text("result"),
    _time("finished", nullable=True),
    sqlite_autoincrement=True,
)
