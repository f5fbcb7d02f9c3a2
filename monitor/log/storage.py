"""Where segments lie: a local folder, or any store that fsspec knows, such as `s3://bucket/prefix`.

Four operations, each whole or not at all. A folder is as durable as its disk: temporary file,
fsync, rename, fsync of the folder. An object store gets one PUT, which its own rules make atomic,
and is read back before anybody relies on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from core.errors import StoreUnavailable
from core.files import write_atomic

T = TypeVar("T")


class Gone(Exception):
    """The store answers, and does not have the file."""


class Entry(Struct, frozen=True, kw_only=True):
    """A file of the store."""

    name: str
    bytes: int
    modified: datetime


class Storage(Protocol):
    """Files by name (`model/name.parquet`).

    Every operation raises `StoreUnavailable` when the store cannot be reached or refuses.
    """

    def write(self, name: str, data: bytes) -> None:
        """Make the file be there with exactly these bytes, durably, or not at all."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            Gone: there is no such file.
        """
        ...

    def delete(self, name: str) -> None:
        """Make the file not be there; one that is not there already is no error."""
        ...

    def listed(self) -> list[Entry]:
        """Every file, those of interrupted writes too."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for people."""
        ...


def open_storage(address: str | Path, options: Mapping[str, Any] | None = None) -> Storage:
    """The store at a path or an fsspec URL.

    Args:
        options: handed to fsspec (`endpoint_url`, `profile`, …). Without keys in them, S3 takes its
            credentials from the environment, as every AWS client does.
    """
    text = str(address)
    if "://" not in text:
        return Folder(Path(address))
    if text.startswith(("file://", "local://")):
        return Folder(Path(text.split("://", 1)[1]))
    return Remote(text, dict(options or {}))


class Folder:
    """A folder on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        return str(self.root)

    def write(self, name: str, data: bytes) -> None:
        with self._said("write", name):
            write_atomic(self._at(name), data)

    def read(self, name: str) -> bytes:
        with self._said("read", name):
            try:
                return self._at(name).read_bytes()
            except FileNotFoundError:
                if not self.root.is_dir():
                    raise  # a disk that is not mounted is no proof that a file was lost
                raise Gone(name) from None

    def delete(self, name: str) -> None:
        with self._said("delete", name):
            self._at(name).unlink(missing_ok=True)

    def listed(self) -> list[Entry]:
        found = []
        with self._said("list", ""):
            for path in self.root.rglob("*"):
                try:
                    known = path.stat()
                except FileNotFoundError:
                    continue  # deleted meanwhile
                if path.is_file():
                    name = path.relative_to(self.root).as_posix()
                    moment = datetime.fromtimestamp(known.st_mtime, UTC)
                    found.append(Entry(name=name, bytes=known.st_size, modified=moment))
        return sorted(found, key=lambda entry: entry.name)

    def _at(self, name: str) -> Path:
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise PermissionError(13, "the name leads out of the store")
        return path

    @contextmanager
    def _said(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise StoreUnavailable(f"cannot {what} {self.root / name}: {why}") from error


class Remote:
    """A store that fsspec reaches over the network.

    The connection is made at the first use, once per process: fsspec's own loops and sessions do
    not survive a fork.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url, self._options = url.rstrip("/"), options
        self._opened: tuple[int, Any, str] | None = None

    @property
    def address(self) -> str:
        return self._url

    def _fs(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                import fsspec

                # No listing cache: another process writes and deletes here too.
                fixed = {"use_listings_cache": False, "skip_instance_cache": True}
                fs, root = fsspec.core.url_to_fs(self._url, **(fixed | self._options))
            except (ImportError, ValueError) as error:
                hint = "install `shelflife[s3]`" if self._url.startswith("s3") else "see fsspec"
                raise StoreUnavailable(f"cannot open {self._url}: {error}; {hint}") from error
            self._opened = (os.getpid(), fs, root)
        return self._opened[1], self._opened[2]

    def write(self, name: str, data: bytes) -> None:
        fs, root = self._fs()
        self._try("write", name, lambda: fs.pipe_file(f"{root}/{name}", data))
        if self.read(name) != data:
            self.delete(name)
            raise StoreUnavailable(f"{self._url}/{name} does not hold what was written to it")

    def read(self, name: str) -> bytes:
        fs, root = self._fs()

        def whole() -> bytes:
            try:
                found: bytes = fs.cat_file(f"{root}/{name}")
                return found
            except FileNotFoundError:
                # S3 says the same of a missing bucket, which is no proof that a file was lost.
                if not fs.exists(root.split("/", 1)[0]):
                    raise
                raise Gone(name) from None

        return self._try("read", name, whole)

    def delete(self, name: str) -> None:
        fs, root = self._fs()

        def gone() -> None:
            try:
                fs.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

        self._try("delete", name, gone)

    def listed(self) -> list[Entry]:
        fs, root = self._fs()

        def found() -> dict[str, dict[str, Any]]:
            try:
                every: dict[str, dict[str, Any]] = fs.find(root, detail=True)
            except FileNotFoundError:
                return {}
            return every

        return [
            Entry(
                name=name.removeprefix(root).lstrip("/"),
                bytes=int(info.get("size") or 0),
                modified=_modified(info),
            )
            for name, info in sorted(self._try("list", "", found).items())
        ]

    def _try(self, what: str, name: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except Gone:
            raise
        except Exception as error:  # each fsspec back end raises its own client's errors
            why = str(error) or type(error).__name__
            raise StoreUnavailable(f"cannot {what} {self._url}/{name}: {why}") from error


def _modified(info: Mapping[str, Any]) -> datetime:
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
    return datetime.now(UTC)  # unknown: as young as can be, so that nothing sweeps it away
