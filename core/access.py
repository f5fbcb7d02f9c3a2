"""Who somebody is and what that allows: roles, scopes, tokens, the dashboard's word for people.

Pure: nothing here reads a clock, a header or a ledger. `core.tokens` stores tokens, the API and the
dashboard both decide by `role_of` and `allows`.

    viewer ⊂ operator ⊂ admin      what people are; each role holds the scopes of those before it
    read, operate, admin           the scopes behind those roles
    infer, ingest                  what only programs need: ask for predictions, hand rows in
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from core.settings_access import AccessSettings

Role = Literal["viewer", "operator", "admin"]
Scope = Literal["read", "operate", "admin", "infer", "ingest"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
SCOPES: tuple[Scope, ...] = ("read", "operate", "admin", "infer", "ingest")
#: What a role may do; a token names its scopes itself.
HELD: dict[Role, tuple[Scope, ...]] = {
    "viewer": ("read",),
    "operator": ("read", "operate"),
    "admin": ("read", "operate", "admin"),
}
#: The scope that each action asks for; everything else a person may do is only reading.
NEEDED: dict[str, Scope] = {
    "report": "read",  # it changes nothing: a picture of what is stored
    "check": "operate",
    "retrain": "operate",
    "approve": "operate",
    "reject": "operate",
    "abandon": "operate",
    "rollback": "operate",  # on-call needs it at night
    "acknowledge": "operate",
    "silence": "operate",
    "unsilence": "operate",
    "promote": "admin",  # without the gate
}
_PREFIX = "slt"
_FRESH = 60.0  # seconds that an assertion is believed
_SKEW = 5.0


class Identity(Struct, frozen=True, kw_only=True):
    """Somebody who was recognised."""

    name: str  # as records show it
    scopes: tuple[Scope, ...]
    how: Literal["local", "token", "proxy", "oidc"]
    key: str = ""  # what its requests are counted under; the name when empty
    per_minute: int | None = None  # a token's own rate

    @property
    def role(self) -> Role | None:
        """The highest role whose scopes it holds; None for programs that only infer or ingest."""
        return next((r for r in reversed(ROLES) if set(HELD[r]) <= set(self.scopes)), None)


def allows(identity: Identity | None, scope: Scope) -> bool:
    """Whether somebody may do what the scope stands for; nobody may do nothing."""
    return identity is not None and scope in identity.scopes


def needed(action: str) -> Scope:
    """The scope an action asks for; an unknown one asks for the highest."""
    return NEEDED.get(action, "admin")


def local(name: str) -> Identity:
    """Whoever sits at the machine, where authentication is off."""
    return Identity(name=name, scopes=SCOPES, how="local")


def role_of(settings: AccessSettings, name: str, groups: Iterable[str]) -> Role | None:
    """The highest role a signed-in person has; None: they see nothing.

    Names and groups are compared without regard to case.
    """
    mine = {name.casefold(), "*"} | {f"group:{group}".casefold() for group in groups}
    members = {
        "admin": settings.admins,
        "operator": settings.operators,
        "viewer": settings.viewers,
    }
    for role in reversed(ROLES):
        listed = {member.casefold() for member in members[role]}
        if role != "viewer":
            listed.discard("*")  # everybody may look, never act
        if mine & listed:
            return role
    return None


def person(
    settings: AccessSettings, name: str, groups: Collection[str], how: Literal["proxy", "oidc"]
) -> Identity | None:
    """A person as the settings know them; None where they have no role.

    A name that looks like a group (or like everybody) is nobody's.
    """
    sound = bool(name) and name != "*" and not name.casefold().startswith("group:")
    role = role_of(settings, name, groups) if sound else None
    return None if role is None else Identity(name=name[:128], scopes=HELD[role], how=how)


# --- tokens ----------------------------------------------------------------------------------


def new_token() -> tuple[str, str, str]:
    """A token, its public id and its hash: 256 random bits, so that a plain SHA-256 suffices."""
    identity = secrets.token_hex(6)
    token = f"{_PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
    return token, identity, digest(token)


def token_id(token: str) -> str | None:
    """The public id in a token; None for what is no token of ours."""
    parts = token.split("_", 2)
    sound = len(parts) == 3 and parts[0] == _PREFIX and len(parts[1]) == 12 and len(token) < 100
    return parts[1] if sound and all(c in "0123456789abcdef" for c in parts[1]) else None


def digest(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def same(first: str, second: str) -> bool:
    """Whether two secrets are equal, in time that does not tell where they differ."""
    return hmac.compare_digest(first.encode(), second.encode())


def scopes_of(stored: str) -> tuple[Scope, ...]:
    """A token's scopes as the ledger has them; what a newer shelflife added is left out."""
    named = set(stored.split())
    if "admin" in named:
        named |= {"operate"}
    if "operate" in named:
        named |= {"read"}
    return tuple(scope for scope in SCOPES if scope in named)


# --- the dashboard's word for a person --------------------------------------------------------


class Assertion(Struct, frozen=True, kw_only=True):
    """What the dashboard's server says when it acts for somebody: who they are, never what they may
    do. The API looks their role up itself."""

    name: str
    groups: tuple[str, ...]
    how: Literal["proxy", "oidc"]
    method: str
    path: str
    body: str  # SHA-256 of the request's body
    at: float  # seconds since 1970
    nonce: str


def asserted(
    key: bytes,
    *,
    name: str,
    groups: Collection[str],
    how: Literal["proxy", "oidc"],
    method: str,
    path: str,
    body: bytes,
    at: float,
) -> str:
    """An assertion for one request, signed with the key that dashboard and API share."""
    said = Assertion(
        name=name,
        groups=tuple(groups),
        how=how,
        method=method,
        path=path,
        body=hashlib.sha256(body).hexdigest(),
        at=at,
        nonce=secrets.token_hex(8),
    )
    payload = base64.urlsafe_b64encode(msgspec.json.encode(said))
    signature = hmac.new(key, payload, hashlib.sha256).hexdigest()
    return f"{payload.decode()}.{signature}"


def believed(key: bytes, text: str, *, method: str, path: str, now: float) -> Assertion | None:
    """The assertion, if it is signed with our key, fresh, and for this very request; else None.

    The body is compared by whoever reads it.
    """
    payload, _, signature = text.partition(".")
    expected = hmac.new(key, payload.encode(), hashlib.sha256).hexdigest()
    if not same(signature, expected):
        return None
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(payload), type=Assertion)
    except (binascii.Error, msgspec.MsgspecError):
        return None
    fresh = -_SKEW <= now - found.at <= _FRESH
    return found if fresh and (found.method, found.path) == (method, path) else None
