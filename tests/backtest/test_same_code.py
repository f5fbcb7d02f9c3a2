"""The backtest decides what the service decides: both walk through the same rows, side by side.

The service is a real one: a ledger on SQLite, an MLflow store, the log on disk, a trainer in a
subprocess. It is asked by `shelflife.tick` at the end of each window.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import msgspec
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from streams import stepped

from core.settings import ModelSettings, Settings
from monitor.log.records import Label, Prediction
from registry.loading import load_estimator, predict
from shelflife.backtest.bank import Bank
from shelflife.backtest.estimators import factory
from shelflife.backtest.face import MODEL
from shelflife.backtest.history import Columns, Cut, History, Window, open_history
from shelflife.backtest.replay import replay
from shelflife.backtest.terms import terms
from shelflife.register import register
from shelflife.runs import advance
from shelflife.service import Service
from shelflife.tick import tick

DELAY = timedelta(hours=6)
INPUTS = ["a", "b", "c"]


@pytest.fixture
def frame() -> pd.DataFrame:
    return stepped(2500, at=1500).assign(id=[f"r{i}" for i in range(2500)])


@pytest.fixture
def history(frame: pd.DataFrame) -> History:
    columns = Columns(target="y", time="at", id="id")
    cut = Cut(train_rows=1000, window=timedelta(days=2), label_delay=DELAY)
    return open_history(frame, columns, cut)


def test_the_service_and_the_backtest_say_the_same(
    history: History, frame: pd.DataFrame, tmp_path: Path, empty_mlflow: Path
) -> None:
    settings = unhurried(terms(history, None, metric=None, cost_of_fit=None))
    bank = Bank(history, factory(LogisticRegression()), metric=None, seed=0, model=MODEL)
    replayed = replay(bank, settings).windows

    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    service = Service(Settings(home=str(tmp_path), defaults=settings), folder=tmp_path)
    begin(service, bank, frame)
    for window, expected in zip(history.windows, replayed, strict=True):
        version = serve(service, history, frame, window)
        found = tick(service, MODEL, at=window.end)
        assert found is not None
        ended = advance(service, MODEL, at=window.end, wall=window.end)
        assert version == expected.version
        assert (found.check.rows, found.check.labelled) == (expected.rows, expected.known)
        assert (found.check.state, found.decision.action) == (expected.verdict, expected.decision)
        assert found.decision.reason == expected.reason
        assert bool(ended and ended.state == "promoted") == expected.promoted
        assert (ended.outcome if ended else "") == expected.outcome
    service.close()
    assert any(window.promoted for window in replayed)  # it came to a run, and through the gate
    assert len({window.verdict for window in replayed}) > 1


def unhurried(settings: ModelSettings) -> ModelSettings:
    """The replay measures no latency; a busy machine must not make the service refuse by it."""
    gate = msgspec.structs.replace(
        settings.retrain.gate, max_latency_ratio=1e6, report=False
    )  # Evidently's report decides nothing and takes seconds
    retrain = msgspec.structs.replace(settings.retrain, gate=gate)
    return msgspec.structs.replace(settings, retrain=retrain)


def begin(service: Service, bank: Bank, frame: pd.DataFrame) -> None:
    """Register the first model with the rows whose labels were known, and log the others."""
    history = bank.history
    start = history.moments(slice(history.train, history.train + 1))[0]
    register(
        MODEL,
        bank.first.estimator,
        reference=frame.iloc[bank.known],
        target="y",
        time="at",
        id="id",
        service=service,
        by="test",
        now=start,
    )
    late = [i for i in range(history.train) if i not in set(bank.known.tolist())]
    log(service, history, frame, late, "1", role="history", source=f"history/{MODEL}")


def serve(service: Service, history: History, frame: pd.DataFrame, window: Window) -> str:
    champion = service.registry.by_alias(MODEL, "champion")
    assert champion is not None
    rows = list(range(window.first, window.last))
    log(service, history, frame, rows, champion.version, role="champion", source="serving")
    return champion.version


def log(
    service: Service,
    history: History,
    frame: pd.DataFrame,
    rows: list[int],
    version: str,
    *,
    role: str,
    source: str,
) -> None:
    found = service.registry.get(MODEL, version)
    spec = service.baseline(found)[0].spec
    estimator = load_estimator(service.registry.fetch(found))
    answers = predict(estimator, spec, frame.iloc[rows][INPUTS])["probability"]
    when = history.moments(slice(None))
    service.log.append(
        [
            Prediction(
                model=MODEL,
                id=history.ids[i],
                version=version,
                time=when[i],
                inputs={name: float(frame[name].iloc[i]) for name in INPUTS},
                outputs={"probability": float(answer)},
                role=msgspec.convert(role, str),  # type: ignore[arg-type]
                source=source,
            )
            for i, answer in zip(rows, answers, strict=True)
        ],
        received=when[rows[-1]],
    )
    known = [Label(model=MODEL, id=history.ids[i], value=int(frame["y"].iloc[i]),
                   time=when[i] + DELAY) for i in rows]  # fmt: skip
    service.log.append_labels(known, received=when[rows[-1]])
