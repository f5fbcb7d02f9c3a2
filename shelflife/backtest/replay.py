"""One policy's way through the history: answer a window, check, decide, retrain, promote, next.

What a decision at the end of a window can see is what the log knew at that moment: labels that
became known by then. A version promoted there answers from the next window on.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from core.settings import ModelSettings
from core.times import iso
from monitor.measure.performance import row_loss
from shelflife.backtest.bank import Bank
from shelflife.backtest.history import Window
from shelflife.backtest.moments import NEVER
from shelflife.backtest.replica import Replica, first_baseline
from shelflife.backtest.results import Timeline, WindowResult, loss_of, number
from shelflife.runs import advance
from shelflife.tick import tick

Progress = Callable[[int], None]


def replay(
    bank: Bank, settings: ModelSettings, *, progress: Progress = lambda done: None
) -> Timeline:
    """All windows under one policy.

    Args:
        settings: of the model, the policy among them.
        progress: called with the number of windows done.
    """
    with tempfile.TemporaryDirectory(prefix="shelflife-backtest-") as folder:
        replica = Replica(bank, settings, Path(folder))
        try:
            replica.begin()
            timeline = Timeline(windows=[], losses=[])
            for index, window in enumerate(bank.history.windows, 1):
                _step(replica, window, timeline)
                progress(index)
        finally:
            replica.close()
    return timeline


def replay_aside(bank: Bank, settings: ModelSettings) -> Timeline:
    """`replay` in a worker process, whose standard error belongs to the one that waits."""
    with half_the_cores(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of settings a pool's worker lacks
        return replay(bank, settings)


@contextmanager
def half_the_cores(shared: bool) -> Iterator[None]:
    """Two replays side by side: more threads than cores would spend their time waiting."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(max(1, (os.cpu_count() or 2) // 2) if shared else None):
        yield


def prepare(bank: Bank, settings: ModelSettings) -> None:
    """Measure what to expect of the first model, which every policy starts with."""
    first_baseline(bank, settings)


def _step(replica: Replica, window: Window, timeline: Timeline) -> None:
    champion = replica.serve(window)
    replica.watch_span(window)
    fits = replica.fits
    found = tick(replica, replica.name, at=window.end)
    assert found is not None  # noqa: S101 - there is a champion
    ended = advance(replica, replica.name, at=window.end, wall=window.end)
    losses, labelled = _losses(replica, window, champion.version)
    pages = replica.pages(window.end)
    state = "" if ended is None else ended.state
    timeline.losses.append(losses)
    timeline.windows.append(
        WindowResult(
            start=iso(window.start),
            end=iso(window.end),
            rows=window.last - window.first,
            labelled=labelled,
            version=champion.version,
            loss=loss_of(replica.bank.spec, replica.metric, losses),
            metric=replica.metric,
            verdict=found.check.state,
            alarm=bool(pages),
            decision=found.decision.action,
            reason=found.decision.reason,
            fit=number(replica.fits - fits) or 0,
            probe=number(replica.probed(window.end)) or 0,
            promoted=state == "promoted",
            rejected=state in ("refused", "failed"),
            rolled_back=found.rolled_back,
            known=found.check.labelled,
            page=pages[0] if pages else "",
            outcome="" if ended is None else ended.outcome,
        )
    )


def _losses(replica: Replica, window: Window, version: str) -> tuple[np.ndarray, int]:
    """The loss of every row of the window whose label the history has, known by then or not."""
    bank, rows = replica.bank, slice(window.first, window.last)
    outputs = bank.answer(replica.memory.kept[version].fitted, window)
    y = np.where(bank.history.known[rows] < NEVER, bank.y[rows], np.nan)
    losses = row_loss(bank.spec, outputs, y, replica.metric)
    return losses[np.isfinite(losses)], int(np.isfinite(y).sum())
