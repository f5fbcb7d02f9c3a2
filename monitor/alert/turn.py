"""What time alone brings: ended silences, reminders, escalations, and groups that waited.

`Turn.run` is asked after every check for its model, and every second by the scheduler for all.
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
            if incident.state in ("open", "acknowledged") and not self._quiet(incident):
                loud.append(records.get(self.tx, incident.id))
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
        first = self.desk.first(incident)
        for target in self.desk.targets(incident):
            if target.escalate_to and lifecycle.escalates(
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
            context = self.desk.context(incident)
            for name, target, key in self.desk.concerned(incident):
                if not target.alone and not self.whole:
                    continue  # others of the group would be left out
                last = self.desk.last(key)
                if last is None:  # told before there were notices, or never
                    last = outbox.last_created(self.tx, incident.id) or incident.opened
                every = target.repeat if target.repeat is not None else context.repeat
                if lifecycle.reminds(told=max(last, incident.opened), at=self.at, every=every):
                    due.setdefault(key, []).append((incident, target, name))
        events: dict[int, int] = {}
        for key, members in due.items():
            for incident, target, name in members:
                if incident.id not in events:
                    events[incident.id] = journal.write(
                        self.tx, incident.id, self.at, "reminder", incident.title
                    )
                self.desk.note(
                    incident, target, name, key, event=events[incident.id], kind="reminder"
                )
            message = self.desk.flush([key])
            for incident, _, _ in members:
                self.said.setdefault(incident.id, ("reminder", message))
