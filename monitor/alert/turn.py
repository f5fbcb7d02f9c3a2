"""What time alone brings: ended silences, reminders, escalations, and groups that waited.

`Turn.run` is asked after every check for its model, and every few seconds by the scheduler for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from monitor.alert import journal, lifecycle, outbox, records
from monitor.alert.dispatch import Desk
from monitor.alert.records import Incident
from monitor.alert.routes import Target

_FROM_INCIDENT = "incident "  # how a mute by another incident begins (`quiet.why`)


class Turn:
    """One look at unresolved incidents at one moment.

    Args:
        whole: every model's incidents are looked at, so that groups of several can be told.
    """

    def __init__(self, tx: sa.Connection, desk: Desk, *, whole: bool) -> None:
        self.tx, self.desk, self.at, self.whole = tx, desk, desk.at, whole
        self.said: dict[int, tuple[str, str]] = {}  # incident: kind, message id

    def run(self, incidents: Sequence[Incident]) -> dict[int, tuple[str, str]]:
        """Tell what is due; returns what was said of which incident, and the message's id."""
        loud = []
        for incident in incidents:
            if incident.state not in ("open", "acknowledged") or self._quiet(incident):
                continue
            changed = incident.muted or incident.withheld
            loud.append(records.get(self.tx, incident.id) if changed else incident)
        for incident in loud:
            if incident.withheld:
                self._tell_withheld(incident)
        loud = [one for one in loud if one.state == "open" and not one.withheld]
        for incident in loud:
            self._escalate(incident)
        self._remind(loud)
        if self.whole:
            self.desk.flush()
        return self.said

    def _quiet(self, incident: Incident) -> bool:
        """Whether nobody may be told of it; writes down why, and when that ends."""
        mute = self.desk.why(incident)
        text = mute.text if mute else ""
        if text != incident.muted:
            values: dict[str, object] = {"muted": text}
            # What another trouble caused goes with it: told only if it is found once more.
            if incident.muted.startswith(_FROM_INCIDENT) and not (mute and mute.again):
                values["hold"] = self.at
            journal.change(self.tx, incident.id, **values)
            line = f"nobody is told: {text}" if text else f"people are told again: {incident.muted}"
            journal.write(self.tx, incident.id, self.at, "muted" if text else "unmuted", line)
        return mute is not None

    def _tell_withheld(self, incident: Incident) -> None:
        """What was kept back while it was quiet."""
        if incident.hold and (incident.found is None or incident.found < incident.hold):
            return
        kind = incident.withheld
        journal.change(self.tx, incident.id, withheld="")
        if incident.state == "acknowledged":
            return
        event = journal.write(self.tx, incident.id, self.at, kind, incident.title)
        now = records.get(self.tx, incident.id)
        self.said[incident.id] = (kind, self.desk.announce(now, event=event, kind=kind))

    def _escalate(self, incident: Incident) -> None:
        if incident.severity != "page" or incident.escalated is not None:
            return
        upwards = [each for each in self.desk.targets(incident) if each.escalate_to]
        first = self.desk.first(incident) if upwards else None
        for target in upwards:
            if lifecycle.escalates(
                state=incident.state, severity=incident.severity, told=first,
                escalated=incident.escalated, at=self.at, after=target.escalate_after,
            ):  # fmt: skip
                journal.change(self.tx, incident.id, escalated=self.at)
                text = f"nobody has acknowledged; told {', '.join(target.escalate_to)} too"
                event = journal.write(self.tx, incident.id, self.at, "escalated", text)
                message = self.desk.announce(incident, event=event, kind="escalated")
                self.said[incident.id] = ("escalated", message)
                return

    def _remind(self, incidents: Sequence[Incident]) -> None:
        """Tell what lasts once more: each group at most once an interval, all of it together."""
        due: dict[str, list[tuple[Incident, Target, str]]] = {}
        for incident in incidents:
            for name, target, key in self.desk.concerned(incident):
                # Others of the group would be left out, where only one model is looked at.
                if (target.alone or self.whole) and self._due(incident, target, key):
                    due.setdefault(key, []).append((incident, target, name))
        events: dict[int, int] = {}
        for key, members in due.items():
            for incident, target, name in members:
                number = incident.id
                if number not in events:
                    title = incident.title
                    events[number] = journal.write(self.tx, number, self.at, "reminder", title)
                self.desk.note(incident, target, name, key, event=events[number], kind="reminder")
            message = self.desk.flush([key])
            for incident, _, _ in members:
                self.said.setdefault(incident.id, ("reminder", message))

    def _due(self, incident: Incident, target: Target, key: str) -> bool:
        """Whether a group is told again of what lasts."""
        usual = self.desk.context(incident).repeat
        every = target.repeat if target.repeat is not None else usual
        if incident.told is not None and self.at - incident.told <= every:
            return False  # no need to ask
        last = self.desk.last(key)
        if last is None:  # told before there were notices, or never
            last = outbox.last_created(self.tx, incident.id) or incident.opened
        return lifecycle.reminds(told=max(last, incident.opened), at=self.at, every=every)
