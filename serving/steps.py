"""Preprocessing as a short program over column arrays: scikit-learn's numbers without a DataFrame.

A pipeline's transformers are read once, and become steps of plain data (JSON); running them takes
NumPy alone and does the same float64 arithmetic in the same order. Known are the transformers that
tabular pipelines are mostly made of; any other makes a pipeline not applicable here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from core.spec import ModelSpec
from serving.backend import Columns, NotApplicable

Block = list[np.ndarray] | np.ndarray  # columns, or a float64 matrix (rows, columns)
Value = str | float | None  # a category; None: missing


class Affine(Struct, frozen=True, kw_only=True, tag="affine"):
    """`(x - subtract) / divide * multiply + add`, each part where it is there."""

    subtract: list[float] | None = None
    divide: list[float] | None = None
    multiply: list[float] | None = None
    add: list[float] | None = None


class Impute(Struct, frozen=True, kw_only=True, tag="impute"):
    """Missing numbers become the column's value."""

    values: list[float]


class OneHot(Struct, frozen=True, kw_only=True, tag="onehot"):
    """One column per category; a strange one is an error or no column."""

    categories: list[list[Value]]
    strict: bool


class Ordinal(Struct, frozen=True, kw_only=True, tag="ordinal"):
    """The category's number."""

    categories: list[list[Value]]
    strict: bool
    unknown: float | None = None  # NaN where None
    missing: float | None = None


class Chain(Struct, frozen=True, kw_only=True, tag="chain"):
    """One step after the other."""

    steps: list[Step]


class Branch(Struct, frozen=True, kw_only=True):
    """Some columns, and what becomes of them."""

    columns: list[int]
    step: Step


class Side(Struct, frozen=True, kw_only=True, tag="side"):
    """Branches beside each other, their columns put together in order."""

    branches: list[Branch]


Step = Affine | Impute | OneHot | Ordinal | Chain | Side


class Program(Struct, frozen=True, kw_only=True):
    """From a request's columns to the matrix the last step takes."""

    columns: list[str]
    step: Step


def split(estimator: Any, spec: ModelSpec) -> tuple[Program, Any]:
    """A pipeline's preprocessing as a program, and its last step.

    Raises:
        NotApplicable: a transformer that is not known here, or a last step that needs categories.
    """
    before, last = [], estimator
    while type(last).__name__ == "Pipeline" and hasattr(last, "steps"):
        before += [step for _, step in last.steps[:-1]]
        last = last.steps[-1][1]
    step = Chain(steps=[_read(each, spec.columns) for each in before if each != "passthrough"])
    if not step.steps and any(feature.kind == "categorical" for feature in spec.features):
        raise NotApplicable("the estimator takes categories as they are")
    return Program(columns=spec.columns, step=step), last


def run(program: Program, columns: Columns) -> np.ndarray:
    """The float64 matrix (rows, inputs of the last step).

    Raises:
        ValueError: a category the fitted encoder has no answer to.
    """
    block: Block | None = getattr(columns, "matrix", None)
    if block is None:
        block = [columns[name] for name in program.columns]
    return _matrix(_run(program.step, block))


# --- reading scikit-learn's fitted transformers ---------------------------------------------------


def _read(transformer: Any, names: Sequence[str]) -> Step:
    if transformer is None or isinstance(transformer, str):
        return Chain(steps=[])
    kind = type(transformer).__name__
    if not type(transformer).__module__.startswith("sklearn.") or kind not in _READERS:
        raise NotApplicable(f"{kind} is not among the known transformers")
    return _READERS[kind](transformer, names)


def _pipeline(transformer: Any, names: Sequence[str]) -> Step:
    return Chain(steps=[_read(each, names) for _, each in transformer.steps])


def _columns(transformer: Any, names: Sequence[str]) -> Step:
    named = list(getattr(transformer, "feature_names_in_", names))
    branches = []
    for _, inner, wanted in transformer.transformers_:
        indices = _indices(wanted, named)
        if indices and not (isinstance(inner, str) and inner == "drop"):
            step = _read(inner, [named[index] for index in indices])
            branches.append(Branch(columns=indices, step=step))
    return Side(branches=branches)


def _indices(wanted: Any, names: list[str]) -> list[int]:
    if isinstance(wanted, str | int | np.integer):
        wanted = [wanted]
    if isinstance(wanted, slice):
        if any(isinstance(end, str) for end in (wanted.start, wanted.stop)):
            raise NotApplicable("columns are chosen by a slice of names")
        return list(range(len(names)))[wanted]
    found = list(wanted)
    if found and isinstance(found[0], bool | np.bool_):
        return [index for index, taken in enumerate(found) if taken]
    return [names.index(each) if isinstance(each, str) else int(each) for each in found]


def _standard(transformer: Any, names: Sequence[str]) -> Step:
    mean = transformer.mean_ if transformer.with_mean else None
    return Affine(subtract=_floats(mean), divide=_floats(transformer.scale_))


def _min_max(transformer: Any, names: Sequence[str]) -> Step:
    if transformer.clip:
        raise NotApplicable("MinMaxScaler with clip is not known")
    return Affine(multiply=_floats(transformer.scale_), add=_floats(transformer.min_))


def _robust(transformer: Any, names: Sequence[str]) -> Step:
    return Affine(
        subtract=_floats(transformer.center_ if transformer.with_centering else None),
        divide=_floats(transformer.scale_ if transformer.with_scaling else None),
    )


