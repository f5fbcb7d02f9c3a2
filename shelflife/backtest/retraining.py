"""The steps of a retraining run, in this process and in memory: what they decide is the service's.

`retrain.dataset.assemble` cuts the rows, the windows of `retrain.competition` compete, the
champion's own pipeline is cloned and refitted (`retrain.fitting`), and `retrain.gate.compare`
judges; the run's other steps (shadow, approval, canary, promotion) are `retrain.rollout` itself.
What a clock or a disk would decide differently each time (latency, memory) is not measured here, so
the gate's check of the latency always passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
from msgspec import Struct

from core.settings import span
from retrain import fitting, past
from retrain import run as runs
from retrain.competition import compete, settle
from retrain.dataset import Dataset, Slice, assemble
from retrain.gate import compare
from retrain.gate_data import TrainingFacts, swapped_columns
from retrain.job import TrainerResult
from retrain.register import candidate_baseline
from retrain.rollout import Registered
from retrain.run import RunContext, RunState, Step, StepName
from retrain.training import spell_labels
from retrain.windows import Choice, Window
from shelflife.backtest.bank import Fitted

if TYPE_CHECKING:
    from shelflife.backtest.replica import Replica


class _Work(Struct, kw_only=True):
    """What passes between the steps of one run."""

    data: Dataset
    fitted: Fitted | None = None
    champion: pd.DataFrame | None = None
    candidate: pd.DataFrame | None = None
    result: TrainerResult | None = None


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
            exclude=past.exclusions(context, run),
        )
        work[run.id] = _Work(data=data)
        runs.end_step(context, run, "dataset", data.account, at=at)
        return True

    def train(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
        mine, bank = work[run.id], replica.bank
        choice, fits = _candidate(replica, context, run, mine)
        assert mine.fitted is not None  # noqa: S101 - `_candidate` fitted it
        inputs = mine.data.holdout.inputs
        mine.champion = bank.outputs(replica.memory.kept[run.champion].fitted, inputs)
        mine.candidate = bank.outputs(mine.fitted, inputs)
        mine.result = TrainerResult(
            dataset=mine.data.account.identity,
            rows=len(mine.data.train) if choice is None else choice.window.rows,
            holdout_rows=len(mine.data.holdout),
            seconds=0.0,  # nothing that differs from run to run
            peak_mb=0.0,
            reproduces=bank.reproduces(mine.fitted, inputs, mine.candidate),
            largest_difference=0.0,
            estimator=type(mine.fitted.estimator).__name__,
            model_sha256="",
            fits=fits,
            choice=choice,
            swapped=swapped_columns(bank.spec, mine.data.train.inputs, inputs),
            available=len(mine.data.train),
        )
        runs.end_step(context, run, "train", mine.result, at=at)
        return True

    def gate(context: RunContext, run: RunState, at: datetime, wall: datetime) -> bool:
        mine, champion = work[run.id], replica.memory.kept[run.champion]
        account, trained = mine.data.account, mine.result
        assert trained is not None  # noqa: S101 - the train step is done
        assert mine.champion is not None  # noqa: S101
        assert mine.candidate is not None  # noqa: S101
        result = compare(
            replica.bank.spec,
            mine.data.holdout.y,
            mine.champion,
            mine.candidate,
            settings=context.settings.retrain.gate,
            metric=context.settings.metric,
            reproduces=trained.reproduces,
            label_range=(account.label_low, account.label_high),
            inputs=mine.data.holdout.inputs,
            facts=TrainingFacts(
                trained_until=account.trained_until,
                champion_until=champion.baseline.trained_until,
                rows=trained.rows,
                champion_rows=champion.rows,
                window_won=trained.choice is not None,
                swapped=trained.swapped,
                latency_ms=0.0,  # a replay must end alike each time; a clock does not
            ),
        )
        text = msgspec.json.encode(result).decode()
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
                every=span(context.settings.check_every),
                window=span(context.settings.window),
                at=at,
            )
        version = replica.memory.keep(
            run.model,
            fitted,
            *fitted.baseline,
            rows=mine.result.rows if mine.result else 0,
            at=at,
            tags={"shelflife.run_id": run.id, "shelflife.trigger": run.trigger},
        )
        done = Registered(version=version.version, sha256=version.sha256)
        runs.end_step(context, run, "register", done, at=at, candidate=version.version)
        return True

    return {"dataset": dataset, "train": train, "gate": gate, "register": register}


def _candidate(
    replica: Replica, context: RunContext, run: RunState, mine: _Work
) -> tuple[Choice | None, int]:
    """Let the windows compete and fit the winner, as `retrain.training` does; how many fits."""
    bank, train, account = replica.bank, mine.data.train, mine.data.account
    base = fitting.fresh(replica.memory.kept[run.champion].fitted.estimator, None)
    labels = spell_labels(bank.spec, train.y)
    learned, before = _fingerprint(train), replica.fits

    def fit(window: Window | None, inputs: pd.DataFrame, known: np.ndarray) -> Any:
        replica.fits += 1  # charged even where another policy has fitted it before
        key = f"{learned}/{len(inputs)}/{_window_key(window)}"
        return bank.fit(key, lambda: fitting.fit_window(window, base, inputs, known)).estimator

    with contextlib.redirect_stdout(io.StringIO()):  # the trainer's log: why a window is out
        choice = compete(
            bank.spec,
            account.windows,
            train.inputs,
            train.y,
            labels,
            fit,
            judged_rows=account.holdout_rows,
            past=past.past_scores(context.ledger, run.model, before=run.started),
            indifferent=past.indifferent(
                context.settings,
                account,
                champion_until=replica.memory.kept[run.champion].baseline.trained_until,
            ),
            metric=context.settings.metric,
        )
        estimator, _ = settle(
            choice, account.windows, lambda w: fit(w, train.inputs, labels), bank.spec
        )
    won = None if choice is None else choice.window
    # The competition's fit of the whole history has the same rows, the candidate another holdout.
    mine.fitted = bank.keep(f"{learned}/{account.content}/{_window_key(won)}", estimator)
    return choice, round(replica.fits - before)


def _window_key(window: Window | None) -> str:
    return "all" if window is None else f"{window.name}:{window.rows}:{window.half_life}"


def _fingerprint(part: Slice) -> str:
    """Which rows with which labels."""
    digest = hashlib.sha256("\n".join(part.ids).encode())
    digest.update(part.y.tobytes())
    return digest.hexdigest()
