"""API tokens in the ledger: made, listed, revoked, recognised. Only their hashes are stored."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from msgspec import Struct

from core import access, schema
from core.errors import InputError, NotFound
from core.ledger import Ledger

_KEY_BYTES = 32


class Token(Struct, frozen=True, kw_only=True):
    """A token, as people may see it."""

    id: str
    name: str
    scopes: tuple[access.Scope, ...]
    per_minute: int | None
    created: datetime
    by: str
    expires: datetime | None
    revoked: datetime | None
    used: datetime | None  # lately, to within some minutes


def create(
    ledger: Ledger,
    name: str,
    scopes: Sequence[access.Scope],
    *,
    by: str,
    now: datetime,
    expires: datetime | None = None,
    per_minute: int | None = None,
) -> tuple[str, Token]:
    """A new token and its description; the token itself is never seen again.

    Raises:
        InputError: no name, no or an unknown scope, or a rate below one.
    """
    if not name.strip() or len(name) > 128:
        raise InputError("name", name, "1 to 128 characters: who or what will use it")
    unknown = [scope for scope in scopes if scope not in access.SCOPES]
    if unknown or not scopes:
        raise InputError("scope", unknown or None, f"one or more of {', '.join(access.SCOPES)}")
    if per_minute is not None and per_minute < 1:
        raise InputError("rate", per_minute, "at least one request a minute")
    token, identity, digest = access.new_token()
    with ledger.write() as tx:
        tx.execute(
            schema.tokens.insert().values(
                id=identity,
                hash=digest,
                name=name.strip(),
                scopes=" ".join(dict.fromkeys(scopes)),
                per_minute=per_minute,
                created=now,
                by=by,
                expires=expires,
            )
        )
    return token, get(ledger, identity)


def get(ledger: Ledger, identity: str) -> Token:
    """The token of this public id.

    Raises:
        NotFound: there is none.
    """
    with ledger.read() as tx:
        row = tx.execute(_query().where(schema.tokens.c.id == identity)).first()
    if row is None:
        raise NotFound("token", identity, "`shelflife tokens list` names them")
    return _token(row)


def listed(ledger: Ledger) -> list[Token]:
    """Every token ever made, the newest first."""
    with ledger.read() as tx:
        return [_token(row) for row in tx.execute(_query())]


def _query() -> sa.Select[tuple[object, ...]]:
    return sa.select(schema.tokens).order_by(schema.tokens.c.created.desc(), schema.tokens.c.id)


def _token(row: sa.Row[tuple[object, ...]]) -> Token:
    fields = {name: row._mapping[name] for name in Token.__struct_fields__ if name != "scopes"}
    return Token(**fields, scopes=access.scopes_of(row._mapping["scopes"]))


def revoke(ledger: Ledger, identity: str, *, now: datetime) -> Token:
    """End a token; revoking it twice changes nothing.

    Raises:
        NotFound: no such token.
    """
    table = schema.tokens
    with ledger.write() as tx:
        mine = table.update().where(table.c.id == identity, table.c.revoked.is_(None))
        tx.execute(mine.values(revoked=now))
    return get(ledger, identity)


def recognise(ledger: Ledger, token: str, *, now: datetime) -> access.Identity | None:
    """Whose token this is; None for one that is unknown, revoked or expired."""
    identity = access.token_id(token)
    if identity is None:
        return None
    with ledger.read() as tx:
        row = tx.execute(sa.select(schema.tokens).where(schema.tokens.c.id == identity)).first()
    if row is None or not access.same(row.hash, access.digest(token)):
        return None
    if row.revoked is not None or (row.expires is not None and row.expires <= now):
        return None
    return access.Identity(
        name=row.name,
        scopes=access.scopes_of(row.scopes),
        how="token",
        key=f"token:{identity}",
        per_minute=row.per_minute,
    )


def touch(ledger: Ledger, token: str, *, now: datetime) -> None:
    """Note that a token was used."""
    table = schema.tokens
    with ledger.write() as tx:
        tx.execute(table.update().where(table.c.id == access.token_id(token)).values(used=now))


def shared_key(home: Path) -> bytes:
    """The key that the dashboard signs with and the API verifies, made by whoever needs it first.

    It lies in the home folder, readable for its owner alone.
    """
    path = home / "keys" / "dashboard"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        fresh = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, path)  # fails where somebody was faster; never half a key
        finally:
            fresh.unlink()
    return path.read_bytes()
