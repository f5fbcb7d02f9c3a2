"""What a run keeps and reads of the past: its rows made again, scores carried, reports attached."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from core import schema
from core.errors import CorruptSegment, NotFound, TrainerFailed
from core.settings import GateSettings, ModelSettings, RetrainSettings
from core.spec import ModelSpec
from monitor.baseline import build, dump
from monitor.log.log import InferenceLog
from monitor.log.records import Label
from retrain import gate_report, past, rebuild
from retrain import run as runs
from retrain.dataset import assemble
from retrain.gate import compare
from retrain.job import TrainerResult, write_frame, write_slice
from retrain.run import RunContext, RunState
from retrain.source import open_source
from retrain.windows import Choice, Score, Window

START = datetime(2020, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=30)
AT = START + timedelta(days=40)


class Shelf:
    """Stands in for the registry: one version and its files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def get(self, model: str, version: str) -> str:
        return version

    def file(self, version: str, name: str) -> bytes:
        if name not in self.files:
            raise NotFound("file of this version", name)
        return self.files[name]

    def attach(self, version: Any, name: str, data: bytes) -> None:
        self.files[name] = data


@pytest.fixture
def make(
    open_log: Callable[..., InferenceLog], spec: ModelSpec, tmp_path: Path
) -> Callable[..., RunContext]:
    def context(**retrain: Any) -> RunContext:
        log = open_log()
        gate = GateSettings(min_rows=100)
        shelf: Any = Shelf({"spec.json": msgspec.json.encode(spec)})
        return RunContext(
            registry=shelf,
            ledger=log.ledger,
            log=log,
            settings=ModelSettings(retrain=RetrainSettings(gate=gate, **retrain)),
            home=tmp_path / "home",
            user_folder=tmp_path,
        )

    return context


def begin(context: RunContext, at: datetime = AT) -> RunState:
    name = runs.start(
        context.ledger, "toy", trigger="manual", reason="t", by="me", champion="1", at=at
    )
    assert name is not None
    return runs.load(context.ledger, name)


def keep_dataset(context: RunContext, run: RunState, spec: ModelSpec) -> Any:
    """What the step `dataset` leaves, without the registry."""
    data = assemble(context.log, spec, context.settings.retrain, known_at=run.started)
    write_frame(context.folder(run.id) / rebuild.ROWS_FILE, rebuild.name_rows(data))
    runs.begin_step(context, run, "dataset", at=run.started)
    runs.end_step(context, run, "dataset", data.account, at=run.started)
    return data


def test_the_very_rows_can_be_made_again(make: Callable[..., RunContext], spec: ModelSpec) -> None:
    context = make()
    run = begin(context)
    data = keep_dataset(context, run, spec)
    # Later: labels corrected, more rows known, everything sealed.
    log = context.log
    log.append_labels(
        [
            Label(model="toy", id="r7", value="no", time=START),
            Label(model="toy", id="r7", value="yes", time=AT),
        ],
        received=AT,
    )
    log.seal(before=AT + timedelta(days=400))
    again = rebuild.rebuild(context, run.id)
    for part in ("train", "holdout"):
        first, second = getattr(data, part), getattr(again, part)
        assert first.inputs.equals(second.inputs)
        assert first.y.tolist() == second.y.tolist()
        assert (first.times, first.ids) == (second.times, second.ids)
    assert again.account.content == data.account.content
    whole = rebuild.table(again, spec)
    assert list(whole.columns) == [*spec.columns, "answer", "time", "id", "part"]
    assert set(whole["answer"]) == {"no", "yes"}
    assert (whole["part"] == "holdout").sum() == len(data.holdout)
    assert whole["id"].tolist() == [*data.train.ids, *data.holdout.ids]


def test_rows_that_are_gone_are_told(make: Callable[..., RunContext], spec: ModelSpec) -> None:
    context = make()
    context.log.seal(before=AT + timedelta(days=400))
    run = begin(context)
    data = keep_dataset(context, run, spec)
    [segment] = data.account.segments
    with context.ledger.write() as tx:
        tx.execute(schema.segments.update().values(state="gone"))
    with pytest.raises(rebuild.DatasetGone, match=rf"rows are no longer there.*{segment[:12]}…"):
        rebuild.rebuild(context, run.id)
    with context.ledger.write() as tx:
        tx.execute(schema.segments.update().values(state="active"))
    assert len(rebuild.rebuild(context, run.id).train) == len(data.train)


