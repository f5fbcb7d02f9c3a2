"""A model registry in memory: versions, aliases and baselines of one replay, as MLflow keeps them.

It answers what `registry.versions.Registry` answers, so that promotion, rollback and the watch are
the service's own code.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from core.errors import NotFound
from monitor.baseline import Baseline, dump
from registry.versions import Version

if TYPE_CHECKING:
    import pandas as pd

    from shelflife.backtest.bank import Fitted


class Kept(Struct, kw_only=True):
    """One version with what travels with it."""

    version: Version
    fitted: Fitted
    baseline: Baseline
    reference: pd.DataFrame
    rows: int  # that it learned from


class MemoryRegistry:
    """Versions `1`, `2`, … of one model."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.aliases: dict[str, str] = {}
        self.tags: dict[str, dict[str, str]] = {}

    def keep(
        self,
        model: str,
        fitted: Fitted,
        baseline: Baseline,
        reference: pd.DataFrame,
        *,
        rows: int,
        at: datetime,
        tags: dict[str, str],
    ) -> Version:
        """Add a version."""
        name = str(len(self.kept) + 1)
        version = Version(
            model=model,
            version=name,
            sha256=_fingerprint(fitted),
            created=at,
            aliases=(),
            tags={},
            run_id="",
            status="READY",
        )
        self.tags[name] = dict(tags)
        self.kept[name] = Kept(
            version=version, fitted=fitted, baseline=baseline, reference=reference, rows=rows
        )
        return self.get(model, name)

    def get(self, model: str, version: str) -> Version:
        """See `Registry.get`."""
        if version not in self.kept:
            raise NotFound(f"version of {model}", version)
        names = tuple(alias for alias, to in self.aliases.items() if to == version)
        return msgspec.structs.replace(
            self.kept[version].version, aliases=names, tags=dict(self.tags[version])
        )

    def versions(self, model: str) -> list[Version]:
        """See `Registry.versions`: newest first."""
        return [self.get(model, name) for name in reversed(self.kept)]

    def by_alias(self, model: str, alias: str) -> Version | None:
        """See `Registry.by_alias`."""
        found = self.aliases.get(alias)
        return None if found is None else self.get(model, found)

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """See `Registry.set_alias`."""
        self.aliases[alias] = version

    def drop_alias(self, model: str, alias: str) -> None:
        """See `Registry.drop_alias`."""
        self.aliases.pop(alias, None)

    def tag(self, version: Version, **values: str | None) -> None:
        """See `Registry.tag`; None takes a tag away."""
        tags = self.tags[version.version]
        for name, value in values.items():
            if value is None:
                tags.pop(name, None)
            else:
                tags[name] = value

    def url(self, version: Version) -> str:
        """Nothing to show."""
        return ""

    def estimator(self, version: Version, *, trust_pickle: bool) -> Any:
        """See `Registry.estimator`."""
        return self.kept[version.version].fitted.estimator

    def download(self, uri: str, into: Path) -> Path:
        """A folder that stands for the version's files: it holds the name of its fit."""
        name = uri.rpartition("/")[2]
        into.mkdir(parents=True, exist_ok=True)
        (into / "fit").write_text(self.kept[name].fitted.key)
        return into

    def file(self, version: Version, name: str) -> bytes:
        """A file of the version: its spec, its baseline, or none."""
        kept = self.kept[version.version]
        if name == "spec.json":
            return msgspec.json.encode(kept.baseline.spec)
        if name == "baseline.json":
            return dump(kept.baseline)
        raise NotFound(f"file of {version.model} {version.version}", name)


def _fingerprint(fitted: Fitted) -> str:
    """What `registry.artifacts` finds for the folder that `download` makes."""
    from core.files import sha256_tree

    with tempfile.TemporaryDirectory(prefix="shelflife-fit-") as folder:
        (Path(folder) / "fit").write_text(fitted.key)
        return sha256_tree(Path(folder))


def as_registry(memory: MemoryRegistry) -> Any:
    """The registry as the rooms below know its type."""
    return memory
