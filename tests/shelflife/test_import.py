"""`shelflife import`: everything once, whatever is killed, repeated or wrong in the file."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import fsspec
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from shop import NOW, customers

from core import schema
from core.errors import InputError
from core.spec import Feature, ModelSpec
from monitor.log.records import Prediction
from registry.versions import Version
from shelflife import cli
from shelflife.importing.mapping import Known, Options, resolve
from shelflife.importing.rows import to_moment
from shelflife.service import Service

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, dict, str]]
SPEC = ModelSpec(
    name="m",
    task="binary",
    target="bought",
    features=(Feature(name="score", kind="numeric"), Feature(name="time", kind="integer")),
    metric="brier",
    classes=(0, 1),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a settings file and no model; the working directory."""
    (tmp_path / "shelflife.yaml").write_text("home: home\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`shelflife import --json`; returns exit code, summary and talk."""

    def run(*arguments: str) -> tuple[int, dict, str]:
        try:
            code = cli.main(["import", "--json", "--model", "m", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        written = capsys.readouterr()
        return code, json.loads(written.out) if written.out else {}, written.err

    return run


@pytest.fixture
def store(here: Path) -> Service:
    return Service.open(here / "shelflife.yaml")


def table(n: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "time": pd.date_range("2026-01-01", periods=n, freq="1h", tz="UTC"),
            "x": rng.normal(size=n),
            "plan": rng.choice(["gold", "tin"], n),
            "prediction": rng.normal(size=n),
            "y": rng.normal(size=n),
        }
    )


def content(store: Service) -> list[tuple]:
    """Everything the log and the labels hold of the model, sorted; without receipts."""
    rows = store.log.read("m", roles=("champion", "history"))
    frame = pd.concat([rows.meta, rows.inputs, rows.outputs], axis=1)
    with store.ledger.read() as tx:
        said = tx.execute(
            sa.select(schema.labels.c.prediction_id, schema.labels.c.time, schema.labels.c.value)
        ).all()
    return [*sorted(map(str, frame.itertuples(index=False))), *sorted(map(str, said))]


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz", "tsv"])
def test_rows_and_labels_arrive_as_they_stand_there(
    here: Path, run: Run, store: Service, kind: str
) -> None:
    frame = table()
    if kind == "parquet":
        frame.to_parquet("rows.parquet", row_group_size=30)
    else:
        frame.to_csv(f"rows.{kind}", index=False, sep="\t" if kind == "tsv" else ",")
    code, found, err = run(f"rows.{kind}")
    assert code == 0, err
    assert found["total"] == {
        "rows": 100, "logged": 100, "repeated": 0, "labels": 100, "unknown_labels": 0,
        "unlabelled": 0, "rejected": 0, "bad_labels": 0,
    }  # fmt: skip
    assert "time: time (guessed)" in err
    rows = store.log.read("m")
    assert rows.meta["id"].tolist() == frame["id"].tolist()
    assert rows.meta["time"].tolist() == frame["time"].tolist()
    assert rows.inputs["x"].tolist() == pytest.approx(frame["x"].tolist())
    assert rows.inputs["plan"].tolist() == frame["plan"].tolist()
    assert rows.outputs["prediction"].tolist() == pytest.approx(frame["prediction"].tolist())
    assert rows.meta["label"].tolist() == pytest.approx(frame["y"].tolist())
    before = content(store)
    for again in ((), ("--again",)):
        code, found, _ = run(f"rows.{kind}", *again)
        assert (code, found["total"]["logged"]) == (0, 0)
        assert found["sources"][0]["skipped"] is (not again)
        assert content(store) == before


def test_what_the_options_say(here: Path, run: Run, store: Service) -> None:
    frame = table(4).rename(columns={"id": "key", "time": "asked", "y": "paid", "x": "a b"})
    frame["seen"] = frame["asked"] + pd.Timedelta(days=3)
    frame["who"] = ["3", "4", "3", "4"]
    frame["p"] = 0.5
    frame.to_parquet("rows.parquet")
    code, _, err = run(
        "rows.parquet", "--id", "key", "--time", "asked", "--label", "paid", "--label-time",
        "seen", "--version", "who", "--output", "probability=p", "--input", "ab=a b",
        "--ignore", "prediction", "--role", "champion",
    )  # fmt: skip
    assert code == 0, err
    rows = store.log.read("m")
    assert rows.meta["version"].tolist() == ["3", "4", "3", "4"]
    assert rows.meta["label_time"].tolist() == frame["seen"].tolist()
    assert list(rows.inputs.columns) == ["ab", "plan"]
    assert list(rows.outputs.columns) == ["probability"]
    assert "(guessed)" not in err


def test_history_needs_no_answers_and_labels_no_rows(here: Path, run: Run, store: Service) -> None:
    table(10)[["id", "time", "x"]].to_csv("history.csv", index=False)
    code, _, err = run("history.csv")
    assert code == 0, err
    assert "role: history (no outputs)" in err
    assert len(store.log.read("m", roles=("history",))) == 10
    labels = table(12)[["id", "y", "time"]].assign(time="2026-02-01T00:00:00+01:00")
    labels.to_csv("labels.csv", index=False)
    code, found, _ = run("labels.csv")
    assert (code, found["total"]["labels"], found["total"]["unknown_labels"]) == (0, 10, 2)
    meta = store.log.read("m", roles=("history",)).meta
    assert meta["label_time"].tolist() == [pd.Timestamp("2026-01-31T23:00Z")] * 10


def test_without_an_id_the_content_and_the_row_are_the_id(
    here: Path, run: Run, store: Service
) -> None:
    frame = table(25).drop(columns="id")
    frame.to_parquet("a.parquet", row_group_size=10)
    assert run("a.parquet")[1]["total"]["logged"] == 25
    (here / "copy.parquet").write_bytes((here / "a.parquet").read_bytes())
    code, found, _ = run("copy.parquet")  # the same content under another name
    assert (code, found["total"]["logged"]) == (0, 0)
    ids = store.log.read("m").meta["id"]
    assert ids.is_unique
    assert ids[3].endswith("-3")


BAD = """\
id,time,prediction,y
a,2026-01-01T00:00:00Z,1.5,2
,2026-01-01T00:00:00Z,1.5,2
b,yesterday,1.5,2
c,2026-01-01T00:00:00Z,much,2
d,2026-01-01T00:00:00Z,inf,2
e,2999-01-01T00:00:00Z,1.5,2
f,2026-01-01T00:00:00Z
g,2026-01-01T00:00:00Z,,2
h,2026-01-01T00:00:00Z,1.5,
h,2026-01-01T00:00:00Z,1.5,
"""


def test_bad_rows_are_counted_and_written_down(here: Path, run: Run, store: Service) -> None:
    (here / "bad.csv").write_bytes(BAD.encode() + b"k\xff,2026-01-01T00:00:00Z,1.5,3\n")
    code, found, _ = run("bad.csv")
    assert code == cli.REJECTED
    assert found["total"] == {
        "rows": 10, "logged": 2, "repeated": 1, "labels": 1, "unknown_labels": 0,
        "unlabelled": 2, "rejected": 8, "bad_labels": 0,
    }  # fmt: skip
    lines = pd.read_csv(found["sources"][0]["rejects"])
    reasons = dict(zip(lines["row"].fillna(-1).astype(int), lines["reason"], strict=True))
    assert set(reasons) == {1, 2, 3, 4, 5, -1, 6, 9}
    assert reasons[1] == "id: None; expected an id"
    assert reasons[2] == "time: 'yesterday'; expected an ISO 8601 time or an epoch number"
    assert reasons[4] == "prediction: 'inf'; expected a finite number"
    assert "between 1900 and now" in reasons[5]
    assert reasons[-1] == "2 values; 4 expected"
    again, repeated, _ = run("bad.csv", "--again")
    assert (again, repeated["total"]["rejected"]) == (code, 8)
    assert len(pd.read_csv(found["sources"][0]["rejects"])) == 8


def test_a_dry_run_shows_and_writes_nothing(here: Path, run: Run, store: Service) -> None:
    (here / "bad.csv").write_text(BAD)
    code, found, _ = run("bad.csv", "--dry-run")
    [one] = found
    assert code == 0
    assert one["mapping"]["time"] == "time"
    assert one["problems"]["prediction: expected a finite number"] == 1
    assert one["predictions"] == 3
    assert store.log.counts("m").predictions == 0
    with store.ledger.read() as tx:
        assert tx.execute(sa.select(schema.imports)).all() == []


KILLED = """
import os, signal, sys
from monitor.log.log import InferenceLog
from shelflife import cli
from shelflife.importing import job, sources
sources.BATCH = 50
when, name = int(sys.argv[1]), sys.argv[2]
calls = 0
def dying(original):
    def wrapper(*arguments, **options):
        global calls
        calls += 1
        if calls == when:
            if options or name == "_keep":
                original(*arguments, **options)  # committed, and nobody was told
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    return wrapper
target = job.Job if name == "_keep" else InferenceLog
setattr(target, name, dying(getattr(target, name)))
sys.exit(cli.main(["import", "--model", "m", sys.argv[3]]))
"""


@pytest.mark.parametrize(
    ("kind", "name", "when"),
    [
        ("parquet", "append", 1),
        ("parquet", "append_labels", 3),
        ("parquet", "_keep", 4),
        ("parquet", "seal", 1),
        ("csv", "append", 5),
        ("csv", "_keep", 4),
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_end(
    here: Path, store: Service, run: Run, monkeypatch: pytest.MonkeyPatch,
    kind: str, name: str, when: int,
) -> None:  # fmt: skip
    frame = table(480)
    frame["prediction"] = frame["prediction"].astype(object)
    frame.loc[[3, 120, 300], "prediction"] = None  # refused rows, in several batches
    if kind == "parquet":
        frame.to_parquet("rows.parquet", row_group_size=70)
    else:
        frame.to_csv("rows.csv", index=False)
    code = subprocess.run(
        [sys.executable, "-c", KILLED, str(when), name, f"rows.{kind}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
    ).returncode  # fmt: skip
    assert code == -signal.SIGKILL
    monkeypatch.setattr("shelflife.importing.sources.BATCH", 50)
    code, found, err = run(f"rows.{kind}")
    assert code == cli.REJECTED, err
    [one] = found["sources"]
    assert (one["counts"]["rows"], one["counts"]["rejected"]) == (480, 3)
    assert len(pd.read_csv(one["rejects"])) == 3
    # Killed before its first position was kept, it starts anew; killed after the last, it is done.
    assert (one["resumed_at"] > 0) is ((name, when) not in [("append", 1), ("seal", 1)])
    assert one["skipped"] is (name == "seal")
    rows = store.log.read("m")
    assert sorted(rows.meta["id"]) == sorted(set(frame["id"]) - {"r3", "r120", "r300"})
    assert rows.meta["label"].notna().all()
    labels = store.log.counts("m").labels
    assert labels == 477


def test_the_same_import_twice_at_once_is_refused(here: Path, store: Service, run: Run) -> None:
    import fcntl

    table().to_parquet("rows.parquet")
    assert run("rows.parquet")[0] == 0
    [lock] = (store.home / "imports").iterdir()
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = run("rows.parquet", "--again")
    assert code == 1
    assert "another process" in err


def test_a_correction_survives_the_import_run_again(here: Path, store: Service, run: Run) -> None:
    from monitor.log.records import Label

    table(3).assign(seen="2026-02-01").rename(columns={"seen": "label_time"}).to_csv(
        "rows.csv", index=False
    )
    run("rows.csv")
    moment = datetime(2026, 2, 1, tzinfo=UTC)
    correction = Label(model="m", id="r1", value=99.0, time=moment)
    store.log.append_labels([correction], received=datetime.now(UTC))
    run("rows.csv", "--again")
    assert store.log.read("m").meta["label"].tolist()[1] == 99.0


def test_many_files_globs_and_urls(here: Path, store: Service, run: Run) -> None:
    frame = table(30)
    for i in range(3):
        frame.iloc[i * 10 : i * 10 + 10].to_parquet(f"part-{i}.parquet")
    memory = fsspec.filesystem("memory")
    with memory.open("/feed/more.csv.gz", "wb") as file:
        file.write(gzip.compress(table(35).iloc[28:].to_csv(index=False).encode()))
    code, found, err = run("part-*.parquet", "part-1.parquet", "memory://feed/*.gz")
    assert code == 0, err
    assert [each["counts"]["logged"] for each in found["sources"]] == [10, 10, 10, 5]
    assert len(store.log.read("m")) == 35


def test_a_query_is_streamed_and_idempotent(here: Path, store: Service, run: Run) -> None:
    with sqlite3.connect("warehouse.db") as db:
        table(50).astype({"time": str}).to_sql("asked", db, index=False)
    db.close()
    url, query = f"sqlite:///{here / 'warehouse.db'}", "SELECT * FROM asked WHERE id <> 'r7'"
    code, found, err = run("--sql", url, query)
    assert (code, found["total"]["logged"]) == (0, 49), err
    with sqlite3.connect("warehouse.db") as db:
        db.execute("UPDATE asked SET id = 'new' WHERE id = 'r8'")
    db.close()
    code, found, _ = run("--sql", url, query)  # a query may answer something else: read again
    assert (found["total"]["logged"], found["total"]["repeated"]) == (1, 48)
    code, _, err = run("--sql", url, "SELECT time, x, prediction FROM asked")
    assert (code, "no stable number" in err) == (2, True)
    code, _, err = run("--sql", url, "SELECT * FROM nosuch")
    assert (code, "no such table" in err) == (1, True)
    code, _, err = run("--sql", "env:NO_SUCH_URL", "SELECT 1")
    assert (code, "NO_SUCH_URL" in err) == (2, True)


@pytest.mark.postgres
def test_a_query_of_postgres_is_streamed(
    here: Path, store: Service, run: Run, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sa.create_engine(postgres_database)
    with engine.begin() as tx:
        table(40).to_sql("asked", tx, index=False)
    engine.dispose()
    monkeypatch.setenv("WAREHOUSE", postgres_database)
    code, found, err = run("--sql", "env:WAREHOUSE", "SELECT * FROM asked ORDER BY time")
    assert (code, found["total"]["logged"], found["total"]["labels"]) == (0, 40, 40), err
    assert store.log.read("m").meta["time"].tolist() == table(40)["time"].tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.csv"], ["none.csv", "existing"]),
        (["*.csv"], ["pattern"]),
        (["shelflife.yaml"], [".parquet, .csv"]),
        ([], ["files", "--sql"]),
        (["rows.csv", "--time", "when"], ["--time", "'when'", "columns"]),
        (["rows.csv", "--time", "x", "--label", "x"], ["--label", "another column"]),
        (["rows.csv", "--output", "p"], ["--output", "NAME=COLUMN"]),
        (["rows.csv", "--tz", "Mars/Base"], ["--tz", "IANA"]),
        (["twice.csv"], ["once"]),
        (["empty.csv"], ["first line"]),
        (["broken.parquet"], ["a Parquet file"]),
        (["x.csv"], ["--id with --label"]),
        (["y.csv"], ["--id", "which prediction"]),
        (["xt.csv", "--role", "champion"], ["--role", "--prediction"]),
    ],
)
def test_a_mistake_is_named(here: Path, run: Run, arguments: list[str], words: list[str]) -> None:
    table(3).to_csv("rows.csv", index=False)
    (here / "twice.csv").write_text("id,id,y\n1,1,1\n")
    (here / "empty.csv").write_text("")
    (here / "broken.parquet").write_text("PAR1 no")
    (here / "x.csv").write_text("x\n1\n")
    (here / "y.csv").write_text("y\n1\n")
    (here / "xt.csv").write_text("x,time\n1,2026-01-01\n")
    if arguments == ["*.csv"]:
        arguments = ["*.nothing.csv"]
    code, _, err = run(*arguments)
    assert code == 2, err
    for word in words:
        assert word in err


def test_a_models_inputs_are_inputs_whatever_their_names() -> None:
    columns = ["score", "time", "bought", "probability", "asked_at", "uuid", "extra"]
    known = Known(spec=SPEC, champion="7", label_delay=86400.0)
    mapping, lines = resolve(Options(model="m"), columns, known)
    assert mapping.inputs == {"score": "score", "time": "time"}
    assert (mapping.time, mapping.id, mapping.label) == ("asked_at", "uuid", "bought")
    assert mapping.outputs == {"probability": "probability"}
    assert (mapping.version, mapping.label_delay) == ("7", 86400.0)
    assert "not read: extra" in lines
    with pytest.raises(InputError, match="'time'"):
        resolve(Options(model="m"), ["score", "asked_at", "probability"], known)
    with pytest.raises(InputError, match="outputs of the model"):
        resolve(Options(model="m", outputs={"p": "probability"}), columns, known)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-07-01T12:00:00", "2026-07-01T10:00:00Z"),
        ("2026-07-01 12:00:00+09:00", "2026-07-01T03:00:00Z"),
        ("2026-01-01", "2025-12-31T23:00:00Z"),
        (datetime(2026, 1, 1), "2025-12-31T23:00:00Z"),  # noqa: DTZ001
        (1_767_225_600, "2026-01-01T00:00:00Z"),
        ("1767225600", "2026-01-01T00:00:00Z"),
        (1_767_225_600_000, "2026-01-01T00:00:00Z"),
        (1_767_225_600_000_000, "2026-01-01T00:00:00Z"),
        (1_767_225_600_000_000_000, "2026-01-01T00:00:00Z"),
        ("2026-10-25T02:30:00", None),  # twice on that day
        ("2026-03-29T02:30:00", None),  # skipped on that day
        (True, None),
        (float("inf"), None),
        ("soon", None),
    ],
)
def test_moments(value: object, moment: str | None) -> None:
    zone = ZoneInfo("Europe/Berlin")
    if moment is None:
        with pytest.raises((ValueError, OverflowError)):
            to_moment(value, zone)
    else:
        assert to_moment(value, zone) == datetime.fromisoformat(moment)


def test_a_registered_models_rows_are_checked_against_its_spec(
    home: Path, champion: Version, run_shop: Run
) -> None:
    frame = customers(60, seed=5, start=NOW - timedelta(days=20)).assign(probability=0.5)
    frame["id"] = [f"new{i}" for i in range(60)]
    frame["bought"] = frame["bought"].astype(object)
    frame.loc[1, "age"] = np.inf
    frame.loc[2, "probability"] = 1.5
    frame.loc[3, "bought"] = 7
    frame["bought"] = frame["bought"].astype(float)
    frame.to_parquet("rows.parquet")
    code, found, err = run_shop("rows.parquet")
    assert code == cli.REJECTED, err
    assert (found["total"]["logged"], found["total"]["labels"]) == (58, 57)
    assert (found["total"]["rejected"], found["total"]["bad_labels"]) == (2, 1)
    reasons = pd.read_csv(found["sources"][0]["rejects"])["reason"].tolist()
    assert "age: inf; expected a finite number" in reasons[0]
    assert "a probability, 0 to 1" in reasons[1]
    assert "label left out: bought: 7.0; expected one of [0, 1]" in reasons[2]
    with Service.open(home / "shelflife.yaml").ledger.read() as tx:
        [row] = tx.execute(
            sa.select(schema.labels).where(schema.labels.c.prediction_id == "new10")
        ).all()
    assert row.time - frame["at"][10] == timedelta(days=1)  # the settings' label_delay


@pytest.fixture
def run_shop(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, dict, str]:
        capsys.readouterr()
        code = cli.main(["import", "--json", "--model", "shop", "--time", "at", *arguments])
        written = capsys.readouterr()
        return code, json.loads(written.out) if written.out else {}, written.err

    return run


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_bounded(here: Path) -> None:
    """Six times the rows take no more than a few megabytes more."""
    code = (
        "import sys; from shelflife import cli;"
        "assert cli.main(['import', '--model', 'm', sys.argv[1]]) == 0;"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    )
    peaks = []
    for n in (10_000, 60_000):
        frame = pd.DataFrame({"id": np.arange(n), "label": 1, "text": "x" * 200})
        frame.to_parquet(f"{n}.parquet", row_group_size=10_000)
        done = subprocess.run(
            [sys.executable, "-c", code, f"{n}.parquet"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 40


def test_rows_of_other_sources_are_not_touched(here: Path, store: Service, run: Run) -> None:
    other = Prediction(
        model="m", id="r1", version="1", time=NOW, inputs={"x": 1.0}, outputs={}, source="serving"
    )
    store.log.append([other], received=NOW)
    table(3).to_csv("rows.csv", index=False)
    assert run("rows.csv")[1]["total"]["logged"] == 3
    assert len(store.log.read("m")) == 4
