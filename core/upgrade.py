"""Bring an older ledger up to the present schema, by addition only.

A newer schema may add tables, columns that are nullable or have a server default, and indexes. It
never renames, drops or retypes, so that a process of the older version which still runs beside the
upgrade goes on working, and an upgrade cut off half-way is simply repeated.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

from core.errors import ShelflifeError


def add_missing(tx: sa.Connection, metadata: sa.MetaData) -> list[str]:
    """Add the columns and indexes that tables of an older schema lack; returns their names.

    Raises:
        ShelflifeError: a new column could not be filled for existing rows (a defect of the schema).
    """
    added: list[str] = []
    known = sa.inspect(tx)
    for table in metadata.sorted_tables:
        if not known.has_table(table.name):
            continue  # `create_all` makes it whole
        columns = {column["name"] for column in known.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                _add_column(tx, table, column)
                added.append(f"{table.name}.{column.name}")
        indexes = {index["name"] for index in known.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                index.create(tx)
                added.append(str(index.name))
    return added


def _add_column(tx: sa.Connection, table: sa.Table, column: sa.Column[object]) -> None:
    if not column.nullable and column.server_default is None:
        raise ShelflifeError(
            f"column {table.name}.{column.name} can only be added to existing rows when it is "
            "nullable or has a server default"
        )
    quote = tx.dialect.identifier_preparer
    definition = CreateColumn(column).compile(dialect=tx.dialect)
    tx.exec_driver_sql(f"ALTER TABLE {quote.format_table(table)} ADD COLUMN {definition}")
