"""Where a message may go: never to an inner address unless the settings name its network."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SettingsError
from core.settings import ReceiverSettings
from monitor.alert.addresses import networks, refusal
from monitor.alert.contract import Message, Outcome
from monitor.alert.dialing import Dial, Refused
from monitor.alert.receivers import build

INNER = [
    "127.0.0.1", "127.255.0.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.3.4", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200",
    "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "192.88.99.1",
    "168.63.129.16", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1",
    "5f00::1", "4000::1", "2001:10::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "192.169.0.1", "100.128.0.1",
          "::ffff:8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]  # fmt: skip
#: Names and notations that the system's resolver, or a careless parser, takes for loopback.
DISGUISED = ["127.1", "0x7f000001", "2130706433", "0", "0177.0.0.1", "localhost", "[::1]", "[::]",
             "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.0.0.1"]  # fmt: skip
MESSAGE = Message(id="msg_1", type="x.y", body='{"data":{}}')
ROUTING = "env:SHELFLIFE_TEST_ROUTING"
KINDS: list[dict[str, Any]] = [
    {"type": "webhook"},
    {"type": "slack"},
    {"type": "pagerduty", "secret": ROUTING},
    {"type": "alertmanager"},
    {"type": "email", "sender": "a@example.com", "to": ("b@example.com",)},
]


@pytest.mark.parametrize("address", INNER)
def test_inner_addresses_are_refused(address: str):
    assert refusal(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not(address: str):
    assert refusal(address) == ""


def test_only_the_networks_that_the_settings_name_are_allowed():
    allowed = networks(["10.1.0.0/16", "::1"], "x")
    assert [refusal(a, allowed) for a in ("10.1.2.3", "::ffff:10.1.2.3", "::1")] == [""] * 3
    assert all(refusal(a, allowed) for a in ("10.2.0.1", "127.0.0.1", "64:ff9b::a01:203"))
    for wrong in ("10.0.0.1/8", "example.com", ""):
        with pytest.raises(SettingsError, match="network"):
            networks([wrong], "receivers.x.allow")


@given(st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None))
def test_only_routed_addresses_of_version_6_pass(address: Any):
    if not refusal(str(address)):
        assert 0x2000 <= int(address) >> 112 <= 0x3FFF


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_the_one_it_reaches(address: Any):
    assert refusal(f"::ffff:{address}") == refusal(str(address))


@given(st.text(max_size=40))
def test_what_is_no_address_is_refused(text: str):
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        assert ":" in text or refusal(text)


class Listener:
    """Listens on loopback, on both versions of IP where there are both, and counts."""

    def __init__(self) -> None:
        self.connections = self.received = 0
        self._socket = socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind(("::", 0))
        except OSError:  # no IPv6 here
            self._socket.close()
            self._socket = socket.socket()
            self._socket.bind(("0.0.0.0", 0))
        self._socket.listen()
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with peer:
                peer.settimeout(5)
                self.received += len(peer.recv(65536))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.close()


def sent(monkeypatch: pytest.MonkeyPatch, host: str, port: int, **kind: Any) -> Outcome:
    monkeypatch.setenv("SHELFLIFE_TEST_ROUTING", "r" * 32)
    scheme = "smtp" if kind["type"] == "email" else kind.pop("scheme", "http")
    settings = ReceiverSettings(name="x", url=f"{scheme}://{host}:{port}/", timeout="3s", **kind)
    return build([settings])["x"].send(MESSAGE, at=datetime.now(UTC))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["type"])
def test_no_receiver_reaches_loopback_by_any_name(
    kind: dict[str, Any], listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    for host in DISGUISED:
        outcome = sent(monkeypatch, host, listener.port, **kind)
        assert not outcome.delivered
        if "." in host or ":" in host or host == "localhost":
            assert outcome.error.startswith("refused"), host
    assert (listener.connections, listener.received) == (0, 0)


def test_https_is_refused_before_a_handshake(listener: Listener, monkeypatch: Any):
    for host in DISGUISED:
        assert not sent(monkeypatch, host, listener.port, type="webhook", scheme="https").delivered
    assert (listener.connections, listener.received) == (0, 0)


def test_a_name_that_is_rebound_is_looked_up_once(listener: Listener, monkeypatch: Any):
    """The first look says something public, every later one loopback."""
    looks: list[str] = []
    tried: list[Any] = []

    def rebinding(host: str, port: int, *_: Any) -> list[Any]:
        looks.append(host)
        address = "93.184.216.34" if len(looks) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def unreachable(_: socket.socket, address: Any) -> None:
        tried.append(address[0])
        raise OSError(101, "unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    outcome = sent(monkeypatch, "rebound.example", listener.port, type="webhook", scheme="https")
    assert outcome.error == "the connection failed: ENETUNREACH"
    assert (looks, tried) == (["rebound.example"], ["93.184.216.34"])
    assert (listener.connections, listener.received) == (0, 0)


def test_the_peer_is_judged_before_a_byte_is_sent(listener: Listener, monkeypatch: Any):
    """Whatever the name said: who is at the other end decides."""
    real = socket.socket.connect

    def elsewhere(self: socket.socket, address: Any) -> None:
        real(self, ("127.0.0.1", listener.port))

    def public(host: str, port: int, *_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    monkeypatch.setattr(socket, "getaddrinfo", public)
    monkeypatch.setattr(socket.socket, "connect", elsewhere)
    outcome = sent(monkeypatch, "public.example", listener.port, type="webhook", scheme="https")
    assert outcome.error.startswith("refused: its address is loopback")
    assert listener.received == 0


def test_of_several_addresses_only_those_that_may_be_reached_are_tried(listener: Listener):
    def both(host: str, port: int, *_: Any) -> list[Any]:
        inner = ("10.9.9.9", port), ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in inner]

    allowed = networks(["127.0.0.1"], "x")
    with Dial(allowed, timedelta(seconds=3), resolve=both) as dial:
        sock = dial.connect("two.example", listener.port, plain=True)
        assert sock.getpeername()[0] == "127.0.0.1"
        sock.close()
    with (
        Dial((), timedelta(seconds=3), resolve=both) as dial,
        pytest.raises(Refused, match="private"),
    ):
        dial.connect("two.example", listener.port, plain=True)


def test_without_tls_nothing_leaves_for_the_public_net(monkeypatch: Any):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda h, p, *_: [(socket.AF_INET, 1, 6, "", ("1.1.1.1", p))]
    )
    outcome = sent(monkeypatch, "public.example", 80, type="webhook")
    assert outcome.error.startswith("refused: without TLS")


def test_a_resolver_that_hangs_costs_one_time_limit(monkeypatch: Any):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: over.wait(30) and [])
    settings = ReceiverSettings(name="x", url="https://slow.example/", timeout="300ms")
    outcome = build([settings])["x"].send(MESSAGE, at=datetime.now(UTC))
    over.set()
    assert outcome.error in ("no answer within 0.3 s", "the host's name could not be resolved")


def test_an_address_with_credentials_sends_them_and_never_shows_them(endpoint: Any):
    url = endpoint.url.replace("http://", "http://user:canary%21@")
    settings = ReceiverSettings(name="x", url=url, allow=("127.0.0.1",))
    assert build([settings])["x"].send(MESSAGE, at=datetime.now(UTC)).delivered
    wanted = base64.b64encode(b"user:canary!").decode()
    assert endpoint.seen[0][0]["authorization"] == f"Basic {wanted}"