def test_values_that_changed_are_refused(make: Callable[..., RunContext], spec: ModelSpec) -> None:
    context = make()
    run = begin(context)
    keep_dataset(context, run, spec)
    table = schema.predictions
    with context.ledger.write() as tx:
        tx.execute(
            table.update()
            .where(table.c.prediction_id == "r3")
            .values(inputs='{"x": 9.0, "k": 1, "c": "red"}')
        )
    with pytest.raises(CorruptSegment, match="hold other values"):
        rebuild.rebuild(context, run.id)
    path = context.folder(run.id) / rebuild.ROWS_FILE
    path.unlink()
    with pytest.raises(NotFound, match="list of rows"):
        rebuild.rebuild(context, run.id)


def trained(**relative: float) -> TrainerResult:
    scores = tuple(
        Score(name=name, rows=1, loss=1.0, relative=value, score=value)  # type: ignore[arg-type]
        for name, value in relative.items()
    )
    window = Window(name="all", rows=1, since=START)
    return TrainerResult(
        dataset="d", rows=700, holdout_rows=1, seconds=1.0, peak_mb=1.0, reproduces=True,
        largest_difference=0.0, estimator="e", model_sha256="s",
        choice=Choice(window=window, reason="", scores=scores),
    )  # fmt: skip


def test_scores_of_earlier_runs_come_oldest_first(make: Callable[..., RunContext]) -> None:
    context = make()
    for index, value in enumerate([0.1, 0.2]):
        run = begin(context, AT + timedelta(days=index))
        runs.begin_step(context, run, "train", at=run.started)
        runs.end_step(context, run, "train", trained(recent=value, all=-value), at=run.started)
        runs.finish(context, run, "refused", "", at=run.started)
    here = begin(context, AT + timedelta(days=9))
    assert past.past_scores(context.ledger, here.model, before=here.started) == (
        {"recent": 0.1, "all": -0.1},
        {"recent": 0.2, "all": -0.2},
    )


def test_the_champions_rows_and_possible_values(
    make: Callable[..., RunContext], spec: ModelSpec
) -> None:
    context = make()
    run, files = begin(context), context.registry.files  # type: ignore[attr-defined]
    assert past.champion_rows(context, run) is None
    assert past.possible_ranges(context, run) == {}
    frame = pd.DataFrame({"x": np.linspace(0, 100, 101), "k": 3, "c": "red"})
    known = build(spec, frame, None, None, None, created=START, how="reference", trained_until=None)
    files["baseline.json"] = dump(known)
    assert past.champion_rows(context, run) == 101
    [(low, high)] = past.possible_ranges(context, run).values()  # k is constant: no range
    assert (low, high) == pytest.approx((1 - 4.5 * 98, 99 + 4.5 * 98))
    files["training.json"] = msgspec.json.encode(trained(all=0.0))
    assert past.champion_rows(context, run) == 700


def test_spans_of_broken_feeds(make: Callable[..., RunContext]) -> None:
    context = make()
    states = ["healthy", "broken_feed", "broken_feed", "healthy", "broken_feed"]
    with context.ledger.write() as tx:
        for index, state in enumerate(states):
            at = START + timedelta(hours=index)
            tx.execute(
                schema.checks.insert().values(
                    model="toy", version="1", at=at, window_start=at - timedelta(days=7),
                    window_end=at, rows=1, labelled=0, state=state, created=at,
                )
            )  # fmt: skip
    hours = [
        ((a - START) / timedelta(hours=1), (b - START) / timedelta(hours=1))
        for a, b in past.broken_spans(context, begin(context))
    ]
    assert hours == [(0, 2), (3, 4)]


def test_progress_stands_in_the_steps_row(make: Callable[..., RunContext]) -> None:
    from retrain.job import Progress
    from retrain.steps import _note_progress

    context = make()
    run = begin(context)
    runs.begin_step(context, run, "train", at=AT)
    _note_progress(context, run, Progress(percent=40.0, text="fitted all", fits=2), AT)
    text = runs.step_text(context.ledger, run.id, "train")
    assert msgspec.json.decode(text) == {
        "progress": {"percent": 40.0, "text": "fitted all", "fits": 2}
    }


