"""The pages and who may see and do what: the `dashboard` and `access` sections of the settings."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=0, le=65535)]
Header = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,64}$")]
Member = Annotated[str, Meta(min_length=1, max_length=200)]


class AccessSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may see and do what. People are named as their identity provider or proxy names them
    (an email address, say); `group:NAME` means everybody in a group."""

    enabled: bool = False
    """Off: whoever reaches a port may do everything. On: unknown identities see nothing."""
    viewers: tuple[Member, ...] = ()
    """They see everything and change nothing; `*` is everybody who is signed in."""
    operators: tuple[Member, ...] = ()
    """They also check, retrain, approve, reject, roll back, acknowledge and silence."""
    admins: tuple[Member, ...] = ()
    """They also promote against the gate's word."""
    oidc: bool = False
    """The dashboard signs people in with OpenID Connect; `docs/access.md` has the set-up."""
    groups_claim: str = "groups"
    """Claim of the identity token that lists a person's groups."""
    proxy_user: Header = ""
    """Header in which a proxy in front of shelflife names who is signed in, `X-Forwarded-Email`."""
    proxy_groups: Header = ""
    """Header in which it lists their groups, separated by commas."""
    proxy_secret: str = ""
    """`env:NAME` or `file:/path` of what the proxy sends as `X-Shelflife-Proxy`, so that nobody who
    goes around it can name themselves; required with `proxy_user`."""
    requests_per_minute: Annotated[int, Meta(ge=1)] = 6000
    """Of one identity, in one serving process; tokens may have a rate of their own."""


class DashboardSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pages."""

    host: str = "127.0.0.1"
    """Address the dashboard listens at; this machine alone by default."""
    port: Port = 8501
    """Where it listens; 0 takes any free port."""
    url: str = ""
    """Where people reach it, for links in messages; `http://host:port` when empty."""
    upload_mb: Annotated[int, Meta(ge=1, le=2000)] = 50
    """Largest history that may be uploaded for a backtest."""
