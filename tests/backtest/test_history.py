"""What is read, guessed, refused and said before anything is replayed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from streams import stepped, times

from core.errors import InputError
from shelflife.backtest.history import Columns, Cut, History, open_history
from shelflife.backtest.moments import NEVER

DAY = timedelta(days=1)


def opened(source: Any, task: Any = None, **options: Any) -> History:
    cut = {"train_rows": 1000, "batch_rows": 500}
    cut = {k: options.pop(k) for k in Cut.__struct_fields__ if k in options} or cut
    columns = {"target": "y", "time": "at"} | options
    return open_history(source, Columns(**columns), Cut(**cut), task)


def said(history: History) -> str:
    return " | ".join(history.notes)


def test_windows_of_rows_meet_and_cover_everything_after_the_training_rows() -> None:
    history = opened(stepped(3000))
    assert [(w.first, w.last) for w in history.windows] == [
        (1000, 1500), (1500, 2000), (2000, 2500), (2500, 3000),
    ]  # fmt: skip
    assert all(a.end == b.start for a, b in pairwise(history.windows))
    for window in history.windows:
        inside = history.moments(slice(window.first, window.last))
        assert window.start <= min(inside)
        assert max(inside) < window.end


def test_windows_of_time_are_equally_long() -> None:
    history = opened(stepped(3000), train_rows=1000, window=timedelta(days=5))
    assert {w.end - w.start for w in history.windows} == {timedelta(days=5)}
    assert [w.last - w.first for w in history.windows] == [500] * 4


def test_a_gap_is_a_window_without_rows() -> None:
    frame = stepped(3000)
    gone = frame["at"].between(frame["at"][1500], frame["at"][1999])
    history = opened(frame[~gone], train_rows=1000, window=timedelta(days=5))
    assert [w.last - w.first for w in history.windows] == [500, 0, 500, 500]


def test_unsorted_rows_are_sorted_and_said() -> None:
    frame = stepped(3000)
    shuffled = opened(frame.sample(frac=1, random_state=1))
    assert "not in order" in said(shuffled)
    assert (shuffled.times == opened(frame).times).all()
    assert shuffled.labels.tolist() == opened(frame).labels.tolist()


def test_many_rows_of_one_moment_are_spread_until_the_next() -> None:
    frame = stepped(3000).assign(at=np.repeat(["2015", "2016", "2017"], 1000))
    history = opened(frame)
    assert (np.diff(history.times) > 0).all()
    assert len(history.windows) == 4
    assert {m.year for m in history.moments(slice(0, 1000))} == {2015}
    assert {m.year for m in history.moments(slice(2000, 2990))} == {2017}
    assert "spread" in said(history)


@pytest.mark.parametrize(
    ("column", "first"),
    [
        (1_767_225_600 + np.arange(3000) * 864, datetime(2026, 1, 1, tzinfo=UTC)),
        ((1_767_225_600 + np.arange(3000) * 864) * 1000, datetime(2026, 1, 1, tzinfo=UTC)),
        (np.arange(3000), datetime(2000, 1, 1, tzinfo=UTC)),
        (times(3000).tz_convert("Europe/Berlin"), datetime(2026, 1, 1, tzinfo=UTC)),
        (times(3000).tz_localize(None), datetime(2026, 1, 1, tzinfo=UTC)),
        (times(3000).strftime("%Y-%m-%dT%H:%M:%S+02:00"), datetime(2025, 12, 31, 22, tzinfo=UTC)),
        (times(3000).strftime("%d.%m.%Y %H:%M:%S"), datetime(2026, 1, 1, tzinfo=UTC)),
        (times(3000).date, datetime(2026, 1, 1, tzinfo=UTC)),
    ],
    ids=["epoch", "milliseconds", "steps", "zone", "naive", "offset", "german", "dates"],
)
def test_times_are_read_however_they_are_written(column: Any, first: datetime) -> None:
    assert opened(stepped(3000).assign(at=column)).moments(slice(0, 1)) == [first]


def test_times_that_cannot_be_compared_are_refused() -> None:
    texts = times(3000).strftime("%Y-%m-%dT%H:%M:%S").to_numpy().astype(object)
    texts[5] += "+02:00"
    with pytest.raises(InputError, match=r"all have a time zone or all have none"):
        opened(stepped(3000).assign(at=texts))
    with pytest.raises(InputError, match="'soon'"):
        opened(stepped(3000).assign(at=[*times(2999).astype(str), "soon"]))
    with pytest.raises(InputError, match="dates, ISO 8601"):
        opened(stepped(3000).assign(at=True))
    with pytest.raises(InputError, match="numbers from"):
        opened(stepped(3000).assign(at=np.linspace(-1e9, 1e12, 3000)))


def test_rows_without_a_time_are_left_out() -> None:
    frame = stepped(3000)
    frame.loc[7, "at"] = pd.NaT
    assert len(opened(frame).times) == 2999
    frame.loc[:2000, "at"] = pd.NaT
    with pytest.raises(InputError, match="a time in every row"):
        opened(frame)


def test_a_wrong_column_names_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean 'at'"):
        opened(stepped(3000), time="att")
    with pytest.raises(InputError, match="--target"):
        opened(stepped(3000), target="nothing")
    with pytest.raises(InputError, match="--drop"):
        opened(stepped(3000), drop=("zz",))


def test_the_time_column_is_guessed_and_said() -> None:
    assert "time at (guessed)" in said(opened(stepped(3000), time=""))
    with pytest.raises(InputError, match="--time"):
        opened(stepped(3000).rename(columns={"at": "x"}).assign(x=1.0), time="")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([0, 1], "binary"), (["no", "yes"], "binary"), ([True, False], "binary"),
        ([0.0, 1.0], "binary"), (["a", "b", "c"], "multiclass"), ([1, 2, 3], "multiclass"),
        (np.linspace(0, 1, 500), "regression"), (np.arange(300), "regression"),
    ],
)  # fmt: skip
def test_the_task_is_guessed_from_the_labels(labels: Any, task: str) -> None:
    frame = stepped(3000).assign(y=np.resize(np.array(labels), 3000))
    history = opened(frame)
    assert history.task == task
    assert f"task {task} (guessed" in said(history)


def test_labels_nothing_can_be_learned_from_are_refused() -> None:
    frame = stepped(3000)
    with pytest.raises(InputError, match="only 1"):
        opened(frame.assign(y=1))
    with pytest.raises(InputError, match="no label at all"):
        opened(frame.assign(y=np.nan))
    with pytest.raises(InputError, match="two classes"):
        opened(frame.assign(y=np.arange(3000) % 3), task="binary")
    with pytest.raises(InputError, match="different texts"):
        opened(frame.assign(y=[f"t{i}" for i in range(3000)]))
    with pytest.raises(InputError, match="numbers for a regression"):
        opened(frame.assign(y=np.resize(["a", "b"], 3000)), task="regression")
    with pytest.raises(InputError, match="at least two values"):
        opened(frame.assign(y=(np.arange(3000) > 1500).astype(int)))


def test_rows_without_a_label_are_never_labelled() -> None:
    frame = stepped(3000)
    frame["y"] = frame["y"].astype(float)
    frame.loc[1200:1299, "y"] = np.nan
    history = opened(frame)
    assert (history.known[1200:1300] == NEVER).all()
    assert history.labels[1199] in (0, 1)
    assert type(history.labels[1199]) is int
    assert "100 rows have no y" in said(history)


def test_when_labels_are_known() -> None:
    frame = stepped(3000)
    assert (opened(frame).known == opened(frame).times).all()
    delayed = opened(frame, train_rows=1000, batch_rows=500, label_delay=DAY)
    assert (delayed.known - delayed.times == 86_400_000_000).all()
    known = frame["at"] + DAY
    known.iloc[3] = frame["at"].iloc[3] - DAY
    known.iloc[4] = pd.NaT
    given = opened(frame.assign(known=known), label_time="known")
    assert given.known[3] == given.times[3]
    assert given.known[4] == NEVER
    assert "known before their row" in said(given)
    assert "known" not in given.inputs
    with pytest.raises(InputError, match="lie before"):
        opened(frame.assign(known=frame["at"] - DAY), label_time="known")


def test_too_little_history_is_refused_with_what_is_needed() -> None:
    with pytest.raises(InputError, match="3 windows"):
        opened(stepped(1002))
    with pytest.raises(InputError, match="at least 3 windows"):
        opened(stepped(1900))
    with pytest.raises(InputError, match="2 windows"):
        opened(stepped(3000), train_rows=1000, window=timedelta(days=12))
    with pytest.raises(InputError, match="shorter --label-delay"):
        opened(stepped(3000), train_rows=1000, batch_rows=500, label_delay=30 * DAY)
    with pytest.raises(InputError, match="at most 5,000 windows"):
        opened(stepped(3000), train_rows=1000, window=timedelta(seconds=10))
    with pytest.raises(InputError, match="0 rows"):
        opened(stepped(3000).iloc[:0])


def test_duplicates() -> None:
    frame = stepped(3000)
    twice = pd.concat([frame, frame.iloc[:5]])
    history = opened(twice)
    assert len(history.times) == 3005
    assert "5 rows equal another one" in said(history)
    named = opened(twice.assign(id=[*range(3000), *range(5)]), id="id")
    assert len(named.times) == 3000
    assert "repeat an id" in said(named)
    with pytest.raises(InputError, match="column names that occur once"):
        opened(pd.concat([frame, frame["a"]], axis=1))


def test_columns_become_what_a_model_takes() -> None:
    frame = stepped(3000)
    frame["city"] = np.resize(["Ulm", "Rom", None], 3000)
    frame["kind"] = pd.Categorical(np.resize(["x", "y"], 3000))
    frame["opened"] = frame["at"] - 30 * DAY
    frame["closed"] = frame["at"] + 3 * DAY
    frame["flag"] = np.resize([True, False], 3000)
    frame["maybe"] = np.resize(np.array([True, None], dtype=object), 3000)
    frame["text"] = [f"remark {i}" for i in range(3000)]
    frame["empty"] = np.nan
    frame["late"] = np.where(np.arange(3000) < 1000, np.nan, 1.0)
    frame["huge"] = np.where(np.arange(3000) % 100 == 0, np.inf, 1.0)
    frame["lists"] = [[1, 2]] * 3000
    frame["leak"] = frame["y"] * 2.0
    history = opened(frame)
    made = set(history.inputs)
    assert {"a", "city", "kind", "flag", "maybe", "opened_hour", "huge", "leak"} <= made
    assert not made & {"text", "empty", "late", "lists", "opened", "y", "at"}
    assert "opened_days_before" not in made  # always thirty: nothing to learn
    assert np.isfinite(history.inputs["huge"].dropna()).all()
    told = said(history)
    for part in ("identifiers or free text): text", "no training row has a value: empty, late",
                 "closed lies after the row's own time", "leak equals the label",
                 "huge: 30 infinite values"):  # fmt: skip
        assert part in told
    with pytest.raises(InputError, match="at least one usable column"):
        opened(frame, features=("text", "empty"))


def test_csv_of_many_kinds(tmp_path: Path) -> None:
    frame = stepped(2500).assign(city=np.resize(["Zürich", "Łódź"], 2500))
    path = tmp_path / "h.csv"
    kinds: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"sep": ";", "decimal": ",", "encoding": "utf-8-sig"}, ""),
        ({"sep": "\t", "encoding": "utf-16"}, ""),
    ]
    for options, _ in kinds:
        frame.to_csv(path, index=False, **options)
        history = opened(path)
        assert history.inputs["a"].dtype == np.float64
        assert set(history.inputs["city"]) == {"Zürich", "Łódź"}
    frame["city"] = np.resize(["Zürich", "Köln"], 2500)
    frame.to_csv(path, index=False, encoding="cp1252")
    assert "not UTF-8" in said(opened(path))
    for content, match in (
        (b"", "header and rows"),
        (b"y,at\n", "0 rows"),
        (b'y,at\n1,"2020', "pandas can parse"),
        (b"y,at\n" + b"\0" * 40, "zero bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=match):
            opened(path)


def test_parquet_with_nested_and_odd_types(tmp_path: Path) -> None:
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = stepped(2500)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    odd = {
        "nested": pa.array([{"a": 1}] * 2500),
        "list": pa.array([[1]] * 2500),
        "bytes": pa.array([b"x"] * 2500),
        "price": pa.array([decimal.Decimal("1.25"), decimal.Decimal("2.5")] * 1250),
        "nothing": pa.nulls(2500),
        "word": pa.array(["x", "y"] * 1250).dictionary_encode(),
        "lasted": pa.array([1, 2] * 1250, pa.duration("s")),
        "day": pa.array([18000, 18001] * 1250, pa.int32()).cast(pa.date32()),
    }
    for name, column in odd.items():
        table = table.append_column(name, column)
    path = tmp_path / "h.parquet"
    pq.write_table(table, path)
    history = opened(path)
    assert {"price", "word", "lasted"} <= set(history.inputs)
    assert not {"nested", "list", "bytes", "nothing", "day"} & set(history.inputs)
    assert "lists, structs or bytes: nested, list, bytes" in said(history)
    path.write_bytes(b"PAR1 no it is not")
    with pytest.raises(InputError, match="readable Parquet"):
        opened(path)
    with pytest.raises(InputError, match=r"did you mean 'h\.parquet'"):
        opened(tmp_path / "h.parqet")
    (tmp_path / "h.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        opened(tmp_path / "h.xlsx")


def test_other_frames() -> None:
    import polars
    import pyarrow as pa

    frame = stepped(2500)
    expected = opened(frame)
    for other in (pa.Table.from_pandas(frame), polars.from_pandas(frame)):
        assert (opened(other).times == expected.times).all()
    with pytest.raises(InputError, match="pandas, polars or pyarrow"):
        opened([1, 2, 3])
