"""Findings become incidents: noticed, opened, told rarely, resolved when they are over for good.

One unresolved incident per model and cause (`open_key` is unique). What a check's findings do to it
is decided by the state machine of `monitor.alert.lifecycle`; here its row, its timeline and the
messages about it are written in the caller's transaction: all of them or none.

`seen`, `clear` and `updated` follow the checks alone: applying a check twice, or an older one
late, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import InputError
from core.ledger import Ledger
from monitor.alert import journal, lifecycle, messages, records
from monitor.alert.causes import cause as cause_of
from monitor.alert.dispatch import Desk
from monitor.alert.journal import acknowledge, add_event, attach_run, resolve, set_report
from monitor.alert.lifecycle import RANK, Life, Signal, Step
from monitor.alert.messages import MessageContext
from monitor.alert.records import (
    Change,
    Incident,
    IncidentChange,
    IncidentEvent,
    find,
    get,
    open_key,
    timeline,
    unresolved,
)
from monitor.alert.turn import Turn
from monitor.results import Finding

__all__ = [
    "Incident", "IncidentChange", "IncidentEvent", "acknowledge", "add_event", "apply",
    "attach_run", "find", "get", "open_incident", "resolve", "set_report", "timeline", "turn",
    "unresolved",
]  # fmt: skip


def apply(
    tx: sa.Connection,
    ledger: Ledger,
    *,
    context: MessageContext,
    version: str,
    findings: Sequence[Finding],
    at: datetime,
    checked: frozenset[str],
    signs: Sequence[Finding] = (),
    repeat: timedelta | None = None,
) -> list[IncidentChange]:
    """Bring the model's incidents up to what a check found.

    A finding opens an incident or is counted on it; a check that could judge a cause and did not
    find it counts as clear, and so does a mere note, which asks nobody for anything. A `clearing`
    finding (under the opening line, not yet under the resolving one) is neither: it opens nothing,
    and the clear checks have to begin again.

    Args:
        version: the version the check judged.
        at: the moment of the check, event time.
        checked: causes this check was able to judge; others stay as they are. A cause that was
            found counts as judged.
        signs: what may become a finding at the next check; noticed, and told nobody.
        repeat: instead of the context's.
    """
    if repeat is not None:
        context = msgspec.structs.replace(context, repeat=repeat)
    found, held = _by_cause(findings)
    seen = {sign.cause: messages.cleaned(sign) for sign in signs}
    known = {incident.cause: incident for incident in unresolved(tx, context.model, lock=True)}
    book = _Book(tx, ledger, context, version, at)
    for cause in sorted(found.keys() | seen.keys() | known.keys() & (checked | held)):
        finding, signal = found.get(cause), "clear"
        if finding is not None:
            signal = "found"
        elif cause in held:
            signal = "held"
        elif cause in seen:
            finding, signal = seen[cause], "sign"
        book.observe(cause, known.get(cause), signal, finding)  # type: ignore[arg-type]
    return book.close()


def open_incident(
    tx: sa.Connection,
    ledger: Ledger,
    *,
    context: MessageContext,
    version: str,
    finding: Finding,
    at: datetime,
    of: int | None = None,
) -> int:
    """Open an incident for something that happened once (retrain_failed, rollback, …).

    If one of that cause is unresolved, this occurrence is counted on it and told as `apply` would.
    It stays until `resolve` ends it. Returns the incident's id; of the one that already tells of
    this moment or a later one, if the same occurrence is reported again.

    Args:
        of: the incident it is a chapter of: a run that answers decay fails, its promotion is taken
            back. While that one is unresolved it goes on under its id, as grave as this; otherwise
            the new one names it as its story.

    Raises:
        InputError: the finding is a note.
    """
    finding = messages.cleaned(finding)
    if finding.severity == "note":
        raise InputError("severity", finding.severity, "page or ticket: a note opens no incident")
    told = None if of is None else records.story(tx, of)
    if told is not None and told.state in ("open", "acknowledged"):
        _chapter(tx, context, told, finding, at)
        return told.id
    known = find(tx, context.model, finding.cause)
    book = _Book(tx, ledger, context, version, at, once=True)
    identity = book.observe(
        finding.cause, known, "found", finding, story=None if told is None else told.id
    )
    book.close()
    return identity


def turn(
    tx: sa.Connection, *, now: datetime, contexts: Callable[[str], MessageContext]
) -> dict[int, tuple[str, str]]:
    """Tell what time alone brings: reminders, escalations, silences that ended, groups that waited.

    Args:
        contexts: the context of a model's messages, as the settings are now.

    Returns:
        What was said of which incident (reminder, escalated, opened, …), and the message's id.
    """
    table = schema.notices
    every = [one for one in unresolved(tx, lock=True) if one.state != "noticed"]
    waiting = tx.scalar(sa.select(table.c.id).where(table.c.state == "waiting").limit(1))
    if not every and waiting is None:
        return {}
    first = contexts(every[0].model if every else "")
    return Turn(tx, Desk(tx, first, now, contexts), whole=True).run(every)


class _Book:
    """The incidents of one model, while one check or event is written into them."""

    def __init__(
        self,
        tx: sa.Connection,
        ledger: Ledger,
        context: MessageContext,
        version: str,
        at: datetime,
        *,
        once: bool = False,
    ) -> None:
        self.tx, self.ledger, self.context = tx, ledger, context
        self.version, self.at, self.once = version, at, once
        self.desk = Desk(tx, context, at)
        self.steps: list[tuple[int, Step, int]] = []  # incident, what happened, its event

    def observe(
        self,
        cause: str,
        known: Incident | None,
        signal: Signal,
        finding: Finding | None,
        *,
        story: int | None = None,
    ) -> int:
        """Let the state machine take a step and write it down; returns the incident's id.

        Messages are left for `close`, when every cause of the check is known.
        """
        rules, relapses = self.context.rules(cause), 0
        if self.once:
            rules = msgspec.structs.replace(rules, opens=(1, 1))
        if known is None:
            before = records.latest(self.tx, self.context.model, cause)
            if before is not None and self.at <= before.updated:
                return before.id  # a later check has judged this cause already
            recent = rules.memory * self.context.rhythm
            if before is not None and self.at - before.updated <= recent:
                relapses = min(lifecycle.rises(before.life), rules.memory)
        life, step = lifecycle.observe(
            known.life if known else None, signal, at=self.at, rules=rules, relapses=relapses,
            severity=finding.severity if finding else "note",
        )  # fmt: skip
        if step is None or life is None:
            return known.id if known else 0
        if known is None:
            if finding is None:
                return 0
            identity = self._add(cause, life, finding, story)
        else:
            identity = known.id
            self._update(known, life, step, finding)
        self._write(identity, step, life, finding, known)
        return identity

    def close(self) -> list[IncidentChange]:
        """Tell what happened, now that all of it is known; what else is due comes along."""
        said: dict[int, str] = {}
        for identity, step, event in self.steps:
            if step in ("opened", "worse", "resolved"):
                incident = get(self.tx, identity)
                said[identity] = self.desk.announce(incident, event=event, kind=step)
        mine = unresolved(self.tx, self.context.model, lock=True)
        passed: dict[int, tuple[str, str]] = {}
        if mine:
            desk = Desk(self.tx, self.context, self.at)  # a trouble may have come or gone
            passed = Turn(self.tx, desk, whole=False).run(mine)
        return [self._change(*taken, said, passed) for taken in self.steps]

    def _add(self, cause: str, life: Life, finding: Finding, story: int | None) -> int:
        row: dict[str, Any] = {
            "model": self.context.model, "cause": cause, "opened": self.at, "story": story,
            "open_key": open_key(self.context.model, cause), **self._columns(life, finding),
            "report_state": "later" if life.state == "noticed" else "wanted",
        }  # fmt: skip
        table = schema.incidents
        added = self.tx.execute(table.insert().values(**row).returning(table.c.id))
        return int(added.scalar_one())

    def _update(self, known: Incident, life: Life, step: Step, finding: Finding | None) -> None:
        if step == "forgotten":
            return
        values = self._columns(life, finding)
        if step == "opened":
            values |= {"opened": self.at, "report_state": "wanted"}
        if step == "worse":
            values["escalated"] = None
        journal.change(self.tx, known.id, **values)

    def _columns(self, life: Life, finding: Finding | None) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "severity": life.severity, "state": life.state, "updated": life.updated,
            "found": life.found, "seen": life.seen, "clear": life.clear,
            "history": life.history, "relapses": life.relapses,
        }  # fmt: skip
        if life.state == "resolved":
            del columns["state"]  # `journal.close` does that
        if finding is not None:
            columns |= {
                "version": self.version, "title": finding.title,
                "finding": msgspec.json.encode(finding).decode(),
                "context": self.context.stored(),
            }  # fmt: skip
        return columns

    def _write(
        self,
        identity: int,
        step: Step,
        life: Life,
        finding: Finding | None,
        known: Incident | None,
    ) -> None:
        """The line of the timeline, where a step deserves one."""
        at, title, event = self.at, finding.title if finding else "", 0
        if step == "noticed":
            event = journal.write(self.tx, identity, at, "noticed", title)
        elif step == "opened":
            self.ledger.count_in(self.tx, {(self.context.model, "incidents_opened"): 1})
            event = journal.write(self.tx, identity, at, "opened", title)
        elif step == "worse" and known is not None:
            text = f"{known.severity} becomes {life.severity}: {title}"
            event = journal.write(self.tx, identity, at, "worse", text)
        elif step == "resolved":
            self.ledger.count_in(self.tx, {(self.context.model, "incidents_resolved"): 1})
            event = journal.end(self.tx, identity, at, f"clear in {life.clear} checks in a row")
        elif step == "forgotten":
            journal.forget(self.tx, identity, at)
            return
        if step != "held":
            self.steps.append((identity, step, event))

    def _change(
        self,
        identity: int,
        step: Step,
        event: int,
        said: dict[int, str],
        passed: dict[int, tuple[str, str]],
    ) -> IncidentChange:
        incident = get(self.tx, identity)
        kind, later = passed.get(identity, ("", ""))
        change: Change = "reminded" if kind == "reminder" and step == "updated" else step
        return IncidentChange(
            incident_id=identity,
            cause=incident.cause,
            severity=incident.severity,
            change=change,
            title=incident.title,
            message_id=said.get(identity, "") or later,
        )


def _chapter(
    tx: sa.Connection, context: MessageContext, incident: Incident, finding: Finding, at: datetime
) -> None:
    """What became of an incident that is still open: a line of its own, and as grave as it is."""
    text = f"{finding.title}: {finding.text}" if finding.text not in ("", finding.title) else ""
    if RANK[finding.severity] > RANK[incident.severity] or incident.state == "acknowledged":
        graver = max((finding.severity, incident.severity), key=RANK.__getitem__)
        journal.change(tx, incident.id, severity=graver, state="open", escalated=None)
    journal.add_event(
        tx,
        incident.id,
        at=at,
        kind=finding.cause,
        text=text or finding.title,
        context=context,
        message_type=cause_of(finding.cause).detected,
    )


def _by_cause(findings: Iterable[Finding]) -> tuple[dict[str, Finding], frozenset[str]]:
    """What each cause's incident should say, and the causes that are on their way out."""
    found: dict[str, Finding] = {}
    held = set()
    for finding in map(messages.cleaned, findings):
        if finding.clearing:
            held.add(finding.cause)
        elif finding.severity != "note":
            other = found.get(finding.cause)
            found[finding.cause] = finding if other is None else _merge(other, finding)
    return found, frozenset(held - found.keys())


def _merge(first: Finding, second: Finding) -> Finding:
    """Two findings of one cause as one: the graver speaks, the columns are those of both."""
    graver = max((first, second), key=lambda finding: RANK[finding.severity])
    since = min((f.since for f in (first, second) if f.since is not None), default=None)
    columns = tuple(dict.fromkeys(first.columns + second.columns))
    return msgspec.structs.replace(graver, columns=columns, since=since)
