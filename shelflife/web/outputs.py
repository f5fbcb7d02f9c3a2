"""What a caller says a model answered, as the float64 outputs of its spec.

    regression   3.2 · {"prediction": 3.2}
    binary       {"probability": 0.7} (of the positive class) · a probability per class · the class
    multiclass   {"probability:a": …} · {"probability": {"a": …}} · {"a": …, "b": …} · [p, q, …]
                 in the spec's order of classes · the class

A class alone counts as certainty (1 for it, 0 for the others): its loss is then the error rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from core.spec import ModelSpec
from shelflife.web.limits import Refused

_SLACK = 1e-6  # of a probability beyond 0 or 1
_SUM = 1e-3  # of the probabilities of all classes around 1
_PER_CLASS = ("probability", "probabilities")


def mapped(spec: ModelSpec, given: object, field: str = "outputs") -> dict[str, float]:
    """The outputs of the spec.

    Raises:
        Refused: something is missing, unknown, not a finite number, or no probability.
    """
    if isinstance(given, Mapping):
        return _named(spec, given, field)
    if isinstance(given, list | tuple):
        return _listed(spec, given, field)
    return _single(spec, given, field)


def columnwise(spec: ModelSpec, given: Sequence[object]) -> list[dict[str, float]]:
    """What `mapped` makes of each, all at once, where all are plain and right; otherwise nothing.

    Plain means the spec's own outputs by name, as floats.
    """
    names = spec.outputs
    wanted = set(names)
    if not given or not all(type(each) is dict and each.keys() == wanted for each in given):
        return []
    columns = [[each[name] for each in given] for name in names]  # type: ignore[index]
    if any(set(map(type, column)) != {float} for column in columns):
        return []
    numbers = np.array(columns)
    if not np.isfinite(numbers).all():
        return []
    if spec.task != "regression":
        whole = spec.task == "binary" or (np.abs(numbers.sum(axis=0) - 1) <= _SUM).all()
        if not whole or numbers.min() < 0 or numbers.max() > 1:
            return []
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _named(spec: ModelSpec, given: Mapping[str, object], field: str) -> dict[str, float]:
    names, classes = spec.outputs, [str(label) for label in spec.classes]
    rest = {key: value for key, value in given.items() if key != "prediction"}
    if rest.keys() == set(names):
        if spec.task == "regression" or isinstance(rest[names[0]], Mapping | list | tuple):
            return mapped(spec, rest[names[0]], f"{field}.{names[0]}")
        numbers = [_probability(rest[name], f"{field}.{name}") for name in names]
        return _distribution(spec, numbers, field)
    if not rest and "prediction" in given:
        return _single(spec, given["prediction"], f"{field}.prediction")
    for key in _PER_CLASS:
        if rest.keys() == {key} and isinstance(rest[key], Mapping | list | tuple):
            return mapped(spec, rest[key], f"{field}.{key}")
    if classes and rest.keys() == set(classes):
        numbers = [_probability(rest[name], f"{field}.{name}") for name in classes]
        return _of_classes(spec, numbers, field)
    ways = [*names, "prediction", *classes]
    raise Refused("output", field, sorted(given), f"one of the outputs {ways}")


def _listed(spec: ModelSpec, given: Sequence[object], field: str) -> dict[str, float]:
    if len(given) == 1:
        return _single(spec, given[0], f"{field}[0]")
    if len(given) != len(spec.classes) or not given:
        most = len(spec.classes) or 1
        expected = f"{most} value{'s' if most > 1 else ''}, in order {list(spec.classes) or ''}"
        raise Refused("output", field, f"{len(given)} values", expected.strip())
    numbers = [_probability(value, f"{field}[{i}]") for i, value in enumerate(given)]
    return _of_classes(spec, numbers, field)


def _single(spec: ModelSpec, given: object, field: str) -> dict[str, float]:
    if spec.task == "regression":
        return {"prediction": _number(given, field)}
    for label in spec.classes:
        if _same(given, label):
            return _of_classes(spec, [float(each == label) for each in spec.classes], field)
    if spec.task == "binary" and isinstance(given, float):
        return {"probability": _probability(given, field)}
    expected = f"one of the classes {list(spec.classes)}"
    raise Refused("output", field, given, expected)


def _same(given: object, label: object) -> bool:
    # 1 and 1.0 are the class 1; 1 is the class True only where JSON says so; "1" is spelled 1.
    if isinstance(given, bool) or isinstance(label, bool):
        return given is label or str(given).lower() == str(label).lower()
    return given == label or (isinstance(given, str) and given == str(label))


def _of_classes(spec: ModelSpec, numbers: Sequence[float], field: str) -> dict[str, float]:
    total = math.fsum(numbers)
    if abs(total - 1) > _SUM:
        raise Refused("output", field, total, "probabilities that add up to 1")
    chosen = [numbers[1]] if spec.task == "binary" else numbers
    return dict(zip(spec.outputs, chosen, strict=True))


def _distribution(spec: ModelSpec, numbers: Sequence[float], field: str) -> dict[str, float]:
    if spec.task == "binary":
        return {"probability": numbers[0]}
    return _of_classes(spec, numbers, field)


def _probability(value: object, field: str) -> float:
    number = _number(value, field)
    if not -_SLACK <= number <= 1 + _SLACK:
        raise Refused("output", field, value, "a probability between 0 and 1")
    return min(max(number, 0.0), 1.0)


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("output", field, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Refused("output", field, value, "a finite number")
    return number
