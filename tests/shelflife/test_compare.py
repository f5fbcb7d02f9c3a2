"""Two samples compared with no service: from files, frames and mappings, whatever is in them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from core.errors import InputError
from monitor.results import ColumnDrift
from shelflife import compare
from shelflife.cli import DRIFT, OK, USAGE, main
from shelflife.comparison import Comparison, Prepared

RNG = np.random.default_rng(71)


def frame(n: int, shift: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({
        "age": RNG.normal(40 + shift, 10, n),
        "visits": RNG.poisson(3, n),
        "country": RNG.choice(["UK", "DE", "FR"], n, p=[0.6, 0.3, 0.1]),
        "member": RNG.random(n) < 0.4,
    })  # fmt: skip


def of(found: Comparison, name: str) -> ColumnDrift:
    return next(column for column in found.columns if column.column == name)


OLD, NEW = frame(2000), frame(500, shift=8)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "old.parquet", tmp_path / "new.parquet"
    for part, path in zip((OLD, NEW), paths, strict=True):
        part.to_parquet(path, index=False)
        part.to_csv(path.with_suffix(".csv"), index=False)
    return paths


def test_every_kind_of_source_finds_the_same(files: tuple[Path, Path]) -> None:
    old, new = files
    wanted = compare(OLD, NEW)
    assert wanted.drifted == ("age",)
    assert wanted.columns[0].column == "age"
    assert (wanted.reference_rows, wanted.current_rows) == (2000, 500)
    sources: list[tuple[Any, Any]] = [
        (old, str(new)),
        (old.with_suffix(".csv"), new.with_suffix(".csv")),
        (pl.from_pandas(OLD), pl.from_pandas(NEW)),
        (pl.from_pandas(OLD).with_columns(pl.col("country").cast(pl.Categorical)), NEW),
        (pa.Table.from_pandas(OLD), pa.Table.from_pandas(NEW)),
        (dict(OLD), {name: NEW[name].tolist() for name in NEW}),
    ]
    for reference, current in sources:
        found = compare(reference, current)
        assert [c.column for c in found.columns] == [c.column for c in wanted.columns]
        for mine, theirs in zip(found.columns, wanted.columns, strict=True):
            values = [s.value for s in mine.statistics]
            assert values == pytest.approx([s.value for s in theirs.statistics], rel=1e-9)


def test_a_comparison_shows_itself() -> None:
    found = compare(OLD, NEW)
    assert found.summary().startswith("1 of 4 columns drifted: age (500 rows against 2,000;")
    table = found.to_frame()
    assert table.loc[0, ["column", "test", "drifted"]].tolist() == ["age", "location", True]
    assert json.loads(found.to_json())["drifted"] == ["age"]
    assert "<table>" in found._repr_html_()
    hostile = compare({"<b>": OLD["age"]}, {"<b>": NEW["age"]})
    assert "<b>" not in hostile._repr_html_()
    assert "&lt;b&gt;" in hostile._repr_html_()


def test_the_command(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = map(str, files)
    assert main(["compare", old, new]) == OK
    told = capsys.readouterr().out
    assert "▲ location z" in told
    assert "● alike" in told
    assert main(["compare", old, new, "--fail-on-drift"]) == DRIFT == 3
    assert main(["compare", old, old, "--fail-on-drift"]) == OK
    capsys.readouterr()
    assert main(["compare", old, new, "--json", "--columns", "visits", "country"]) == OK
    found = json.loads(capsys.readouterr().out)
    assert sorted(c["column"] for c in found["columns"]) == ["country", "visits"]
    assert found["drifted"] == []
    assert main(["compare", old, new, "--json", "--error-rate", "0.001"]) == OK
    assert json.loads(capsys.readouterr().out)["error_rate"] == 0.001


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere.parquet", "{new}"], "nowhere.parquet"),
    (["{old}", "{new}", "--columns", "agee"], "agee"),
    (["{old}", "{new}", "--error-rate", "2"], "error_rate"),
    (["{old}", "{text}"], "a readable Parquet or CSV file"),
    (["{old}", "{none}"], "0 rows"),
])  # fmt: skip
def test_what_cannot_be_compared_is_named(
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    text, none = files[0].with_name("text.parquet"), files[0].with_name("none.parquet")
    text.write_text("not Parquet")
    OLD.iloc[:0].to_parquet(none)
    names = {"old": files[0], "new": files[1], "text": text, "none": none}
    assert main(["compare", *(a.format(**names) for a in arguments)]) == USAGE
    assert said in capsys.readouterr().err


def test_evidently_writes_the_page(files: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    script = "from shelflife.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, "compare", *map(str, files),
         "--html", str(page)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == OK, done.stderr
    assert "wrote" in done.stderr
    assert page.stat().st_size > 1_000_000


def test_both_names_are_the_function_in_any_order() -> None:
    for script in (
        "import shelflife, shelflife.comparison; assert callable(shelflife.compare)",
        "import shelflife.comparison; from shelflife import compare; assert callable(compare)",
        "from shelflife import compare; import shelflife.comparison, shelflife.compare_command;"
        "import shelflife; assert shelflife.compare is compare",
    ):
        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_a_comparison_of_files_imports_no_pandas(files: tuple[Path, Path]) -> None:
    script = (
        "import sys; from shelflife.cli import main; main(['compare', *sys.argv[1:]]);"
        "heavy = {'pandas', 'sqlalchemy', 'sklearn', 'mlflow', 'evidently'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", script, *map(str, files)], check=True, cwd=root, capture_output=True
    )


@pytest.mark.parametrize(("old", "new", "why"), [
    ([1.0, 2.0] * 50, [None] * 60, "all 60 values are missing"),
    ([1.0, 2.0] * 50, [np.inf] * 60, "60 of 60 values are no numeric values"),
    ([1.0, 2.0] * 50, ["1", "2"] * 30, "60 of 60 values are no numeric values"),
    (["a", "b"] * 50, [1, 2] * 30, "60 of 60 values are no categorical values"),
    ([1.0, 2.0] * 50, [datetime(2026, 1, 1, tzinfo=UTC)] * 60, "60 of 60 values are no numeric"),
    ([None] * 100, [1.0] * 60, "the baseline has no value in this column"),
    ([[1], [2, 3]] * 50, [[1], [2]] * 30, "are neither numbers nor categories nor moments"),
    ([b"a"] * 100, [b"a"] * 60, "of type binary are neither numbers"),
    ([1.0, 2.0] * 50, [1.0] * 49 + [None] * 11, "49 values, fewer than the 50"),
])  # fmt: skip
def test_a_broken_column_says_why_and_spoils_only_itself(
    old: list[object], new: list[object], why: str
) -> None:
    found = compare(
        {"bad": old, "good": RNG.normal(size=100)}, {"bad": new, "good": RNG.normal(3, 1, 60)}
    )
    assert why in of(found, "bad").why
    assert not of(found, "bad").drifted
    assert found.drifted == ("good",)


def test_constant_and_mixed_columns_are_measured_where_they_can_be() -> None:
    old = {"same": [7.0] * 100, "moved": [7.0] * 100, "mixed": [1.0, 2.0] * 50}
    new = {"same": [7.0] * 60, "moved": [8.0] * 60, "mixed": [1.5] * 30 + ["x"] * 30}
    for maker in (dict, lambda data: pd.DataFrame(data, dtype=object)):
        found = compare(maker(old), maker(new), min_rows=20)
        assert not of(found, "same").drifted
        assert of(found, "moved").drifted
        assert of(found, "mixed").n == 30
        assert of(found, "mixed").drifted
    # Mixed in the reference: most of its values are numbers.
    back = compare({"mixed": [*range(100), "x"]}, {"mixed": [*range(100)]})
    assert (of(back, "mixed").kind, of(back, "mixed").n, back.drifted) == ("numeric", 100, ())


def test_gone_and_new_columns_are_named() -> None:
    found = compare(
        {"both": [1.0] * 100, "gone": [1.0] * 100}, {"both": [1.0] * 60, "new": [1.0] * 60}
    )
    assert of(found, "gone").why == "the window does not have this column"
    assert (found.only_reference, found.only_current) == (("gone",), ("new",))
    nothing = compare({"a": [1.0] * 100}, {"b": [1.0] * 100})
    assert nothing.drifted == ()


def test_moments_are_compared_by_hour_and_weekday_in_utc() -> None:
    start = datetime(2026, 3, 2, tzinfo=UTC)
    every = [start + timedelta(hours=7 * i) for i in range(700)]
    east = timezone(timedelta(hours=9))
    elsewhere = [moment.astimezone(east if i % 2 else UTC) for i, moment in enumerate(every)]
    found = compare({"at": every}, {"at": elsewhere})
    assert sorted(c.column for c in found.columns) == ["at (hour)", "at (weekday)"]
    assert found.drifted == ()
    eastern = pd.DataFrame({"at": pd.to_datetime(every).tz_convert("Asia/Tokyo")})
    assert compare({"at": every}, eastern).drifted == ()
    nights = [moment.replace(hour=3) for moment in every]
    assert compare({"at": every}, {"at": nights}).drifted == ("at (hour)",)
    days = compare({"day": [m.date() for m in every]}, {"day": [m.date() for m in every]})
    assert [c.column for c in days.columns] == ["day (weekday)"]
    texts = compare({"at": every}, {"at": ["yesterday"] * 80})
    assert all("80 of 80 values" in column.why for column in texts.columns)


def test_columns_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InputError, match="different lengths"):
        compare({"a": [1, 2], "b": [1]}, {"a": [1]})
    with pytest.raises(InputError, match="two columns named 'a'"):
        compare(pa.table([[1], [2]], names=["a", "a"]), {"a": [1]})
    with pytest.raises(InputError, match="reference"):
        compare(7, {"a": [1]})


def test_alike_samples_are_called_drifted_as_rarely_as_promised() -> None:
    """400 comparisons of small alike frames at an error rate of 0.2: 0.3 to 1.2 times that."""
    rng, drifted = np.random.default_rng(5), 0

    def sample(n: int) -> dict[str, np.ndarray]:
        return {
            "normal": rng.normal(size=n),
            "heavy": rng.lognormal(0, 1.5, n),
            "ties": rng.poisson(2, n).astype(float),
            "level": rng.choice(list("abcde"), n, p=[0.5, 0.2, 0.15, 0.1, 0.05]).astype(object),
            "gaps": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
        }

    for _ in range(40):
        prepared = Prepared.of(sample(800))
        drifted += sum(
            bool(prepared.compare(sample(200), error_rate=0.2).drifted) for _ in range(10)
        )
    assert 0.3 <= drifted / 400 / 0.2 <= 1.2


def test_ten_thousand_columns_cost_ten_times_a_thousand() -> None:
    """No quadratic step: by the operations' own clock, with much to spare for a busy machine."""

    def seconds(columns: int) -> float:
        old = pa.table({f"x{i}": RNG.normal(size=60) for i in range(columns)})
        new = pa.table({f"x{i}": RNG.normal(size=60) for i in range(columns)})
        start = time.process_time()
        found = compare(old, new)
        spent = time.process_time() - start
        assert len(found.columns) == columns
        assert not any(column.why for column in found.columns)
        return spent

    few = seconds(1000)
    assert seconds(10_000) < 25 * few


def test_a_million_categories() -> None:
    old, new = ([f"id-{first + i}" for i in range(1_000_000)] for first in (0, 500_000))
    column = of(compare({"id": old}, {"id": new[:1000]}), "id")
    assert not column.why
    assert column.n == 1000
