from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import schema
from core.errors import InputError, NotFound
from core.ledger import Ledger
from monitor.alert import incidents
from monitor.alert.incidents import IncidentChange
from monitor.alert.messages import MessageContext
from monitor.results import Finding

T0 = datetime(2010, 10, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALL = frozenset({"decay", "drift", "stale", "broken_feed", "no_data"})
CONTEXT = MessageContext(
    model="repurchase",
    version="3",
    owner="crm",
    receivers=(("pager", ("page",)), ("chat", ("page", "ticket"))),
)


def finding(cause: str = "decay", severity: Any = "page", **more: Any) -> Finding:
    return Finding(cause=cause, severity=severity, title=f"{cause} 0.213 (0.190)", **more)


def check(ledger: Ledger, hour: int, *findings: Finding, **more: Any) -> list[IncidentChange]:
    options: dict[str, Any] = {"context": CONTEXT, "version": "3", "checked": ALL, **more}
    with ledger.write() as tx:
        return incidents.apply(tx, ledger, findings=findings, at=T0 + hour * HOUR, **options)


def sent(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger.read() as tx:
        rows = tx.execute(sa.select(schema.outbox).order_by(schema.outbox.c.id)).all()
    return [(row.receiver, row.type) for row in rows]


def kinds(ledger: Ledger, incident_id: int) -> list[str]:
    with ledger.read() as tx:
        return [event.kind for event in incidents.timeline(tx, incident_id)]


def test_an_incident_opens_once_is_counted_and_resolves_after_two_clear_checks(ledger: Ledger):
    (opened,) = check(ledger, 0, finding())
    assert opened.change == "opened"
    for hour in range(1, 30):
        assert [c.change for c in check(ledger, hour, finding())] == ["updated"]
    with ledger.read() as tx:
        one = incidents.get(tx, opened.incident_id)
    assert (one.seen, one.state, one.updated) == (30, "open", T0 + 29 * HOUR)
    assert [c.change for c in check(ledger, 30)] == ["clearing"]
    assert [c.change for c in check(ledger, 31)] == ["resolved"]
    assert check(ledger, 32) == []
    assert sent(ledger) == [
        ("pager", "model.decay.detected"),
        ("chat", "model.decay.detected"),
        ("pager", "model.decay.resolved"),
        ("chat", "model.decay.resolved"),
    ]
    assert kinds(ledger, opened.incident_id) == ["opened", "resolved"]
    with ledger.read() as tx:
        assert incidents.unresolved(tx) == []
        assert incidents.get(tx, opened.incident_id).resolved == T0 + 31 * HOUR


def test_the_receivers_of_one_event_share_one_message_id_and_events_do_not(ledger: Ledger):
    check(ledger, 0, finding())
    check(ledger, 1)
    check(ledger, 2)
    with ledger.read() as tx:
        ids = tx.scalars(sa.select(schema.outbox.c.message_id).order_by(schema.outbox.c.id)).all()
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert all(one.startswith("msg_") and len(one) == 36 for one in ids)


def test_two_ledgers_never_use_the_same_message_id(ledger: Ledger):
    other = Ledger("sqlite://").create()
    ids = {one.message_id for book in (ledger, other) for one in check(book, 0, finding())}
    other.close()
    assert len(ids) == 2


def test_flapping_opens_once_and_stays(ledger: Ledger):
    for hour in range(0, 40, 2):
        check(ledger, hour, finding())
        check(ledger, hour + 1)
    assert len(sent(ledger)) == 2
    with ledger.read() as tx:
        assert [one.seen for one in incidents.unresolved(tx)] == [20]


def test_a_clearing_finding_opens_nothing_and_holds_what_is_open(ledger: Ledger):
    assert check(ledger, 0, finding(clearing=True)) == []
    check(ledger, 1, finding())
    check(ledger, 2)
    assert check(ledger, 3, finding(clearing=True)) == []
    assert [c.change for c in check(ledger, 4)] == ["clearing"]
    assert [c.change for c in check(ledger, 5)] == ["resolved"]


def test_a_cause_that_could_not_be_judged_stays_as_it_is(ledger: Ledger):
    check(ledger, 0, finding())
    for hour in range(1, 5):
        assert check(ledger, hour, checked=ALL - {"decay"}) == []
    with ledger.read() as tx:
        (one,) = incidents.unresolved(tx, "repurchase")
    assert (one.clear, one.updated) == (0, T0)


def test_a_note_opens_nothing_and_holds_nothing(ledger: Ledger):
    note = finding("drift", "note")
    assert check(ledger, 0, note) == []
    check(ledger, 1, finding("drift", "ticket"))
    assert [c.change for c in check(ledger, 2, note)] == ["clearing"]
    assert [c.change for c in check(ledger, 3, note)] == ["resolved"]


def test_thirty_drifting_columns_are_one_incident_even_as_thirty_findings(ledger: Ledger):
    columns = [finding("drift", "ticket", columns=(f"c{i}",)) for i in range(30)]
    assert len(check(ledger, 0, *columns)) == 1
    assert sent(ledger) == [("chat", "model.drift.detected")]
    with ledger.read() as tx:
        (one,) = incidents.unresolved(tx)
    assert len(one.finding.columns) == 30


def test_severity_that_rises_is_told_and_reaches_the_pager_to_the_end(ledger: Ledger):
    (opened,) = check(ledger, 0, finding(severity="ticket"))
    with ledger.write() as tx:
        assert incidents.acknowledge(tx, opened.incident_id, by="kim", at=T0)
        assert not incidents.acknowledge(tx, opened.incident_id, by="kim", at=T0)
    assert [c.change for c in check(ledger, 1, finding())] == ["worse"]
    assert [c.change for c in check(ledger, 2, finding(severity="ticket"))] == ["updated"]
    with ledger.read() as tx:
        one = incidents.get(tx, opened.incident_id)
    assert (one.severity, one.state, one.finding.severity) == ("page", "open", "ticket")
    check(ledger, 3)
    check(ledger, 4)
    assert [name for name, _ in sent(ledger)] == ["chat", "pager", "chat", "pager", "chat"]
    assert kinds(ledger, one.id) == ["opened", "acknowledged", "worse", "resolved"]


def test_only_those_who_heard_of_an_incident_hear_of_its_end(ledger: Ledger):
    (opened,) = check(ledger, 0, finding())
    both = ("page", "ticket")
    moved = MessageContext(
        model="repurchase", version="3", receivers=(("new", both), ("chat", ("ticket",)))
    )
    check(ledger, 1, context=moved)
    check(ledger, 2, context=moved)
    assert [name for name, type in sent(ledger) if type.endswith("resolved")] == ["chat"]
    assert kinds(ledger, opened.incident_id) == ["opened", "resolved"]


def test_a_message_is_repeated_once_an_interval_until_somebody_acknowledges(ledger: Ledger):
    for hour in range(0, 15 * 24):
        check(ledger, hour, finding("stale", "ticket"))
    assert len(sent(ledger)) == 3  # day 0, after day 7, after day 14
    with ledger.write() as tx:
        (one,) = incidents.unresolved(tx)
        incidents.acknowledge(tx, one.id, by="kim", at=T0)
    for hour in range(15 * 24, 40 * 24, 6):
        check(ledger, hour, finding("stale", "ticket"))
    assert len(sent(ledger)) == 3
    only: dict[str, Any] = {"repeat": HOUR, "checked": frozenset({"drift"})}
    check(ledger, 2000, finding("drift", "ticket"), **only)
    assert [c.change for c in check(ledger, 2001, finding("drift", "ticket"), **only)] == [
        "updated"
    ]
    assert [c.change for c in check(ledger, 2002, finding("drift", "ticket"), **only)] == [
        "reminded"
    ]


def test_a_check_applied_twice_or_late_changes_nothing(ledger: Ledger):
    check(ledger, 5, finding())
    for hour in (5, 5, 3):
        assert check(ledger, hour, finding()) == []
        assert check(ledger, hour) == []
    check(ledger, 6)
    check(ledger, 7)
    assert check(ledger, 6, finding()) == []  # older than the check that resolved it
    assert len(sent(ledger)) == 4
    assert [c.change for c in check(ledger, 8, finding())] == ["opened"]


def test_a_transaction_that_fails_leaves_neither_incident_nor_message(ledger: Ledger):
    def doomed() -> None:
        with ledger.write() as tx:
            incidents.apply(
                tx, ledger, context=CONTEXT, version="3", findings=[finding()], at=T0, checked=ALL
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        doomed()
    assert sent(ledger) == []
    with ledger.read() as tx:
        assert incidents.unresolved(tx) == []


def test_models_do_not_disturb_each_other(ledger: Ledger):
    other = MessageContext(model="churn", version="1", receivers=CONTEXT.receivers)
    check(ledger, 0, finding())
    check(ledger, 0, finding(), context=other)
    check(ledger, 1, context=other)
    check(ledger, 2, context=other)
    with ledger.read() as tx:
        assert [one.model for one in incidents.unresolved(tx)] == ["repurchase"]
        assert incidents.find(tx, "churn", "decay") is None


def test_a_timeline_from_run_to_promotion_with_its_messages(ledger: Ledger):
    (opened,) = check(ledger, 0, finding())
    number = opened.incident_id
    with ledger.write() as tx:
        incidents.attach_run(tx, number, "8f3")
        for _ in range(2):  # a resumed run repeats itself
            incidents.add_event(
                tx, number, at=T0 + HOUR, kind="run", text="run 8f3 started",
                context=CONTEXT, message_type="retrain.started",
            )  # fmt: skip
        incidents.add_event(tx, number, at=T0 + HOUR, kind="gate", text="gate passed: +0.021")
        incidents.set_report(tx, number, "reports/1.html", "ready")
        assert incidents.resolve(tx, number, at=T0 + 2 * HOUR, text="v4 holds", context=CONTEXT)
        assert not incidents.resolve(tx, number, at=T0 + 3 * HOUR, text="again", context=CONTEXT)
    assert kinds(ledger, number) == ["opened", "run", "gate", "resolved"]
    assert [type for name, type in sent(ledger) if name == "chat"] == [
        "model.decay.detected", "retrain.started", "model.decay.resolved",
    ]  # fmt: skip
    with ledger.read() as tx:
        one = incidents.get(tx, number)
        bodies = [json.loads(raw) for raw in tx.scalars(sa.select(schema.outbox.c.body))]
    assert (one.run_id, one.report, one.report_state) == ("8f3", "reports/1.html", "ready")
    assert {body["data"]["incident"] for body in bodies} == {number}
    assert len({body["data"]["dedup_key"] for body in bodies}) == 1
    assert "run 8f3 started" in bodies[2]["data"]["message"]


def test_one_off_causes_open_count_and_resolve_by_hand(ledger: Ledger):
    def failed(hour: int) -> int:
        with ledger.write() as tx:
            return incidents.open_incident(
                tx, ledger, context=CONTEXT, version="3",
                finding=finding("retrain_failed"), at=T0 + hour * HOUR,
            )  # fmt: skip

    number = failed(0)
    assert failed(0) == number  # the same report again
    assert failed(1) == number
    check(ledger, 2)
    check(ledger, 3)
    with ledger.write() as tx:
        assert incidents.get(tx, number).seen == 2
        incidents.resolve(tx, number, at=T0 + 4 * HOUR, text="run 9a1 succeeded", context=CONTEXT)
    assert [type for name, type in sent(ledger) if name == "pager"] == [
        "retrain.failed", "incident.resolved",
    ]  # fmt: skip
    assert failed(1) == number
    assert failed(5) != number


def test_what_does_not_exist_or_makes_no_sense_is_refused(ledger: Ledger):
    with ledger.write() as tx:
        for attempt in (
            lambda: incidents.get(tx, 7),
            lambda: incidents.attach_run(tx, 7, "x"),
            lambda: incidents.acknowledge(tx, 7, by="kim", at=T0),
            lambda: incidents.resolve(tx, 7, at=T0, text=""),
            lambda: incidents.add_event(tx, 7, at=T0, kind="run", text=""),
        ):
            with pytest.raises(NotFound):
                attempt()
        with pytest.raises(InputError, match="context"):
            incidents.add_event(tx, 7, at=T0, kind="run", text="", message_type="retrain.started")
        with pytest.raises(InputError, match="note"):
            incidents.open_incident(
                tx, ledger, context=CONTEXT, version="3", finding=finding(severity="note"), at=T0
            )


def test_a_hostile_column_name_is_stored_on_one_line(ledger: Ledger):
    name = "a\r\nb\u202ec\ud800" + "x" * 5000
    check(ledger, 0, finding("drift", "ticket", columns=(name,), text=name))
    with ledger.read() as tx:
        (one,) = incidents.unresolved(tx)
    assert one.finding.columns[0].startswith("a b c x")
    assert len(one.finding.columns[0]) <= 80
    assert "\n" not in one.finding.text


_FINDINGS = st.builds(
    finding,
    cause=st.sampled_from(["decay", "drift", "no_data"]),
    severity=st.sampled_from(["page", "ticket", "note"]),
    clearing=st.booleans(),
)
_STEPS = st.lists(
    st.tuples(
        st.lists(_FINDINGS, max_size=3),
        st.sets(st.sampled_from(["decay", "drift", "no_data"])),
        st.integers(-1, 200),  # hours that pass: backwards too
        st.sampled_from(["", "", "acknowledge", "resolve"]),
    ),
    max_size=25,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_STEPS)
def test_any_sequence_keeps_one_unresolved_incident_a_cause_and_tells_of_ends_after_beginnings(
    steps: list[Any],
):
    ledger, hour = Ledger("sqlite://").create(), 0
    try:
        for found, checked, passed, action in steps:
            hour += passed
            check(ledger, hour, *found, checked=frozenset(checked))
            with ledger.write() as tx:
                left = incidents.unresolved(tx)
                assert len({one.cause for one in left}) == len(left)
                for one in left[:1]:
                    if action == "acknowledge":
                        incidents.acknowledge(tx, one.id, by="kim", at=T0 + hour * HOUR)
                    elif action == "resolve":
                        at = T0 + hour * HOUR
                        incidents.resolve(tx, one.id, at=at, text="done", context=CONTEXT)
        with ledger.read() as tx:
            every = tx.execute(sa.select(schema.incidents)).all()
            rows = tx.execute(sa.select(schema.outbox).order_by(schema.outbox.c.id)).all()
    finally:
        ledger.close()
    for one in every:
        assert (one.open_key is None) == (one.state == "resolved") == (one.resolved is not None)
        for receiver in ("pager", "chat"):
            told = [r for r in rows if r.incident_id == one.id and r.receiver == receiver]
            ends = [r.type.endswith(".resolved") for r in told]
            assert not any(ends[:-1])  # the last message, if any, is the end
            assert not (told and ends[0])  # and never the first
            assert not told or ends[-1] == (one.state == "resolved")
