"""Two samples compared with no service at all: `shelflife compare` and `shelflife.compare`.

The reference is the baseline, the current rows are one window; the calibrated tests of
`monitor.measure` decide, at an error rate for the whole comparison. Columns are read by Arrow and
never become a pandas frame: ten thousand rows of forty columns take a second from start to exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct, structs

from core.errors import InputError
from monitor.measure import drift, pairs, tally
from monitor.measure.calibration import Reference, calibrate
from monitor.measure.profile import (
    ColumnProfile,
    Values,
    count,
    profile_column,
)
from monitor.measure.together import judge_pairs
from monitor.results import ColumnDrift
from shelflife.tables import Columns, columns_of, table_of

if TYPE_CHECKING:
    import pandas as pd

ERROR_RATE = 0.05
_CLASSIFIER_SHARE = 0.2  # of the error rate, where one is asked for
_PAIR_ROWS = 2_000  # of either sample that correlations are compared on, evenly spread
_ONCE = timedelta(days=90)  # one look in the quarter that a budget counts in
_EFFECTS = ("psi", "js", "wasserstein", "ks", "chi2")


class Comparison(Struct, frozen=True, kw_only=True):
    """What a comparison found; shows itself in a notebook.

    Attributes:
        columns: every column of either sample, those that drifted first, the strongest first.
        error_rate: chance that two samples of one population are called drifted.
    """

    reference_rows: int
    current_rows: int
    error_rate: float
    columns: tuple[ColumnDrift, ...]
    only_reference: tuple[str, ...] = ()  # columns that the current rows lack
    only_current: tuple[str, ...] = ()
    joint: tuple[
        ColumnDrift, ...
    ] = ()  # pairs of columns; all at once where a classifier was asked

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the columns that drifted."""
        found = (*self.columns, *self.joint)
        return tuple(column.column for column in found if column.drifted)

    def to_frame(self) -> pd.DataFrame:
        """One row a column: kind, n, missing share, drifted, the deciding test and each effect."""
        import pandas as pd

        return pd.DataFrame([_flat(column) for column in self.columns])

    def to_json(self) -> bytes:
        """The whole result as JSON."""
        return msgspec.json.encode({"drifted": self.drifted, **msgspec.to_builtins(self)})

    def _repr_html_(self) -> str:
        flat = [_flat(column) for column in self.columns]
        head = "".join(f"<th>{escape(name)}</th>" for name in (flat[0] if flat else ()))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
            for row in flat
        )
        return f"<p>{escape(self.summary())}</p><table><tr>{head}</tr>{body}</table>"

    def summary(self) -> str:
        """One sentence."""
        measured = sum(not column.why for column in self.columns)
        moved = [column.column for column in self.columns if column.drifted]
        told = f"{len(moved)} of {measured} columns drifted"
        if moved:
            told += f": {', '.join(moved[:5])}{', …' if len(moved) > 5 else ''}"
        together = [each.column for each in self.joint if each.drifted]
        if together:
            told += f"; together: {', '.join(together)}"
        return (
            f"{told} ({self.current_rows:,} rows against {self.reference_rows:,}; two alike "
            f"samples would be called drifted once in {1 / self.error_rate:,.0f} comparisons)"
        )


def compare(
    reference: Any,
    current: Any,
    *,
    columns: Sequence[str] | None = None,
    error_rate: float = ERROR_RATE,
    min_rows: int = 50,
    classifier: bool = False,
) -> Comparison:
    """Compare two samples column by column, and numeric columns pair by pair.

    Args:
        reference, current: a path of a Parquet or CSV file, a pandas, polars or pyarrow frame, or
            a mapping of column names to values.
        columns: only these; all columns of either when None.
        error_rate: chance, in (0, 1), that two samples of one population are called drifted.
        min_rows: columns with fewer values are not measured.
        classifier: try, too, to tell the rows of one sample from the other's by a classifier on all
            columns at once (a second or two); it takes a fifth of the error rate.

    Raises:
        InputError: a file that cannot be read, no rows, no such column, an error rate outside
            (0, 1).
    """
    return Prepared.of(reference, columns=columns).compare(
        current, error_rate=error_rate, min_rows=min_rows, classifier=classifier
    )


