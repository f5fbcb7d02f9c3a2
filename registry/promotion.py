"""How `champion` moves: under a lease, from the version that was expected, to a verified artifact.

MLflow's aliases have no compare-and-set. So whoever moves `champion` here holds the ledger's lease
`alias:<model>`, reads the champion again, and refuses when it is not the one the decision was made
against. The move is announced in a tag of the version before it happens; a crash between the alias
and the ledger's row is completed by whoever looks next, under the promoter's name, not a human's.

The lease is checked right before the alias moves and again after it. A promoter that slept in
between, past the end of its lease, finds that its token is outdated and takes its late move back
(`_put_back`); nothing of ours can be atomic with MLflow, so this window is closed by repair.

A person (or a tool) who moves `champion` in MLflow does not ask. `observe` notices, records, obeys.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import Conflict, LeaseLost, NotFound, UntrustedArtifact
from core.failpoints import fail_point
from core.ledger import Lease, Ledger
from registry.turn import Clock, alone, renew, wall_clock
from registry.verifying import verify as verify
from registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Registry, Version

Kind = Literal["first", "gate", "human", "forced", "rollback"]
#: Asserts, inside a transaction, that whoever asked for the promotion may still have it.
Guard = Callable[[sa.Connection], None]

_INTENT = "shelflife.promoting"
_UNTIL_FREE = 1500  # tries for a lease that must be had: longer than one lasts


class _Move(Struct, frozen=True, kw_only=True):
    """A promotion as it will stand in the ledger; the tag holds it until it does."""

    previous: str
    kind: Kind
    by: str
    reason: str
    run_id: str | None
    token: int = 0  # of the lease it is made under


def _allowed(_tx: sa.Connection) -> None:
    """Nobody can withdraw this promotion."""


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
    artifact: str = "",
    guard: Guard = _allowed,
    clock: Clock = wall_clock,
) -> None:
    """Make a version the champion, if the champion is still the one that was expected.

    Sets `previous` to the old champion first, then `champion`, drops `challenger` where it pointed
    to the version, and writes one row of `promotions`. Repeating a promotion with its `run_id` does
    nothing more than finish it.

    Args:
        expected: version of the champion the decision was made against; None: there is none yet.
        now: the moment it is recorded under, in the model's time.
        artifact: sha256 of the files that were judged. They are downloaded anew and hashed.
        guard: asked in the ledger right before the alias moves.
        clock: the wall's; leases live by it, whatever time `now` is of.

    Raises:
        Conflict: another version is champion by now.
        UntrustedArtifact: no hash of the version's files was recorded, or they are not `artifact`.
        NotFound: no such version.
        NotReady: another promotion of this model is under way.
        LeaseLost: the guard refused, or this process slept past its lease; no alias stays moved.
        RegistryError: MLflow failed; repeating with the same `run_id` is safe.
    """
    if artifact:  # before the lease: downloading may take a while
        verify(registry, registry.get(model, version), artifact)
    with alone(ledger, model, clock) as lease:
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
        move = _Move(
            previous=expected or "", kind=kind, by=by, reason=reason, run_id=run_id,
            token=lease.token,
        )  # fmt: skip
        _move(registry, ledger, lease, target, move, guard, clock)
        fail_point("after_move")
        try:
            renew(ledger, lease, clock)
        except LeaseLost:  # we slept before the move: it came too late
            _put_back(registry, ledger, target, move, now, clock)
            raise
        _finish(registry, ledger, lease, target, move, now)


def observe(
    registry: Registry, ledger: Ledger, model: str, *, now: datetime, clock: Clock = wall_clock
) -> Version | None:
    """The champion as MLflow has it; a move nobody here made is recorded as a human's, once.

    `previous` is set to the version served before, also where a promotion that was given up left it
    at the champion. While a promotion is under way nothing is recorded: it will record itself.
    """
    champion = registry.by_alias(model, CHAMPION)
    if champion is None or _in_order(ledger, champion):
        return champion
    with alone(ledger, model, clock, patience=0) as lease:
        if not lease.token:
            return champion
        champion = registry.by_alias(model, CHAMPION)
        if champion is None or _in_order(ledger, champion):
            return champion
        newest = _newest(ledger, model)
        before = newest.version if newest is not None else ""
        if champion.version == before:
            _mend_previous(registry, champion, newest.previous if newest is not None else "")
            return registry.get(model, champion.version)
        move = _intent(ledger, champion)
        if move is None or move.previous != before:
            move = _Move(
                previous=before,
                kind="human",
                by="mlflow",
                reason=f"`champion` was moved from {before or 'no version'} in MLflow",
                run_id=None,
                token=lease.token,
            )
            _mend_previous(registry, champion, before)
        _finish(registry, ledger, lease, champion, move, now)
    return registry.get(model, champion.version)


def rollback(
    registry: Registry,
    ledger: Ledger,
    model: str,
    *,
    by: str,
    reason: str,
    now: datetime,
    champion: str | None = None,
    clock: Clock = wall_clock,
) -> Version:
    """Return to `previous`; the champion that is left becomes `previous` in its turn.

    Args:
        champion: the version that disappointed; None takes whichever is champion now.

    Raises:
        NotFound: there is no previous version, or it is the champion already.
        Conflict: somebody moved the champion meanwhile.
    """
    present = registry.by_alias(model, CHAMPION)
    if present is not None and champion not in (None, present.version):
        _compare(model, present, champion)
    previous = registry.by_alias(model, PREVIOUS)
    if present is not None and (previous is None or previous.version == present.version):
        previous = _before(registry, ledger, present)  # a promotion was given up half-way
    if previous is None or present is None:
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
        expected=present.version,
        kind="rollback",
        by=by,
        reason=reason,
        now=now,
        clock=clock,
    )
    return registry.get(model, previous.version)


def withdraw(registry: Registry, ledger: Ledger, model: str, version: str, run_id: str) -> None:
    """Take back what a run that ends without a promotion left behind: its announcement, and the
    alias `challenger` where it still points to the run's version. Repeating it changes nothing."""
    target = registry.get(model, version)
    move = _intent(ledger, target)
    if move is not None and move.run_id == run_id:
        registry.tag(target, **{_INTENT: None})
    if CHALLENGER in target.aliases:
        registry.drop_alias(model, CHALLENGER)


