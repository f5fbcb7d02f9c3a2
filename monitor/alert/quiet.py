"""Why nobody is told at present: a silence, a maintenance, or a graver trouble of the same model.

Pure: what is asked of the ledger comes as values, and the moment as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from msgspec import Struct

from core.errors import SettingsError
from core.settings import AlertSettings, MaintenanceSettings, MuteSettings
from core.times import parse_time
from monitor.alert import matchers
from monitor.alert.matchers import Labels, Matcher

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

#: What keeps what back, of the same model, whatever the settings say.
BUILT_IN = (
    MuteSettings(source=('cause=~"broken_feed|no_data"',), target=('cause=~"drift|decay"',)),
    MuteSettings(source=('cause="serving_down"',), target=('cause=~"drift|decay|no_data"',)),
)


class Silence(Struct, frozen=True, kw_only=True):
    """What somebody asked not to hear of, until when and why."""

    id: int
    matchers: tuple[Matcher, ...]
    by: str
    reason: str
    created: datetime
    starts: datetime
    ends: datetime
    ended_by: str = ""
    incident_id: int | None = None

    def mutes(self, labels: Labels, at: datetime) -> bool:
        """Whether it keeps a message about these labels back at this moment."""
        return self.starts <= at < self.ends and matchers.all_hold(self.matchers, labels)


class Trouble(Struct, frozen=True, kw_only=True):
    """An unresolved incident, as what may keep others back."""

    id: int
    labels: dict[str, str]


class Mute(Struct, frozen=True, kw_only=True):
    """Why nothing is told, in words; and whether what is held back must be found again first."""

    text: str
    again: bool = False


def why(
    labels: Labels,
    *,
    incident: int,
    at: datetime,
    settings: AlertSettings,
    silences: Iterable[Silence],
    others: Iterable[Trouble],
) -> Mute | None:
    """Why an incident is quiet; None when it is not.

    Args:
        others: unresolved incidents that somebody may be told of, itself included.
    """
    for silence in silences:
        if silence.mutes(labels, at):
            return Mute(text=f"silence {silence.id} by {silence.by}: {silence.reason}")
    for planned in settings.maintenance:
        if covers(planned, labels, at):
            return Mute(text=f"maintenance: {planned.reason}")
    for trouble in others:
        if trouble.id != incident and _inhibits(settings, trouble.labels, labels):
            cause = trouble.labels.get("cause", "")
            return Mute(text=f"incident {trouble.id} ({cause}) comes first", again=True)
    return None


def _inhibits(settings: AlertSettings, source: Labels, target: Labels) -> bool:
    return any(
        all(source.get(name, "") == target.get(name, "") for name in rule.equal)
        and matchers.all_hold(matchers.parse_all(rule.source), source)
        and matchers.all_hold(matchers.parse_all(rule.target), target)
        for rule in (*BUILT_IN, *settings.mutes)
    )


def covers(planned: MaintenanceSettings, labels: Labels, at: datetime) -> bool:
    """Whether a maintenance keeps a message about these labels back at this moment."""
    if not matchers.all_hold(matchers.parse_all(planned.match), labels):
        return False
    if planned.since and at < parse_time(planned.since, field="maintenance.since"):
        return False
    if planned.until and at >= parse_time(planned.until, field="maintenance.until"):
        return False
    local = at.astimezone(zone(planned))
    # The window that begins today, or the one of yesterday that has not ended yet. Walls of clocks
    # are compared, so that a window keeps its local hours over a change of daylight saving.
    start, end = time.fromisoformat(planned.start), time.fromisoformat(planned.end)
    now, today = local.time().replace(tzinfo=None), _DAYS[local.weekday()]
    if start < end:
        return _on(planned, today) and start <= now < end
    yesterday = _DAYS[(local - timedelta(days=1)).weekday()]
    return (_on(planned, today) and now >= start) or (_on(planned, yesterday) and now < end)


def zone(planned: MaintenanceSettings) -> ZoneInfo:
    """The maintenance's time zone.

    Raises:
        SettingsError: there is none of that name.
    """
    try:
        return ZoneInfo(planned.timezone)
    except (OSError, ValueError, KeyError):
        expected = "a name of the IANA database, such as Europe/Berlin"
        raise SettingsError("alerts.maintenance.timezone", planned.timezone, expected) from None


def _on(planned: MaintenanceSettings, day: str) -> bool:
    return not planned.days or day in planned.days
