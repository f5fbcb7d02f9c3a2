"""Files and queries as batches of columns, in bounded memory.

A batch is a dict of column name to Python values, at most `BATCH` of them. Files may lie on any
fsspec URL. A file's identity is the SHA-256 of its bytes, a query's that of its text and database.
"""

from __future__ import annotations

import glob
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from core.errors import InputError, ShelflifeError

BATCH = 10_000
_PIECE = 1 << 20  # bytes hashed at once
Columns = dict[str, list[Any]]
Bad = Callable[[str, str], None]  # (what stands there, why it is no row)


class Source(Protocol):
    """Something rows come from."""

    name: str  # for people; never with a password
    stable: bool  # the same rows in the same order every time

    def identity(self) -> str:
        """Hex digest of what is in it."""
        ...

    def columns(self) -> list[str]:
        """Names of its columns."""
        ...

    def rows(self) -> int | None:
        """How many rows it has, where that is cheap to know."""
        ...

    def batches(self, names: Sequence[str], start: int, bad: Bad) -> Iterator[Columns]:
        """These columns from row `start` on; lines that are no rows go to `bad`."""
        ...


def expand(urls: Sequence[str]) -> list[str]:
    """Files named one by one or by a glob, local or on any fsspec URL, in order, each once.

    Raises:
        InputError: a name that matches nothing.
    """
    found: list[str] = []
    for url in urls:
        if "://" in url:
            found += _remote(url)
            continue
        matches = sorted(glob.glob(url, recursive=True)) if glob.has_magic(url) else [url]
        if not matches:
            raise InputError("files", url, "a pattern that matches a file")
        found += matches
    return list(dict.fromkeys(found))


def _remote(url: str) -> list[str]:
    import fsspec

    if not glob.has_magic(url):
        return [url]
    try:
        fs, path = fsspec.core.url_to_fs(url)
        matches = [fs.unstrip_protocol(each) for each in sorted(fs.glob(path))]
    except (ImportError, OSError, ValueError) as error:
        raise InputError("files", url, f"a readable address ({error})") from None
    if not matches:
        raise InputError("files", url, "a pattern that matches a file")
    return matches


def file_source(url: str, *, encoding: str, delimiter: str) -> Source:
    """The source of one file, by its ending.

    Raises:
        InputError: no such file, or neither Parquet nor CSV.
    """
    import fsspec

    ending = url.lower().split("?")[0]
    plain = ending.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz").removesuffix(".zst")
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if not fs.isfile(path):
            raise InputError("files", url, "an existing Parquet or CSV file")
    except (ImportError, OSError, ValueError) as error:
        raise InputError("files", url, f"a readable file ({error})") from None
    if ending.endswith((".parquet", ".pq")):
        return ParquetFile(url, fs, path)
    if plain.endswith((".csv", ".tsv", ".txt")):
        separator = delimiter or ("\t" if plain.endswith(".tsv") else ",")
        return CsvFile(url, fs, path, encoding, separator)
    raise InputError("files", url, "a file that ends in .parquet, .csv or .tsv (or .csv.gz)")


class _File:
    stable = True

    def __init__(self, name: str, fs: Any, path: str) -> None:
        self.name, self._fs, self._path = name, fs, path

    def identity(self) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()