class Prepared:
    """A reference made ready once, for many comparisons.

    Attributes:
        reference: its counts, as the calibrated tests need them.
    """

    def __init__(self, table: Columns, columns: Sequence[str] | None) -> None:
        self._table, self._columns = table, columns
        self._profiles: list[ColumnProfile] = []
        read: dict[str, Values] = {}
        wanted = None if columns is None else set(columns)
        for name in table.names:
            if wanted is not None and name not in wanted:
                continue
            for key, kind, values in columns_of(table, name, table):
                profile = profile_column(key, "input", kind, values)
                if values.invalid and not len(values.values):
                    profile = structs.replace(profile, why=_unfit(values))
                self._profiles.append(profile)
                read[profile.key] = values
        counted = calibrate(
            self._profiles, read, seconds=None, part=None, window=None, pair_rows=_PAIR_ROWS
        )
        self.reference = Reference(self._profiles, counted)
        self._sample = {
            p.key: sample
            for p in self._profiles
            if p.numeric and (sample := drift.column_of(read[p.key], True).sample) is not None
        }

    @classmethod
    def of(cls, reference: Any, *, columns: Sequence[str] | None = None) -> Prepared:
        """Read and count the reference (see `compare`)."""
        table = table_of("reference", reference)
        if not table.rows:
            raise InputError("reference", "0 rows", "at least one row")
        return cls(table, columns)

    def compare(
        self,
        current: Any,
        *,
        error_rate: float = ERROR_RATE,
        min_rows: int = 50,
        classifier: bool = False,
    ) -> Comparison:
        """Compare one sample with the reference (see `compare`)."""
        if not 0 < error_rate < 1:
            raise InputError("error_rate", error_rate, "a number between 0 and 1")
        old, new = self._table, table_of("current", current)
        if not new.rows:
            raise InputError("current", "0 rows", "at least one row")
        names = _names(old, new, self._columns)
        share = _CLASSIFIER_SHARE if classifier else 0.0
        budget = drift.Budget(
            false_alarms=error_rate * (1 - share), every=_ONCE, window=_ONCE, min_rows=min_rows
        )
        window = _window(self.reference, old, new, names)
        found = drift.measure(self.reference, self._profiles, self._sample, window, budget)
        joint = judge_pairs(self.reference, window, budget)
        if classifier:
            joint = (*joint, self._classified(new, error_rate * share))
        return Comparison(
            reference_rows=old.rows,
            current_rows=new.rows,
            error_rate=error_rate,
            columns=tuple(sorted(found, key=lambda c: (not c.drifted, -_strength(c), c.column))),
            only_reference=tuple(name for name in names if name not in new),
            only_current=tuple(name for name in names if name not in old),
            joint=joint,
        )

    def _classified(self, new: Columns, error_rate: float) -> ColumnDrift:
        from monitor.measure.classifier import MOST, classify
        from monitor.measure.together import judge_classifier

        samples = []
        for table in (self._table, new):
            step = max(table.rows // MOST, 1)
            samples.append(
                {
                    f"input:{key}": pairs.thinned(values, step)
                    for name in dict.fromkeys(self._table.names)
                    for key, _kind, values in columns_of(table, name, self._table)
                }
            )
        return judge_classifier(classify(self._profiles, *samples), error_rate)


def _window(reference: Reference, old: Columns, new: Columns, names: Sequence[str]) -> drift.Window:
    """The current rows as one part, column by column: only one of them is in memory at a time."""
    layout, rows = reference.layout, new.rows
    numeric = {profile.key for profile in layout.numeric}
    counts: dict[str, np.ndarray] = {}
    columns: dict[str, drift.Column] = {}
    missing: dict[str, int] = {}
    related = reference.calibration.pairs
    step = -(-rows // _PAIR_ROWS)
    scores = np.zeros(
        (len(range(0, rows, step)), len(related.columns) if related else 0), np.float32
    )
    place = {key: index for index, key in enumerate(related.columns)} if related else {}
    profiles = {profile.key: profile for profile in layout.profiles}
    for name in names:
        for key, _kind, values in columns_of(new, name, old):
            full = f"input:{key}"
            columns[full] = drift.column_of(values, full in numeric)
            if full in profiles:
                counts[full] = count(profiles[full], values)
                missing[full] = rows - len(values.values)
            if full in place:
                one = pairs.scored([profiles[full]], {full: values}, step)
                scores[:, place[full]] = one[:, 0]
    return drift.Window(
        counts=tally.assembled(layout, counts, missing, rows),
        mix=np.array([[float(rows)]]),
        columns=columns,
        scores=scores if related else None,
        score_parts=np.zeros(len(scores), dtype=np.intp) if related else None,
    )


def html(reference: Any, current: Any, path: Path) -> Path:
    """Evidently's report on two samples, written to `path`. Takes seconds: Evidently is imported.

    Raises:
        InputError: see `compare`; no column has values in both samples.
    """
    from core.spec import infer_spec
    from monitor.report import render

    old, new = (
        table_of(n, t).to_pandas() for n, t in (("reference", reference), ("current", current))
    )
    spec = infer_spec("compare", old, target="none", task="regression")
    old, new = (
        frame[[c for c in frame if c in spec.columns]].add_prefix("in:") for frame in (old, new)
    )
    return render(old, new, spec, path, "Comparison")


def _unfit(values: Values) -> str:
    of = f" of type {values.example}" if values.example else ""
    return f"the reference's values{of} are neither numbers nor categories nor moments"


def _names(old: Columns, new: Columns, wanted: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys([*old.names, *new.names]))
    if wanted is None:
        return known
    absent = sorted(set(wanted) - set(known))
    if absent:
        some = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        raise InputError("columns", absent, f"some of {some}")
    return list(wanted)


def _strength(column: ColumnDrift) -> float:
    top = column.statistics[-1] if column.statistics else None
    return (top.value or 0.0) / (top.threshold or 1.0) if top is not None else 0.0


def _flat(column: ColumnDrift) -> dict[str, Any]:
    values = {s.name: s.value for s in column.statistics}
    top = column.statistics[-1] if column.statistics else None
    return {
        "column": column.column,
        "kind": column.kind,
        "n": column.n,
        "missing": column.missing_share,
        "drifted": column.drifted,
        "test": "" if top is None else top.name,
        "z": None if top is None else top.value,
        "line": None if top is None else top.threshold,
        **{name: values.get(name) for name in _EFFECTS},
        "why": column.why,
    }


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
