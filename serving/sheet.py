"""The rows of one answer on their way to the log, still as the arrays they came in.

The event loop has better things to do than to make a dictionary per row; whoever commits rows does
(`serving.log_process`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from core.spec import Scalar
from monitor.log.records import Prediction, Role


class Sheet(Struct, array_like=True):
    """Rows of one model that have everything in common but ids and values.

    Attributes:
        ids: prediction ids, one per row.
        names: of the columns.
        matrix: their values as float64, row by row; empty where `columns` has them.
        columns: their values, one list per column.
        outputs: one list per output.
    """

    model: str
    version: str
    role: Role
    time: datetime
    source: str
    ids: list[str]
    names: Sequence[str]
    matrix: bytes
    columns: list[list[Scalar]] | None
    outputs: dict[str, list[float]]

    def __len__(self) -> int:
        return len(self.ids)

    def predictions(self) -> list[Prediction]:
        """The rows one by one."""
        names = list(self.outputs)
        answers = zip(*self.outputs.values(), strict=True)
        return [
            Prediction(
                model=self.model,
                id=identity,
                version=self.version,
                role=self.role,
                time=self.time,
                inputs=dict(zip(self.names, values, strict=True)),
                outputs=dict(zip(names, answer, strict=True)),
                source=self.source,
            )
            for identity, values, answer in zip(self.ids, self._rows(), answers, strict=True)
        ]

    def _rows(self) -> Iterable[Sequence[Any]]:
        if self.columns is not None:
            return zip(*self.columns, strict=True)
        width = len(self.names)
        values = memoryview(self.matrix).cast("d").tolist()
        return [values[start : start + width] for start in range(0, len(values), width)]


#: The rows of one answer.
Entry = Sheet | Sequence[Prediction]


def model_of(entry: Entry) -> str:
    """The model that all rows of an answer are of."""
    return entry.model if isinstance(entry, Sheet) else entry[0].model


def predictions(entries: Iterable[Entry]) -> list[Prediction]:
    """Every row of many answers, in order."""
    return [
        row
        for entry in entries
        for row in (entry.predictions() if isinstance(entry, Sheet) else entry)
    ]
