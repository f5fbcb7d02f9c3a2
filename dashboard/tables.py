"""The lower, folded part of the model page: columns and serving."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
import streamlit as st

from dashboard import parts, words
from dashboard.views import ModelView
from monitor.measure.drift import DECIDING
from monitor.results import ColumnDrift, QualityIssue
from monitor.wording import STATISTICS, told


def columns(view: ModelView) -> None:
    """Data quality and every column of the last check."""
    latest = view.latest
    if latest is None:
        return
    for issue in latest.quality:
        _issue(issue)
    if not latest.drift:
        return
    with st.expander(f"All columns, last check ({len(latest.drift)})"):
        ordered = sorted(latest.drift, key=lambda column: (not column.drifted, column.column))
        st.dataframe(pd.DataFrame([_line(column) for column in ordered]), hide_index=True)
        with parts.line():
            for column in ordered[:40]:
                name = words.plain(column.column, most=60)
                where = {"model": latest.model, "name": column.column, "role": column.role}
                parts.go("column", name, **where)
        st.caption(
            f"Window of {words.count(latest.rows)} rows. The strongest test decides; the others "
            "say how much, each beside the line that chance would cross."
        )


def _issue(issue: QualityIssue) -> None:
    mark = words.mark(words.look("broken_feed")) if issue.broken else ":gray-badge[data quality]"
    where = f"**{words.plain(issue.column, most=80)}**: " if issue.column else ""
    st.markdown(f"{mark} {where}{words.plain(issue.text)}")


def _line(column: ColumnDrift) -> dict[str, str]:
    line = {
        "column": words.clean(column.column, most=80),
        "role": column.role,
        "drift": "◐ drifted" if column.drifted else words.clean(column.why, most=80),
        "n": words.count(column.n),
        "missing": words.share(column.missing_share),
    }
    decided = [s for s in column.statistics if s.name in DECIDING]
    line["strongest test"] = told(max(decided, key=lambda s: s.value or 0.0)) if decided else ""
    for statistic in column.statistics:
        if statistic.name not in DECIDING:
            name = STATISTICS.get(statistic.name, words.clean(statistic.name, most=40))
            threshold = words.number(statistic.threshold)
            line[name] = f"{words.number(statistic.value)} / {threshold}"
    return line


def serving(view: ModelView, now: datetime) -> None:
    """Which worker answers with which version."""
    if not view.workers:
        return
    with st.expander(f"Serving ({len(view.workers)} worker{'s' * (len(view.workers) != 1)})"):
        for worker in view.workers:
            name = words.plain(worker.worker, most=60)
            text = f"{name} answers with v{words.plain(worker.version, most=20)}"
            if worker.error:
                text += f" · cannot load: {words.plain(worker.error)}"
            st.markdown(f"{text} · seen {words.clock(worker.seen)}")
