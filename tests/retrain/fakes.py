"""A registry in memory that obeys the contract of `registry.versions.Registry`, for tests that ask
it thousands of things; `test_fakes.py` holds the two against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from core.errors import NotFound, RegistryError
from core.files import sha256_tree
from registry.versions import Version

Fault = Callable[[str], str]
CREATED = datetime(2020, 1, 1, tzinfo=UTC)


def fine(_operation: str) -> str:
    """No fault."""
    return ""


class FakeRegistry:
    """Versions, tags, aliases and files of one model.

    Attributes:
        fault: asked with each operation's name; `before` fails it, `after` commits it and fails
            (MLflow's 500 after the commit).
        files: the bytes of each version's one model file, as the artifact store has them.
        moves: every move of `champion`: (version, whether the bytes were those registered).
    """

    def __init__(self, folder: Path, spec: bytes = b"{}") -> None:
        self.folder, self.spec = folder, spec
        self.fault: Fault = fine
        self.files: dict[str, bytes] = {}
        self.moves: list[tuple[str, bool]] = []
        self._versions: dict[str, Version] = {}
        self._aliases: dict[str, str] = {}
        self._deleted = 0

    def _do(self, operation: str, work: Callable[[], Any]) -> Any:
        wrong = self.fault(operation)
        if wrong == "before":
            raise RegistryError(f"{operation}: connection refused")
        result = work()
        if wrong == "after":
            raise RegistryError(f"{operation}: 500")
        return result

    def _seen(self, version: str) -> Version:
        found = self._versions.get(version)
        if found is None:
            raise NotFound("version of m", version)
        aliases = tuple(sorted(a for a, to in self._aliases.items() if to == version))
        return msgspec.structs.replace(found, aliases=aliases, tags=dict(found.tags))

    # --- what `registry.promotion` and `retrain` ask --------------------------------------------

    def get(self, model: str, version: str) -> Version:
        return self._do("get", lambda: self._seen(version))

    def by_alias(self, model: str, alias: str) -> Version | None:
        to = self._aliases.get(alias)
        return self._do("by_alias", lambda: self._seen(to) if to is not None else None)

    def versions(self, model: str) -> list[Version]:
        numbers = sorted(self._versions, key=int, reverse=True)
        return self._do("versions", lambda: [self._seen(number) for number in numbers])

    def by_key(self, model: str, key: str) -> Version | None:
        made = [v for v in self._versions.values() if key and v.tags.get(KEY) == key]
        first = min(made, key=lambda v: int(v.version), default=None)
        return self._do("by_key", lambda: None if first is None else self._seen(first.version))

    def set_alias(self, model: str, alias: str, version: str) -> None:
        def work() -> None:
            self._seen(version)
            self._aliases[alias] = version
            if alias == "champion":
                digest = self._hash(version)
                self.moves.append((version, digest == self._versions[version].sha256))

        self._do(f"set_alias:{alias}", work)

    def drop_alias(self, model: str, alias: str) -> None:
        self._do(f"drop_alias:{alias}", lambda: self._aliases.pop(alias, None))

    def tag(self, version: Version, **tags: str | None) -> Version:
        def work() -> None:
            kept = self._versions[version.version]
            changed: dict[str, str | None] = {
                key if "." in key else f"shelflife.{key}": value for key, value in tags.items()
            }
            left = {k: v for k, v in {**kept.tags, **changed}.items() if v is not None}
            sha256 = left.get(SHA256, "")
            self._versions[version.version] = msgspec.structs.replace(
                kept, tags=left, sha256=sha256
            )

        self._do("tag", work)
        return self._seen(version.version)

    def add(self, model: str, data: bytes, *, idempotency_key: str = "") -> Version:
        """Like `Registry.add`, with the model's bytes instead of an estimator."""
        found = self.by_key(model, idempotency_key)
        if found is not None:
            return found

        def work() -> Version:
            number = str(len(self._versions) + self._deleted + 1)
            self.files[number] = data
            digest = self._hash(number)
            tags = {SHA256: digest, **({KEY: idempotency_key} if idempotency_key else {})}
            self._versions[number] = Version(
                model=model, version=number, sha256=digest, created=CREATED, aliases=(),
                tags=tags, run_id="r", status="READY",
            )  # fmt: skip
            return self._seen(number)

        return self._do("add", work)

    def file(self, version: Version, name: str) -> bytes:
        if name != "spec.json":
            raise NotFound("file of this version", name)
        return self._do("file", lambda: self.spec)

    def download(self, uri: str, folder: Path) -> Path:
        number = uri.rpartition("/")[2]

        def work() -> Path:
            self._seen(number)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.bin").write_bytes(self.files[number])
            return folder

        return self._do("download", work)

    def _hash(self, number: str) -> str:
        data = self.files[number]
        folder = self.folder / hashlib.sha256(data).hexdigest()
        if not folder.is_dir():
            folder.mkdir(parents=True)
            (folder / "model.bin").write_bytes(data)
        return sha256_tree(folder)

    # --- what a person does in the MLflow UI -----------------------------------------------------

    def person_moves(self, alias: str, version: str) -> None:
        self._aliases[alias] = version

    def alias(self, name: str) -> str | None:
        """An alias, asked past all faults."""
        return self._aliases.get(name)

    def tags(self, version: str) -> Mapping[str, str]:
        return self._versions[version].tags


KEY, SHA256 = "shelflife.idempotency_key", "shelflife.artifact_sha256"
