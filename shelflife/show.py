"""Results as text for people: short lines, three significant digits, units and n."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from core import schema
from core.errors import NotFound
from core.ledger import Ledger
from core.times import iso

if TYPE_CHECKING:
    from monitor.baseline import Baseline
    from monitor.results import CheckResult, ColumnDrift, Performance
    from registry.versions import Version
    from shelflife.doctor import Finding
    from shelflife.tick import TickResult

SYMBOLS = {
    "healthy": "●",
    "drifting": "◐",
    "decaying": "▲",
    "broken_feed": "■",
    "stale": "◷",
    "insufficient_data": "◌",
}
Row = dict[str, Any]


def number(value: float | None) -> str:
    """Three significant digits, or a dash for what is not known."""
    return "–" if value is None else f"{value:.3g}"


def state(name: str) -> str:
    """A state's shape and word."""
    return f"{SYMBOLS.get(name, '?')} {name.replace('_', ' ')}"


def performance(found: Performance) -> str:
    """The metric with interval, tolerance and n; or why there is none."""
    if found.value is None:
        return f"{found.metric}: {found.why or 'unknown'}"
    text = f"{found.metric} {number(found.value)} [{number(found.low)}, {number(found.high)}]"
    text += f", expected {number(found.expected)}, tolerated {number(found.tolerated)}"
    return text + f", n {found.n:,}" + (f" ({found.why})" if found.why else "")


def check(result: TickResult) -> str:
    """A check in words."""
    found, decision = result.check, result.decision
    lines = [
        f"{found.model} v{found.version}  {state(found.state)}  at {iso(found.at)}",
        f"  {found.reason}",
        f"  rows {found.rows:,}, labelled {found.labelled:,}",
        f"  {performance(found.performance)}",
    ]
    lines += [f"  {line}" for line in _figures(found)]
    lines += [f"  carries the loss: {cause.text}" for cause in found.causes]
    if found.causes_why:
        lines.append(f"  what carries the loss: {found.causes_why}")
    lines += [f"  quality: {issue.text}" for issue in found.quality]
    lines += [f"  {line}" for line in _drift(found)]
    if found.not_logged:
        lines.append(f"  not logged (privacy), so not judged: {', '.join(found.not_logged)}")
    if found.provisional:
        lines.append(f"  thresholds are provisional: {found.provisional}")
    lines.append(f"  decision: {decision.action}: {decision.reason}")
    if decision.would_change:
        lines.append(f"  would change it: {decision.would_change}")
    return "\n".join(lines)


def _figures(found: CheckResult) -> list[str]:
    from monitor import figure_words

    lines = figure_words.label_lines(found.labels) if found.labels else []
    if found.measured is not None and found.measured.source.rows:
        lines += figure_words.measured_lines(found.measured, found.performance.metric)
    if found.estimated is not None:
        lines += figure_words.estimate_lines(found.estimated)
    if found.proof is not None:
        lines.append(figure_words.proof_line(found.proof))
    if found.shelf_life is not None:
        lines += figure_words.shelf_life_lines(found.shelf_life)
    return [line for line in (*lines, figure_words.age_line(found.staleness)) if line]


def _drift(found: CheckResult) -> list[str]:
    moved = [column for column in found.drift if column.drifted]
    failed = [column for column in found.drift if column.why]
    lines = [_column(column) for column in moved]
    lines += [_column(each) for each in found.joint if each.drifted]
    lines += [f"not measured: {each.column}: {each.why}" for each in found.joint if each.why]
    for why in dict.fromkeys(column.why for column in failed):
        names = [column.column for column in failed if column.why == why]
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(f"not measured: {listed}: {why}")
    quiet = len(found.drift) - len(moved) - len(failed)
    return [*lines, f"{quiet} of {len(found.drift)} columns did not drift"]


def _column(column: ColumnDrift) -> str:
    from monitor.measure.drift import DECIDING
    from monitor.wording import told

    # The test that decided first, then how much.
    crossed = [each for each in column.statistics if each.alarm]
    crossed.sort(key=lambda each: each.name not in DECIDING)
    return f"drift in {column.column}: {'; '.join(map(told, crossed))}, n {column.n:,}"


def registered(version: Version, baseline: Baseline) -> str:
    """What registering did."""
    alias = "champion" if "champion" in version.aliases else "challenger"
    text = f"{version.model}: version {version.version} is the {alias}"
    expected = baseline.expected
    if expected is not None:
        text += (
            f"\n  expected {expected.metric} {number(expected.value)} "
            f"[{number(expected.low)}, {number(expected.high)}], n {expected.n:,}, {expected.how}"
        )
    return text + "\n  next: `shelflife up`, then POST /v2/models/" + version.model + "/infer"


