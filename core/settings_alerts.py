"""Settings of who is told of what, when, and in which words: the section `alerts`.

`core.settings` gives all of these as its own; import them from there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from core.settings_retrain import Duration

OPENS = r"^[1-9][0-9]?/[1-9][0-9]?$"
CLOCK = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
Clock = Annotated[str, Meta(pattern=CLOCK)]
Opens = Annotated[str, Meta(pattern=OPENS)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class RouteSettings(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"go_on": "continue"}
):
    """A node of the tree that says who hears of an incident, as in Alertmanager.

    A message walks down the tree by its labels: the first child that matches takes it (and those
    after it where `continue` is set); where no child does, the node itself. What a node does not
    say it has from its parent.
    """

    match: tuple[str, ...] = ()
    """All of these must hold: `severity="page"`, `owner=~"crm|sales"`, `cause!="drift"`, `!~`."""
    receivers: tuple[str, ...] = ()
    """Names of receivers; the parent's when empty, all of them at the root."""
    group_by: tuple[str, ...] | None = None
    """Incidents alike in these labels share one message; `[model, cause]` when not set, which is
    one message an incident. `[]` puts all into one."""
    group_wait: Duration | None = None
    """How long the first message of a group waits for others to join it; `0s` when not set."""
    group_interval: Duration | None = None
    """Least time between two messages of a group; `0s` when not set, at once."""
    repeat_interval: Duration | None = None
    """How often a group that lasts is told again; the model's `repeat_every` when not set."""
    escalate_after: Duration | None = None
    """Pages that nobody acknowledged so long after they were told go to `escalate_to`, too."""
    escalate_to: tuple[str, ...] = ()
    """Names of the receivers that are told then."""
    go_on: bool = False
    """`continue`: let the siblings after this one match as well."""
    routes: tuple[RouteSettings, ...] = ()
    """The children, tried in order."""


class MaintenanceSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A planned time without messages: every week, or once."""

    reason: str
    """Why; shown wherever an incident is quiet because of it."""
    match: tuple[str, ...] = ()
    """Incidents whose labels match all of these; every one when empty."""
    days: tuple[Day, ...] = ()
    """Days on which it begins; every day when empty."""
    start: Clock = "00:00"
    """Local time of day it begins ..."""
    end: Clock = "00:00"
    """... and ends: on the next day where that is not later than `start`."""
    timezone: str = "UTC"
    """Of `start` and `end`."""
    since: str = ""
    """Not before this moment, such as `2026-12-24T18:00Z` ..."""
    until: str = ""
    """... and not from this one on."""


class MuteSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One trouble keeps the messages of another back, as Alertmanager's inhibition does."""

    source: tuple[str, ...]
    """While an incident matches these ..."""
    target: tuple[str, ...]
    """... those that match these are not told,"""
    equal: tuple[str, ...] = ("model",)
    """where both have the same values of these labels."""


class AlertSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told of what, when, and in which words."""

    opens: dict[str, Opens] = field(default_factory=dict)
    """By cause: `2/3` opens an incident when two of the last three checks found it. The verdict on
    drift and decay has looked twice already, so that the default is `1/1`."""
    clears: Annotated[int, Meta(ge=1, le=50)] = 2
    """Clear checks in a row that resolve; more of them after every relapse."""
    memory: Annotated[int, Meta(ge=4, le=64)] = 24
    """Checks that count for that: what fell and rose within them is flapping."""
    route: RouteSettings = field(default_factory=RouteSettings)
    maintenance: tuple[MaintenanceSettings, ...] = ()
    """Planned times without messages."""
    mutes: tuple[MuteSettings, ...] = ()
    """Beside the built-in ones: a broken feed or silence mutes drift and decay, serving that is
    down mutes drift and silence, of the same model."""
    runbooks: str = ""
    """URL that `/<cause>` is appended to; shelflife's own pages when empty. A model's `runbook`
    comes first."""
    templates: dict[str, str] = field(default_factory=dict)
    """Own words for messages, by cause or for `finding`, `resolved`, `step`, `group`; `$name` is
    filled in (docs/oncall.md lists the names). `file:/path` reads a file."""
