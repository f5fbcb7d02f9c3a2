"""The scores' page of the ledger: what windows scored, what was expected of them, and lives.

`core.schema` gives all of these as its own; import them from there.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, String, Table

from core.tables import Id, UtcTime, metadata, text, time

# --- monitor.scores: how good each past window turned out to be, as far as labels tell by now ----
window_scores = Table(  # rewritten when labels landed since; dropped beyond the horizon
    "window_scores",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("start", UtcTime, primary_key=True),  # event time, a multiple of the width
    Column("version", String(64), primary_key=True),
    time("end"),
    Column("metric", String(32), nullable=False),
    Column("value", Float, nullable=True),
    Column("low", Float, nullable=True),
    Column("high", Float, nullable=True),
    Column("n", Integer, nullable=False),  # rows that were scored
    Column("rows", Integer, nullable=False),  # rows that were answered
    Column("labelled", Integer, nullable=False),  # ... that have a label, usable or not
    Column("bad_labels", Integer, nullable=False),
    Column("label_lag", Float, nullable=True),  # median seconds from prediction to label
    time("scored"),  # the check that found these numbers
)
window_estimates = Table(  # what each window was expected to score, and what it turned out to be
    "window_estimates",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("start", UtcTime, primary_key=True),
    Column("version", String(64), primary_key=True),
    time("end"),
    Column("metric", String(32), nullable=False),
    Column("method", String(8), nullable=False),  # CBPE or DLE
    Column("value", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("n", Integer, nullable=False),  # rows that were estimated
    Column("expected", Float, nullable=True),  # the baseline's: what "nothing changed" would say
    time("made"),  # the check that estimated it last
    Column("realised", Float, nullable=True),  # NULL while most of the labels are missing
    Column("realised_n", Integer, nullable=True),
    Column("first", Float, nullable=True),  # the realised metric when most labels had come …
    Column("settled", UtcTime, nullable=True),  # … which this check found
)
life_points = Table(  # how versions, replaced ones too, did with age; kept for forecasts
    "life_points",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("start", UtcTime, primary_key=True),
    Column("at", UtcTime, primary_key=True),  # the tick that found it; the newest is in force
    time("end"),
    Column("metric", String(32), nullable=False),
    Column("value", Float, nullable=False),  # the version's metric on the window's rows
    Column("n", Integer, nullable=False),
    Column("fresh", Float, nullable=True),  # the metric of a fresh model on the same rows
    # served (it answered these rows) or shadow (asked again once it had been replaced)
    Column("how", String(8), nullable=False),
)
score_marks = Table(  # up to where each model's scores are
    "score_marks",
    metadata,
    Column("model", String(128), primary_key=True),
    time("at"),  # of the newest check that scored
    time("received", nullable=True),  # newest receipt of a row or label that it saw
    text("recent"),  # count and sum of the receipts of the hour before it: late commits change it
    Column("segment", Id, nullable=False),  # newest segment that it saw
    Column("width", BigInteger, nullable=False),  # microseconds
    Column("metric", String(32), nullable=False),
)
