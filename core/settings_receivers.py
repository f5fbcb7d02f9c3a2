"""Who is told, where messages may go, and who notices when the monitor itself falls silent."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from core.settings_retrain import Duration

ReceiverType = Literal["webhook", "slack", "pagerduty", "alertmanager", "email"]


class ReceiverSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One receiver of messages."""

    name: str
    """What messages, routes and commands call it."""
    type: ReceiverType = "webhook"
    """`webhook` is signed to Standard Webhooks 1.0; the others speak their product's own API."""
    url: str = ""
    """Where messages go; `env:NAME` or `file:/path` where the address itself is a secret (Slack).
    Alertmanager: its root. E-mail: `smtp://host:587` (STARTTLS) or `smtps://host:465`. PagerDuty:
    its public address when empty."""
    secret: str = ""
    """`env:NAME` or `file:/path`. Webhook: a `whsec_…` key, or two while rotating. PagerDuty: the
    routing key. E-mail: `user:password`."""
    severities: tuple[Literal["page", "ticket"], ...] = ("page", "ticket")
    """Which severities it is told of."""
    timeout: Duration = "15s"
    """Longest time of one attempt, from the name's resolution to the answer."""
    allow: tuple[str, ...] = ()
    """Inner networks this receiver may lie in, such as `10.1.0.0/16` or `127.0.0.1`; all others
    are refused. Only there may the address be plain `http://` or `smtp://` without TLS."""
    ca: str = ""
    """PEM file of the authorities that its certificate is checked against; Mozilla's when empty."""
    sender: str = ""
    """E-mail: the address that messages come from."""
    to: tuple[str, ...] = ()
    """E-mail: the addresses that messages go to."""
    refresh_every: Duration = "1m"
    """Alertmanager: how often open incidents are sent again; they expire after ten times this."""


class HeartbeatSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sign of life that somebody else misses when it stops. Off while both places are empty."""

    url: str = ""
    """Address that is asked (GET) while the monitor works, such as a dead-man's switch offers;
    `env:NAME` or `file:/path` where it is a secret."""
    receiver: str = ""
    """Name of a receiver that gets a `monitor.heartbeat` message while the monitor works."""
    every: Duration = "1m"
    """How often."""
    allow: tuple[str, ...] = ()
    """Inner networks that `url` may lie in."""
    ca: str = ""
    """PEM file of the authorities that its certificate is checked against; Mozilla's when empty."""
