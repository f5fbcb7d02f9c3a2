"""Lets Schemathesis know what it cannot guess: names of models, and rows that fit one of them."""

from __future__ import annotations

import random
from typing import Any

import schemathesis

_SHOP = {"inputs": {"age": 40.5, "visits": 3}, "outputs": {"probability": 0.25}}
_NAMES = {"model": ("shop",), "version": ("1",), "id": ("1",)}


def _chance(value: Any) -> random.Random:
    return random.Random(repr(value))  # the same example is the same every time


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Real names most of the time."""
    if not isinstance(path_parameters, dict):
        return path_parameters
    chance = _chance(path_parameters)
    known = {n: chance.choice(v) for n, v in _NAMES.items() if n in path_parameters}
    return path_parameters | known if chance.random() < 0.8 else path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Some rows that fit, beside whatever was generated."""
    chance = _chance(body)
    if not isinstance(body, dict) or chance.random() < 0.5:
        return body
    if isinstance(body.get("predictions"), list):
        rows = [row | _SHOP if isinstance(row, dict) else row for row in body["predictions"]]
        return body | {"predictions": rows}
    if isinstance(body.get("inputs"), list):
        tensors = [
            {"name": "age", "shape": [1], "datatype": "FP64", "data": [chance.random() * 80]},
            {"name": "visits", "shape": [1], "datatype": "INT64", "data": [chance.randrange(9)]},
        ]
        return body | {"inputs": tensors, "outputs": None}
    return body
