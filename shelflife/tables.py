"""Files, frames and mappings as columns of values, by Arrow, one column at a time.

Nothing becomes a pandas frame, and pandas is not imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import InputError
from core.spec import Kind
from monitor.measure.profile import (
    Values,
    code_booleans,
    code_numbers,
    code_strings,
    is_numeric,
    read_values,
    validity,
)

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 200_000  # rows of a file up to which it is read whole


class Columns:
    """Columns by name, each an Arrow array or a plain list of values that share no type.

    Attributes:
        names: in order.
        rows: of every column.
    """

    def __init__(self, table: Any, mixed: Mapping[str, Sequence[Any]] | None = None) -> None:
        self._table, self._mixed = table, dict(mixed or {})
        self.names: tuple[str, ...] = (*table.column_names, *self._mixed)
        self.rows = len(next(iter(self._mixed.values()))) if self._mixed else int(table.num_rows)
        # Asked for by every column of the other sample: a list would make that quadratic.
        self._types = {field.name: field.type for field in table.schema}
        self._types |= dict.fromkeys(self._mixed)

    def __contains__(self, name: str) -> bool:
        return name in self._types

    def type(self, name: str) -> Any:
        """The column's Arrow type; None for values that share none."""
        return self._types[name]

    def column(self, name: str) -> Any:
        """The Arrow array of a column, or its list of values."""
        return self._mixed[name] if name in self._mixed else self._table.column(name)

    def to_pandas(self) -> pd.DataFrame:
        frame: pd.DataFrame = self._table.to_pandas()
        return frame.assign(**self._mixed)[list(self.names)]


def table_of(name: str, source: Any) -> Columns:
    """Any tabular thing as columns.

    Args:
        name: what to call it in errors.
        source: a path of a Parquet or CSV file, a pandas, polars or pyarrow frame, or a mapping of
            names to values.

    Raises:
        InputError: no such thing, columns of different lengths, two columns of one name.
    """
    found = _read(name, source)
    twice = sorted(n for n, times in Counter(found.names).items() if times > 1)
    if twice:
        raise InputError(name, f"two columns named {twice[0]!r}", "columns with names of their own")
    return found


def _read(name: str, source: Any) -> Columns:
    import pyarrow as pa

    if isinstance(source, str | Path):
        return Columns(_file(name, Path(source)))
    try:
        if isinstance(source, pa.Table):
            return Columns(source)
        if type(source).__module__.startswith("pandas"):
            return _by_column({str(n): column for n, column in source.items()})
        if hasattr(source, "__arrow_c_stream__"):
            return Columns(pa.table(source))
        return _by_column(dict(source))
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        wanted = "a file, a mapping, or a pandas, polars or pyarrow frame"
        raise InputError(name, f"{type(source).__name__} ({error})", wanted) from None


def _by_column(columns: Mapping[str, Any]) -> Columns:
    """Each column by itself, so that one of mixed types spoils only itself."""
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    mixed: dict[str, list[Any]] = {}
    for name, values in columns.items():
        try:
            arrays[str(name)] = pa.array(values, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            mixed[str(name)] = list(values)
    lengths = {len(values) for values in (*arrays.values(), *mixed.values())}
    if len(lengths) > 1:
        raise ValueError(f"columns of different lengths: {sorted(lengths)}")
    return Columns(pa.table(arrays), mixed)


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


def columns_of(table: Columns, name: str, old: Columns) -> list[tuple[str, Kind, Values]]:
    """A column of a table as values of the reference's kind; a moment as its hour and weekday.

    Empty when the table has no such column.
    """
    if name not in table:
        return []
    import pyarrow as pa

    array = table.column(name)
    wanted = old.type(name) if name in old else table.type(name)
    if wanted is not None and (pa.types.is_timestamp(wanted) or pa.types.is_date(wanted)):
        return _moment(name, array)
    kind = _kind(wanted) if wanted is not None else _kind_of_mixed(old.column(name))
    if kind is None:  # nested or binary: there is no distribution to compare
        rows = len(array)
        present = np.zeros(rows, dtype=bool)
        return [(name, "categorical", Values(np.empty(0), present, 0, rows, str(wanted)))]
    return [(name, kind, _values(kind, array))]


def _kind_of_mixed(values: Sequence[Any]) -> Kind:
    """What most of the values are."""
    numbers = sum(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    strings = sum(isinstance(v, str) for v in values)
    return "numeric" if numbers > strings else "categorical"


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
    elif (
        pa.types.is_string(arrow)
        or pa.types.is_large_string(arrow)
        or pa.types.is_string_view(arrow)
        or pa.types.is_null(arrow)
    ):
        kind = "categorical"
    return kind


def _values(kind: Kind, array: Any) -> Values:
    import pyarrow as pa

    if isinstance(array, list):
        import pandas as pd

        return read_values(kind, pd.Series(array, dtype=object))
    type_ = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if is_numeric(kind) and (_kind(type_) in ("integer", "numeric")):
        return code_numbers(array.cast(pa.float64()))
    if kind == "boolean" and pa.types.is_boolean(type_):
        return code_booleans(array)
    if kind == "categorical" and (found := code_strings(array)) is not None:
        return found
    valid = validity(array)
    wrong = int(valid.sum())
    example = array[int(valid.argmax())].as_py() if wrong else None
    nothing = np.empty(0, dtype=np.float64 if is_numeric(kind) else np.intp)
    return Values(nothing, np.zeros(len(array), dtype=bool), len(array) - wrong, wrong, example)


def _moment(name: str, array: Any) -> list[tuple[str, Kind, Values]]:
    """Moments always move on; what can be compared is when in the day and the week they fall."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, list) or not (
        pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)
    ):
        rows = len(array)
        wrong = Values(np.empty(0), np.zeros(rows, dtype=bool), 0, rows)
        return [(f"{name} ({part})", "integer", wrong) for part in ("hour", "weekday")]
    found: list[tuple[str, Kind, Values]] = []
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("us"), safe=False)  # in UTC, whatever zone it was told in
        found.append((f"{name} (hour)", "integer", _values("integer", pc.hour(array))))
    return [*found, (f"{name} (weekday)", "integer", _values("integer", pc.day_of_week(array)))]
