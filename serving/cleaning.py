"""Prepared versions that nobody serves any more are kept for a while, then removed.

A version whose folder is gone is prepared again when somebody wants it: nothing is lost but time.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from core.errors import ShelflifeError
from serving import store
from serving.store import Manifest

_LAST = 3  # of each model: what a rollback wants at once


def clean_store(home: Path, *, now: datetime, keep: timedelta) -> list[str]:
    """Remove prepared folders older than `keep` that no pointer names; returns their names.

    The newest three of each model stay. Conversions go likewise: what is asked for again is
    measured again. What a killed preparation left behind goes after a day.

    Args:
        now: wall clock, the one of the folders' times.
    """
    root = store.prepared(home, "x").parent
    if not root.is_dir():
        return []
    named = _pointed_at(home)
    if named is None:
        return []  # a pointer cannot be read: nobody knows what it wants
    kept = named | _newest(root)
    removed = []
    converted = home / "serving" / "converted"
    folders = [*root.iterdir(), *(converted.iterdir() if converted.is_dir() else ())]
    for folder in sorted(folders):
        if folder.name in kept or not folder.is_dir():
            continue
        age = now - datetime.fromtimestamp(folder.stat().st_mtime, tz=UTC)
        if age > (timedelta(days=1) if folder.name.startswith(".new-") else keep):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed


def _pointed_at(home: Path) -> set[str] | None:
    found = set()
    for path in store.pointers(home).glob("*.json"):
        try:
            pointer = store.read_pointer(path)
        except FileNotFoundError:
            continue
        except ShelflifeError:
            return None
        found.add(pointer.champion.folder)
        if pointer.challenger is not None:
            found.add(pointer.challenger.folder)
    return found


def _newest(root: Path) -> set[str]:
    by_model: dict[str, list[tuple[float, str]]] = {}
    for folder in root.iterdir():
        try:
            data = (folder / store.MANIFEST).read_bytes()
            model = msgspec.json.decode(data, type=Manifest).model
        except (OSError, msgspec.DecodeError):
            continue
        by_model.setdefault(model, []).append((folder.stat().st_mtime, folder.name))
    return {name for each in by_model.values() for _, name in sorted(each, reverse=True)[:_LAST]}
