"""Who hears of an incident with these labels, and with whom together: a tree, as Alertmanager's.

Pure: settings and labels in, destinations out. Semantics after Alertmanager's `dispatch.Route`
(Match, continue, group_by, inheritance from the parent).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from core.errors import InputError, SettingsError
from core.settings import AlertSettings, RouteSettings, span
from monitor.alert import matchers
from monitor.alert.matchers import Labels

ALONE = ("model", "cause")  # grouped by these, every incident has a message of its own
EVERY = "..."  # in group_by: all labels


class Target(Struct, frozen=True, kw_only=True):
    """A leaf of the tree that labels arrived at, with everything it inherited."""

    path: str  # where it is in the tree: "0.2"; "" is the root
    receivers: tuple[str, ...] | None  # None: all of them
    group_by: tuple[str, ...]
    wait: timedelta
    interval: timedelta
    repeat: timedelta | None  # None: the model's own
    escalate_after: timedelta | None
    escalate_to: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """Whether a group of this target can only ever hold one incident at a time."""
        return EVERY in self.group_by or set(ALONE) <= set(self.group_by)

    def group(self, labels: Labels) -> dict[str, str]:
        """The labels that the incidents of the group have in common."""
        names = sorted(labels) if EVERY in self.group_by else self.group_by
        return {name: labels.get(name, "") for name in names}

    def key(self, receiver: str, labels: Labels) -> str:
        """The group's name: the same over all time for one receiver and one set of labels."""
        parts = json.dumps([self.path, receiver, self.group(labels)], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()


#: Where everything goes that no setting sends elsewhere.
ROOT = Target(
    path="", receivers=None, group_by=ALONE, wait=timedelta(0), interval=timedelta(0), repeat=None,
    escalate_after=None, escalate_to=(),
)  # fmt: skip


def targets(route: RouteSettings, labels: Labels) -> list[Target]:
    """Every leaf that the labels arrive at, in the order of the tree; empty when nobody is meant.

    The root takes everything unless it says otherwise itself.
    """
    return _walk(route, labels, ROOT, "")


def _walk(route: RouteSettings, labels: Labels, parent: Target, path: str) -> list[Target]:
    if not matchers.all_hold(matchers.parse_all(route.match), labels):
        return []
    here = _inherit(route, parent, path)
    found: list[Target] = []
    for index, child in enumerate(route.routes):
        below = _walk(child, labels, here, f"{path}.{index}" if path else str(index))
        found += below
        if below and not child.go_on:
            break
    return found or [here]


def _inherit(route: RouteSettings, parent: Target, path: str) -> Target:
    def chosen(own: str | None, inherited: timedelta) -> timedelta:
        return inherited if own is None else span(own)

    repeat, after = route.repeat_interval, route.escalate_after
    return Target(
        path=path,
        receivers=route.receivers or parent.receivers,
        group_by=parent.group_by if route.group_by is None else route.group_by,
        wait=chosen(route.group_wait, parent.wait),
        interval=chosen(route.group_interval, parent.interval),
        repeat=parent.repeat if repeat is None else span(repeat),
        escalate_after=parent.escalate_after if after is None else span(after),
        escalate_to=route.escalate_to or parent.escalate_to,
    )


def due(target: Target, *, at: datetime, last: datetime | None) -> datetime:
    """When a group may speak of what happened at `at`.

    Args:
        last: when it spoke last. Within an interval of that it is still the same conversation.
    """
    if last is None or at - last > target.interval:
        return at + target.wait
    return max(at, last + target.interval)


def check(settings: AlertSettings, receivers: Iterable[str]) -> None:
    """Refuse settings that could not do what they say.

    Raises:
        SettingsError: a matcher that is none, or a receiver that does not exist.
    """
    known = set(receivers)
    _check_route(settings.route, known, "alerts.route")
    for index, one in enumerate(settings.maintenance):
        _check_matchers(one.match, f"alerts.maintenance[{index}].match")
    for index, mute in enumerate(settings.mutes):
        _check_matchers(mute.source, f"alerts.mutes[{index}].source")
        _check_matchers(mute.target, f"alerts.mutes[{index}].target")


def _check_route(route: RouteSettings, known: set[str], where: str) -> None:
    _check_matchers(route.match, f"{where}.match")
    for key, names in (("receivers", route.receivers), ("escalate_to", route.escalate_to)):
        for name in names:
            if name not in known:
                expected = f"a name from `receivers`: {', '.join(sorted(known)) or 'none yet'}"
                raise SettingsError(f"{where}.{key}", name, expected)
    for index, child in enumerate(route.routes):
        _check_route(child, known, f"{where}.routes[{index}]")


def _check_matchers(texts: Iterable[str], where: str) -> None:
    for text in texts:
        try:
            matchers.parse(text)
        except InputError as error:
            raise SettingsError(where, text, error.expected) from None


def labels_of(
    *, model: str, cause: str, severity: str, owner: str, environment: str, own: Mapping[str, str]
) -> dict[str, str]:
    """The labels of an incident. Identity only: no value, no moment, no version (they change)."""
    fixed = {
        "model": model, "cause": cause, "severity": severity, "owner": owner,
        "environment": environment,
    }  # fmt: skip
    return {**own, **fixed}
