"""A request's and a response's payload as rows: KServe's v1 and the Open Inference Protocol v2.

    v1   {"instances": [row, …]}   a row is an object by column, a list in the spec's order, or the
                                   bare value of a model with one column
         {"predictions": [answer, …]}
    v2   {"inputs": [tensor, …]}   one tensor per column, or one [n, columns] tensor in the order of
                                   the spec
         {"outputs": [tensor, …]}  outputs of the spec by name, else `predict_proba`, else
                                   the first

Rows are numbered as serving numbers its own: one row has the id itself, several `id:0`, `id:1`, ….
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.spec import ModelSpec
from shelflife.web.limits import MAX_ID, Refused, identifier
from shelflife.web.wire import PredictionIn

_PROBABILITIES = ("predict_proba", "probabilities", "probability")
_SUFFIX = 56  # characters that `:<row>` may take


def rows(
    spec: ModelSpec,
    request: Mapping[str, Any],
    response: Mapping[str, Any],
    *,
    event: str,
    most: int,
    **fixed: Any,
) -> list[PredictionIn]:
    """The rows of one inference; their values are not checked yet.

    Args:
        event: the id of both events; the prediction id unless a payload has one of its own.
        most: rows it may have.
        fixed: `source`, `version`, `time` and `role` of every row.

    Raises:
        Refused: the payloads do not fit each other, or are no payloads.
    """
    asked, told = _asked(spec, request), _told(spec, response)
    if len(asked) != len(told):
        expected = f"{len(asked)} answers, one for each row of the request"
        raise Refused("payload", "response", f"{len(told)} answers", expected)
    if len(asked) > most:
        raise Refused("rows", "request", f"{len(asked)} rows", f"at most {most}")
    own = request.get("id") or response.get("id")
    identity = own if isinstance(own, str) and own else event
    identifier(identity, "id", MAX_ID - _SUFFIX)
    one = len(asked) == 1
    return [
        PredictionIn(
            inputs=inputs,
            outputs=outputs,
            id=identity if one else f"{identity}:{i}",
            event_id=event if one else f"{event}:{i}",
            **fixed,
        )
        for i, (inputs, outputs) in enumerate(zip(asked, told, strict=True))
    ]


def version_of(response: Mapping[str, Any], known: Sequence[str]) -> str:
    """The version that a v2 response names, if it is one of ours."""
    given = response.get("model_version")
    return given if isinstance(given, str) and given in known else ""


def _asked(spec: ModelSpec, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "instances" in request:
        instances = request["instances"]
        if not isinstance(instances, list) or not instances:
            raise Refused("payload", "instances", instances, "a list of at least one row")
        return [_instance(spec, row, f"instances[{i}]") for i, row in enumerate(instances)]
    tensors = _tensors(request.get("inputs"), "inputs")
    names = spec.columns
    if len(tensors) == 1 and len(tensors[0][1]) == 2 and len(names) == tensors[0][1][1]:
        _, shape, data = tensors[0]
        width = len(names)
        return [
            dict(zip(names, data[i * width : (i + 1) * width], strict=True))
            for i in range(shape[0])
        ]
    columns: dict[str, list[Any]] = {}
    for name, shape, data in tensors:
        if len(shape) > 1 and shape[1:] != [1]:
            expected = f"[n] or [n, 1] for one column, or [n, {len(names)}] for all of them"
            raise Refused("payload", f"inputs.{name}.shape", shape, expected)
        if name in columns:
            raise Refused("duplicate_key", f"inputs.{name}", "the tensor twice", "each once")
        columns[name] = data
    if len({len(data) for data in columns.values()}) > 1:
        sizes = {name: len(data) for name, data in columns.items()}
        raise Refused("payload", "inputs", sizes, "as many rows in every tensor")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _instance(spec: ModelSpec, row: Any, field: str) -> dict[str, Any]:
    names = spec.columns
    if isinstance(row, dict):
        found = row
    elif isinstance(row, list):
        if len(row) != len(names):
            raise Refused("payload", field, f"{len(row)} values", f"{len(names)}: {names}")
        found = dict(zip(names, row, strict=True))
    elif len(names) == 1:
        found = {names[0]: row}
    else:
        raise Refused("payload", field, row, f"{len(names)} values: {names}")
    return {name: _bare(value, f"{field}.{name}") for name, value in found.items()}


def _bare(value: Any, field: str) -> Any:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | dict):
        raise Refused("payload", field, value, "one value, no list or object")
    return value


def _told(spec: ModelSpec, response: Mapping[str, Any]) -> list[Any]:
    if "predictions" in response:
        predictions = response["predictions"]
        if not isinstance(predictions, list) or not predictions:
            raise Refused("payload", "predictions", predictions, "a list of at least one answer")
        return predictions
    tensors = _tensors(response.get("outputs"), "outputs")
    named = {name: (shape, data) for name, shape, data in tensors}
    wanted = [named[name] for name in spec.outputs if name in named]
    if len(wanted) == len(spec.outputs) and all(_narrow(shape) for shape, _ in wanted):
        columns = [data for _, data in wanted]
        if len({len(data) for data in columns}) > 1:
            raise Refused("payload", "outputs", "tensors of several lengths", "one length")
        rows = zip(*columns, strict=True)
        return [dict(zip(spec.outputs, row, strict=True)) for row in rows]
    name = next((name for name in _PROBABILITIES if name in named), tensors[0][0])
    shape, data = named[name]
    if _narrow(shape):
        return data
    if len(shape) != 2:
        raise Refused("payload", f"outputs.{name}.shape", shape, "[n] or [n, classes]")
    width = shape[1]
    return [data[i * width : (i + 1) * width] for i in range(shape[0])]


def _narrow(shape: Sequence[int]) -> bool:
    return len(shape) == 1 or list(shape[1:]) == [1]


def _tensors(given: Any, field: str) -> list[tuple[str, list[int], list[Any]]]:
    """Name, shape and flat data of each tensor.

    Raises:
        Refused: no list of tensors, or data that is not of its shape.
    """
    if not isinstance(given, list) or not given:
        raise Refused("payload", field, given, "a list of at least one tensor")
    found = []
    for position, each in enumerate(given):
        where = f"{field}[{position}]"
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise Refused("payload", where, each, "a tensor: name, shape, datatype, data")
        shape, data = each.get("shape"), each.get("data")
        sizes = isinstance(shape, list) and 1 <= len(shape) <= 3
        if not sizes or not all(type(n) is int and 0 < n < 10**9 for n in shape or ()):
            raise Refused("payload", f"{where}.shape", shape, "positive sizes")
        if not isinstance(data, list):
            expected = "a list of values (binary tensors are not read)"
            raise Refused("payload", f"{where}.data", data, expected)
        flat = _flatten(data)
        total = 1
        for n in shape or ():
            total *= n
        if len(flat) != total:
            raise Refused("payload", f"{where}.data", f"{len(flat)} values", f"{total} of them")
        found.append((each["name"], list(shape or ()), flat))
    return found


def _flatten(data: list[Any]) -> list[Any]:
    if not any(isinstance(each, list) for each in data):
        return data
    flat: list[Any] = []
    for each in data:
        if isinstance(each, list):
            flat += _flatten(each)
        else:
            flat.append(each)
    return flat
