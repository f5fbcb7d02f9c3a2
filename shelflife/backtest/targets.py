"""The task and the labels: guessed where nobody says, and always said how."""

from __future__ import annotations

import numpy as np
import pandas as pd

from core.errors import InputError
from core.spec import Scalar, Task
from retrain.wording import plural

_CLASSES = 20  # whole numbers with at most so many distinct values may be classes
_ROWS_A_CLASS = 20
_MOST_CLASSES = 100  # more than this many classes is no classification one would watch
_BAD_SHARE = 0.05  # labels that are no numbers, above which a regression is refused


def read_task(column: pd.Series, given: Task | None, notes: list[str]) -> Task:
    """The task, as given or guessed from the labels.

    Raises:
        InputError: labels that do not fit the task, or of one value only.
    """
    name, known = str(column.name), column.dropna()
    if not len(known):
        raise InputError(name, "no label at all", "a target column with values")
    distinct = known.nunique()
    if distinct < 2:
        only = _plain(known.iloc[0])
        raise InputError(name, f"only {only!r}", "labels of at least two values to learn from")
    if given == "binary" and distinct != 2:
        raise InputError(name, plural(distinct, "distinct value"), "two classes for --task binary")
    if given == "multiclass" and distinct > _MOST_CLASSES:
        hint = f"at most {_MOST_CLASSES} classes, or --task regression"
        raise InputError(name, plural(distinct, "distinct value"), hint)
    if given is not None:
        return given
    task, why = _guess(known, distinct)
    notes.append(f"task {task} (guessed: {name} has {why}); --task chooses another")
    return task


def _guess(known: pd.Series, distinct: int) -> tuple[Task, str]:
    name, texts = str(known.name), not pd.api.types.is_numeric_dtype(known.dtype)
    if distinct == 2:
        values = " and ".join(str(_plain(value)) for value in sorted(known.unique(), key=str))
        return "binary", f"the two values {values}"
    if texts and pd.to_numeric(known, errors="coerce").isna().mean() > _BAD_SHARE:
        if distinct > _MOST_CLASSES:
            hint = "numbers, or classes (at most 100 of them)"
            raise InputError(name, f"{distinct:,} different texts", hint)
        return "multiclass", f"{distinct} different texts"
    numbers = pd.to_numeric(known, errors="coerce").dropna()
    whole = bool((numbers % 1 == 0).all())
    if whole and distinct <= _CLASSES and len(numbers) >= _ROWS_A_CLASS * distinct:
        return "multiclass", f"{distinct} different whole numbers"
    return "regression", f"{distinct:,} different numbers"


def read_labels(column: pd.Series, task: Task, notes: list[str]) -> np.ndarray:
    """Labels as plain Python scalars, shape (rows,), dtype object; None where there is none.

    Raises:
        InputError: a regression whose labels are no numbers.
    """
    missing = column.isna().to_numpy()
    if task == "regression":
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        bad = ~np.isfinite(numbers) & ~missing
        if bad.mean() > _BAD_SHARE:
            example = column[bad].iloc[0]
            count = plural(int(bad.sum()), "label")
            hint = f"numbers for a regression ({count} are none)"
            raise InputError(str(column.name), example, hint)
        if bad.any():
            notes.append(f"{plural(int(bad.sum()), 'label')} are no finite numbers: unlabelled")
        values = [None if not np.isfinite(x) else x for x in numbers.tolist()]
    else:
        raw = column.astype(object).tolist()
        values = [None if gone else _plain(x) for x, gone in zip(raw, missing, strict=True)]
    if missing.any():
        count = plural(int(missing.sum()), "row")
        notes.append(f"{count} have no {column.name}: they are answered and never labelled")
    labels = np.empty(len(values), dtype=object)
    labels[:] = values
    return labels


def _plain(value: object) -> Scalar:
    """A label as JSON spells it: 1 for 1.0, a plain Python value for NumPy's."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and plain.is_integer():
        return int(plain)
    return plain if isinstance(plain, str | int | float | bool) else str(plain)


def spelled(labels: np.ndarray) -> np.ndarray:
    """Known labels as one array an estimator can be fitted with."""
    kinds = {type(value) for value in labels}
    return np.array(labels.tolist(), None if len(kinds) == 1 else object)
