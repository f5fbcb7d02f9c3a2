"""Every cause of an incident: its message types, its symbol, its words, and what a person can do.

Severity goes by consequence. Somebody is paged for loss of performance, for data that is broken or
missing, for a promotion or rollback that failed, for callers nobody answers and for a monitor that
is blind. The rest is a ticket. Each cause has a page of its own in `docs/runbooks`; a cause that is
not listed still opens an incident and sends messages, in general words.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

RESOLVED = "●"
_ENDED = "incident.resolved"  # of causes that happen once and have no opposite event


class Cause(Struct, frozen=True, kw_only=True):
    """How incidents of one cause are told."""

    symbol: str  # the state's shape, as on the dashboard
    says: str  # completes "repurchase …"
    over: str  # the same, once it is resolved
    severity: Literal["page", "ticket"]  # by consequence
    detected: str  # message types: dotted words
    resolved: str = _ENDED
    next: tuple[str, ...] = ()  # what a person can do now; {model} and {incident} are filled in


CAUSES: dict[str, Cause] = {
    "decay": Cause(
        symbol="▲",
        severity="page",
        says="is decaying",
        over="is no longer decaying",
        detected="model.decay.detected",
        resolved="model.decay.resolved",
        next=("shelflife retrain {model}", "shelflife rollback {model}", "acknowledge {incident}"),
    ),
    "drift": Cause(
        symbol="◐",
        severity="ticket",
        says="is drifting",
        over="is no longer drifting",
        detected="model.drift.detected",
        resolved="model.drift.resolved",
        next=("nothing while the loss holds", "shelflife retrain {model}"),
    ),
    "stale": Cause(
        symbol="◷",
        severity="ticket",
        says="is stale",
        over="is no longer stale",
        detected="model.stale.detected",
        resolved="model.stale.resolved",
        next=("shelflife retrain {model}", "acknowledge {incident}"),
    ),
    "broken_feed": Cause(
        symbol="■",
        severity="page",
        says="has a broken feed",
        over="has a sound feed again",
        detected="model.broken_feed.detected",
        resolved="model.broken_feed.resolved",
        next=("mend the feed; no retraining starts from it", "acknowledge {incident}"),
    ),
    "no_data": Cause(
        symbol="■",
        severity="page",
        says="gets no data",
        over="gets data again",
        detected="model.data_missing.detected",
        resolved="model.data_missing.resolved",
        next=("see whether callers still reach the endpoint", "acknowledge {incident}"),
    ),
    "late_data": Cause(
        symbol="◷",
        severity="ticket",
        says="gets its data late",
        over="gets its data in time again",
        detected="model.data_late.detected",
        resolved="model.data_late.resolved",
        next=("see what holds the rows up", "acknowledge {incident}"),
    ),
    "late_labels": Cause(
        symbol="◷",
        severity="ticket",
        says="gets no labels",
        over="gets labels again",
        detected="model.labels_late.detected",
        resolved="model.labels_late.resolved",
        next=("see what holds the labels up", "acknowledge {incident}"),
    ),
    "retrain_failed": Cause(
        symbol="▲",
        severity="page",
        says="could not be retrained",
        over="is no longer held up by a failed run",
        detected="retrain.failed",
        next=("read the run's error", "shelflife retrain {model}"),
    ),
    "promotion_failed": Cause(
        symbol="▲",
        severity="page",
        says="could not be promoted",
        over="is no longer held up by a failed promotion",
        detected="model.promotion_failed",
        next=("see which version answers", "shelflife rollback {model}"),
    ),
    "deploy_failed": Cause(
        symbol="▲",
        severity="page",
        says="could not be deployed",
        over="is no longer held up by a failed deployment",
        detected="model.deploy_failed",
        next=("shelflife doctor", "shelflife rollback {model}"),
    ),
    "rollback": Cause(
        symbol="▲",
        severity="page",
        says="was rolled back",
        over="is past its rollback",
        detected="model.rolled_back",
        next=("look at the withdrawn version before promoting again", "acknowledge {incident}"),
    ),
    "rollback_advised": Cause(
        symbol="▲",
        severity="page",
        says="would do better with its predecessor",
        over="needs no rollback any more",
        detected="model.rollback_advised",
        next=("shelflife rollback {model}", "compare both in MLflow", "acknowledge {incident}"),
    ),
    "serving_down": Cause(
        symbol="■",
        severity="page",
        says="answers nobody",
        over="answers again",
        detected="model.serving_down.detected",
        resolved="model.serving_down.resolved",
        next=("shelflife doctor", "start `shelflife serve`", "acknowledge {incident}"),
    ),
    "unwatched": Cause(
        symbol="◷",
        severity="ticket",
        says="was not watched for a while",
        over="is being watched again",
        detected="model.unwatched.detected",
        resolved="model.unwatched.resolved",
        next=("shelflife doctor", "acknowledge {incident}"),
    ),
    "shelf_life": Cause(
        symbol="◷",
        severity="ticket",
        says="is about to go stale",
        over="has shelf life left again",
        detected="model.shelf_life.detected",
        resolved="model.shelf_life.resolved",
        next=(
            "shelflife retrain {model}",
            "see that enough labels arrive",
            "acknowledge {incident}",
        ),
    ),
    "approval": Cause(
        symbol="◷",
        severity="ticket",
        says="waits for approval",
        over="waits for nobody any more",
        detected="candidate.registered",
        next=("compare the candidate in MLflow", "shelflife runs --model {model}"),
    ),
    "receiver": Cause(
        symbol="◆",
        severity="ticket",
        says="cannot tell everybody",
        over="can tell everybody again",
        detected="receiver.failing",
        resolved="receiver.mended",
        next=("shelflife receivers list", "shelflife receivers replay NAME"),
    ),
    "monitor": Cause(
        symbol="■",
        severity="page",
        says="is not being watched",
        over="is being watched again",
        detected="monitor.unhealthy",
        resolved="monitor.healthy",
        next=("shelflife doctor", "acknowledge {incident}"),
    ),
}

#: Types of messages that tell of a step, not of an incident's beginning or end.
STEPS = (
    "retrain.started",
    "retrain.succeeded",
    "retrain.failed",
    "retrain.refused",
    "candidate.registered",
    "model.promoted",
    "model.rolled_back",
    "model.watched",
)

#: Types of messages that speak of an incident, or of several, in other ways.
ACKNOWLEDGED = "incident.acknowledged"
OTHERS = (ACKNOWLEDGED, "incident.escalated", "incident.group", "incident.group.resolved")


def cause(name: str) -> Cause:
    """The cause of that name, or one in general words."""
    known = CAUSES.get(name)
    if known is not None:
        return known
    words = name.replace("_", " ")
    return Cause(
        symbol="▲",
        severity="page",
        says=f"has an incident ({words})",
        over=f"is past its incident ({words})",
        detected="incident.opened",
    )


def message_types() -> frozenset[str]:
    """Every type a message can have; the documentation lists them."""
    told = {kind for known in CAUSES.values() for kind in (known.detected, known.resolved)}
    return frozenset({*told, *STEPS, *OTHERS, cause("").detected})
