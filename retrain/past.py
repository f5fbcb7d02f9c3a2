"""What a run needs to know of the past: the champion's training, earlier runs, broken feeds.

The ledger and the registry are asked here, so that assembly, windows and gate stay pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import NotFound
from core.ledger import Ledger
from core.settings import ModelSettings, span
from monitor import baseline
from retrain.dataset import Account, Exclusions
from retrain.job import TrainerResult
from retrain.run import RunContext, RunState
from retrain.windows import indifference

_RUNS = 20  # earlier runs whose window scores count; older ones weigh next to nothing
_WIDER = 10.0  # a number this many times the usual range wide is impossible, as in monitor.quality


def exclusions(context: RunContext, run: RunState) -> Exclusions:
    """Rows no model should learn from: those of broken-feed checks, and impossible values."""
    return Exclusions(broken=broken_spans(context, run), ranges=possible_ranges(context, run))


def broken_spans(context: RunContext, run: RunState) -> tuple[tuple[datetime, datetime], ...]:
    """Stretches of event time that checks found to come from a broken feed, merged.

    A check looks back over a whole window; what is new in it lies after the check before.
    """
    table = schema.checks
    query = (
        sa.select(table.c.window_start, table.c.window_end, table.c.state)
        .where(table.c.model == run.model, table.c.at <= run.started)
        .order_by(table.c.at)
    )
    with context.ledger.read() as tx:
        rows = tx.execute(query).all()
    step = span(context.settings.check_every)
    spans: list[tuple[datetime, datetime]] = []
    before: datetime | None = None
    for row in rows:
        if row.state == "broken_feed":
            newest = row.window_end - step if before is None else before
            start = max(row.window_start, min(newest, row.window_end - step))
            if spans and start <= spans[-1][1] + timedelta(microseconds=1):
                spans[-1] = (spans[-1][0], row.window_end)
            else:
                spans.append((start, row.window_end))
        before = row.window_end
    return tuple(spans)


def possible_ranges(context: RunContext, run: RunState) -> dict[str, tuple[float, float]]:
    """What each numeric column can hold: ten times the champion's usual range, around its middle.

    The same line beyond which `monitor.measure.quality` says that a column is in another unit.
    """
    found: dict[str, tuple[float, float]] = {}
    champion = context.registry.get(run.model, run.champion)
    try:
        known = baseline.load(context.registry.file(champion, "baseline.json"))
    except NotFound:
        return found
    for column in known.inputs:
        if not column.numeric or column.usual is None:
            continue
        low, high = column.usual
        reach = (_WIDER - 1) / 2 * (high - low)
        if reach > 0 and math.isfinite(reach):
            found[column.column] = (low - reach, high + reach)
    return found


def champion_rows(context: RunContext, run: RunState) -> int | None:
    """How many rows the champion was trained on; None where nobody wrote it down."""
    champion = context.registry.get(run.model, run.champion)
    for name, rows in _ROWS_IN:
        try:
            return rows(context.registry.file(champion, name))
        except NotFound:
            continue
    return None


#: Files of a version that say how many rows it learned from, the most exact first.
_ROWS_IN: tuple[tuple[str, Callable[[bytes], int]], ...] = (
    ("training.json", lambda text: msgspec.json.decode(text, type=TrainerResult).rows),
    ("dataset.json", lambda text: msgspec.json.decode(text, type=Account).train_rows),
    ("baseline.json", lambda text: baseline.load(text).rows),
)


def past_scores(ledger: Ledger, model: str, *, before: datetime) -> tuple[dict[str, float], ...]:
    """The window scores of the model's earlier runs, oldest first; a run that took the settled
    window without a competition has none."""
    table, steps = schema.runs, schema.run_steps
    query = (
        sa.select(steps.c.result)
        .join(table, table.c.id == steps.c.run_id)
        .where(
            table.c.model == model,
            table.c.started < before,
            steps.c.name == "train",
            steps.c.state == "done",
        )
        .order_by(table.c.started.desc())
        .limit(_RUNS)
    )
    with ledger.read() as tx:
        texts = tx.scalars(query).all()
    choices = (msgspec.json.decode(text, type=TrainerResult).choice for text in reversed(texts))
    return tuple(
        {str(score.name): score.relative for score in choice.scores}
        for choice in choices
        if choice is not None
    )


def indifferent(
    settings: ModelSettings, account: Account, *, champion_until: datetime | None
) -> float | None:
    """The share of the loss that is not worth a competition of this run's windows: the candidate
    will probably serve as long as the champion's training data is old now. None where the served
    loss has changed within the rows of `recent`: earlier competitions were about another world."""
    if account.change is not None and any(
        window.name == "recent" and window.since < account.change for window in account.windows
    ):
        return None
    singles = len([window for window in account.windows if not window.parts])
    lasts = 1.0
    if champion_until is not None:
        lasts = (account.holdout_until - champion_until) / span(settings.window)
    return indifference(singles, cost_of_fit=settings.retrain.cost_of_run, lasts=lasts)
