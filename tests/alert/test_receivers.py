from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SettingsError
from core.settings import ReceiverSettings
from monitor.alert.contract import Message, Outcome
from monitor.alert.posting import retry_after
from monitor.alert.receivers import build
from monitor.alert.webhook import Webhook

MESSAGE = Message(
    id="msg_2f", type="model.decay.detected", body='{"type":"model.decay.detected","▲":1}'
)
LOOPBACK = ("127.0.0.1", "::1")
KEYS = ["whsec_" + base64.b64encode(bytes([byte]) * 32).decode() for byte in (1, 2, 3)]


def webhook(
    url: str, monkeypatch: pytest.MonkeyPatch, secret: str = "", timeout: str = "5s"
) -> Webhook:
    monkeypatch.setenv("HOOK_URL", url)
    monkeypatch.setenv("HOOK_KEY", secret)
    reference = "env:HOOK_KEY" if secret else ""
    return Webhook(
        ReceiverSettings(
            name="chat", url="env:HOOK_URL", secret=reference, timeout=timeout, allow=LOOPBACK
        )
    )


def send(receiver: Webhook) -> Outcome:
    return receiver.send(MESSAGE, at=datetime.now(UTC))


def verified(key: str, seen: tuple[Mapping[str, str], bytes]) -> Any:
    headers, body = seen
    return standardwebhooks.Webhook(key).verify(body, dict(headers))


def test_an_independent_reader_verifies_what_arrives(endpoint: Any, monkeypatch: Any):
    assert send(webhook(endpoint.url, monkeypatch, KEYS[0])) == Outcome(delivered=True, status=200)
    (seen,) = endpoint.seen
    assert verified(KEYS[0], seen) == {"type": "model.decay.detected", "▲": 1}
    assert seen[0]["webhook-id"] == "msg_2f"
    assert seen[0]["content-type"] == "application/json"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(KEYS[1], seen)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(KEYS[0], (seen[0], seen[1] + b" "))


def test_both_keys_verify_while_one_replaces_the_other(endpoint: Any, monkeypatch: Any):
    send(webhook(endpoint.url, monkeypatch, f"{KEYS[0]} {KEYS[1]}"))
    for key in KEYS[:2]:
        verified(key, endpoint.seen[0])
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(KEYS[2], endpoint.seen[0])


def test_without_a_key_the_message_is_sent_unsigned(endpoint: Any, monkeypatch: Any):
    assert send(webhook(endpoint.url, monkeypatch)).delivered
    assert "webhook-signature" not in endpoint.seen[0][0]


@pytest.mark.parametrize("status", [204, 299])
def test_any_2xx_is_success(status: int, endpoint: Any, monkeypatch: Any):
    endpoint.script = [status]
    assert send(webhook(endpoint.url, monkeypatch)) == Outcome(delivered=True, status=status)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_any_other_answer_is_a_failure(status: int, endpoint: Any, monkeypatch: Any):
    endpoint.script = [status]
    outcome = send(webhook(endpoint.url, monkeypatch))
    assert outcome == Outcome(status=status, error=f"HTTP {status}")


def test_410_says_that_there_is_no_use_in_trying_again(endpoint: Any, monkeypatch: Any):
    endpoint.script = [410]
    assert send(webhook(endpoint.url, monkeypatch)).gone


def test_a_redirect_is_a_failure_and_is_not_followed(endpoint: Any, second: Any, monkeypatch: Any):
    for status in (301, 302, 307, 308):
        endpoint.script = [(status, {"location": second.url})]
        outcome = send(webhook(endpoint.url, monkeypatch))
        assert (outcome.delivered, outcome.status) == (False, status)
    assert second.seen == []


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(status: int, endpoint: Any, monkeypatch: Any):
    endpoint.script = [(status, {"retry-after": "120"})]
    assert send(webhook(endpoint.url, monkeypatch)).retry_after == timedelta(minutes=2)
    endpoint.script = [(500, {"retry-after": "120"})]
    assert send(webhook(endpoint.url, monkeypatch)).retry_after == timedelta(0)