def _compare(model: str, champion: Version | None, expected: str | None) -> None:
    found = None if champion is None else champion.version
    if found != expected:
        raise Conflict(
            f"{model}: the champion is version {found or 'none'}, this promotion was decided "
            f"against {expected or 'none'}; compare the candidate with the present champion"
        )


def _move(
    registry: Registry,
    ledger: Ledger,
    lease: Lease,
    target: Version,
    move: _Move,
    guard: Guard,
    clock: Clock,
) -> None:
    """Announce, set `previous`, look once more, and move; the fence is checked before each."""
    model = target.model
    registry.tag(target, **{_INTENT: msgspec.json.encode(move).decode()})
    fail_point("after_intent")
    renew(ledger, lease, clock, guard)
    if move.previous:
        registry.set_alias(model, PREVIOUS, move.previous)
    fail_point("after_previous")
    try:
        _compare(model, registry.by_alias(model, CHAMPION), move.previous or None)
    except Conflict:  # a person was faster; what we announced must not be taken for their move
        renew(ledger, lease, clock)
        registry.tag(registry.get(model, target.version), **{_INTENT: None})
        raise
    renew(ledger, lease, clock, guard)
    fail_point("before_move")
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
    fail_point("before_record")
    with ledger.write() as tx:
        lease.guard(tx)
        tx.execute(
            schema.promotions.insert().values(
                model=champion.model,
                version=champion.version,
                sha256=champion.sha256,
                at=now,
                **msgspec.structs.asdict(msgspec.structs.replace(move, token=lease.token)),
            )
        )
    fail_point("after_record")
    registry.tag(
        registry.get(champion.model, champion.version), **{_INTENT: None, "promoted_by": move.by}
    )


def _put_back(
    registry: Registry, ledger: Ledger, target: Version, move: _Move, now: datetime, clock: Clock
) -> None:
    """Undo a move that was made after the lease had gone to somebody else.

    The champion returns to the version that the ledger's newest promotion names, leaving out a row
    in which an observer took this very move for a human's.
    """
    with alone(ledger, target.model, clock, patience=_UNTIL_FREE) as lease:
        champion = registry.by_alias(target.model, CHAMPION)
        newest = _newest(ledger, target.model)
        if champion is None or champion.version != target.version:
            return
        mistaken = newest is not None and newest.version == target.version
        if mistaken and newest is not None and (newest.kind != "human" or newest.by != "mlflow"):
            return  # somebody else promoted this version properly
        rightful = newest.previous if mistaken and newest is not None else None
        if rightful is None:
            rightful = newest.version if newest is not None else move.previous
        if not rightful:
            registry.drop_alias(target.model, CHAMPION)
            return
        back = registry.get(target.model, rightful)
        registry.set_alias(target.model, CHAMPION, back.version)
        registry.tag(registry.get(target.model, target.version), **{_INTENT: None})
        if mistaken:
            why = f"a promoter that slept past its lease moved `champion` to {target.version}"
            undo = _Move(
                previous=target.version, kind="rollback", by="shelflife", reason=why, run_id=None
            )
            _finish(registry, ledger, lease, back, undo, now)


def _mend_previous(registry: Registry, champion: Version, before: str) -> None:
    """Point `previous` at the version served before, where that is known and still there."""
    known = {version.version for version in registry.versions(champion.model)}
    if before and before != champion.version and before in known:
        registry.set_alias(champion.model, PREVIOUS, before)
    elif PREVIOUS in champion.aliases:
        registry.drop_alias(champion.model, PREVIOUS)


def _in_order(ledger: Ledger, champion: Version) -> bool:
    """Whether the ledger knows of this champion, and `previous` is another version."""
    newest = _newest(ledger, champion.model)
    known = newest is not None and newest.version == champion.version
    return known and PREVIOUS not in champion.aliases


def _before(registry: Registry, ledger: Ledger, champion: Version) -> Version | None:
    """The version that the ledger says was champion before this one."""
    newest = _newest(ledger, champion.model)
    if newest is None or newest.version != champion.version or not newest.previous:
        return None
    if newest.previous == champion.version:
        return None
    try:
        return registry.get(champion.model, newest.previous)
    except NotFound:  # deleted in MLflow
        return None


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


def _newest(ledger: Ledger, model: str) -> Any:
    """The newest recorded promotion's row; None when there is none."""
    table = schema.promotions
    query = sa.select(table).where(table.c.model == model).order_by(table.c.id.desc()).limit(1)
    with ledger.read() as tx:
        return tx.execute(query).first()


def _recorded(ledger: Ledger, model: str, version: str, run_id: str) -> bool:
    table = schema.promotions
    same: Any = (table.c.model == model) & (table.c.version == version) & (table.c.run_id == run_id)
    with ledger.read() as tx:
        return tx.scalar(sa.select(table.c.id).where(same).limit(1)) is not None
