"""The training subprocess: what it makes, what it may know, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from core.errors import TrainerFailed
from core.frames import to_frame
from core.settings import GateSettings, RetrainSettings
from core.spec import ModelSpec
from monitor.log.log import InferenceLog
from registry.loading import load_estimator, predict, save_estimator
from retrain.dataset import Dataset, assemble
from retrain.job import Job, Progress, read_frame, read_inputs, write_slice
from retrain.trainer import fit
from retrain.training import spell_labels

END = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=60)

# Those that never come to train do their harm while they are imported: it saves seconds.
TRAINERS = {
    "raises": """
def train(x, y, e):
    print('about to fail')
    raise RuntimeError('no luck')
""",
    "sleeps": """
import subprocess, time
child = subprocess.Popen(['sleep', '60'])
open('child.pid', 'w').write(str(child.pid))
time.sleep(60)
""",
    "eats": "everything = bytearray(30_000_000_000)",
    "dies": "import os\nos.kill(os.getpid(), 9)",
    "empty": "def train(x, y, e):\n    return None",
    "leaves": "import os, sys\nprint('so long')\nsys.stdout.flush()\nos._exit(0)",
    "grows": """
import numpy
def train(x, y, e):
    return [numpy.ones(200_000_000) for _ in range(100)]
""",
    "garbage": """
import numpy
class Garbage:
    classes_ = numpy.array(['no', 'yes'])
    def predict(self, x):
        return ['maybe'] * len(x)
    def predict_proba(self, x):
        return numpy.full((len(x), 2), numpy.nan)
def train(x, y, e):
    return Garbage()
""",
    "alone": """
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
def train(x, y, e):
    assert e is None
    numbers = make_column_transformer(('passthrough', ['x', 'k']))
    return make_pipeline(numbers, HistGradientBoostingClassifier(max_iter=2)).fit(x, y)
""",
    "chatty": """
import os, sys
def train(x, y, e):
    print('{"percent": 1, "result": "nonsense"}')
    for name, value in sorted(os.environ.items()):
        print(name, value)
    os.write(1, b'\\xff\\xfe raw bytes\\n' * 100)
    sys.stderr.write('and errors\\n')
    return e.set_params(histgradientboostingclassifier__max_iter=2).fit(x, y)
""",
    "looks": """
import json, os
def train(x, y, e):
    json.dump(dict(os.environ), open('environment.json', 'w'))
    json.dump(sorted(os.listdir('.')), open('files.json', 'w'))
    return e.set_params(histgradientboostingclassifier__max_iter=3).fit(x, y)
