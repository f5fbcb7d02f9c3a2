"""The generic receiver: a POST signed to Standard Webhooks 1.0.0."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime, timedelta

from core.errors import SettingsError
from core.settings import ReceiverSettings, Secret, secret, span
from monitor.alert.contract import Message, Outcome
from monitor.alert.posting import Target

_KEY_BYTES = range(24, 65)  # what Standard Webhooks asks of a key


class Webhook:
    """A signed HTTP POST of the message's body. Any answer but 2xx is a failure.

    Raises:
        SettingsError: see `Target`; or a key is not `whsec_` and base64 of 24 to 64 bytes.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        where = f"receivers.{settings.name}"
        self._target = target(settings)
        value = secret(settings.secret)
        given = value.reveal().split() if value else []
        self._keys = [_key(part, f"{where}.secret") for part in given]

    @property
    def longest(self) -> timedelta:
        return self._target.timeout

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Post the message once."""
        content = message.body.encode()
        headers = {"content-type": "application/json", **sign(self._keys, message.id, content, at)}
        return self._target.send("POST", content, headers, at=at)


def target(settings: ReceiverSettings, *, default: str = "", path: str = "") -> Target:
    """Where a receiver's requests go.

    Args:
        default: the address when the settings have none.
        path: added to the address's own.

    Raises:
        SettingsError: see `Target`.
    """
    return Target(
        settings.url or default,
        setting=f"receivers.{settings.name}",
        allow=settings.allow,
        ca=settings.ca,
        timeout=span(settings.timeout),
        path=path,
    )


def sign(keys: Iterable[bytes], message_id: str, content: bytes, at: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks; a signature for every key, none without keys.

    Args:
        keys: two of them while one replaces the other.
        at: the moment of the attempt.
    """
    stamp = str(int(at.timestamp()))
    signed = f"{message_id}.{stamp}.".encode() + content
    signatures = [hmac.new(key, signed, hashlib.sha256).digest() for key in keys]
    headers = {"webhook-id": message_id, "webhook-timestamp": stamp}
    if signatures:
        encoded = (base64.b64encode(signature).decode() for signature in signatures)
        headers["webhook-signature"] = " ".join(f"v1,{signature}" for signature in encoded)
    return headers


def _key(text: str, setting: str) -> bytes:
    expected = "whsec_ and the base64 of 24 to 64 random bytes (two of them while rotating)"
    encoded = text.removeprefix("whsec_")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if encoded == text or len(key) not in _KEY_BYTES:
        raise SettingsError(setting, Secret(text), expected)
    return key