def test_retry_after_is_seconds_or_a_date_and_at_most_a_day():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    later = format_datetime(at + timedelta(minutes=3), usegmt=True)
    for text, seconds in {
        "7": 7, " 7 ": 7, later: 180, "99999999999999": 86400, "-5": 0, "soon": 0, "": 0,
        "1.5": 0, "Wed, 01 Jan 2025 00:00:00 GMT": 0, "Wed, 01 Jan 9999 00:00:00 GMT": 86400,
    }.items():  # fmt: skip
        assert retry_after(text, at) == timedelta(seconds=seconds), text


@given(st.text(max_size=60))
def test_no_retry_after_header_can_do_harm(text: str):
    assert timedelta(0) <= retry_after(text, datetime(2026, 1, 1, tzinfo=UTC)) <= timedelta(days=1)


@pytest.mark.parametrize("behaviour", ["hang", "drip"])
def test_a_receiver_that_hangs_or_drips_is_given_up(
    behaviour: str, endpoint: Any, monkeypatch: Any
):
    endpoint.script = [behaviour]
    outcome = send(webhook(endpoint.url, monkeypatch, timeout="400ms"))
    assert outcome == Outcome(error="no answer within 0.4 s")


def test_connections_that_fail_are_told_in_our_words(endpoint: Any, monkeypatch: Any):
    endpoint.script = ["reset"]
    assert send(webhook(endpoint.url, monkeypatch)).error.startswith("the connection failed")
    refused = send(webhook("http://127.0.0.1:1/canary", monkeypatch))
    assert refused.error == "the connection failed: ECONNREFUSED"
    nobody = send(webhook("http://canary.invalid/", monkeypatch))
    assert nobody.error == "the host's name could not be resolved"
    spoken = send(webhook(endpoint.url.replace("http:", "https:"), monkeypatch))
    assert spoken.error.startswith("TLS could not be set up")


def test_proxies_of_the_environment_are_not_used(endpoint: Any, second: Any, monkeypatch: Any):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, second.url)
    assert send(webhook(endpoint.url, monkeypatch)).delivered
    assert second.seen == []


def test_no_log_line_or_repr_holds_the_address_or_a_key(
    endpoint: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    endpoint.script = [200, 500, (302, {"location": endpoint.url}), "reset"]
    receiver = webhook(endpoint.url, monkeypatch, KEYS[0])
    outcomes = [send(receiver) for _ in range(4)]
    told = caplog.text + repr(receiver) + repr(vars(receiver)) + repr(outcomes)
    for canary in ("canary", KEYS[0][6:], endpoint.url, "model.decay"):
        assert canary not in told


@pytest.mark.parametrize(
    "wrong", ["hunter2", "whsec_!!!", "whsec_aGk=", KEYS[0][6:], f"{KEYS[0]} nope"]
)
def test_a_key_that_is_none_stops_the_start_without_showing_it(wrong: str, monkeypatch: Any):
    with pytest.raises(SettingsError, match=r"receivers\.chat\.secret is \*\*\*") as error:
        webhook("http://127.0.0.1:1/", monkeypatch, wrong)
    assert wrong not in str(error.value)


@pytest.mark.parametrize(
    "wrong", ["", "ftp://canary", "canary", "http://", "http://[canary", "http://canary:99999"]
)
def test_an_address_that_is_none_stops_the_start_without_showing_it(wrong: str, monkeypatch: Any):
    with pytest.raises(SettingsError, match=r"receivers\.chat\.url is \*\*\*") as error:
        webhook(wrong, monkeypatch)
    assert "canary" not in str(error.value)


def test_receivers_are_built_by_name_and_names_are_unique(endpoint: Any):
    one = ReceiverSettings(name="chat", url=endpoint.url, allow=LOOPBACK)
    assert list(build([one])) == ["chat"]
    with pytest.raises(SettingsError, match="a name of its own"):
        build([one, one])
