"""Files, frames and mappings as columns of values, by Arrow, one column at a time.

Nothing becomes a pandas frame, and pandas is not imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import InputError
from core.spec import Kind
from monitor.measure.profile import Values, code_numbers, code_strings, is_numeric

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 200_000  # rows of a file up to which it is read whole


def table_of(name: str, source: Any) -> Any:
    """Any tabular thing as an Arrow table; strings of a file come as dictionaries."""
    import pyarrow as pa

    if isinstance(source, str | Path):
        return _file(name, Path(source))
    if isinstance(source, pa.Table):
        return source
    try:
        if hasattr(source, "__arrow_c_stream__"):
            return pa.table(source)
        if type(source).__module__.startswith("pandas"):
            return pa.Table.from_pandas(source, preserve_index=False)
        return pa.table(dict(source))
    except (pa.ArrowException, TypeError, ValueError) as error:
        wanted = "a file, or a pandas, polars or pyarrow frame whose columns have one type each"
        raise InputError(name, f"{type(source).__name__} ({error})", wanted) from None


def _file(name: str, path: Path) -> Any:
    import pyarrow as pa

    if not path.is_file():
        raise InputError(name, str(path), "a Parquet or CSV file that exists")
    try:
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            from pyarrow import csv

            parse = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return csv.read_csv(path, parse_options=parse)
        file = _Parquet(path)
        return file if file.num_rows > _AT_ONCE else file.table()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(name, str(path), f"a readable Parquet or CSV file ({error})") from None


class _Parquet:
    """A Parquet file whose columns are read one at a time, strings as dictionaries."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        schema = parquet.read_schema(path)
        text = [f.name for f in schema if pa.types.is_string(f.type)]
        self._file = parquet.ParquetFile(path, read_dictionary=text)
        self.column_names = list(self._file.schema_arrow.names)
        self.num_rows = int(self._file.metadata.num_rows)
        self.schema = self._file.schema_arrow

    def column(self, name: str) -> Any:
        return self._file.read(columns=[name]).column(0)

    def table(self) -> Any:
        return self._file.read()

    def to_pandas(self) -> pd.DataFrame:
        frame: pd.DataFrame = self.table().to_pandas()
        return frame


def columns_of(table: Any, name: str, old: Any) -> list[tuple[str, Kind, Values]]:
    """A column of a table as values of the reference's kind; a moment as its hour and weekday."""
    if name not in table.column_names:
        return []
    import pyarrow as pa

    array = table.column(name)
    kind_of = _type(old, name) if name in old.column_names else array.type
    if pa.types.is_timestamp(kind_of) or pa.types.is_date(kind_of):
        return _moment(name, array)
    kind = _kind(kind_of)
    if kind is None:  # nested or binary: there is no distribution to compare
        rows = len(array)
        present = np.zeros(rows, dtype=bool)
        return [(name, "categorical", Values(np.empty(0), present, 0, rows, str(kind_of)))]
    return [(name, kind, _values(kind, array))]


def _type(table: Any, name: str) -> Any:
    schema = table.schema
    return schema.field(name).type


def _kind(arrow: Any) -> Kind | None:
    import pyarrow as pa

    kind: Kind | None = None
    if pa.types.is_boolean(arrow):
        kind = "boolean"
    elif pa.types.is_integer(arrow):
        kind = "integer"
    elif pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        kind = "numeric"
    elif pa.types.is_dictionary(arrow):
        kind = _kind(arrow.value_type)
        kind = "categorical" if kind is None or not is_numeric(kind) else kind
    elif pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_null(arrow):
        kind = "categorical"
    return kind


def _values(kind: Kind, array: Any) -> Values:
    import pyarrow as pa
    import pyarrow.compute as pc

    type_ = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if is_numeric(kind) and (_kind(type_) in ("integer", "numeric")):
        return code_numbers(array.cast(pa.float64()))
    if kind == "boolean" and pa.types.is_boolean(type_):
        found = code_strings(pc.if_else(array, "true", "false"))
        assert found is not None  # noqa: S101 - strings are always coded
        return found
    if kind == "categorical" and (found := code_strings(array)) is not None:
        return found
    valid = array.is_valid().to_numpy() if array.null_count else np.ones(len(array), dtype=bool)
    wrong = int(valid.sum())
    example = array[int(valid.argmax())].as_py() if wrong else None
    nothing = np.empty(0, dtype=np.float64 if is_numeric(kind) else np.intp)
    return Values(nothing, np.zeros(len(array), dtype=bool), len(array) - wrong, wrong, example)


def _moment(name: str, array: Any) -> list[tuple[str, Kind, Values]]:
    """Moments always move on; what can be compared is when in the day and the week they fall."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)):
        return [(f"{name} (weekday)", "integer", _values("integer", array))]
    found: list[tuple[str, Kind, Values]] = []
    if pa.types.is_timestamp(array.type):
        found.append((f"{name} (hour)", "integer", _values("integer", pc.hour(array))))
    return [*found, (f"{name} (weekday)", "integer", _values("integer", pc.day_of_week(array)))]
