"""On-call's page of the ledger: incidents, who was told of what, and who wants to hear nothing.

`core.schema` gives all of these as its own; import them from there.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from core.tables import Id, key, metadata, text, time

# --- monitor.alert: who is told -----------------------------------------------------------------
incidents = Table(
    "incidents",
    metadata,
    key(),
    Column("model", String(128), nullable=False),
    Column("cause", String(64), nullable=False),
    Column("version", String(64), nullable=False, server_default=""),
    Column("severity", String(16), nullable=False),  # page or ticket
    # noticed (a first sign: nobody is told), open, acknowledged or resolved
    Column("state", String(16), nullable=False),
    text("title"),
    text("finding"),  # the newest monitor.results.Finding as JSON
    time("opened"),
    time("updated"),
    time("resolved", nullable=True),
    Column("seen", Integer, nullable=False, server_default="1"),  # checks that found it
    Column("clear", Integer, nullable=False, server_default="0"),  # clear checks in a row
    Column("report", Text, nullable=True),  # Evidently HTML, relative to home
    Column("report_state", String(16), nullable=False, server_default="wanted"),
    Column("run_id", String(64), nullable=True),
    # At most one unresolved incident per model and cause: the key is nulled on resolution.
    Column("open_key", String(200), nullable=True, unique=True),
    time("found", nullable=True),  # the last check that found it; NULL: it was only a sign so far
    Column(
        "history", String(64), nullable=False, server_default=""
    ),  # 1 found, 0 clear, newest last
    Column("relapses", Integer, nullable=False, server_default="0"),  # of late, before this one
    Column("story", Id, nullable=True),  # the incident this one is a chapter of; NULL: its own
    Column("acknowledged_by", String(128), nullable=False, server_default=""),
    time("told", nullable=True),  # when anybody was told of it last
    time("escalated", nullable=True),
    text("muted"),  # why nobody is told at present: a silence, a maintenance, another incident
    Column("withheld", String(16), nullable=False, server_default=""),  # what is told afterwards
    time("hold", nullable=True),  # told only when found again at or after this moment
    text("context"),  # the newest monitor.alert.messages.MessageContext as JSON
    Index("incidents_by_model", "model", "opened"),
    sqlite_autoincrement=True,
)
incident_events = Table(
    "incident_events",
    metadata,
    key(),
    Column("incident_id", Id, nullable=False, index=True),
    time("at"),
    Column("kind", String(32), nullable=False),
    text("text"),
    sqlite_autoincrement=True,
)
outbox = Table(  # written in the transaction of the decision it tells of
    "outbox",
    metadata,
    key(),
    Column("message_id", String(64), nullable=False),  # webhook-id: the same over all attempts
    Column("incident_id", Id, nullable=True, index=True),
    Column("receiver", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    text("body"),
    time("created"),
    time("next_attempt"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False),  # pending, delivered or failed
    time("delivered", nullable=True),
    Column("status", Integer, nullable=True),
    text("error"),
    Column("group_key", String(64), nullable=True),  # messages of a group are delivered in order
    UniqueConstraint("message_id", "receiver"),
    Index("outbox_by_state", "state", "next_attempt"),
    sqlite_autoincrement=True,
)

receivers = Table(  # those who want no more messages until somebody enables them again
    "receivers",
    metadata,
    Column("name", String(64), primary_key=True),
    time("disabled", nullable=True),
    text("reason"),
)
notices = Table(  # who is, was or will be told of which line of a timeline; see alert.dispatch
    "notices",
    metadata,
    key(),
    Column("incident_id", Id, nullable=False, index=True),
    Column("event_id", Id, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("type", String(64), nullable=False),
    Column("receiver", String(64), nullable=False),
    Column("group_key", String(64), nullable=False),
    text("labels"),  # of the group, as JSON
    time("at"),
    time("due"),  # when its group may speak next
    Column("state", String(16), nullable=False),  # waiting, sent or dropped
    time("sent", nullable=True),
    Column("message_id", String(64), nullable=False, server_default=""),
    Index("notices_by_group", "group_key", "state"),
    Index("notices_by_state", "state", "due"),
    sqlite_autoincrement=True,
)
silences = Table(  # what people asked not to hear of; never deleted
    "silences",
    metadata,
    key(),
    text("matchers"),  # JSON list of 'name="value"'
    Column("by", String(128), nullable=False),
    text("reason"),
    time("created"),
    time("starts"),
    time("ends", nullable=False),
    Column("ended_by", String(128), nullable=False, server_default=""),  # ended before its time
    Column("incident_id", Id, nullable=True),  # the one it was made on
    sqlite_autoincrement=True,
)
