"""Was the promotion right, or will it be? One version against another on the same rows.

The shadow and the canary (`retrain.rollout`) ask it before a promotion, the watch after it.

Labels arrive one by one and somebody looks at every tick, so a fixed-sample interval would roll
back a good model sooner or later. `judge` uses an asymptotic confidence sequence, which holds at
all looks at once: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences" (arXiv 2103.06476, one-sided form).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import sqlalchemy as sa
from msgspec import Struct

from core import schema
from core.errors import ShelflifeError
from core.ledger import Ledger
from core.settings import ModelSettings, span
from core.spec import ModelSpec
from core.times import spell
from monitor.log.records import SampleLog
from retrain import paired
from retrain.wording import plural, rounded

if TYPE_CHECKING:
    from registry.versions import Registry

Action = Literal["keep", "rollback", "wait"]
Verdict = Literal["proven", "harmful", "undecided", "skipped"]
_TUNED_FOR = 500  # rows at which the sequence is tightest


class Judgement(Struct, frozen=True, kw_only=True):
    """What the watch says, and the numbers. `harm` is the champion's loss minus its predecessor's
    on the same rows, per-row mean; below zero the promotion was right."""

    action: Action
    reason: str
    harm: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


def judge(
    champion: np.ndarray,
    predecessor: np.ndarray,
    confidence: float,
    *,
    min_rows: int = 50,
    names: tuple[str, str] = ("the champion", "its predecessor"),
) -> Judgement:
    """Keep, roll back, or wait for more labels. Pure; may be asked after every new label.

    Args:
        champion, predecessor: per-row losses of both on the same rows in order of arrival,
            shape (n,); rows where either is not finite are left out.
        confidence: that a rollback (or a keep) is right over all looks together.
        min_rows: below it the sequence's normal approximation is not trusted.
        names: what the two are called in the reason; before a promotion the first is a candidate.
    """
    difference = champion - predecessor
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if n < min_rows:
        since = "since the promotion" if names[0] == "the champion" else "to compare them on"
        reason = f"only {plural(n, 'labelled row')} {since}, {min_rows:,} are needed"
        return Judgement(action="wait", reason=reason, n=n)
    harm, sd = float(difference.mean()), float(difference.std(ddof=1))
    half = sd * _half_width(n, 1 - confidence)
    low, high = harm - half, harm + half
    numbers = f"{rounded(harm, 2)} [{rounded(low, 2)}, {rounded(high, 2)}] a row, n {n:,}"
    action: Action = "wait"
    reason = f"no difference from {names[1]} is proven yet: loss {numbers}"
    if low > 0:
        action = "rollback"
        reason = f"{names[0]} loses more than {names[1]} would have: {numbers}"
    elif high < 0:
        action = "keep"
        reason = f"{names[0]} loses less than {names[1]} would have: {numbers}"
    return Judgement(action=action, reason=reason, harm=harm, low=low, high=high, n=n)


def _half_width(n: int, alpha: float) -> float:
    """Half width of the one-sided sequence at n rows, in standard deviations."""
    spread = -2 * math.log(alpha)
    tuning = (spread + math.log(spread + 1)) / _TUNED_FOR  # rho squared
    inner = n * tuning + 1
    return math.sqrt(2 * inner / (n**2 * tuning) * math.log(1 + math.sqrt(inner) / (2 * alpha)))


class Stage(Struct, frozen=True, kw_only=True):
    """What a shadow or canary does next."""

    action: Literal["next", "refuse", "wait"]
    verdict: Verdict
    reason: str


def stage(found: Judgement, *, over: bool, undecided: Literal["promote", "refuse"]) -> Stage:
    """Go on, refuse, or wait. Pure.

    Args:
        found: the candidate against the champion (`judge`).
        over: the stage has had the time, or the rows, that it was given.
        undecided: what to do at its end when nothing is proven.
    """
    if found.action == "rollback":
        return Stage(action="refuse", verdict="harmful", reason=found.reason)
    if found.action == "keep":
        return Stage(action="next", verdict="proven", reason=found.reason)
    if not over:
        return Stage(action="wait", verdict="undecided", reason=found.reason)
    action: Literal["next", "refuse"] = "next" if undecided == "promote" else "refuse"
    reason = f"undecided at its end ({found.reason}), and the settings say {undecided}"
    return Stage(action=action, verdict="undecided", reason=reason)


def off(limit: str | int) -> bool:
    """Whether a stage with this limit is skipped."""
    return not limit if isinstance(limit, int) else not span(limit)


def over(limit: str | int, *, since: datetime, at: datetime, rows: Callable[[], int]) -> bool:
    """Whether a stage that began at `since` has reached its limit, a duration or rows answered."""
    return rows() >= limit if isinstance(limit, int) else at - since >= span(limit)


def failing(asked: int, failed: int) -> str:
    """Why a candidate that fails to answer is harmful; empty while that may be chance.

    The share of failures is tested against 1 % by the betting martingale that stakes on 10 %: its
    wealth passes 1,000 with a probability of at most 0.001 however often one looks (Ville).

    Args:
        asked: requests the candidate was asked, failures included.
        failed: of them, those the champion had to answer.
    """
    if asked <= 0 or failed <= 0:
        return ""
    wealth = failed * math.log(0.10 / 0.01) + (asked - failed) * math.log(0.90 / 0.99)
    if wealth < math.log(1000):
        return ""
    return f"it failed to answer {failed:,} of {asked:,} requests, and the champion did"


class Watched(Struct, frozen=True, kw_only=True):
    """A promotion whose watch is not over."""

    version: str
    predecessor: str
    since: datetime
    kind: str = "gate"  # of the promotion: first, gate, human or forced
    by: str = ""

    @property
    def by_a_person(self) -> bool:
        """Whether somebody chose this version against, or without, the gate's word."""
        return self.kind in ("human", "forced")