def run(row: Any) -> str:
    """How a retraining run ended."""
    candidate = f", candidate v{row.candidate}" if row.candidate else ""
    ended = f": {row.outcome}" if row.outcome else ""
    under_way = f" (step {row.step})" if not ended and row.step else ""
    return f"run {row.id} of {row.model}: {row.state}{under_way}{candidate}{ended}"


def fetch(ledger: Ledger, name: str, given: argparse.Namespace) -> list[Row]:
    """Rows of a listing command.

    Raises:
        NotFound: the one asked for does not exist.
    """
    table = {"incidents": schema.incidents, "runs": schema.runs}[name]
    newest = table.c.opened if name == "incidents" else table.c.started
    query = sa.select(table).order_by(newest.desc()).limit(200)
    if given.id is not None:
        wanted = int(given.id) if name == "incidents" and given.id.isdigit() else given.id
        query = query.where(table.c.id == wanted)
    elif not given.all and name == "incidents":
        query = query.where(table.c.state.in_(("open", "acknowledged")))
    if given.model:
        query = query.where(table.c.model == given.model)
    with ledger.read() as tx:
        rows = [dict(row._mapping) for row in tx.execute(query)]
        if given.id is not None and not rows:
            raise NotFound(name.rstrip("s"), given.id, f"see `shelflife {name} --all`")
        for row in rows if given.id is not None else []:
            row["events"] = _events(tx, name, row["id"])
    return rows


def _events(tx: sa.Connection, name: str, identity: Any) -> list[Row]:
    steps, events = schema.run_steps, schema.incident_events
    query: sa.Select[Any] = (
        sa.select(events).where(events.c.incident_id == identity).order_by(events.c.id)
        if name == "incidents"
        else sa.select(steps).where(steps.c.run_id == identity).order_by(steps.c.started)
    )
    return [dict(row._mapping) for row in tx.execute(query)]


def incidents(rows: Sequence[Row], *, detailed: bool) -> str:
    """Incidents, one a line; with its timeline when one was asked for."""
    if not rows:
        return "no open incident"
    lines = []
    for row in rows:
        lines.append(
            f"{row['id']:>5}  {row['severity']:6}  {row['state']:12}  "
            f"{row['opened']:%Y-%m-%d %H:%M}  {row['model']}  {row['title']}"
        )
        if detailed:
            finding = json.loads(row["finding"]) if row["finding"] else {}
            lines.append(f"       {finding.get('text', '')}")
            events = row.get("events", [])
            lines += [f"       {e['at']:%Y-%m-%d %H:%M}  {e['kind']}: {e['text']}" for e in events]
            if row["muted"]:
                lines.append(f"       nobody is told: {row['muted']}")
            for sent in row.get("messages", []):
                error = f" ({sent['error']})" if sent["error"] else ""
                lines.append(f"       {sent['type']} to {sent['receiver']}: {sent['state']}{error}")
    return "\n".join(lines)


def dataset(found: Any) -> str:
    """A training set that was made again."""
    return (
        f"{found.file}: {found.train_rows:,} training rows and {found.holdout_rows:,} held out, "
        f"the very rows of run {found.run}\n"
        f"dataset {found.identity[:12]}…, values {found.content[:12] or 'not recorded'}…, "
        f"{len(found.segments):,} segments"
    )


def runs(rows: Sequence[Row], *, detailed: bool) -> str:
    """Runs, one a line; with its steps when one was asked for."""
    if not rows:
        return "no retraining run yet"
    lines = []
    for row in rows:
        lines.append(
            f"{row['id']}  {row['state']:9}  {row['started']:%Y-%m-%d %H:%M}  {row['model']}  "
            f"v{row['champion']} → {'v' + row['candidate'] if row['candidate'] else '–'}  "
            f"{row['outcome'] or row['reason']}"
        )
        if detailed:
            for step in row.get("events", []):
                error = f"  {step['error']}" if step["error"] else ""
                lines.append(f"    {step['name']:9} {step['state']}{error}")
    return "\n".join(lines)


def findings(found: Sequence[Finding]) -> str:
    """The doctor's list."""
    marks = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
    lines = []
    for each in found:
        lines.append(f"{marks[each.level]}  {each.what}: {each.text}")
        if each.mend:
            lines.append(f"         → {each.mend}")
    return "\n".join(lines)
