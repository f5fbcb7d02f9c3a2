"""Where messages go, by type. A receiver's address and its keys are secrets: no error, row or log
line holds them. What is kept of a failed attempt is the status and a few words of our own, never
the words of the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.errors import SettingsError
from core.settings import ReceiverSettings, ReceiverType
from monitor.alert.alertmanager import Alertmanager
from monitor.alert.contract import Message as Message
from monitor.alert.contract import Outcome as Outcome
from monitor.alert.contract import Receiver as Receiver
from monitor.alert.mail import Mail
from monitor.alert.pagerduty import PagerDuty
from monitor.alert.slack import Slack
from monitor.alert.webhook import Webhook

TYPES: dict[ReceiverType, Callable[[ReceiverSettings], Receiver]] = {
    "webhook": Webhook,
    "slack": Slack,
    "pagerduty": PagerDuty,
    "alertmanager": Alertmanager,
    "email": Mail,
}


def build(settings: Iterable[ReceiverSettings]) -> dict[str, Receiver]:
    """The receivers of the settings, by name.

    Raises:
        SettingsError: what one of them is made with cannot be used; or two have the same name.
    """
    receivers: dict[str, Receiver] = {}
    for one in settings:
        if one.name in receivers:
            raise SettingsError("receivers", one.name, "a name of its own for every receiver")
        receivers[one.name] = TYPES[one.type](one)
    return receivers
