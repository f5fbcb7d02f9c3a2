"""Any order of checks, people and time: what is told is true, once, in order, and never too often.

A machine of two models and three causes on a real ledger; every rule ends with an independent look
at the tables.
"""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core import schema
from core.ledger import Ledger
from core.settings import AlertSettings, parse
from monitor.alert import incidents, silences
from monitor.alert.messages import MessageContext
from monitor.results import Finding

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CAUSES = ("broken_feed", "drift", "stale")
REPEAT = timedelta(days=1)
ROUTES = (
    "{}",
    "{group_by: [cause], group_wait: 30m, group_interval: 3h}",
    """{receivers: [chat], routes: [{match: ['severity="page"'], receivers: [pager, chat],
        group_by: [model], group_interval: 2h, escalate_after: 5h, escalate_to: [boss]}]}""",
)
RECEIVERS = (("pager", ("page",)), ("chat", ("page", "ticket")), ("boss", ("page",)))


class OnCall(RuleBasedStateMachine):
    @initialize(route=st.sampled_from(ROUTES), opens=st.sampled_from(["1/1", "2/3"]))
    def start(self, route: str, opens: str) -> None:
        self.ledger, self.now = Ledger("sqlite://").create(), T0
        text = f"alerts:\n  opens: {{drift: {opens}}}\n  route: {route}"
        self.alerts: AlertSettings = parse(text).alerts
        self.interval = {"{}": 0, ROUTES[1]: 3, ROUTES[2]: 2}[route] * HOUR

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()

    def context(self, model: str) -> MessageContext:
        return MessageContext(
            model=model, version="1", receivers=RECEIVERS, alerts=self.alerts, repeat=REPEAT
        )

    @rule(
        model=st.sampled_from(["a", "b"]),
        found=st.dictionaries(
            st.sampled_from(CAUSES), st.sampled_from(["page", "ticket", "sign", "held"])
        ),
        hours=st.integers(0, 9),
    )
    def check(self, model: str, found: dict[str, str], hours: int) -> None:
        self.now += hours * HOUR
        made = [
            Finding(
                cause=cause,
                severity=kind if kind in ("page", "ticket") else "note",  # type: ignore[arg-type]
                title=f"{cause} of {model}", clearing=kind == "held",
            )
            for cause, kind in found.items()
        ]  # fmt: skip
        with self.ledger.write() as tx:
            incidents.apply(
                tx, self.ledger, context=self.context(model), version="1", at=self.now,
                findings=[one for one in made if found[one.cause] != "sign"],
                signs=[one for one in made if found[one.cause] == "sign"],
                checked=frozenset(CAUSES),
            )  # fmt: skip

    @rule(hours=st.integers(1, 40))
    def time_passes(self, hours: int) -> None:
        self.now += hours * HOUR
        self.turn()

    def turn(self) -> None:
        with self.ledger.write() as tx:
            incidents.turn(tx, now=self.now, contexts=self.context)

    @precondition(lambda self: self.unresolved())
    @rule(data=st.data(), what=st.sampled_from(["acknowledge", "resolve", "silence"]))
    def person(self, data: Any, what: str) -> None:
        one = data.draw(st.sampled_from(self.unresolved()))
        with self.ledger.write() as tx:
            if what == "acknowledge":
                incidents.acknowledge(tx, one.id, by="kim", at=self.now)
            elif what == "resolve" and one.state != "noticed":
                context = self.context(one.model)
                incidents.resolve(tx, one.id, at=self.now, text="done", context=context)
            elif what == "silence":
                silences.add(
                    tx, match=[f"model={one.model}", f"cause={one.cause}"], by="kim",
                    reason="known", ends=self.now + 12 * HOUR, at=self.now,
                )  # fmt: skip

    def unresolved(self) -> list[incidents.Incident]:
        with self.ledger.read() as tx:
            return incidents.unresolved(tx)

    def rows(self, table: sa.Table) -> list[Any]:
        with self.ledger.read() as tx:
            return list(tx.execute(sa.select(table).order_by(table.c.id)).all())

    @invariant()
    def one_unresolved_incident_a_model_and_cause(self) -> None:
        if hasattr(self, "ledger"):
            keys = [(one.model, one.cause) for one in self.unresolved()]
            assert len(keys) == len(set(keys))

    @invariant()
    def every_message_tells_of_lines_of_the_timeline(self) -> None:
        if not hasattr(self, "ledger"):
            return
        events = {row.id: row for row in self.rows(schema.incident_events)}
        told: dict[tuple[str, str], list[Any]] = {}
        for notice in self.rows(schema.notices):
            assert events[notice.event_id].incident_id == notice.incident_id
            if notice.state == "sent":
                told.setdefault((notice.message_id, notice.receiver), []).append(notice)
        sent = {(row.message_id, row.receiver): row for row in self.rows(schema.outbox)}
        assert told.keys() == sent.keys()
        for key, row in sent.items():  # a message speaks of every incident it was written for
            named = {one["incident"] for one in json.loads(row.body)["data"]["incidents"]}
            assert {notice.incident_id for notice in told[key]} <= named

    @invariant()
    def whoever_hears_of_an_end_heard_of_the_beginning_and_each_once(self) -> None:
        if not hasattr(self, "ledger"):
            return
        lives: dict[tuple[int, str], list[str]] = {}
        for notice in self.rows(schema.notices):
            if notice.state == "sent":
                lives.setdefault((notice.incident_id, notice.receiver), []).append(notice.kind)
        for kinds in lives.values():
            assert kinds[0] in ("opened", "worse", "escalated", "reminder"), kinds
            assert kinds.count("opened") <= 1
            assert "resolved" not in kinds[:-1]
        over = {row.id for row in self.rows(schema.incidents) if row.state == "resolved"}
        ended = {row.incident_id for row in self.rows(schema.notices) if row.kind == "resolved"}
        assert {incident for incident, _ in lives} & over <= ended

    @invariant()
    def nobody_is_told_too_often(self) -> None:
        if not hasattr(self, "ledger"):
            return
        spoke: dict[str, list[tuple[datetime, timedelta]]] = {}
        for row in self.rows(schema.outbox):
            mine = [n for n in self.rows(schema.notices) if n.message_id == row.message_id]
            kinds = {n.kind for n in mine if n.receiver == row.receiver}
            apart = self.interval if any(n.labels for n in mine) else 0 * HOUR
            apart = REPEAT if kinds == {"reminder"} else apart
            spoke.setdefault(row.group_key, []).append((row.created, apart))
        for told in spoke.values():
            for (before, _), (after, apart) in itertools.pairwise(told):
                assert after - before >= apart

    @invariant()
    def a_silence_is_silent(self) -> None:
        if not hasattr(self, "ledger"):
            return
        with self.ledger.read() as tx:
            quiet = silences.listed(tx)
        models = {row.id: (row.model, row.cause) for row in self.rows(schema.incidents)}
        for notice in self.rows(schema.notices):
            model, cause = models[notice.incident_id]
            for one in quiet if notice.state == "sent" else []:
                muted = one.mutes({"model": model, "cause": cause}, notice.sent)
                # What was said at the very moment before the silence was made has been said.
                assert not muted or notice.sent == one.created or notice.kind == "resolved"


OnCall.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes; add it by hand
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
TestOnCall = OnCall.TestCase
