"""One policy's own installation of shelflife, in memory: log, ledger, registry, settings.

Everything that decides is the service's: `shelflife.tick` checks, tells, decides and carries runs.
What is replaced is what would touch a disk, a server or another process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pandas as pd
import sqlalchemy as sa

from core import schema
from core.ledger import Ledger
from core.settings import ModelSettings, Settings
from core.spec import Metric
from core.times import from_micros
from monitor.check import chosen_metric
from monitor.log.memory import MemoryLog
from registry.promotion import promote
from retrain.policy import parse
from retrain.probe import Observation
from retrain.run import RunContext
from shelflife.backtest.bank import Bank
from shelflife.backtest.history import Window
from shelflife.backtest.moments import NEVER
from shelflife.backtest.registry import MemoryRegistry, as_registry
from shelflife.reference import Reference, expected_outputs
from shelflife.register import first_baseline as baseline_of
from shelflife.service import Service

if TYPE_CHECKING:
    from monitor.baseline import Baseline
    from registry.versions import Version


class Replica(Service):
    """A service without servers.

    Args:
        folder: its home; nothing lies there.
    """

    foresees = False  # a replay decides nothing by forecasts, and would fit and ask for them

    def __init__(self, bank: Bank, settings: ModelSettings, folder: Path) -> None:
        super().__init__(Settings(defaults=settings, home=str(folder)), folder=folder)
        self.bank, self.fits = bank, 0.0
        self.memory, self.learned = MemoryRegistry(), {}
        self.rows = MemoryLog()
        self.store = Ledger("sqlite://").create()
        # The class builds these when first used; here they exist from the start.
        self.__dict__.update(
            registry=as_registry(self.memory), inference_log=self.rows, ledger=self.store
        )

    @property
    def name(self) -> str:
        return self.bank.spec.name

    def baseline(self, version: Version) -> tuple[Baseline, pd.DataFrame]:
        """See `Service.baseline`."""
        kept = self.memory.kept[version.version]
        return kept.baseline, kept.reference

    def observes(self, model: str) -> bool:
        """Only the default policy asks what a probe says, and nobody watches a replay."""
        return parse(self.settings.defaults.retrain.policy)[0] == "default"

    def run_context(
        self,
        model: str,
        *,
        guard: Callable[[sa.Connection], None],
        beat: Callable[[], None] = lambda: None,
    ) -> RunContext:
        """See `Service.run_context`: the steps that train work in this process."""
        from shelflife.backtest.retraining import steps

        context = super().run_context(model, guard=guard, beat=beat)
        return dataclasses.replace(context, steps=steps(self))

    def begin(self) -> None:
        """Register the first model with its rows, as `shelflife register` does, and promote it."""
        history, bank = self.bank.history, self.bank
        at = from_micros(int(history.times[history.train]))
        built, reference = first_baseline(bank, self.settings.defaults)
        version = self.memory.keep(
            self.name,
            bank.first,
            built,
            reference,
            rows=len(bank.known),
            at=at,
            tags={"shelflife.trigger": "register"},
        )
        rows = slice(0, history.train)
        blank = pd.DataFrame(np.nan, index=range(history.train), columns=bank.spec.outputs)
        self._log(rows, blank, version.version, role="history", source=f"history/{self.name}")
        promote(
            self.registry,
            self.ledger,
            self.name,
            version.version,
            expected=None,
            kind="first",
            by="backtest",
            reason="first version",
            now=at,
        )

    def serve(self, window: Window) -> Version:
        """Answer a window's rows with the champion and log them with their labels' times."""
        champion = self.memory.by_alias(self.name, "champion")
        assert champion is not None  # noqa: S101 - `begin` promoted one
        if window.last > window.first:
            fitted = self.memory.kept[champion.version].fitted
            outputs = self.bank.answer(fitted, window)
            rows = slice(window.first, window.last)
            self._log(rows, outputs, champion.version, role="champion", source=self.name)
        return champion

    @property
    def metric(self) -> Metric:
        """The loss that is watched."""
        return chosen_metric(self.bank.spec, self.settings.defaults)

    def watch_span(self, window: Window) -> None:
        """Check over this window; windows of so many rows last differently long each time."""
        length = window.end - window.start
        chosen = msgspec.structs.replace(
            self.settings.defaults, window=seconds(length), check_every=seconds(length)
        )
        self.settings = msgspec.structs.replace(self.settings, defaults=chosen)

    def _log(
        self, rows: slice, outputs: pd.DataFrame, version: str, *, role: str, source: str
    ) -> None:
        history = self.bank.history
        known = history.known[rows]
        labels = [
            None if when == NEVER else label
            for label, when in zip(history.labels[rows], known.tolist(), strict=True)
        ]
        self.rows.extend(
            self.name,
            ids=history.ids[rows],
            times=history.times[rows].view("datetime64[us]"),
            inputs=self.bank.inputs.iloc[rows].reset_index(drop=True),
            outputs=outputs.reset_index(drop=True),
            version=version,
            role=role,
            source=source,
            labels=labels,
            label_times=known.view("datetime64[us]"),
        )

    def probed(self, at: datetime) -> float:
        """What the probe of this moment cost, in fits of the first model (rows x rounds)."""
        if not self.observes(self.name):
            return 0.0
        table = schema.observations
        query = sa.select(table.c.detail).where(table.c.model == self.name, table.c.at == at)
        with self.ledger.read() as tx:
            texts = tx.scalars(query).all()
        work = sum(msgspec.json.decode(text, type=Observation).work for text in texts)
        return work / (len(self.bank.known) * self.bank.rounds())

    def pages(self, at: datetime) -> list[str]:
        """Titles of the pages that were opened at this moment."""
        table = schema.incidents
        query = sa.select(table.c.title).where(
            table.c.model == self.name,
            table.c.severity == "page",
            table.c.opened == at,
            table.c.state != "noticed",
        )
        with self.ledger.read() as tx:
            return [str(title) for title in tx.scalars(query.order_by(table.c.id))]


def first_baseline(bank: Bank, settings: ModelSettings) -> tuple[Baseline, pd.DataFrame]:
    """The first model's baseline and reference sample, as `shelflife register` makes them."""
    if bank.first.baseline is None:
        history, known = bank.history, bank.known
        rows = Reference(
            inputs=bank.inputs.iloc[known].reset_index(drop=True),
            labels=history.labels[known].tolist(),
            times=history.moments(known),
            label_times=[from_micros(int(when)) for when in history.known[known]],
            ids=[history.ids[i] for i in known],
            timed=True,
        )
        outputs, how = expected_outputs(bank.spec, bank.first.estimator, rows, held_out=False)
        at = from_micros(int(history.times[history.train]))
        bank.first.baseline = baseline_of(
            bank.spec, rows, outputs, settings, how=how, now=at, held_out=False
        )
    return bank.first.baseline


def seconds(length: timedelta) -> str:
    """A span as a duration setting, exact to the microsecond."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count = length / timedelta(seconds=size)
        if count.is_integer() and count >= 1:
            return f"{count:.0f}{unit}"
    return f"{length / timedelta(seconds=1):.6f}s"
