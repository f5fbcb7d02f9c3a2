"""MLflow's own code signs; whoever does not know the secret makes nobody look."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from core.ledger import Ledger
from core.settings import Secret
from shelflife.web.hints import genuine, note, noted

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = Secret("canary-secret-é")
BODY = b'{"entity": "model_version_alias", "action": "created", "data": {}}'


def signed(at: datetime = NOW, body: bytes = BODY, key: str = "canary-secret-é") -> dict[str, str]:
    stamp = str(int(at.timestamp()))
    digest = hmac.new(key.encode(), f"d1.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "x-mlflow-delivery-id": "d1", "x-mlflow-timestamp": stamp,
        "x-mlflow-signature": "v1," + base64.b64encode(digest).decode(),
    }  # fmt: skip


def test_only_what_was_signed_lately_with_the_secret_is_genuine():
    assert genuine(KEY, signed(), BODY, NOW)
    assert genuine(KEY, signed(NOW - timedelta(minutes=4)), BODY, NOW)
    assert not genuine(KEY, signed(NOW - timedelta(minutes=6)), BODY, NOW)
    assert not genuine(KEY, signed(NOW + timedelta(minutes=6)), BODY, NOW)
    assert not genuine(KEY, signed(), BODY + b" ", NOW)
    assert not genuine(KEY, signed(key="guess"), BODY, NOW)
    assert not genuine(KEY, {}, BODY, NOW)
    for name in signed():
        for wrong in ("", "x", "9" * 400, "v1,", "²", "v1,AAAA"):
            assert not genuine(KEY, {**signed(), name: wrong}, BODY, NOW), (name, wrong)


def test_mlflow_signs_as_we_read():
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
    from mlflow.webhooks import delivery

    sent: dict[str, Any] = {}

    class Session:
        def post(self, url: str, **options: Any) -> None:
            sent.update(options)

    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    hook = SimpleNamespace(url="https://93.184.216.34/", secret=KEY.reveal(), workspace=None)
    payload: Any = {"name": "shop", "alias": "champion", "version": "2"}
    delivery._send_webhook_request(hook, payload, event, Session())  # type: ignore[arg-type]
    headers = {name.lower(): value for name, value in sent["headers"].items()}
    assert genuine(KEY, headers, sent["data"], datetime.now(UTC))


def test_a_hint_is_noted_in_the_ledger(any_ledger: Ledger):
    assert noted(any_ledger) == ""
    note(any_ledger, NOW)
    note(any_ledger, NOW + timedelta(seconds=1))
    assert noted(any_ledger) == "2026-01-02T03:04:06Z"


def test_the_way_in_is_closed_without_a_secret_and_guarded_with_one(
    run: Any, tmp_path: Any, web: Any, monkeypatch: pytest.MonkeyPatch
):
    assert web.post("/api/v1/hints/mlflow", content=BODY).status_code == 404
    monkeypatch.setenv("HINT", KEY.reveal())
    from core.settings import MlflowSettings

    with run(tmp_path / "open", mlflow=MlflowSettings(webhook_secret="env:HINT")) as guarded:
        post = guarded.post
        assert post("/api/v1/hints/mlflow", content=BODY).status_code == 401
        wrong = signed(datetime.now(UTC), key="guess")
        assert post("/api/v1/hints/mlflow", content=BODY, headers=wrong).status_code == 401
        assert noted(guarded.service.ledger) == ""
        right = signed(datetime.now(UTC))
        answer = post("/api/v1/hints/mlflow", content=BODY, headers=right)
        assert (answer.status_code, answer.json()) == (202, {"state": "noted"})
        first = noted(guarded.service.ledger)
        post("/api/v1/hints/mlflow", content=BODY, headers=right)  # a repetition within a second
        assert noted(guarded.service.ledger) == first != ""
