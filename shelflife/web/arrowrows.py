"""Rows out of Arrow IPC, stream or file; pyarrow is imported when the first such body comes.

Columns are `id`, `event_id`, `source`, `version`, `role`, `time`, and the inputs and outputs either
flat (`inputs.age`, `outputs.probability`) or as structs (`inputs`, `outputs`). Labels come as
`id`, `label`, `time`, `source`. NaN in a float column is a missing value, as pandas writes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from core.errors import InputError
from core.times import iso
from shelflife.web import arrowguard
from shelflife.web.jsonrows import complaint
from shelflife.web.limits import MAX_COLUMNS, Limits, Refused, problem
from shelflife.web.wire import LabelIn, PredictionIn, Problem

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row", PredictionIn, LabelIn)
_PREFIXES = ("inputs", "outputs")


def rows(
    body: bytes, kind: type[Row], limits: Limits
) -> tuple[list[tuple[int, Row]], list[Problem]]:
    """The rows of an Arrow body, and those that are no rows.

    Raises:
        InputError: not Arrow, damaged, larger than allowed, or a column that cannot be read.
    """
    found_columns, count = columns(body, limits)
    name = "predictions" if kind is PredictionIn else "labels"
    if count > limits.rows:
        expected = f"at most {limits.rows}; send several requests"
        raise Refused("rows", name, f"{count} rows", expected)
    known = set(kind.__struct_fields__)
    for column in found_columns:
        if column.partition(".")[0] not in known:
            raise Refused("unknown_field", column, column, f"one of {sorted(known)}")
    found, problems = list[tuple[int, Row]](), list[Problem]()
    for position, value in enumerate(_objects(found_columns, count)):
        try:
            found.append((position, msgspec.convert(value, kind)))
        except msgspec.ValidationError as error:
            bad = complaint(str(error), value, kind)
            problems.append(problem(position, bad, at=f"{name}[{position}]"))
        except InputError as error:
            problems.append(problem(position, error, at=f"{name}[{position}]"))
    return found, problems


def _objects(columns: dict[str, list[Any]], count: int) -> Iterator[dict[str, Any]]:
    """One object per row; a column `inputs.age` is the member `age` of `inputs`."""
    plain = [(name, values) for name, values in columns.items() if "." not in name]
    for position in range(count):
        # A missing text is an absent one; a missing input is a null.
        row = {name: values[position] for name, values in plain if values[position] is not None}
        for prefix in _PREFIXES:
            inner = {
                name[len(prefix) + 1 :]: values[position]
                for name, values in columns.items()
                if name.startswith(f"{prefix}.")
            }
            if inner:
                row[prefix] = inner
        yield row


def columns(body: bytes, limits: Limits) -> tuple[dict[str, list[Any]], int]:
    """The columns of an Arrow body as plain values, and how many rows they have.

    Raises:
        InputError: not Arrow, damaged, larger than allowed, or a column that cannot be read.
    """
    import pyarrow as pa

    stream = arrowguard.stream(body)
    arrowguard.check(stream, rows=limits.rows, size=limits.body)
    found: dict[str, list[Any]] = {}
    count, spent = 0, _Spent(limits.body)
    try:
        with pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
            names = _names(reader.schema)
            for batch in reader:
                # Offsets within bounds, UTF-8 that is UTF-8: nothing is read before this.
                batch.validate(full=True)
                count += batch.num_rows
                for name, array in zip(names, _flat(batch), strict=True):
                    found.setdefault(name, []).extend(_values(name, array, spent))
    except (pa.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        message = str(error).partition("\n")[0][:200]
        expected = f"an Arrow IPC stream or file ({message})"
        raise Refused("arrow", "body", "bytes that are none", expected) from None
    return {name: found.get(name, []) for name in names}, count


def _names(schema: pa.Schema) -> list[str]:
    """The columns with structs taken apart, once their types are known to be readable."""
    import pyarrow as pa

    names: list[str] = []
    for field in schema:
        if pa.types.is_struct(field.type) and field.name in _PREFIXES:
            inner = [field.type.field(i) for i in range(field.type.num_fields)]
            for each in inner:
                _readable(f"{field.name}.{each.name}", each.type)
            names += [f"{field.name}.{each.name}" for each in inner]
        else:
            _readable(field.name, field.type)
            names.append(field.name)
    if len(names) > MAX_COLUMNS:
        raise Refused("columns", "body", f"{len(names)} columns", f"at most {MAX_COLUMNS}")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise Refused("duplicate_key", twice, "the column twice", "each column once")
    return names


def _flat(batch: pa.RecordBatch) -> Iterator[pa.Array]:
    import pyarrow as pa

    for field, array in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_struct(field.type):
            yield from array.flatten()
        else:
            yield array


def _readable(name: str, kind: pa.DataType) -> None:
    import pyarrow as pa

    types = pa.types
    inner = kind.value_type if types.is_dictionary(kind) else kind
    simple = (
        types.is_integer(inner)
        or types.is_floating(inner)
        or types.is_boolean(inner)
        or types.is_string(inner)
        or types.is_large_string(inner)
        or types.is_string_view(inner)
        or types.is_null(inner)
    )
    if not simple and not (name == "time" and types.is_timestamp(inner)):
        expected = "integers, floats, booleans or strings (time: also timestamps)"
        raise Refused("type", name, str(kind), expected)


class _Spent:
    """Characters handed out: a dictionary or view repeats a long text at no cost to its sender."""

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 0

    def add(self, name: str, size: int) -> None:
        self.total += size
        if self.total > self.most:
            expected = f"at most {self.most} bytes of text once it is spelled out"
            raise Refused("too_large", name, f"{self.total} bytes", expected)


def _values(name: str, array: pa.Array, spent: _Spent) -> Sequence[Any]:
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        levels = _values(name, array.dictionary, spent)
        places = array.indices.to_pylist()
        sizes = [len(level) if isinstance(level, str) else 8 for level in levels]
        spent.add(name, sum(sizes[place] for place in places if place is not None))
        return [None if place is None else levels[place] for place in places]
    if pa.types.is_string_view(kind):
        heads = np.frombuffer(array.buffers()[1], dtype="<i4")
        mine = heads.reshape(-1, 4)[array.offset : array.offset + len(array), 0]
        spent.add(name, int(mine.astype(np.int64).sum()))
    if pa.types.is_timestamp(kind):
        return _moments(array)
    if pa.types.is_floating(kind):
        numbers = array.cast(pa.float64()).to_pylist()
        return [None if n is not None and math.isnan(n) else n for n in numbers]
    found: list[Any] = array.to_pylist()
    return found


def _moments(array: pa.Array) -> list[str | None]:
    """ISO 8601 of each moment, to the microsecond; a timestamp without a zone is UTC."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Nanoseconds are cut to microseconds; seconds that overflow them are an error, not garbage.
    to = pc.CastOptions(pa.timestamp("us", array.type.tz), allow_time_truncate=True)
    counts = array.cast(options=to).cast(pa.int64())
    return [None if count is None else _spelled(count) for count in counts.to_pylist()]


def _spelled(count: int) -> str:
    try:
        whole = datetime.fromtimestamp(count // 10**6, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{count} µs since 1970"  # which is refused as the time of its row
    return iso(whole.replace(microsecond=count % 10**6))
