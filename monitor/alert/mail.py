"""E-mail by SMTP: one plain-text message per event, threaded by incident.

`smtp://` is upgraded with STARTTLS before anything is said; only in networks that `allow` names may
a server do without. `smtps://` begins with TLS. The connection is `dialing.Dial`'s, so where it may
go and how long it may take is as for every other receiver.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from datetime import datetime, timedelta
from email.errors import HeaderParseError, MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime

from core.errors import SettingsError
from core.settings import ReceiverSettings, Secret, secret, span
from monitor.alert import addresses
from monitor.alert.contract import Message, Outcome
from monitor.alert.dialing import Dial, words
from monitor.alert.posting import split, tls

_PORTS = {"smtp": 587, "smtps": 465}
_OURS = "shelflife"  # what we call ourselves: the machine's own name is nobody's business
#: Answers to the message itself that more attempts will not change (RFC 5321, 4.2.3).
_FINAL = frozenset({550, 551, 552, 553, 554})


class Mail:
    """Messages by e-mail.

    Raises:
        SettingsError: an address, network or file that is none, or a secret that is not
            `user:password`.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        where = f"receivers.{settings.name}"
        self._longest = span(settings.timeout)
        self._allowed = addresses.networks(settings.allow, f"{where}.allow")
        named = settings.url.startswith(("env:", "file:"))
        url = (secret(settings.url) if named else None) or Secret(settings.url)
        self._parts = split(url, f"{where}.url", ("smtp", "smtps"))
        self._context = tls(settings.ca, f"{where}.ca")
        self._sender = _address(settings.sender, f"{where}.sender")
        self._to = tuple(_address(each, f"{where}.to") for each in settings.to)
        if not self._to:
            raise SettingsError(f"{where}.to", list(settings.to), "at least one e-mail address")
        self._user = secret(settings.secret)
        if self._user is not None and ":" not in self._user.reveal():
            raise SettingsError(f"{where}.secret", self._user, "user:password")

    @property
    def longest(self) -> timedelta:
        return self._longest

    def send(self, message: Message, *, at: datetime) -> Outcome:
        """Hand the message to the server once."""
        letter = self.letter(message, at)
        dial = Dial(self._allowed, self._longest)
        try:
            with dial:
                return self._hand_over(dial, letter)
        except (OSError, ValueError) as error:  # smtplib's errors are OSErrors
            if dial.over or isinstance(error, TimeoutError):
                return Outcome(error=f"no answer within {self._longest.total_seconds():g} s")
            return _failure(error)

    def letter(self, message: Message, at: datetime) -> EmailMessage:
        """The message as an e-mail. Its id is the message's: a repetition can be told."""
        letter = EmailMessage()
        letter["Subject"] = " ".join(message.subject.split())[:200]
        letter["From"] = self._sender
        letter["To"] = ", ".join(self._to)
        letter["Date"] = format_datetime(at)
        letter["Message-ID"] = f"<{message.id}@{_OURS}.invalid>"
        if message.incident is not None:
            letter["References"] = f"<{message.key}@{_OURS}.invalid>"
        letter["Auto-Submitted"] = "auto-generated"  # no holiday notes in return (RFC 3834)
        letter["X-Shelflife-Type"] = message.type
        letter.set_content(message.text + "\n")
        return letter

    def _hand_over(self, dial: Dial, letter: EmailMessage) -> Outcome:
        parts, secure = self._parts, self._parts.scheme == "smtps"
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        # Whether STARTTLS is offered shows only later; until then nothing of ours is said.
        sock = dial.connect(host, port, plain=False)
        inner = addresses.inside(str(sock.getpeername()[0]), self._allowed)
        try:
            if secure:
                sock = self._context.wrap_socket(sock, server_hostname=host)
            with _Client(sock, host, dial) as client:
                client.ehlo()
                if not secure and client.has_extn("starttls"):
                    client.starttls(context=self._context)
                    client.ehlo()
                elif not secure and not inner:
                    return Outcome(error="refused: the server offers no TLS")
                if self._user is not None:
                    name, _, password = self._user.reveal().partition(":")
                    client.login(name, password)
                client.send_message(letter)
            return Outcome(delivered=True, status=250)
        finally:
            sock.close()


class _Client(smtplib.SMTP):
    """smtplib over a socket that is already connected."""

    def __init__(self, sock: socket.socket, host: str, dial: Dial) -> None:
        self._ready = sock
        super().__init__(local_hostname=_OURS, timeout=dial.left())
        self._host = host  # what STARTTLS checks the certificate against
        code, text = self.connect(host)
        if code != 220:
            self.close()
            raise smtplib.SMTPConnectError(code, text)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._ready


def _failure(error: OSError | ValueError) -> Outcome:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return Outcome(status=error.smtp_code, error="the server refuses our user and password")
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        final = all(code in _FINAL for code in codes)
        return Outcome(status=codes[0], error="the server refuses every recipient", final=final)
    if isinstance(error, smtplib.SMTPResponseException):
        text = f"the server answered {error.smtp_code}"
        sent = isinstance(error, smtplib.SMTPDataError | smtplib.SMTPSenderRefused)
        return Outcome(status=error.smtp_code, error=text, final=sent and error.smtp_code in _FINAL)
    if isinstance(error, smtplib.SMTPException):
        return Outcome(error=f"the connection failed: {type(error).__name__}")
    if isinstance(error, ssl.SSLError | OSError):
        return Outcome(error=words(error))
    return Outcome(error="the connection failed: it does not speak SMTP")


def _address(text: str, setting: str) -> str:
    try:
        address = Address(addr_spec=text)
        usable = bool(address.username and address.domain) and text.isascii() and text.isprintable()
    except (MessageError, HeaderParseError, ValueError, IndexError):
        usable = False
    if not usable:
        raise SettingsError(setting, text, "an e-mail address such as on-call@example.com")
    return text
