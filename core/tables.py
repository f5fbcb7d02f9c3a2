"""What the pages of the schema are written with: moments, keys, texts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Dialect, Integer, MetaData, Text, TypeDecorator

from core.times import from_micros, micros


class UtcTime(TypeDecorator[datetime]):
    """A timezone-aware UTC moment, stored as whole microseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


metadata = MetaData()
# SQLite autoincrements only INTEGER primary keys; PostgreSQL should have 64 bits.
Id = BigInteger().with_variant(Integer, "sqlite")


def key() -> Column[int]:
    return Column("id", Id, primary_key=True, autoincrement=True)


def text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, **{"nullable": False, "server_default": "", **options})


def time(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, UtcTime, nullable=nullable)
