"""What Prometheus reads: plain text, a handful of metrics, no ids or versions as labels.

Names and units follow Prometheus' own rules; `docs/monitoring_shelflife.md` lists them with the
alert rules and the Grafana dashboard that use them. A version is a label of `…_info` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.ledger import Ledger
from monitor.alert import outbox
from shelflife import pulses

_FEATURES = 20  # columns of a model that have series of their own; the rest share one

#: Every metric: its type and what it tells.
METRICS = {
    "shelflife_requests_total": ("counter", "Inference requests by model and outcome."),
    "shelflife_samples_total": ("counter", "Rows for the inference log by model and outcome."),
    "shelflife_ingest_rows_total": ("counter", "Predictions and labels from elsewhere by outcome."),
    "shelflife_ingest_refused_total": ("counter", "Rows and events refused by reason."),
    "shelflife_event_pairs_total": ("counter", "CloudEvents pairs by outcome."),
    "shelflife_event_halves_waiting": ("gauge", "CloudEvents that wait for their counterpart."),
    "shelflife_model_info": ("gauge", "1, with the version that was last checked."),
    "shelflife_model_state": ("gauge", "1 for the state of the model's newest check."),
    "shelflife_model_age_seconds": ("gauge", "Since the version was registered."),
    "shelflife_baseline_age_seconds": ("gauge", "Since the newest row the version learned from."),
    "shelflife_loss": ("gauge", "The realised loss of the newest check."),
    "shelflife_loss_tolerated": ("gauge", "The loss that the model may have."),
    "shelflife_feature_drift_score": ("gauge", "Distance of a column from the baseline by method."),
    "shelflife_features_drifted": ("gauge", "Columns that drifted in the newest check."),
    "shelflife_last_check_timestamp_seconds": ("gauge", "When the model was last checked."),
    "shelflife_last_success_timestamp_seconds": ("gauge", "When a recurring job last worked."),
    "shelflife_job_failures_total": ("counter", "Recurring jobs that raised an error."),
    "shelflife_check_failures_total": ("counter", "Checks of a model that raised an error."),
    "shelflife_incidents_open": ("gauge", "Unresolved incidents by model and severity."),
    "shelflife_outbox_pending": ("gauge", "Messages that are not delivered yet."),
    "shelflife_outbox_oldest_age_seconds": ("gauge", "Age of the oldest message that waits."),
    "shelflife_outbox_failed": ("gauge", "Messages that failed for good and were not replayed."),
    "shelflife_webhook_deliveries_total": ("counter", "Attempts by receiver and outcome."),
    "shelflife_receiver_disabled": ("gauge", "1 for receivers that want no more messages."),
    "shelflife_retrains_total": ("counter", "Retraining runs by model, outcome and reason."),
    "shelflife_monitor_problems": ("gauge", "What keeps the monitor from watching or telling."),
}
Sample = tuple[str, dict[str, str], float]


class _Ages(Struct, frozen=True):
    model: float | None = None
    training_row: float | None = None


class _Statistic(Struct, frozen=True):
    name: str
    value: float | None = None
    over_s: float | None = None  # of a calibrated test, which is no distance


class _Column(Struct, frozen=True):
    column: str
    statistics: tuple[_Statistic, ...] = ()
    drifted: bool = False

    @property
    def distances(self) -> list[_Statistic]:
        return [one for one in self.statistics if one.over_s is None]


class _Check(Struct, frozen=True):
    """What is read of a stored `monitor.results.CheckResult`."""

    staleness: _Ages
    drift: tuple[_Column, ...] = ()


def described() -> dict[str, tuple[str, str]]:
    """Every metric's kind and meaning by its name."""
    return dict(METRICS)


def render(
    ledger: Ledger,
    snapshot: dict[str, Any],
    *,
    now: datetime,
    problems: Iterable[str] = (),
) -> str:
    """The exposition text: the ledger's state and this process's own counters.

    Args:
        ledger: read once, in one transaction.
        snapshot: `{"counters": {(model, name): n}}` of this process, and `{"waiting": {model: n}}`,
            CloudEvents that wait.
        problems: the severities of what is wrong with the monitor itself.
    """
    found = list(problems)
    samples: list[Sample] = [*_own(snapshot), *_stored(ledger, now)]
    samples += [
        ("shelflife_monitor_problems", {"severity": severity}, float(found.count(severity)))
        for severity in ("page", "ticket")
    ]
    lines: list[str] = []
    for name, (kind, text) in METRICS.items():
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


def _own(snapshot: dict[str, Any]) -> Iterator[Sample]:
    for (model, name), count in snapshot.get("counters", {}).items():
        family, _, rest = name.partition(":")
        if family in _FAMILIES:
            metric, label = _FAMILIES[family]
        else:
            rest, label = name, "outcome"
            metric = f"shelflife_{'samples' if name in _ROWS else 'requests'}_total"
        yield metric, {"model": model, label: rest}, float(count)
    for model, count in snapshot.get("waiting", {}).items():
        yield "shelflife_event_halves_waiting", {"model": model}, float(count)


def _stored(ledger: Ledger, now: datetime) -> list[Sample]:
    with ledger.read() as tx:
        return [
            *_checks(tx), *_jobs(tx), *_incidents(tx), *_messages(tx, now), *_runs(tx),
            *_counters(tx),
        ]  # fmt: skip


