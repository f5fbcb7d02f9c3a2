from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from monitor.alert import messages
from monitor.alert.causes import CAUSES, cause, message_types
from monitor.alert.messages import MessageContext
from monitor.alert.records import Incident
from monitor.results import Finding

T0 = datetime(2010, 10, 9, tzinfo=UTC)
FINDING = Finding(
    cause="decay",
    severity="page",
    title="Brier 0.213 [0.205, 0.221], tolerance 0.190, n 1,312",
    text="3 windows in a row",
    since=T0,
    columns=("days_since_first", "lifetime_value"),
)
CONTEXT = MessageContext(
    model="repurchase",
    version="3",
    owner="crm",
    runbook="https://wiki.example/decay",
    environment="production",
    dashboard_url="http://127.0.0.1:8501",
    mlflow_url="http://127.0.0.1:5000/#/models/repurchase/versions/3",
    command="shelflife check repurchase --at 2010-10-09T00:00Z",
    done="run 8f3 started, champion v3 still serving",
    cost="≈ 0.9 of a retraining run",
)


def incident(**changes: Any) -> Incident:
    one = Incident(
        id=42, model="repurchase", cause="decay", version="3", severity="page", state="open",
        title=FINDING.title, finding=FINDING, opened=T0, updated=T0, resolved=None, seen=1,
        clear=0, report="reports/42.html", report_state="ready", run_id=None,
    )  # fmt: skip
    return msgspec.structs.replace(one, **changes)


def body(event: str = "opened", news: str = "", **more: Any) -> dict[str, Any]:
    one = more.pop("incident", incident())
    context = msgspec.structs.replace(CONTEXT, **more)
    kind = "model.decay.detected"
    at = T0 + timedelta(days=2)
    return messages.body(kind, one, one.finding, context, at, event=event, news=news)


def test_the_text_reads_as_on_call_wants_it():
    assert body()["data"]["message"].splitlines() == [
        "▲ repurchase is decaying: Brier 0.213 [0.205, 0.221], tolerance 0.190, n 1,312,"
        " since 9 Oct",
        "  3 windows in a row",
        "  cost ≈ 0.9 of a retraining run · drifted meanwhile: days_since_first, lifetime_value",
        "  done: run 8f3 started, champion v3 still serving · next: shelflife retrain repurchase;"
        " shelflife rollback repurchase; acknowledge incident 42",
        "  incident 42 · page · production · owner crm ·"
        " dashboard http://127.0.0.1:8501/incidents?id=42 ·"
        " MLflow v3 http://127.0.0.1:5000/#/models/repurchase/versions/3 ·"
        " runbook https://wiki.example/decay ·"
        " silence 4 h http://127.0.0.1:8501/incidents?id=42&silence=4h ·"
        " shelflife check repurchase --at 2010-10-09T00:00Z",
    ]


def test_the_data_carries_what_a_machine_needs():
    content = body()
    assert content["type"] == "model.decay.detected"
    assert content["timestamp"] == "2010-10-11T00:00:00Z"
    data = content["data"]
    assert data["dedup_key"] == messages.dedup_key("repurchase", "decay")
    assert len(data["dedup_key"]) == 64
    assert data["links"].keys() == {"dashboard", "mlflow", "runbook", "silence"}
    wanted = {
        "incident": 42, "severity": "page", "state": "open", "model": "repurchase",
        "version": "3", "owner": "crm", "since": "2010-10-09T00:00:00Z", "seen": 1,
        "command": CONTEXT.command, "done": CONTEXT.done, "cost": CONTEXT.cost,
    }  # fmt: skip
    assert {key: data[key] for key in wanted} == wanted


def test_the_end_says_how_long_it_took():
    over = incident(state="resolved", seen=41)
    lines = body("resolved", "clear in 2 checks in a row", incident=over)["data"]["message"]
    first, second, *_ = lines.splitlines()
    assert first == "● repurchase is no longer decaying: clear in 2 checks in a row"
    assert "open for 2 d, found by 41 checks" in second
    assert "next:" not in lines


def test_a_step_is_told_with_the_state_it_belongs_to():
    lines = body("run", "run 8f3 started")["data"]["message"].splitlines()
    assert lines[0] == "▲ repurchase: run 8f3 started"
    assert lines[1].startswith("  the incident: Brier 0.213")


def test_a_title_that_is_a_sentence_is_not_introduced_again():
    own = msgspec.structs.replace(FINDING, title="repurchase: Brier rose since 9 Oct")
    first = body(incident=incident(finding=own))["data"]["message"].splitlines()[0]
    assert first == "▲ repurchase: Brier rose since 9 Oct"
    column = msgspec.structs.replace(FINDING, title="repurchases missing since 9 Oct")
    first = body(incident=incident(finding=column))["data"]["message"].splitlines()[0]
    assert first == "▲ repurchase is decaying: repurchases missing since 9 Oct"


def test_the_contexts_own_next_steps_come_instead_of_the_usual_ones():
    assert body(next="nothing; wait for v4")["data"]["next"] == ["nothing", "wait for v4"]


def test_every_cause_has_its_symbol_types_and_two_things_to_do():
    assert {known.symbol for known in CAUSES.values()} == {"▲", "■", "◐", "◷", "◆"}
    for name, known in CAUSES.items():
        data = body(incident=incident(cause=name))["data"]
        assert known.says in data["message"]
        assert 2 <= len(data["next"]) <= 3
        assert "{" not in "".join(data["next"])
    assert cause("solar_flare").detected in message_types()
    assert "model.data_missing.resolved" in message_types()


def test_types_that_the_standard_does_not_allow_are_refused():
    for wrong in ("", "model decay", "model..x", "a-b"):
        with pytest.raises(InputError, match="message type"):
            messages.body(wrong, incident(), FINDING, CONTEXT, T0, event="opened")


@given(st.text(), st.integers(1, 200))
def test_clean_text_is_one_printable_line_within_its_limit(text: str, limit: int):
    line = messages.clean(text, limit)
    assert len(line) <= limit
    assert line.isprintable()
    assert line == line.strip()
    assert messages.clean(line, limit) == line


_ANY = st.text(max_size=300) | st.sampled_from(["<img onerror=x>", "=HYPERLINK()", "@channel"])


@given(_ANY, _ANY, st.lists(_ANY, max_size=60), st.integers(1, 400))
def test_any_body_is_json_of_less_than_20_kb_whose_text_has_few_lines(
    title: str, text: str, columns: list[str], times: int
):
    finding = Finding(
        cause="drift", severity="ticket", title=title * times, text=text * times,
        columns=tuple(column * times for column in columns),
    )  # fmt: skip
    content = body("reminder", incident=incident(finding=finding), owner=title, cost=text * times)
    raw = messages.encode(content)
    assert len(raw.encode()) < 20_000
    assert len(json.loads(raw)["data"]["message"].splitlines()) <= 5


def test_a_body_of_four_byte_characters_is_cut_to_fit():
    wide = "𝔘" * 5000
    finding = Finding(
        cause="drift", severity="page", title=wide, text=wide, columns=tuple([wide] * 100)
    )
    content = body(incident=incident(finding=finding), cost=wide, done=wide, next=wide)
    assert len(messages.encode(content).encode()) < 20_000
    assert content["data"]["column_count"] == 100
    assert content["data"]["incident"] == 42