class ParquetFile(_File):
    """A Parquet file; whole row groups are skipped when it is resumed."""

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(
                self._fs.open(self._path, "rb"), pre_buffer=False, buffer_size=_PIECE
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError("files", self.name, f"a Parquet file ({error})") from None

    def columns(self) -> list[str]:
        """See `Source`."""
        names: list[str] = self._open().schema_arrow.names
        return _unique(names, self.name)

    def rows(self) -> int | None:
        """See `Source`."""
        return int(self._open().metadata.num_rows)

    def batches(self, names: Sequence[str], start: int, bad: Bad) -> Iterator[Columns]:
        """See `Source`."""
        file, skip, groups = self._open(), start, list[int]()
        for index in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(index).num_rows
            if not groups and skip >= count:
                skip -= count
            else:
                groups.append(index)
        for batch in file.iter_batches(
            batch_size=BATCH, row_groups=groups, columns=list(names), use_threads=False
        ):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield _plain(batch.slice(skip))
            skip = 0


def _plain(batch: Any) -> Columns:
    """Arrow columns as Python values; nanoseconds are cut to microseconds."""
    import pyarrow as pa

    found = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        found[name] = column.to_pylist()
    return found


class CsvFile(_File):
    """A CSV file, compressed or not, every value as text; lines of another length are bad rows."""

    def __init__(self, name: str, fs: Any, path: str, encoding: str, delimiter: str) -> None:
        super().__init__(name, fs, path)
        self._encoding, self._delimiter = encoding, delimiter

    def _stream(self) -> Any:
        import fsspec

        packing = fsspec.utils.infer_compression(self._path)
        file = self._fs.open(self._path, "rb")
        if packing is None:
            return file
        return fsspec.compression.compr[packing](file, mode="rb")

    def columns(self) -> list[str]:
        """See `Source`."""
        import csv

        with io.TextIOWrapper(self._stream(), encoding=self._encoding, errors="replace") as text:
            header = next(csv.reader(text, delimiter=self._delimiter), None)
        if not header:
            raise InputError("files", self.name, "a CSV file whose first line names its columns")
        header[0] = header[0].removeprefix("\ufeff")
        return _unique(header, self.name)

    def rows(self) -> int | None:
        """See `Source`: unknown before it was read."""
        return None

    def batches(self, names: Sequence[str], start: int, bad: Bad) -> Iterator[Columns]:
        """See `Source`."""
        met: list[tuple[str, str]] = []
        for columns in self._read(names, lambda line, why: met.append((line, why))):
            count = len(columns[names[0]])
            if start >= count:  # dealt with before, and so were the bad lines among them
                start -= count
                met.clear()
                continue
            for line, why in met:
                bad(line, why)
            met.clear()
            yield {name: values[start:] for name, values in columns.items()}
            start = 0
        for line, why in met:
            bad(line, why)

    def _read(self, names: Sequence[str], bad: Bad) -> Iterator[Columns]:
        import csv

        header, pending = self.columns(), list[list[str]]()
        wanted = [header.index(name) for name in names]
        text = io.TextIOWrapper(
            self._stream(), encoding=self._encoding, errors="surrogateescape", newline=""
        )
        with text:
            lines = csv.reader(text, delimiter=self._delimiter)
            next(lines, None)
            while True:
                try:
                    line = next(lines)
                except StopIteration:
                    break
                except csv.Error as error:
                    bad(f"line {lines.line_num}", f"no CSV: {error}")
                    continue
                if len(line) == len(header):
                    pending.append(line)
                elif line:
                    bad(self._delimiter.join(line), f"{len(line)} values; {len(header)} expected")
                if len(pending) == BATCH:
                    yield _transposed(pending, names, wanted)
                    pending = []
        if pending:
            yield _transposed(pending, names, wanted)


def _transposed(lines: list[list[str]], names: Sequence[str], wanted: list[int]) -> Columns:
    columns = list(zip(*lines, strict=True))
    return {
        name: [value if value != "" else None for value in columns[index]]
        for name, index in zip(names, wanted, strict=True)
    }


def _unique(names: list[str], source: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(source, twice, "column names that occur once")
    return names


class Query:
    """A SQL query, streamed. Its rows have no stable number, so it must have an id."""

    stable = False

    def __init__(self, url: str, text: str) -> None:
        import sqlalchemy as sa

        try:
            self._url = sa.make_url(url)
        except sa.exc.ArgumentError:
            expected = "an SQLAlchemy URL, or env:NAME of a variable that holds one"
            raise InputError("--sql", "***", expected) from None
        self._text = text
        self.name = f"{self._url.render_as_string(hide_password=True)} {text}"

    def identity(self) -> str:
        """See `Source`."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    def rows(self) -> int | None:
        """See `Source`: unknown."""
        return None

    def columns(self) -> list[str]:
        """See `Source`; runs the query up to its first row."""
        names, _ = self._run(lambda result: (list(result.keys()), result.fetchone()))
        return _unique(names, "--sql")

    def batches(self, names: Sequence[str], start: int, bad: Bad) -> Iterator[Columns]:
        """See `Source`; always from the first row on."""
        import sqlalchemy as sa

        engine = sa.create_engine(self._url)
        try:
            with engine.connect().execution_options(stream_results=True) as connection:
                text = sa.text(self._text).execution_options(yield_per=BATCH)
                with connection.execute(text) as result:
                    where = [list(result.keys()).index(name) for name in names]
                    for part in result.partitions(BATCH):
                        columns = list(zip(*part, strict=True))
                        yield {n: list(columns[i]) for n, i in zip(names, where, strict=True)}
        except sa.exc.SQLAlchemyError as error:
            raise self._failed(error) from None
        finally:
            engine.dispose()

    def _run(self, use: Callable[[Any], Any]) -> Any:
        import sqlalchemy as sa

        try:
            engine = sa.create_engine(self._url)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise self._failed(error) from None
        try:
            with (
                engine.connect().execution_options(stream_results=True) as connection,
                connection.execute(sa.text(self._text)) as result,
            ):
                return use(result)
        except sa.exc.SQLAlchemyError as error:
            raise self._failed(error) from None
        finally:
            engine.dispose()

    def _failed(self, error: Exception) -> ShelflifeError:
        # The driver's words, without SQLAlchemy's repetition of the statement.
        said = str(getattr(error, "orig", None) or error).split("\n")[0]
        return ShelflifeError(f"the query on {self._url.render_as_string(True)} failed: {said}")