def _max_abs(transformer: Any, names: Sequence[str]) -> Step:
    return Affine(divide=_floats(transformer.scale_))


def _imputer(transformer: Any, names: Sequence[str]) -> Step:
    values = np.asarray(transformer.statistics_)
    if transformer.add_indicator or values.dtype.kind not in "fiu" or np.isnan(values).any():
        raise NotApplicable("SimpleImputer of texts, of empty columns or with indicators")
    missing = transformer.missing_values
    if not (isinstance(missing, float) and np.isnan(missing)):
        raise NotApplicable(f"SimpleImputer that replaces {missing!r}")
    return Impute(values=[float(value) for value in values])


def _one_hot(transformer: Any, names: Sequence[str]) -> Step:
    if transformer.drop is not None or getattr(transformer, "_infrequent_enabled", False):
        raise NotApplicable("OneHotEncoder that drops or merges categories")
    strict = transformer.handle_unknown == "error"
    return OneHot(categories=_categories(transformer), strict=strict)


def _ordinal(transformer: Any, names: Sequence[str]) -> Step:
    if getattr(transformer, "_infrequent_enabled", False):
        raise NotApplicable("OrdinalEncoder that merges categories")
    strict = transformer.handle_unknown == "error"
    return Ordinal(
        categories=_categories(transformer),
        strict=strict,
        unknown=None if strict else _null(transformer.unknown_value),
        missing=_null(transformer.encoded_missing_value),
    )


def _function(transformer: Any, names: Sequence[str]) -> Step:
    if transformer.func is not None:
        raise NotApplicable("FunctionTransformer with a function")
    return Chain(steps=[])


_READERS = {
    "Pipeline": _pipeline,
    "ColumnTransformer": _columns,
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "RobustScaler": _robust,
    "MaxAbsScaler": _max_abs,
    "SimpleImputer": _imputer,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "FunctionTransformer": _function,
}


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _null(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _categories(encoder: Any) -> list[list[Value]]:
    return [[_category(value) for value in each] for each in encoder.categories_]


def _category(value: Any) -> Value:
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | int | float | np.generic):
        return float(value)
    raise NotApplicable(f"a category is a {type(value).__name__}")


# --- running --------------------------------------------------------------------------------------


def _run(step: Step, block: Block) -> Block:
    if isinstance(step, Chain):
        for each in step.steps:
            block = _run(each, block)
        return block
    if isinstance(step, Side):
        parts = [_run(each.step, _take(block, each.columns)) for each in step.branches]
        return parts[0] if len(parts) == 1 else _together(parts)
    if isinstance(step, Affine):
        return _affine(step, _matrix(block))
    if isinstance(step, Impute):
        matrix = _matrix(block)
        return np.where(np.isnan(matrix), np.asarray(step.values), matrix)
    return _encode(step, _as_columns(block))


def _affine(step: Affine, matrix: np.ndarray) -> np.ndarray:
    result = matrix
    if step.subtract is not None:
        result = result - np.asarray(step.subtract)
    if step.divide is not None:
        result = result / np.asarray(step.divide)
    if step.multiply is not None:
        result = result * np.asarray(step.multiply)
    if step.add is not None:
        result = result + np.asarray(step.add)
    return np.asarray(result)


def _encode(step: OneHot | Ordinal, columns: Sequence[np.ndarray]) -> np.ndarray:
    codes = [
        _codes(column, categories, step.strict)
        for column, categories in zip(columns, step.categories, strict=True)
    ]
    if isinstance(step, OneHot):
        return np.concatenate(
            [
                (code[:, None] == np.arange(len(categories))).astype(np.float64)
                for code, categories in zip(codes, step.categories, strict=True)
            ],
            axis=1,
        )
    matrix = np.empty((len(codes[0]), len(codes)))
    unknown = np.nan if step.unknown is None else step.unknown
    missing = np.nan if step.missing is None else step.missing
    for index, (code, categories) in enumerate(zip(codes, step.categories, strict=True)):
        matrix[:, index] = np.where(code < 0, unknown, code)
        if None in categories:
            matrix[code == categories.index(None), index] = missing
    return matrix


def _codes(column: np.ndarray, categories: list[Value], strict: bool) -> np.ndarray:
    """Where each value stands among the categories; -1: nowhere."""
    table = {value: index for index, value in enumerate(categories)}
    values = column.tolist()
    found = np.array([table.get(None if v != v else v, -1) for v in values], dtype=np.int64)
    if strict and len(found) and found.min() < 0:
        stranger = values[int(found.argmin())]
        raise ValueError(f"found the unknown category {stranger!r} in a column")
    return found


def _take(block: Block, indices: list[int]) -> Block:
    if isinstance(block, np.ndarray):
        return block[:, indices]
    return [block[index] for index in indices]


def _as_columns(block: Block) -> list[np.ndarray]:
    return list(block.T) if isinstance(block, np.ndarray) else block


def _matrix(block: Block) -> np.ndarray:
    if isinstance(block, np.ndarray):
        return block
    matrix = np.empty((len(block[0]), len(block)))
    for index, column in enumerate(block):
        matrix[:, index] = column
    return matrix


def _together(parts: Sequence[Block]) -> Block:
    matrices = [_matrix(part) for part in parts]
    return np.concatenate(matrices, axis=1)
