"""How `champion` moves: under a lease, from the version that was expected, to a hashed artifact.

MLflow's aliases have no compare-and-set. So whoever moves `champion` here holds the ledger's lease
`alias:<model>`, reads the champion again, and refuses when it is not the one the decision was made
against. The move is announced in a tag of the version before it happens; a crash between the alias
and the ledger's row is completed by whoever looks next, under the promoter's name, not a human's.

A person (or a tool) who moves `champion` in MLflow does not ask. `observe` notices, records, obeys.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import Conflict, NotFound, NotReady, UntrustedArtifact
from core.ledger import Lease, Ledger, release_lease, take_lease
from registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Registry, Version

Kind = Literal["first", "gate", "human", "forced", "rollback"]

_INTENT = "shelflife.promoting"
_LEASE = timedelta(seconds=60)
_TRIES, _PAUSE = 150, 0.1  # another promotion of the same model takes well below these 15 s


class _Move(Struct, frozen=True, kw_only=True):
    """A promotion as it will stand in the ledger; the tag holds it until it does."""

    previous: str
    kind: Kind
    by: str
    reason: str
    run_id: str | None


def promote(
    registry: Registry,
    ledger: Ledger,
    model: str,
    version: str,
    *,
    expected: str | None,
    kind: Kind,
    by: str,
    reason: str,
    now: datetime,
    run_id: str | None = None,
) -> None:
    """Make a version the champion, if the champion is still the one that was expected.

    Sets `previous` to the old champion first, then `champion`, drops `challenger` where it pointed
    to the version, and writes one row of `promotions`. Repeating a promotion with its `run_id` does
    nothing more than finish it.

    Args:
        expected: version of the champion the decision was made against; None: there is none yet.

    Raises:
        Conflict: another version is champion by now.
        UntrustedArtifact: no hash of the version's files was recorded.
        NotFound: no such version.
        NotReady: another promotion of this model is under way.
        RegistryError: MLflow failed; repeating with the same `run_id` is safe.
    """
    with _lease(ledger, model, now) as lease:
        if run_id is not None and _recorded(ledger, model, version, run_id):
            return  # what happened to the champion since is not this promotion's business
        champion = registry.by_alias(model, CHAMPION)
        target = registry.get(model, version)
        if champion is not None and champion.version == version:
            move = _intent(ledger, target)
            if move is not None and move.run_id == run_id:
                _finish(registry, ledger, lease, target, move, now)
                return
            if expected == version:
                return
        _compare(model, champion, expected)
        if not target.sha256:
            raise UntrustedArtifact(
                f"version {version} of {model} has no recorded sha256, so nobody vouched for its "
                "files; register it with shelflife before promoting it"
            )
        move = _Move(previous=expected or "", kind=kind, by=by, reason=reason, run_id=run_id)
        _move(registry, ledger, lease, target, move)
        _finish(registry, ledger, lease, target, move, now)


def observe(registry: Registry, ledger: Ledger, model: str, *, now: datetime) -> Version | None:
    """The champion as MLflow has it; a move nobody here made is recorded as a human's, once.

    `previous` is set to the version served before. While a promotion is under way nothing is
    recorded: it will record itself.
    """
    champion = registry.by_alias(model, CHAMPION)
    if champion is None or champion.version == _newest(ledger, model):
        return champion
    lease = take_lease(ledger, f"alias:{model}", _holder(), now=now, lasts=_LEASE)
    if lease is None:
        return champion
    try:
        champion = registry.by_alias(model, CHAMPION)
        before = _newest(ledger, model)
        if champion is None or champion.version == before:
            return champion
        move = _intent(ledger, champion)
        if move is None or move.previous != before:
            move = _Move(
                previous=before,
                kind="human",
                by="mlflow",
                reason=f"`champion` was moved from {before or 'no version'} in MLflow",
                run_id=None,
            )
            if before and any(v.version == before for v in registry.versions(model)):
                registry.set_alias(model, PREVIOUS, before)
        _finish(registry, ledger, lease, champion, move, now)
    finally:
        release_lease(ledger, lease)
    return registry.get(model, champion.version)


def rollback(
    registry: Registry, ledger: Ledger, model: str, *, by: str, reason: str, now: datetime
) -> Version:
    """Return to `previous`; the champion that is left becomes `previous` in its turn.

    Raises:
        NotFound: there is no previous version, or it is the champion already.
        Conflict: somebody moved the champion meanwhile.
    """
    champion = registry.by_alias(model, CHAMPION)
    previous = registry.by_alias(model, PREVIOUS)
    if previous is None or champion is None or previous.version == champion.version:
        known = ", ".join(version.version for version in registry.versions(model)) or "none"
        raise NotFound(
            "version to roll back to for",
            model,
            f"no other version was champion before; promote one by name (versions: {known})",
        )
    promote(
        registry,
        ledger,
        model,
        previous.version,
        expected=champion.version,
        kind="rollback",
        by=by,
        reason=reason,
        now=now,
    )
    return registry.get(model, previous.version)


def _compare(model: str, champion: Version | None, expected: str | None) -> None:
    found = None if champion is None else champion.version
    if found != expected:
        raise Conflict(
            f"{model}: the champion is version {found or 'none'}, this promotion was decided "
            f"against {expected or 'none'}; compare the candidate with the present champion"
        )


def _move(registry: Registry, ledger: Ledger, lease: Lease, target: Version, move: _Move) -> None:
    model = target.model
    registry.tag(target, **{_INTENT: msgspec.json.encode(move).decode()})
    with ledger.write() as tx:
        lease.guard(tx)  # a promoter that slept past its lease stops here
    if move.previous:
        registry.set_alias(model, PREVIOUS, move.previous)
    registry.set_alias(model, CHAMPION, target.version)


def _finish(
    registry: Registry,
    ledger: Ledger,
    lease: Lease,
    champion: Version,
    move: _Move,
    now: datetime,
) -> None:
    """Everything after the alias: each step may be repeated."""
    challenger = registry.by_alias(champion.model, CHALLENGER)
    if challenger is not None and challenger.version == champion.version:
        registry.drop_alias(champion.model, CHALLENGER)
    with ledger.write() as tx:
        lease.guard(tx)
        tx.execute(
            schema.promotions.insert().values(
                model=champion.model,
                version=champion.version,
                sha256=champion.sha256,
                at=now,
                **msgspec.structs.asdict(move),
            )
        )
    registry.tag(
        registry.get(champion.model, champion.version), **{_INTENT: None, "promoted_by": move.by}
    )


def _intent(ledger: Ledger, version: Version) -> _Move | None:
    """The announced move to this version that is not in the ledger yet, if there is one."""
    text = version.tags.get(_INTENT)
    if not text:
        return None
    try:
        move = msgspec.json.decode(text, type=_Move)
    except msgspec.DecodeError:  # not ours: tags are text anybody may write
        return None
    done = move.run_id is not None and _recorded(
        ledger, version.model, version.version, move.run_id
    )
    return None if done else move


def _newest(ledger: Ledger, model: str) -> str:
    """The version of the newest recorded promotion; empty when there is none."""
    table = schema.promotions
    query = sa.select(table.c.version).where(table.c.model == model).order_by(table.c.id.desc())
    with ledger.read() as tx:
        return str(tx.scalar(query.limit(1)) or "")


def _recorded(ledger: Ledger, model: str, version: str, run_id: str) -> bool:
    table = schema.promotions
    same: Any = (table.c.model == model) & (table.c.version == version) & (table.c.run_id == run_id)
    with ledger.read() as tx:
        return tx.scalar(sa.select(table.c.id).where(same).limit(1)) is not None


@contextmanager
def _lease(ledger: Ledger, model: str, now: datetime) -> Iterator[Lease]:
    for _ in range(_TRIES):
        lease = take_lease(ledger, f"alias:{model}", _holder(), now=now, lasts=_LEASE)
        if lease is not None:
            break
        time.sleep(_PAUSE)
    else:
        raise NotReady(f"another promotion of {model} is under way; try again in a minute")
    try:
        yield lease
    finally:
        release_lease(ledger, lease)


def _holder() -> str:
    return f"{socket.gethostname()[:80]}:{os.getpid()}:{threading.get_ident()}"
