"""`POST /api/v1/models/{model}/predict`: a data frame in, a data frame out, for people with curl.

JSON (a list of records, one record, or pandas' `split`: `{"columns": […], "data": [[…]]}`), CSV
with a header, or Arrow IPC; answered as JSON, CSV or Arrow, as `Accept` says. It is the same
prediction as over the Open Inference Protocol: checked, batched, logged.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.errors import InputError, Unsupported
from core.settings import Settings
from core.spec import Feature, ModelSpec
from serving.answering import Answered, Answering
from serving.codec import Asked, Codec
from serving.columns import DATATYPE
from serving.request import InferenceRequest, Tensor
from serving.rest import Rest, deadline
from shelflife.web import arrowrows, jsonrows
from shelflife.web.edge import Bodies, media_type
from shelflife.web.limits import Limits

CSV, JSON = "text/csv", "application/json"
ARROW = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
_ACCEPTED = (JSON, CSV, ARROW[0])
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}

Columns = dict[str, list[Any]]


class Record(msgspec.Struct, frozen=True):
    """The answer's envelope."""

    model: str
    version: str
    id: str
    logged: str
    predictions: list[dict[str, Any]]


class Predict:
    """The endpoint.

    Args:
        rest: counts refusals and turns errors into answers, as over the protocol.
    """

    def __init__(self, settings: Settings, answering: Answering, rest: Rest) -> None:
        self._answering, self._rest = answering, rest
        limits = msgspec.structs.replace(
            Limits.of(settings), body=int(settings.serving.max_body_mb * 1_000_000), rows=100_000
        )
        self._limits, self._bodies = limits, Bodies(limits)

    async def predict(self, request: Request) -> Response:
        """Predict the rows of a frame."""
        model = request.path_params["model"]
        try:
            begun, within, accept = monotonic(), deadline(request), _accepted(request)
            slot = self._answering.slot(model)
            async with self._bodies.read(request) as body:
                read = await run_in_threadpool(self._reader, request, body)
            found = await self._answering.answer(
                slot,
                read,
                version=request.query_params.get("version") or None,
                within=within,
                since=begun,
            )
            return _written(found, accept)
        except ClientDisconnect:
            self._rest.count(model, "refused:disconnected")
            return Response(status_code=400)
        except Exception as error:
            return self._rest.refuse(error, model)

    def _reader(self, request: Request, body: bytes) -> Any:
        """What turns the body into a checked request, once the model's spec is known."""
        media = media_type(request)
        cells: Columns | None = None
        if media == CSV:
            cells = _csv(body)
        elif media in ARROW:
            cells, _ = arrowrows.columns(body, self._limits)
        elif media not in (JSON, ""):
            raise Unsupported("Content-Type", media, f"one of {[JSON, CSV, *ARROW]}")
        value = None if cells is not None else jsonrows.strict(body)
        given, texts = request.query_params, media == CSV

        def read(codec: Codec) -> Asked:
            columns = cells if cells is not None else _frame(value, codec.spec)
            if texts:
                columns = _typed(columns, codec.spec)
            return codec.asked(_request(columns, codec.spec, given))

        return read


def _request(columns: Columns, spec: ModelSpec, given: Mapping[str, str]) -> InferenceRequest:
    kinds = {feature.name: feature.kind for feature in spec.features}
    rows = max(map(len, columns.values()), default=0)
    if not rows:
        raise InputError("body", "no rows", "at least one row")
    for feature in spec.features:
        if feature.nullable:
            columns.setdefault(feature.name, [None] * rows)
    inputs = [
        Tensor(
            name=name,
            shape=[len(values)],
            datatype=DATATYPE[kinds[name]] if name in kinds else "BYTES",
            data=values,
        )
        for name, values in columns.items()
    ]
    time = given.get("event_time")
    parameters = {"event_time": time} if time else None
    return InferenceRequest(inputs=inputs, id=given.get("id") or None, parameters=parameters)


def _frame(value: Any, spec: ModelSpec) -> Columns:
    """JSON as columns.

    Raises:
        InputError: neither records nor a split frame.
    """
    if isinstance(value, dict) and value.keys() <= {"columns", "data", "index"}:
        value = _split(value)
    records = value if isinstance(value, list) else [value]
    names = dict[str, None]()
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            expected = "a record {column: value}, a list of them, or {columns: […], data: [[…]]}"
            raise InputError(f"body[{row}]" if len(records) > 1 else "body", record, expected)
        names.update(dict.fromkeys(record))
    nullable = {feature.name for feature in spec.features if feature.nullable}
    for name in names:
        for row, record in enumerate(records):
            if name not in record and name not in nullable:
                raise InputError(name, None, f"a value in every row; row {row} has none")
    return {name: [record.get(name) for record in records] for name in names}