def test_the_gates_report_is_attached(make: Callable[..., RunContext], spec: ModelSpec) -> None:
    context = make()
    run = begin(context)
    data = assemble(context.log, spec, context.settings.retrain, known_at=AT)
    folder = context.folder(run.id)
    write_slice(folder / "holdout.parquet", data.holdout, labels=True)
    p = np.random.default_rng(0).uniform(0.1, 0.9, len(data.holdout))
    columns = {"champion:probability": p, "candidate:probability": p**2}
    write_frame(folder / "job" / "predictions.parquet", pd.DataFrame(columns))
    answers = pd.DataFrame({"probability": p})
    result = compare(spec, data.holdout.y, answers, answers**2, settings=GateSettings())
    version: Any = "2"
    started = gate_report.begin(context, run, spec, trained(all=0.0), result)
    assert gate_report.attach(context, version, started)
    files = context.registry.files  # type: ignore[attr-defined]
    assert {"gate-report.html", "gate-report-performance.html"} <= set(files)
    assert f"run {run.id}: champion".encode() in files["gate-report.html"]
    # What cannot be rendered stops nothing.
    (folder / "job" / "predictions.parquet").unlink()
    assert gate_report.begin(context, run, spec, trained(all=0.0), result) is None
    assert not gate_report.attach(context, version, None)


@pytest.fixture
def table(spec: ModelSpec) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 400
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "k": rng.integers(0, 5, n),
            "c": rng.choice(["red", "green"], n),
            "answer": rng.choice(["yes", "no"], n),
            "time": pd.date_range(START, periods=n, freq="1h"),
            "label_time": pd.date_range(START + timedelta(days=1), periods=n, freq="1h"),
        }
    )


def test_rows_from_a_parquet_file_a_database_and_a_function(
    make: Callable[..., RunContext],
    spec: ModelSpec,
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table.to_parquet(tmp_path / "rows.parquet")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    table.to_sql("rows", engine, index=False)
    engine.dispose()
    (tmp_path / "mine.py").write_text(
        "import os\nimport pandas as pd\n"
        "def rows(model, known_at):\n"
        "    assert (model, known_at.year) == ('toy', 2020)\n"
        "    assert os.environ['MINE'] == 'yes' and 'OTHER' not in os.environ\n"
        f"    return pd.read_parquet({str(tmp_path / 'rows.parquet')!r})\n"
    )
    monkeypatch.setenv("ROWS_URL", f"sqlite:///{tmp_path / 'rows.db'}")
    monkeypatch.setenv("MINE", "yes")
    monkeypatch.setenv("OTHER", "canary")
    context = make()
    sources = {
        "rows.parquet": {},
        "sql:env:ROWS_URL": {"source_query": "select * from rows"},
        "mine:rows": {"source_environment": ("MINE",)},
    }
    known, found = START + timedelta(days=11), []
    for source, more in sources.items():
        settings = msgspec.structs.replace(context.settings.retrain, source=source, **more)
        model = msgspec.structs.replace(context.settings, retrain=settings)
        here = RunContext(
            registry=context.registry, ledger=context.ledger, log=context.log, settings=model,
            home=context.home, user_folder=tmp_path,
        )  # fmt: skip
        rows = open_source(here, spec, known_at=known)
        data = assemble(rows, spec, settings, known_at=known)
        assert len(data.train) + len(data.holdout) == 241  # labels are a day late
        assert data.account.source == source
        assert len(data.account.segments) == 1
        found.append(data.account.content)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("nothere.parquet", "there is no such file"),
        ("mine:fails", "(?s)mine:fails failed.*no luck"),
        ("mine:wrong", "also answer, time"),
        ("sql:env:ROWS_URL", "needs a database URL and retrain.source_query"),
    ],
)
def test_a_source_that_cannot_be_read_is_told(
    make: Callable[..., RunContext],
    spec: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    text: str,
) -> None:
    monkeypatch.setenv("ROWS_URL", "sqlite://")
    (tmp_path / "mine.py").write_text(
        "import pandas as pd\n"
        "def fails(model, known_at):\n    raise RuntimeError('no luck')\n"
        "def wrong(model, known_at):\n"
        "    return pd.DataFrame({'x': [1.0], 'k': [1], 'c': ['red']})\n"
    )
    context = make(source=source)
    with pytest.raises(TrainerFailed, match=text):
        open_source(context, spec, known_at=AT)