def _checks(tx: sa.Connection) -> Iterator[Sample]:
    table = schema.checks
    newest = sa.select(sa.func.max(table.c.id)).group_by(table.c.model)
    for row in tx.execute(sa.select(table).where(table.c.id.in_(newest)).order_by(table.c.model)):
        model = {"model": row.model}
        yield "shelflife_last_check_timestamp_seconds", model, row.created.timestamp()
        yield "shelflife_model_info", {**model, "version": row.version}, 1.0
        yield "shelflife_model_state", {**model, "state": row.state}, 1.0
        if row.value is not None:
            yield "shelflife_loss", {**model, "metric": row.metric}, row.value
        if row.tolerated is not None:
            yield "shelflife_loss_tolerated", {**model, "metric": row.metric}, row.tolerated
        try:
            check = msgspec.json.decode(row.result, type=_Check)
        except msgspec.DecodeError:  # of an older release
            continue
        if check.staleness.model is not None:
            yield "shelflife_model_age_seconds", model, check.staleness.model
        if check.staleness.training_row is not None:
            yield "shelflife_baseline_age_seconds", model, check.staleness.training_row
        yield "shelflife_features_drifted", model, float(sum(one.drifted for one in check.drift))
        yield from _drift(row.model, check.drift)


def _drift(model: str, columns: tuple[_Column, ...]) -> Iterator[Sample]:
    """Scores of the columns that moved most; the rest share one series, the largest of theirs."""
    name = "shelflife_feature_drift_score"
    ranked = sorted(columns, key=lambda one: (not one.drifted, -_largest(one), one.column))
    for one in ranked[:_FEATURES]:
        for each in one.distances:
            if each.value is not None:
                labels = {"model": model, "feature": one.column, "method": each.name}
                yield name, labels, each.value
    rest: dict[str, float] = {}
    for one in ranked[_FEATURES:]:
        for each in one.distances:
            if each.value is not None:
                rest[each.name] = max(each.value, rest.get(each.name, each.value))
    for method, value in rest.items():
        yield name, {"model": model, "feature": "other", "method": method}, value


def _largest(column: _Column) -> float:
    """The Jensen–Shannon distance, which is comparable between columns; else the largest score."""
    values = {one.name: one.value for one in column.distances if one.value is not None}
    return values.get("js", max(values.values(), default=0.0))


def _jobs(tx: sa.Connection) -> Iterator[Sample]:
    for name, job in sorted(pulses.read(tx).items()):
        if job.succeeded is not None:
            moment = job.succeeded.timestamp()
            yield "shelflife_last_success_timestamp_seconds", {"job": name}, moment


def _incidents(tx: sa.Connection) -> Iterator[Sample]:
    table = schema.incidents
    opened = (
        sa.select(table.c.model, table.c.severity, sa.func.count())
        .where(table.c.state.in_(("open", "acknowledged")))
        .group_by(table.c.model, table.c.severity)
    )
    for model, severity, count in tx.execute(opened):
        yield "shelflife_incidents_open", {"model": model, "severity": severity}, float(count)


def _messages(tx: sa.Connection, now: datetime) -> Iterator[Sample]:
    table = schema.outbox
    grouped = sa.select(table.c.state, sa.func.count(), sa.func.min(table.c.created))
    states = {
        state: (count, oldest) for state, count, oldest in tx.execute(grouped.group_by("state"))
    }
    pending, oldest = states.get("pending", (0, now))
    yield "shelflife_outbox_pending", {}, float(pending)
    age = max((now - oldest).total_seconds(), 0.0)
    yield "shelflife_outbox_oldest_age_seconds", {}, age
    yield "shelflife_outbox_failed", {}, float(states.get("failed", (0, now))[0])
    for name in sorted(outbox.disabled(tx)):
        yield "shelflife_receiver_disabled", {"endpoint": name}, 1.0


def _runs(tx: sa.Connection) -> Iterator[Sample]:
    table = schema.runs
    by = (table.c.model, table.c.state, table.c.trigger)
    for model, state, trigger, count in tx.execute(sa.select(*by, sa.func.count()).group_by(*by)):
        labels = {"model": model, "outcome": state, "reason": trigger}
        yield "shelflife_retrains_total", labels, float(count)


def _counters(tx: sa.Connection) -> Iterator[Sample]:
    """What whichever process noticed has counted in the ledger."""
    table = schema.counters
    plain = {
        "job_failures": "shelflife_job_failures_total",
        "check_failures": "shelflife_check_failures_total",
    }
    wanted = (
        table.c.name.like("events:lost%")
        | table.c.name.like("delivery:%")
        | table.c.name.in_(plain)
    )
    for row in tx.execute(sa.select(table).where(wanted).order_by(table.c.model, table.c.name)):
        family, _, rest = row.name.partition(":")
        if family == "delivery":
            outcome, _, receiver = rest.partition(":")
            labels = {"endpoint": receiver, "outcome": outcome}
            yield "shelflife_webhook_deliveries_total", labels, float(row.value)
        elif family == "events":
            labels = {"model": row.model, "outcome": rest}
            yield "shelflife_event_pairs_total", labels, float(row.value)
        else:
            labels = {"model": row.model} if row.model else {}
            yield plain[row.name], labels, float(row.value)


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"
