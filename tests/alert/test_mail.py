"""E-mail over a real SMTP conversation, with and without TLS."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from core.errors import SettingsError
from core.settings import ReceiverSettings
from monitor.alert.contract import Message, Outcome
from monitor.alert.mail import Mail

BODY = (
    '{"data":{"title":"Brier 0.3 – é","severity":"page","model":"shop","dedup_key":"dd",'
    '"message":"▲ shop\\n.\\nis decaying","incident":7}}'
)
MESSAGE = Message(id="msg_1", type="model.decay.detected", body=BODY, incident=7, origin="o")
LOGIN = "kim:canary-password"


def mail(office: Any, scheme: str = "smtp", **more: Any) -> Mail:
    options: dict[str, Any] = {
        "allow": ("127.0.0.1",), "sender": "shelflife@example.com",
        "to": ("a@example.com", "b@example.com"), "timeout": "5s", **more,
    }  # fmt: skip
    url = f"{scheme}://localhost:{office.port}"
    return Mail(ReceiverSettings(name="m", type="email", url=url, **options))


def send(receiver: Mail) -> Outcome:
    return receiver.send(MESSAGE, at=datetime.now(UTC))


def test_a_letter_says_who_what_and_which_one(post_office: Any):
    office = post_office()
    assert send(mail(office)) == Outcome(delivered=True, status=250)
    (letter,) = office.letters
    found = email.message_from_bytes(letter, policy=email.policy.default)
    assert found["Subject"] == "[page] shop: Brier 0.3 – é"
    assert (found["From"], found["To"]) == (
        "shelflife@example.com", "a@example.com, b@example.com",
    )  # fmt: skip
    assert found["Message-ID"] == "<msg_1@shelflife.invalid>"
    assert found["References"] == "<o-dd@shelflife.invalid>"
    assert found["Auto-Submitted"] == "auto-generated"
    text = found.get_content().replace("\r\n", "\n").replace("\n..\n", "\n.\n")
    assert text == "▲ shop\n.\nis decaying\n"
    assert office.encrypted == [False]  # only because the settings allow its network


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "smtps"])
def test_tls_is_used_and_the_certificate_checked(
    implicit: bool, post_office: Any, authority: Any, monkeypatch: Any
):
    pem, context = authority
    office = post_office(context, implicit=implicit, password=LOGIN)
    scheme = "smtps" if implicit else "smtp"
    monkeypatch.setenv("MAIL_LOGIN", LOGIN)
    strangers = mail(office, scheme, secret="env:MAIL_LOGIN")
    assert send(strangers).error.startswith("TLS could not be set up")
    trusted = mail(office, scheme, secret="env:MAIL_LOGIN", ca=str(pem))
    assert send(trusted).delivered
    assert office.encrypted == [True]
    monkeypatch.setenv("MAIL_LOGIN", "kim:wrong")
    outcome = send(mail(office, scheme, secret="env:MAIL_LOGIN", ca=str(pem)))
    assert (outcome.status, outcome.final) == (535, False)
    assert "canary" not in repr(outcome) + repr(vars(trusted))


def test_a_refusal_of_the_message_is_final_and_one_of_the_moment_is_not(post_office: Any):
    office = post_office()
    for verb, answer, status, final in (
        ("RCPT", b"550 nobody", 550, True),
        ("RCPT", b"451 later", 451, False),
        ("DATA", b"554 spam", 554, True),
        ("DATA", b"452 full", 452, False),
        ("MAIL", b"421 going down", 421, False),
        ("EHLO", b"\xff\xfe", -1, False),
    ):
        office.answers = {verb: answer}
        outcome = send(mail(office))
        assert not outcome.delivered
        assert outcome.final is final, answer
        assert outcome.status in (status, None)


def test_a_server_that_hangs_is_given_up(endpoint: Any, post_office: Any):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        settings = ReceiverSettings(
            name="m", type="email", url=url, allow=("127.0.0.1",), timeout="300ms",
            sender="a@example.com", to=("b@example.com",),
        )  # fmt: skip
        assert send(Mail(settings)).error == "no answer within 0.3 s"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to", ()), ("to", ("nobody",)), ("to", ("a@b.c\nBcc: evil@example.com",)),
        ("sender", ""), ("sender", "a b@c"), ("url", "http://x"), ("ca", "/nowhere"),
        ("secret", "env:SHELFLIFE_TEST_LOGIN"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_stop_the_start(field: str, value: Any, monkeypatch: Any):
    monkeypatch.setenv("SHELFLIFE_TEST_LOGIN", "canary")
    given: dict[str, Any] = {
        "url": "smtps://mail.example.com", "sender": "a@example.com", "to": ("b@example.com",),
        field: value,
    }  # fmt: skip
    with pytest.raises(SettingsError, match=rf"receivers\.m\.{field}") as error:
        Mail(ReceiverSettings(name="m", type="email", **given))
    assert "canary" not in str(error.value)


def test_a_subject_never_breaks_the_header(tmp_path: Path):
    settings = ReceiverSettings(
        name="m", type="email", url="smtps://x.example", sender="a@example.com",
        to=("b@example.com",),
    )  # fmt: skip
    body = '{"data":{"subject":"a\\r\\nBcc: evil@example.com\\u0000","message":"x"}}'
    hostile = Message(id="msg_1", type="x.y", body=body)
    letter = Mail(settings).letter(hostile, datetime(2026, 1, 1, tzinfo=UTC))
    again = email.message_from_bytes(letter.as_bytes(), policy=email.policy.default)
    assert again["Bcc"] is None
