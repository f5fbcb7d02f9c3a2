"""From whatever holds a history (a file, a frame) to a pandas frame with sound column names."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import InputError
from retrain.wording import plural

_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
_PARQUET = (".parquet", ".pq")
_SEPARATORS = ",;\t|"
_ENCODINGS = ("utf-8-sig", "cp1252")
_SNIFFED = 65_536  # characters looked at to find the separator


def read_table(source: Any) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a path or a pandas, polars or pyarrow frame, and what should be said of them.

    Columns that hold lists, structs or bytes are left out: a model cannot take them.

    Raises:
        InputError: no such file, one that cannot be read, no rows, or a column name twice.
    """
    notes: list[str] = []
    if isinstance(source, str | Path):
        frame = _read_file(Path(source), notes)
    elif isinstance(source, pd.DataFrame):
        frame = source.copy(deep=False)
    elif hasattr(source, "collect_schema") and hasattr(source, "collect"):  # polars.LazyFrame
        frame = _from_arrow(source.collect().to_arrow(), notes)
    elif hasattr(source, "to_arrow"):
        frame = _from_arrow(source.to_arrow(), notes)
    elif hasattr(source, "to_pandas") and hasattr(source, "schema"):
        frame = _from_arrow(source, notes)
    else:
        expected = "a path to a Parquet or CSV file, or a pandas, polars or pyarrow frame"
        raise InputError("history", type(source).__name__, expected)
    frame = frame.reset_index(drop=True)
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if not frame.columns.is_unique:
        twice = sorted(set(frame.columns[frame.columns.duplicated()]))
        raise InputError("history", twice, "column names that occur once")
    if not len(frame):
        raise InputError("history", "0 rows", "rows with their labels, in order of time")
    return frame, notes


def find_column(columns: Iterable[str], name: str, option: str) -> str:
    """The column itself, if it is there.

    Raises:
        InputError: it is not; the closest name is in the message.
    """
    known = list(columns)
    if name in known:
        return name
    folded = {column.casefold(): column for column in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    shown = ", ".join(known[:12]) + (f", and {len(known) - 12} more" if len(known) > 12 else "")
    raise InputError(option, name, f"one of the columns {shown}{hint}")


def _read_file(path: Path, notes: list[str]) -> pd.DataFrame:
    name = path.name.lower()
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError("file", str(path), f"an existing Parquet or CSV file{hint}")
    if name.endswith(_CSV):
        return _read_csv(path, "\t" if ".tsv" in name else None, notes)
    if name.endswith(_PARQUET) or path.is_dir():
        return _read_parquet(path, notes)
    raise InputError("file", str(path), "a file that ends in .parquet, .pq, .csv, .tsv or .csv.gz")


def _read_parquet(path: Path, notes: list[str]) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _from_arrow(pq.read_table(path), notes)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("file", str(path), f"a readable Parquet file ({first})") from None


def _from_arrow(table: Any, notes: list[str]) -> pd.DataFrame:
    import pyarrow as pa

    def bad(kind: Any) -> bool:
        tests = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
        return any(test(kind) for test in tests) or pa.types.is_fixed_size_binary(kind)

    left_out = [field.name for field in table.schema if bad(field.type)]
    if left_out:
        table = table.drop_columns(left_out)
        notes.append(f"left out, because they hold lists, structs or bytes: {_listed(left_out)}")
    for index, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            as_float = table.column(index).cast(pa.float64())
            table = table.set_column(index, field.name, as_float)
    try:
        frame: pd.DataFrame = table.to_pandas(date_as_object=False, ignore_metadata=True)
    except (pa.ArrowException, ValueError) as error:
        raise InputError("history", str(error)[:100], "columns pandas can hold") from None
    return frame


def _read_csv(path: Path, separator: str | None, notes: list[str]) -> pd.DataFrame:
    text, encoding = _decode(path)
    if encoding not in ("utf-8-sig", "utf-16"):
        notes.append(f"the file is not UTF-8; it was read as {encoding}")
    if "\0" in text[:_SNIFFED]:
        raise InputError("file", str(path), "a text file (it contains zero bytes)")
    chosen = separator or _separator(text[:_SNIFFED])
    decimal = "," if chosen == ";" and _decimal_commas(text[:_SNIFFED]) else "."
    try:
        return pd.read_csv(io.StringIO(text), sep=chosen, decimal=decimal, low_memory=False)
    except pd.errors.EmptyDataError:
        raise InputError("file", str(path), "a CSV file with a header and rows") from None
    except (pd.errors.ParserError, ValueError) as error:
        raise InputError("file", str(path), f"a CSV file pandas can parse ({error})") from None


def _decode(path: Path) -> tuple[str, str]:
    import gzip

    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError("file", str(path), f"a readable file ({error})") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace"), "utf-16"
    for encoding in _ENCODINGS:
        try:
            return raw.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1"), "latin-1"


def _separator(text: str) -> str:
    """The separator that cuts the header and the lines below it into equally many fields."""
    lines = [line for line in text.splitlines()[:50] if line.strip()]

    def score(separator: str) -> tuple[float, int]:
        counts = [len(row) for row in csv.reader(lines, delimiter=separator)]
        return sum(n == counts[0] for n in counts[:-1]) * (counts[0] > 1), counts[0]

    return max(_SEPARATORS, key=score) if lines else ","


def _decimal_commas(text: str) -> bool:
    """Whether `1,5` stands for a number in a file that separates by semicolons."""
    import re

    fields = [field for line in text.splitlines()[1:50] for field in line.split(";")]
    commas = sum(bool(re.fullmatch(r"-?\d+,\d+", field.strip())) for field in fields)
    points = sum(bool(re.fullmatch(r"-?\d+\.\d+", field.strip())) for field in fields)
    return commas > points


def _listed(names: list[str]) -> str:
    text = ", ".join(names[:8])
    return text + (f" and {plural(len(names) - 8, 'more column')}" if len(names) > 8 else "")