""",
}


@pytest.fixture
def data(open_log: Callable[..., InferenceLog], spec: ModelSpec) -> Dataset:
    settings = RetrainSettings(gate=GateSettings(min_rows=100))
    return assemble(open_log(), spec, settings, known_at=END)


@pytest.fixture
def prepare(data: Dataset, tmp_path: Path, spec: ModelSpec, champion: Any) -> Callable[..., Path]:
    def make(trainer: str = "", memory: float = 8e9) -> Path:
        folder, user = tmp_path / "job", tmp_path / "user"
        write_slice(folder / "train.parquet", data.train, labels=True)
        write_slice(folder / "holdout.parquet", data.holdout, labels=False)
        save_estimator(champion, tmp_path / "champion" / "model.skops")
        user.mkdir()
        for name, text in TRAINERS.items():
            (user / f"{name}.py").write_text(text)
        (user / "registry.py").write_text("raise RuntimeError('shadowed')")
        job = Job(
            spec=spec,
            champion=str(tmp_path / "champion"),
            trust_pickle=False,
            trainer=trainer,
            user_folder=str(user),
            dataset=data.account.identity,
            threads=1,
            memory_bytes=int(memory),
            time_limit_s=60,
        )
        (folder / "job.json").write_bytes(msgspec.json.encode(job))
        return folder

    return make


def test_it_refits_the_champions_own_pipeline(
    prepare: Callable[..., Path], data: Dataset, spec: ModelSpec, champion: Any
) -> None:
    folder = prepare()
    beats = []
    result = fit(folder, time_limit="60s", beat=lambda: beats.append(1))
    assert (result.rows, result.holdout_rows) == (len(data.train), len(data.holdout))
    assert result.reproduces
    assert result.estimator == "Pipeline"
    assert result.seconds > 0
    assert 50 < result.peak_mb < 2000
    assert beats
    candidate = load_estimator(folder / "model")
    assert list(candidate.classes_) == ["no", "yes"]
    # The very same model as fitting here, row order and label spelling included.
    from sklearn.base import clone

    here = clone(champion).fit(data.train.inputs, spell_labels(spec, data.train.y))
    written = read_frame(folder / "predictions.parquet")
    expected = predict(here, spec, data.holdout.inputs)["probability"]
    assert written["candidate:probability"].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    old = predict(champion, spec, data.holdout.inputs)["probability"]
    assert written["champion:probability"].tolist() == old.tolist()
    loss = [
        ((written[f"{who}:probability"] - data.holdout.y) ** 2).mean()
        for who in ("champion", "candidate")
    ]
    assert loss[1] < loss[0]
    assert "training rows" in (folder / "train.log").read_text()


def test_a_users_trainer_sees_no_secrets_no_gate_labels_and_shadows_nothing(
    prepare: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELFLIFE_TEST_SECRET", "canary")
    folder = prepare("looks:train")
    first = fit(folder, time_limit="60s")  # a `registry.py` of theirs lies beside the trainer
    assert "canary" not in (folder / "environment.json").read_text()
    assert msgspec.json.decode((folder / "environment.json").read_bytes())["OMP_NUM_THREADS"] == "1"
    seen = msgspec.json.decode((folder / "files.json").read_bytes())
    assert set(seen) >= {"train.parquet", "holdout.parquet"}
    assert list(read_frame(folder / "holdout.parquet").columns) == ["in:x", "in:k", "in:c", "time"]
    assert len(load_estimator(folder / "model")[-1]._predictors) == 3
    # A training that is finished is not done again.
    (folder / "files.json").unlink()
    assert fit(folder, time_limit="60s") == first
    assert not (folder / "files.json").exists()


def test_a_trainer_that_raises_is_quoted(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match=r"(?s)status 1;.*about to fail.*RuntimeError: no luck"):
        fit(prepare("raises:train"), time_limit="60s")


def test_a_trainer_that_returns_nothing_useful(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match="returned NoneType; expected a fitted estimator"):
        fit(prepare("empty:train"), time_limit="60s")


def test_a_trainer_that_is_not_there(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match="No module named 'absent'"):
        fit(prepare("absent:train"), time_limit="60s")


def test_a_trainer_over_its_time_is_ended_with_its_children(prepare: Callable[..., Path]) -> None:
    folder = prepare("sleeps:train")
    with pytest.raises(TrainerFailed, match="ran over its time limit of 3s"):
        fit(folder, time_limit="3s")
    child = int((folder / "child.pid").read_text())
    wait_for(lambda: not running(child))  # the kill of a group is not waited for


def test_a_trainer_over_its_memory(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match=r"ran out of its memory limit of 4 GB"):
        fit(prepare("eats:train", memory=4e9), time_limit="60s")


def test_a_trainer_that_grows_over_its_memory(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match=r"ran out of its memory limit of 5 GB"):
        fit(prepare("grows:train", memory=5e9), time_limit="60s")


def test_a_trainer_that_leaves_without_a_word(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match=r"(?s)status 0 and left no result.*so long"):
        fit(prepare("leaves:train"), time_limit="60s")


def test_a_trainer_whose_model_answers_garbage(prepare: Callable[..., Path]) -> None:
    folder = prepare("garbage:train")
    with pytest.raises(TrainerFailed, match="225 of 225 predictions are NaN"):
        fit(folder, time_limit="60s")
    assert not (folder / "result.json").exists()
    assert not (folder / "model").exists()


def test_a_chatty_trainer_tells_no_secret_and_disturbs_nothing(
    prepare: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "SHELFLIFE_LEDGER"):
        monkeypatch.setenv(name, "canary-7361")
    folder = prepare("chatty:train")
    seen: list[Progress] = []
    result = fit(folder, time_limit="60s", progress=seen.append)
    assert result.reproduces
    log = (folder / "train.log").read_bytes()
    assert b"canary" not in log
    assert b"PATH" in log
    assert b"raw bytes" in log
    assert b"and errors" in log
    assert seen[-1] == Progress(percent=100.0, text="done", fits=1)
    assert all(b"canary" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_champion_that_cannot_be_loaded(prepare: Callable[..., Path], tmp_path: Path) -> None:
    folder = prepare()
    (tmp_path / "champion" / "model.skops").write_bytes(b"not a model")
    with pytest.raises(TrainerFailed, match="not a sound skops file"):
        fit(folder, time_limit="60s")


def test_a_function_does_without_a_champion_that_cannot_be_loaded(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    folder = prepare("alone:train")
    (tmp_path / "champion" / "model.skops").write_bytes(b"not a model")
    result = fit(folder, time_limit="60s")
    assert result.champion_latency_ms is None
    assert result.latency_ms is not None
    assert 0 < result.trivial[0] < 1
    written = read_frame(folder / "predictions.parquet")
    assert written["champion:probability"].isna().all()
    assert written["candidate:probability"].notna().all()
    assert "the champion cannot be evaluated" in (folder / "train.log").read_text()


def test_a_trainer_that_is_killed(prepare: Callable[..., Path]) -> None:
    with pytest.raises(TrainerFailed, match="ended by SIGKILL"):
        fit(prepare("dies:train"), time_limit="60s")


def test_it_ends_when_whoever_started_it_is_gone(prepare: Callable[..., Path]) -> None:
    folder = prepare("sleeps:train")
    script = "import sys; from pathlib import Path; from retrain.trainer import fit\n"
    script += "fit(Path(sys.argv[1]), time_limit='60s')"
    with subprocess.Popen([sys.executable, "-c", script, str(folder)]) as parent:
        wait_for(lambda: (folder / "child.pid").exists() and (folder / "child.pid").read_text())
        trainers = [pid for pid in group_leaders(parent.pid)]
        assert trainers
        parent.kill()
    wait_for(lambda: not any(running(pid) for pid in trainers))
    os.kill(int((folder / "child.pid").read_text()), 9)  # an orphan of the user's own making


def test_labels_are_spelled_as_the_target_spells_them(spec: ModelSpec) -> None:
    y = np.array([1.0, 0.0])
    assert spell_labels(spec, y).tolist() == ["yes", "no"]
    numbers = msgspec.structs.replace(spec, classes=(0, 1))
    assert spell_labels(numbers, y).dtype.kind == "i"
    mixed = msgspec.structs.replace(spec, classes=(0, "many"))
    assert spell_labels(mixed, y).tolist() == ["many", 0]
    assert spell_labels(msgspec.structs.replace(spec, task="regression"), y) is y


def test_inputs_survive_the_folder(
    prepare: Callable[..., Path], data: Dataset, spec: ModelSpec
) -> None:
    again = read_inputs(prepare() / "train.parquet", spec)
    expected = to_frame(spec, {name: data.train.inputs[name].tolist() for name in spec.columns})
    assert again.equals(expected)
    assert again.dtypes.tolist() == expected.dtypes.tolist()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def group_leaders(parent: int) -> list[int]:
    """Children of a process that lead a session, as the trainer does."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
