"""What Prometheus reads: plain text, a handful of metrics, no ids or versions as labels."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from core import schema
from core.ledger import Ledger

_HELP = {
    "shelflife_requests_total": ("counter", "Inference requests by model and outcome."),
    "shelflife_log_rows_total": ("counter", "Rows for the inference log by model and outcome."),
    "shelflife_ingest_rows_total": ("counter", "Predictions and labels from elsewhere by outcome."),
    "shelflife_ingest_refused_total": ("counter", "Rows and events refused by reason."),
    "shelflife_event_pairs_total": ("counter", "CloudEvents pairs by outcome."),
    "shelflife_event_halves_waiting": ("gauge", "CloudEvents that wait for their counterpart."),
    "shelflife_last_check_timestamp_seconds": ("gauge", "When the model was last checked."),
    "shelflife_incidents_open": ("gauge", "Unresolved incidents by model and severity."),
    "shelflife_outbox_pending": ("gauge", "Messages that are not delivered yet."),
    "shelflife_retrains_total": ("counter", "Retraining runs by model and outcome."),
}
Sample = tuple[str, dict[str, str], float]


def described() -> dict[str, tuple[str, str]]:
    """Every metric's kind and meaning by its name."""
    return dict(_HELP)


def render(ledger: Ledger, snapshot: dict[str, Any]) -> str:
    """The exposition text: the ledger's state and this process's own counters.

    Args:
        ledger: read once, in one transaction.
        snapshot: `{"counters": {(model, name): n}}` of this process, and `{"waiting": {model: n}}`,
            CloudEvents that wait.
    """
    samples: list[Sample] = [*_own(snapshot), *_stored(ledger)]
    lines: list[str] = []
    for name, (kind, text) in _HELP.items():
        mine = [sample for sample in samples if sample[0] == name]
        if mine:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {value:.15g}" for _, labels, value in mine]
    return "\n".join(lines) + "\n"


#: Which metric a counter belongs to, and its label, by the part of its name before the colon.
_FAMILIES = {
    "ingest": ("shelflife_ingest_rows_total", "outcome"),
    "ingest_refused": ("shelflife_ingest_refused_total", "reason"),
    "events": ("shelflife_event_pairs_total", "outcome"),
}
_ROWS = ("logged", "shed", "unsampled", "answered")


def _own(snapshot: dict[str, Any]) -> list[Sample]:
    found: list[Sample] = []
    for (model, name), count in snapshot.get("counters", {}).items():
        family, _, rest = name.partition(":")
        if family in _FAMILIES:
            metric, label = _FAMILIES[family]
        else:
            rest, label = name, "outcome"
            metric = f"shelflife_{'log_rows' if name in _ROWS else 'requests'}_total"
        found.append((metric, {"model": model, label: rest}, float(count)))
    for model, count in snapshot.get("waiting", {}).items():
        found.append(("shelflife_event_halves_waiting", {"model": model}, float(count)))
    return found


def _stored(ledger: Ledger) -> list[Sample]:
    checks, incidents, runs, outbox = (
        schema.checks, schema.incidents, schema.runs, schema.outbox,
    )  # fmt: skip
    samples: list[Sample] = []
    with ledger.read() as tx:
        last = sa.select(checks.c.model, sa.func.max(checks.c.created)).group_by(checks.c.model)
        for model, moment in tx.execute(last):
            name = "shelflife_last_check_timestamp_seconds"
            samples.append((name, {"model": model}, moment.timestamp()))
        count = sa.func.count()
        opened = (
            sa.select(incidents.c.model, incidents.c.severity, count)
            .where(incidents.c.state != "resolved")
            .group_by(incidents.c.model, incidents.c.severity)
        )
        for model, severity, n in tx.execute(opened):
            labels = {"model": model, "severity": severity}
            samples.append(("shelflife_incidents_open", labels, n))
        for model, state, n in tx.execute(
            sa.select(runs.c.model, runs.c.state, count).group_by(runs.c.model, runs.c.state)
        ):
            samples.append(("shelflife_retrains_total", {"model": model, "outcome": state}, n))
        lost = sa.select(schema.counters).where(schema.counters.c.name.like("events:lost%"))
        for row in tx.execute(lost):  # counted in the ledger, by whichever process noticed
            labels = {"model": row.model, "outcome": row.name.partition(":")[2]}
            samples.append(("shelflife_event_pairs_total", labels, float(row.value)))
        pending = tx.scalar(sa.select(count).select_from(outbox).where(outbox.c.state == "pending"))
        samples.append(("shelflife_outbox_pending", {}, float(pending or 0)))
    return samples


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"
