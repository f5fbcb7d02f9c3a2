"""The ledger on one page: every SQL table, who writes it, and what a row means.

Each table has one owning room that writes it; everybody may read. Moments are `UtcTime` columns
(whole microseconds since 1970 in a BIGINT, so that SQLite and PostgreSQL sort them alike).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from core.schema_alert import incident_events as incident_events
from core.schema_alert import incidents as incidents
from core.schema_alert import notices as notices
from core.schema_alert import outbox as outbox
from core.schema_alert import receivers as receivers
from core.schema_alert import silences as silences
from core.schema_log import counters as counters
from core.schema_log import event_halves as event_halves
from core.schema_log import imports as imports
from core.schema_log import labels as labels
from core.schema_log import predictions as predictions
from core.schema_log import sampling as sampling
from core.schema_log import sealed_keys as sealed_keys
from core.schema_log import segment_events as segment_events
from core.schema_log import segment_parts as segment_parts
from core.schema_log import segments as segments
from core.schema_pages import baseline_profiles as baseline_profiles
from core.schema_pages import reports as reports
from core.schema_pages import tokens as tokens
from core.schema_pages import traffic as traffic
from core.schema_scores import life_points as life_points
from core.schema_scores import score_marks as score_marks
from core.schema_scores import window_estimates as window_estimates
from core.schema_scores import window_scores as window_scores
from core.tables import Id, key, text, time
from core.tables import UtcTime as UtcTime
from core.tables import metadata as metadata

#: Grows when this page does; additions only (see `core.upgrade`).
VERSION = 2


# --- core: what version of this page the database follows -------------------------------------
meta = Table("meta", metadata, Column("key", String(64), primary_key=True), text("value"))

# --- shelflife.scheduler: what is due, and who does it ------------------------------------------
leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),  # "check:repurchase", "registry", "outbox"
    time("due", nullable=True),
    Column("holder", String(128), nullable=True),
    Column("token", BigInteger, nullable=False, server_default="0"),  # grows with each new holder
    time("expires", nullable=True),
)

# --- monitor.check: one row per model and moment ------------------------------------------------
checks = Table(
    "checks",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    time("at"),
    time("window_start"),
    time("window_end"),
    Column("rows", Integer, nullable=False),
    Column("labelled", Integer, nullable=False),
    Column("state", String(32), nullable=False),
    text("reason"),
    Column("metric", String(32), nullable=False, server_default=""),
    Column("value", Float, nullable=True),
    Column("low", Float, nullable=True),
    Column("high", Float, nullable=True),
    Column("expected", Float, nullable=True),
    Column("tolerated", Float, nullable=True),
    text("result"),  # the whole monitor.results.CheckResult as JSON
    time("created"),
    UniqueConstraint("model", "at"),
    # What lists and charts read, without the pages that hold `result`.
    Index(
        "checks_series", "model", "at", "state", "version", "metric", "value", "low", "high",
        "expected", "tolerated", "rows", "labelled",
    ),
    Index("checks_by_state", "model", "state", "at"),
    sqlite_autoincrement=True,
)  # fmt: skip

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

# --- retrain: when, on what, how, and whether it was better -----------------------------------
decisions = Table(
    "decisions",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    time("at"),
    Column("check_id", Id, nullable=True),
    Column("action", String(16), nullable=False),  # retrain, wait, ask or rollback
    text("reason"),
    text("detail"),  # retrain.policy.Decision as JSON
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
    text("reason"),
    Column("by", String(128), nullable=False),
    # running, waiting (for approval), promoted, refused, failed or abandoned
    Column("state", String(16), nullable=False),
    Column("champion", String(64), nullable=False),
    Column("candidate", String(64), nullable=True),
    time("started"),
    time("updated"),
    time("finished", nullable=True),
    Column("incident_id", Id, nullable=True),
    text("outcome"),
    text("gate"),  # retrain.gate.GateResult as JSON
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
    time("started"),
    time("finished", nullable=True),
    text("result"),  # JSON
    text("error"),
)

observations = Table(  # what each stretch of labelled rows said about the champion of then
    "observations",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    time("at"),
    Column("rows", Integer, nullable=False, server_default="0"),
    Column("loss", Float, nullable=True),
    Column("expected", Float, nullable=True),
    text("detail"),  # retrain.probe.Observation as JSON
    UniqueConstraint("model", "version", "at"),
    sqlite_autoincrement=True,
)

# --- registry: what moved the champion ----------------------------------------------------------
promotions = Table(
    "promotions",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    Column("previous", String(64), nullable=False, server_default=""),
    # first, gate, human (seen in MLflow), forced or rollback
    Column("kind", String(16), nullable=False),
    time("at"),
    Column("by", String(128), nullable=False),
    text("reason"),
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
    time("loaded"),
    time("seen"),  # heartbeat, wall clock
    text("error"),
    Column("challenger", String(64), nullable=False, server_default=""),  # beside the champion
    text("challenger_error"),
)

# --- shelflife.pulses: which recurring job worked last, and when --------------------------------
jobs = Table(
    "jobs",
    metadata,
    Column("job", String(64), primary_key=True),
    time("succeeded", nullable=True),  # wall clock
    time("failed", nullable=True),
    text("error"),  # the type of the last failure
)

# --- shelflife.api: what people asked for; the scheduler carries it out -------------------------
commands = Table(
    "commands",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("action", String(32), nullable=False),  # see shelflife.commands.ACTIONS
    text("arguments"),  # JSON object
    Column("by", String(128), nullable=False),
    text("reason"),
    time("requested"),
    Column("state", String(16), nullable=False),  # asked, running, done or failed
    text("result"),
    time("finished", nullable=True),
    sqlite_autoincrement=True,
)
