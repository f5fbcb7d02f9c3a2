"""Who is looking: nobody, somebody the settings know, or whoever sits at the machine.

Where authentication is off, the reader is the person who started shelflife and may do everything.
Where it is on, one of three ways has to recognise them, and the settings have to give them a role:

- a proxy in front names them in a header, and proves that it is the proxy;
- OpenID Connect (`st.login`), its groups read from a claim of the identity token;
- a token of `shelflife tokens create`, typed in, kept for this tab and never in an address.

| variable | meaning |
|---|---|
| `SHELFLIFE_ACCESS` | the settings' `access` section as JSON; without it authentication is off |
| `SHELFLIFE_USER` | who started shelflife, for records; the login name |
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import streamlit as st
from msgspec import Struct

from core import access, tokens
from core.errors import SettingsError, ShelflifeError
from core.ledger import Ledger
from core.settings import AccessSettings, secret

_TOKEN = "shelflife_token"  # noqa: S105 - a key of the session, not a secret
_PROXY = "X-Shelflife-Proxy"
_BELIEVED = 5  # seconds


class Reader(Struct, frozen=True, kw_only=True):
    """Somebody looking at a page."""

    identity: access.Identity | None  # None: they see nothing
    name: str = ""  # as they were named, also where they have no role
    groups: tuple[str, ...] = ()
    token: str = ""  # what they typed in; sent along when they act

    def may(self, action: str) -> bool:
        """Whether they may ask for an action."""
        return access.allows(self.identity, access.needed(action))


def settings() -> AccessSettings:
    """Who may see what; everybody everything where nothing is set.

    Raises:
        ShelflifeError: the variable cannot be read. Nobody is let in then.
    """
    text = os.environ.get("SHELFLIFE_ACCESS", "")
    try:
        return msgspec.json.decode(text, type=AccessSettings) if text else AccessSettings()
    except msgspec.MsgspecError:
        raise ShelflifeError(
            "SHELFLIFE_ACCESS cannot be read; start the dashboard with `shelflife up`"
        ) from None


def reader(ledger: Ledger) -> Reader:
    """Who is looking at this page.

    Raises:
        ShelflifeError: see `settings`.
    """
    rules = settings()
    if not rules.enabled:
        name = os.environ.get("SHELFLIFE_USER") or getpass.getuser()
        return Reader(identity=access.local(name), name=name)
    token = str(st.session_state.get(_TOKEN, ""))
    if token:
        found = _recognised(access.digest(token), token, ledger)
        if found is not None:
            return Reader(identity=found, name=found.name, token=token)
    if rules.proxy_user and _is_the_proxy(rules):
        name, groups = _proxied(rules)
        identity = access.person(rules, name, groups, "proxy")
        return Reader(identity=identity, name=name, groups=tuple(groups))
    if rules.oidc:
        name, groups = signed_in(rules)
        return Reader(
            identity=access.person(rules, name, groups, "oidc"), name=name, groups=tuple(groups)
        )
    return Reader(identity=None)


@st.cache_data(ttl=_BELIEVED, max_entries=200, show_spinner=False)
def _recognised(digest: str, _token: str, _ledger: Ledger) -> access.Identity | None:
    return tokens.recognise(_ledger, _token, now=datetime.now(UTC))


def _is_the_proxy(rules: AccessSettings) -> bool:
    try:
        known = secret(rules.proxy_secret)
    except SettingsError:
        return False
    given = st.context.headers.get(_PROXY, "")
    return known is not None and len(known.reveal()) >= 16 and access.same(given, known.reveal())


def _proxied(rules: AccessSettings) -> tuple[str, list[str]]:
    headers = st.context.headers
    listed = headers.get(rules.proxy_groups, "") if rules.proxy_groups else ""
    groups = [group.strip() for group in listed.split(",") if group.strip()]
    return headers.get(rules.proxy_user, "").strip(), groups


def signed_in(rules: AccessSettings) -> tuple[str, list[str]]:
    """Name and groups of whoever OpenID Connect signed in; an empty name for nobody.

    An address that the provider says is not verified names nobody: anybody could have given it.
    """
    user: Mapping[str, Any] = st.user.to_dict() if st.user.get("is_logged_in") else {}
    if not user:
        return "", []
    email = str(user.get("email") or "")
    if email and user.get("email_verified") is False:
        return "", []
    claimed = user.get(rules.groups_claim) or []
    groups = [claimed] if isinstance(claimed, str) else claimed
    return email or str(user.get("sub") or ""), [str(group) for group in groups]


def how(reader_: Reader) -> Literal["proxy", "oidc"]:
    """Which of the two ways, besides tokens, recognised somebody."""
    identity = reader_.identity
    return "proxy" if identity is not None and identity.how == "proxy" else "oidc"


def sign_in(reader_: Reader) -> None:
    """The only page for those who are not known."""
    rules = settings()
    st.header("Who are you?", anchor=False)
    if reader_.name:
        from dashboard import words

        st.warning(
            f"**{words.plain(reader_.name, most=100)}** is signed in but has no role here. Ask an "
            "administrator to add you to `access` in the settings.",
            icon=":material/block:",
        )
    if rules.oidc:
        if st.user.get("is_logged_in"):
            st.button("Sign out", on_click=st.logout)
        else:
            st.button("Sign in", on_click=st.login, type="primary")
    with st.form("token", border=False, width=420):
        typed = st.text_input("Token", type="password", help="`shelflife tokens create NAME`")
        if st.form_submit_button("Enter") and typed:
            st.session_state[_TOKEN] = typed.strip()
            st.rerun()
    if st.session_state.get(_TOKEN):
        st.error("This token is not known, has expired or was revoked.", icon=":material/key:")


def sign_out(reader_: Reader) -> None:
    """Who is signed in, and the way out."""
    identity = reader_.identity
    if identity is None or identity.how == "local":
        return
    from dashboard import words

    role = identity.role or ", ".join(identity.scopes)
    with st.popover(f":material/person: {words.plain(reader_.name, most=40)}", width="content"):
        st.caption(f"signed in as {words.plain(reader_.name)} ({role})")
        if identity.how == "token" and st.button("Forget the token"):
            del st.session_state[_TOKEN]
            st.rerun()
        if identity.how == "oidc":
            st.button("Sign out", on_click=st.logout)