def watched(
    ledger: Ledger, model: str, champion: str, settings: ModelSettings, *, at: datetime
) -> Watched | None:
    """The promotion that made `champion` what it is, while it is still watched.

    None for a first version, after a rollback, or when the watch is over.
    """
    table = schema.promotions
    query = sa.select(table).where(table.c.model == model, table.c.at <= at)
    with ledger.read() as tx:
        row = tx.execute(query.order_by(table.c.id.desc()).limit(1)).first()
    if row is None or row.version != champion or not row.previous or row.kind == "rollback":
        return None
    if at - row.at > span(settings.retrain.watch):
        return None
    return Watched(
        version=champion, predecessor=row.previous, since=row.at, kind=row.kind, by=row.by
    )


class Failed(Struct, frozen=True, kw_only=True):
    """A candidate that came as far as callers, or their copy, and was sent back."""

    version: str
    run_id: str
    at: datetime
    how: Literal["rollback", "shadow", "canary"]
    reason: str


def failed_promotions(
    tx: sa.Connection, model: str, champion: str, *, at: datetime | None = None
) -> list[Failed]:
    """What was tried against this champion and taken back, newest first: promotions of a run that
    were rolled back to it, and runs that its shadow or canary refused. The policy counts them as
    refusals: what the gate passed and live rows refuted did not pay either.

    Args:
        at: as of this moment; None: now.
    """
    found = [*_rolled_back(tx, model, champion), *_sent_back(tx, model, champion)]
    known = [each for each in found if at is None or each.at <= at]
    return sorted(known, key=lambda each: each.at, reverse=True)


def _rolled_back(tx: sa.Connection, model: str, champion: str) -> list[Failed]:
    table = schema.promotions
    rows = tx.execute(sa.select(table).where(table.c.model == model).order_by(table.c.id)).all()
    found, run_of = [], dict[str, str]()
    for row in rows:
        if row.kind == "gate" and row.run_id:
            run_of[row.version] = row.run_id
        elif row.kind == "rollback" and row.version == champion and row.previous in run_of:
            found.append(
                Failed(
                    version=row.previous,
                    run_id=run_of[row.previous],
                    at=row.at,
                    how="rollback",
                    reason=row.reason,
                )
            )
    return found


def _sent_back(tx: sa.Connection, model: str, champion: str) -> list[Failed]:
    table, steps = schema.runs, schema.run_steps
    query = (
        sa.select(table.c.id, table.c.candidate, table.c.finished, table.c.outcome, steps.c.name)
        .join(steps, steps.c.run_id == table.c.id)
        .where(
            table.c.model == model,
            table.c.champion == champion,
            table.c.state == "refused",
            steps.c.name.in_(("shadow", "canary")),
            steps.c.state != "done",
            steps.c.error != "",
        )
    )
    return [
        Failed(
            version=row.candidate or "",
            run_id=row.id,
            at=row.finished,
            how=row.name,
            reason=row.outcome,
        )
        for row in tx.execute(query)
        if row.outcome.startswith(f"version {row.candidate} was refused in its ")
    ]


def look(
    registry: Registry,
    log: SampleLog,
    spec: ModelSpec,
    promotion: Watched,
    settings: ModelSettings,
    *,
    at: datetime,
) -> Judgement:
    """Score the rows the champion answered, whose labels are known, by both models, and judge.

    The champion is judged by what it answered, its predecessor by what it answered in shadow, or
    answers now. A predecessor that cannot be fetched, loaded or asked (its files gone, say) is a
    reason to wait: nothing can be proven with it, and monitoring must go on.
    """
    rows = _labelled(log, spec.name, promotion, at)
    if rows < settings.min_rows:
        none = np.empty(0)
        found = judge(none, none, settings.retrain.gate.confidence, min_rows=settings.min_rows)
        age = spell(at - promotion.since)
        reason = found.reason.replace("only 0", f"only {rows:,}", 1)
        return Judgement(action="wait", reason=f"{reason} ({age} on)", n=rows)
    try:
        pairs = paired.losses(
            registry, log, spec, settings,
            answered_by=promotion.version, role="champion", other=promotion.predecessor,
            since=promotion.since, at=at, compute=True,
        )  # fmt: skip
    except ShelflifeError as error:
        return Judgement(action="wait", reason=f"the two cannot be compared: {error}", n=rows)
    return judge(
        pairs.answered,
        pairs.other,
        settings.retrain.gate.confidence,
        min_rows=settings.min_rows,
    )


def _labelled(log: SampleLog, model: str, promotion: Watched, at: datetime) -> int:
    return len(
        log.read(
            model,
            start=promotion.since,
            known_at=at,
            roles=("champion",),
            version=promotion.version,
            labelled=True,
            inputs=False,
        )
    )
