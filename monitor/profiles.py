"""The baselines' columns beside the checks, for pages: a copy of what MLflow keeps of a version."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from core import schema
from monitor.measure.profile import ColumnProfile


def keep(tx: sa.Connection, model: str, version: str, columns: Sequence[ColumnProfile]) -> None:
    """Write a version's profiles down, once."""
    table = schema.baseline_profiles
    known = sa.select(table.c.version).where(table.c.model == model, table.c.version == version)
    if tx.scalar(known) is not None:
        return
    text = msgspec.json.encode(list(columns)).decode()
    values = {"model": model, "version": version, "columns": text}
    try:
        with tx.begin_nested():
            tx.execute(table.insert().values(**values))
    except sa.exc.IntegrityError:  # another process was faster; they are the same
        return


def load(tx: sa.Connection, model: str, version: str) -> tuple[ColumnProfile, ...]:
    """A version's profiles; empty where no check of it was recorded."""
    table = schema.baseline_profiles
    query = sa.select(table.c.columns).where(table.c.model == model, table.c.version == version)
    text = tx.scalar(query)
    try:
        return msgspec.json.decode(text or "[]", type=tuple[ColumnProfile, ...])
    except msgspec.MsgspecError:
        return ()
