"""The steps of a retraining run, in this process and in memory: what they decide is the service's.

`retrain.dataset.assemble` cuts the rows, the champion's own pipeline is cloned and refitted,
`retrain.gate.compare` judges; the run's other steps (promote, serve) are `retrain.steps` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import pandas as pd
from msgspec import Struct

from monitor.log.records import Role
from retrain import run as runs
from retrain.dataset import Account, Dataset, assemble
from retrain.gate import GateResult, compare
from retrain.register import candidate_baseline, window_rows
from retrain.run import RunContext, RunState, Step, StepName
from retrain.rollout import Registered
from shelflife.backtest.bank import Fitted

if TYPE_CHECKING:
    from shelflife.backtest.replica import Replica

HISTORY: Role = "history"


class Trained(Struct, frozen=True, kw_only=True):
    """What the ledger keeps of a training step."""

    rows: int
    holdout_rows: int
    estimator: str
    reproduces: bool


class _Work(Struct, kw_only=True):
    """What passes between the steps of one run."""

    data: Dataset
    fitted: Fitted | None = None
    champion: pd.DataFrame | None = None
    candidate: pd.DataFrame | None = None
    reproduces: bool | None = None


def steps(replica: Replica) -> Mapping[StepName, Step]:
    """The steps that are done here instead of in `retrain.steps`."""
    work: dict[str, _Work] = {}

    def dataset(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
        champion = replica.memory.kept[run.champion]
        data = assemble(
            context.log,
            replica.bank.spec,
            context.settings.retrain,
            known_at=run.started,
            after=champion.baseline.trained_until,
        )
        work[run.id] = _Work(data=data)
        runs.end_step(context, run, "dataset", data.account, at=at)
        return True

    def train(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
        mine, bank = work[run.id], replica.bank
        replica.fits += 1  # charged even where another policy has fitted it before
        mine.fitted = bank.refit(_key(mine.data), mine.data.train)
        inputs = mine.data.holdout.inputs
        champion = replica.memory.kept[run.champion].fitted
        mine.champion = bank.outputs(champion, inputs)
        mine.candidate = bank.outputs(mine.fitted, inputs)
        mine.reproduces = bank.reproduces(mine.fitted, inputs, mine.candidate)
        done = Trained(
            rows=len(mine.data.train),
            holdout_rows=len(mine.data.holdout),
            estimator=type(mine.fitted.estimator).__name__,
            reproduces=mine.reproduces,
        )
        runs.end_step(context, run, "train", done, at=at)
        return True

    def gate(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
        mine = work[run.id]
        account = mine.data.account
        result = compare(
            replica.bank.spec,
            mine.data.holdout.y,
            mine.champion,
            mine.candidate,
            settings=context.settings.retrain.gate,
            metric=context.settings.metric,
            reproduces=mine.reproduces,
            label_range=(account.label_low, account.label_high),
        )
        text = _encoded(result)
        runs.end_step(context, run, "gate", result, at=at, gate=text)
        return True

    def register(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
        mine = work.pop(run.id)
        fitted, account = mine.fitted, mine.data.account
        assert fitted is not None  # noqa: S101 - the train step is done
        assert mine.candidate is not None  # noqa: S101
        if fitted.baseline is None:
            fitted.baseline = candidate_baseline(
                replica.bank.spec,
                mine.data.train,
                mine.data.holdout,
                mine.candidate,
                trained_until=account.trained_until,
                window_rows=window_rows(account, context.settings),
                at=at,
            )
        version = replica.memory.keep(
            run.model,
            fitted,
            *fitted.baseline,
            at=at,
            tags={"shelflife.run_id": run.id, "shelflife.trigger": run.trigger},
        )
        done = Registered(version=version.version, sha256=version.sha256)
        runs.end_step(context, run, "register", done, at=at, candidate=version.version)
        return True

    return {"dataset": dataset, "train": train, "gate": gate, "register": register}


def _key(data: Dataset) -> str:
    """What a fit rests on: which rows with which labels, and which of them it learns from."""
    train: Account = data.account
    return f"{train.identity}/{train.train_rows}/{train.trained_until.isoformat()}"


def _encoded(result: GateResult) -> str:
    import msgspec

    return msgspec.json.encode(result).decode()
