"""Which addresses a message may be sent to: public ones, and those the settings name. Pure.

The tables are the IANA special-purpose registries (RFC 6890 and its successors) as Python's
`ipaddress` knows them, and what those miss: forms that hide an IPv4 address in an IPv6 one (mapped,
compatible, NAT64, 6to4, Teredo), site-local addresses, and the public address at which one cloud
answers with the machine's credentials.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from core.errors import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_V4 = {
    "0.0.0.0/8": "this host",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's own service",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.88.99.0/24": "a 6to4 relay",
    "192.0.0.0/24": "reserved",
    "192.168.0.0/16": "private",
    "224.0.0.0/4": "multicast",
}
_V6 = {
    "::/128": "this host",
    "::1/128": "loopback",
    "::/96": "an IPv4 address in disguise",
    "64:ff9b::/96": "NAT64",
    "64:ff9b:1::/48": "NAT64",
    "2001::/32": "Teredo",
    "2002::/16": "6to4",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_NAMED = [(ipaddress.ip_network(net), name) for net, name in (_V4 | _V6).items()]
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")  # all that is routed; NAT64 and others lie outside
_RESERVED_V6 = [ipaddress.ip_network(net) for net in ("2001::/23", "2001:db8::/32", "3fff::/20")]


def networks(texts: Iterable[str], setting: str) -> tuple[Network, ...]:
    """The networks (or single addresses) that a setting names.

    Raises:
        SettingsError: one of them is neither.
    """
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            raise SettingsError(setting, text, "a network such as 10.1.0.0/16 or ::1") from None
    return tuple(found)


def refusal(text: str, allowed: Iterable[Network] = ()) -> str:
    """Why nobody may connect to this address, in two words; empty when one may.

    Args:
        text: an address as the operating system gives it, with or without a zone (`fe80::1%eth0`).
        allowed: networks that are allowed whatever they are.
    """
    try:
        address = plain(text)
    except ValueError:
        return "no address"
    if any(address.version == net.version and address in net for net in allowed):
        return ""
    for network, name in _NAMED:
        if address.version == network.version and address in network:
            return name
    reserved = address.version == 6 and (
        address not in _PUBLIC_V6 or any(address in net for net in _RESERVED_V6)
    )
    return "reserved" if reserved or not address.is_global else ""


def inside(text: str, allowed: Iterable[Network]) -> bool:
    """Whether an address lies in a network that the settings name."""
    address = plain(text)
    return any(address.version == net.version and address in net for net in allowed)


def plain(text: str) -> Address:
    """The address without its zone; an IPv4-mapped one as the IPv4 address that it reaches.

    Raises:
        ValueError: it is no address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