def _split(value: dict[str, Any]) -> list[dict[str, Any]]:
    names, rows = value.get("columns"), value.get("data")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("columns", names, "a list of column names")
    if len(set(names)) < len(names):
        raise InputError("columns", names, "each column once")
    if not isinstance(rows, list):
        raise InputError("data", rows, "a list of rows")
    for position, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise InputError(f"data[{position}]", row, f"a list of {len(names)} values")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _csv(body: bytes) -> Columns:
    """CSV with a header as columns of texts; an empty cell is a missing value.

    Raises:
        InputError: not UTF-8, not CSV, no header, or rows of different lengths.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("body", body[error.start : error.end], "CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise InputError("body", f"line {reader.line_num}", f"CSV ({error})") from None
    if len(rows) < 2:
        raise InputError("body", f"{len(rows)} lines", "a header and at least one row")
    names = rows[0]
    if len(set(names)) < len(names):
        raise InputError("body", names, "each column once in the header")
    for position, row in enumerate(rows[1:]):
        if len(row) != len(names):
            raise InputError(f"row {position}", row, f"{len(names)} cells, as in the header")
    columns = zip(*rows[1:], strict=True)
    return {
        name: [cell or None for cell in cells] for name, cells in zip(names, columns, strict=True)
    }


def _typed(columns: Columns, spec: ModelSpec) -> Columns:
    """Texts as the values they spell, by the kind of their column."""
    features = {feature.name: feature for feature in spec.features}
    return {
        name: [_cell(features[name], cell, row) for row, cell in enumerate(cells)]
        if name in features
        else cells
        for name, cells in columns.items()
    }


def _cell(feature: Feature, cell: str | None, row: int) -> Any:
    if cell is None or feature.kind == "categorical":
        return cell
    text = cell.strip().lower()
    try:
        if feature.kind == "boolean":
            return _TRUTHS[text]
        if feature.kind == "integer" and text.lstrip("+-").isdigit() and len(text) <= 20:
            return int(text)
        return float(text)
    except (KeyError, ValueError):
        what = "true or false" if feature.kind == "boolean" else "a number"
        raise InputError(feature.name, cell, f"{what} in row {row}") from None


def _accepted(request: Request) -> str:
    """The first media type of `Accept` that is answered; JSON where it names none of them.

    Raises:
        Unsupported: it names only others.
    """
    given = request.headers.get("accept", "")
    wanted = [part.partition(";")[0].strip().lower() for part in given.split(",")]
    for each in wanted:
        if each in _ACCEPTED:
            return each
        if each in ("", "*/*", "application/*"):
            return JSON
    raise Unsupported("Accept", given, f"one of {list(_ACCEPTED)}")


def _written(found: Answered, accept: str) -> Response:
    asked = found.asked
    outputs = {name: found.outputs[name] for name in asked.outputs}
    if accept == JSON:
        rows = zip(asked.ids, *(values.tolist() for values in outputs.values()), strict=True)
        names = ["id", *outputs]
        body = Record(
            model=found.model,
            version=found.version,
            id=asked.id,
            logged=found.logged,
            predictions=[dict(zip(names, row, strict=True)) for row in rows],
        )
        return Response(msgspec.json.encode(body), media_type=JSON)
    write = _as_csv if accept == CSV else _as_arrow
    headers = {
        "X-Model-Version": found.version,
        "X-Shelflife-Logged": found.logged,
    }
    content = write(asked.ids, {name: values.tolist() for name, values in outputs.items()})
    return Response(content, headers=headers, media_type=accept)


def _as_csv(ids: Sequence[str], outputs: Mapping[str, list[float]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", *outputs])
    writer.writerows(zip(ids, *outputs.values(), strict=True))
    return text.getvalue().encode()


def _as_arrow(ids: Sequence[str], outputs: Mapping[str, list[float]]) -> bytes:
    import pyarrow as pa

    table = pa.table({"id": pa.array(ids, pa.string()), **outputs})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
