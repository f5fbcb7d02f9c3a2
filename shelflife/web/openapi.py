"""The OpenAPI 3.1 document of everything the server answers.

Schemas of bodies come from the types that decode them, those of ledger rows from the tables they
are read from, so that neither can be forgotten here. Operations are written down below.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import sqlalchemy as sa

from core import schema as tables
from monitor.log.records import LabelReceipt, LogCounts
from monitor.results import WindowScore
from shelflife.commands import ACTIONS
from shelflife.web import inference_schema, oncall, wire
from shelflife.web.document import MODEL, REF, STATUS, Json, operation, path_parameter, ref, said
from shelflife.web.events import BATCHED, STRUCTURED, TYPES
from shelflife.web.ingest import ARROW, NDJSON

_TYPES: tuple[Any, ...] = (
    wire.PredictionsIn, wire.LabelsIn, wire.ActionIn, wire.PredictionsOut, wire.EventsOut,
    wire.Failure, wire.Nothing, LogCounts, WindowScore,
    inference_schema.InferenceRequest, *oncall.COMPONENTS,
)  # fmt: skip


@cache
def encoded() -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(document())


def document() -> Json:
    """The document."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template=REF)
    components |= inference_schema.components()
    components |= {
        "LabelsOut": _labels_out(),
        "Command": _row(tables.commands),
        "Incident": _row(tables.incidents),
        "Run": _row(tables.runs),
        "Summary": _summary(),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shelflife",
            "version": _release(),
            "summary": "Inference, the log of what was asked and turned out true, and control.",
        },
        "paths": _ingest() | _control() | oncall.paths() | inference_schema.paths(),
        "components": {"schemas": components},
    }


def _query(name: str, description: str, **schema: Any) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _ingest() -> Json:
    atomic = _query("atomic", "Refuse all rows if one is refused.", type="boolean", default=False)
    key = {
        "name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 256},
        "description": "Derives the ids of rows without one, so that a repeat is a duplicate.",
    }  # fmt: skip
    version = _query(
        "version", "The version that answered, where the events do not say.",
        type="string", minLength=1, maxLength=64,
    )  # fmt: skip
    nothing = {"anyOf": [ref("Nothing"), ref("Failure")]}
    one = "/api/v1/models/{model}"
    refusals = (404, 408, 413, 415, 503)

    def taking(summary: str, rows: str, out: str, done: str) -> Json:
        return operation(
            summary,
            {200: said(done, ref(out)), 400: said(STATUS[400], nothing)},
            *refusals,
            requestBody={"required": True, "content": _rows(rows)},
        )

    predictions = taking(
        "Log predictions made elsewhere", "PredictionsIn", "PredictionsOut",
        "What is new or duplicate is committed; what was refused is listed.",
    )  # fmt: skip
    labels = taking(
        "Log what turned out true", "LabelsIn", "LabelsOut",
        "What is not refused is committed; labels for unknown predictions are kept too.",
    )  # fmt: skip
    events = operation(
        "Log what KServe's inference logger sends",
        {
            200: said("What was not refused is committed.", ref("EventsOut")),
            400: said(STATUS[400], nothing),
        },
        *refusals,
        requestBody={"required": True, "content": _events()},
    )
    return {
        f"{one}/predictions": {
            "parameters": [MODEL, atomic],
            "post": {**predictions, "parameters": [key]},
        },
        f"{one}/labels": {"parameters": [MODEL, atomic], "post": labels},
        f"{one}/cloudevents": {"parameters": [MODEL, version, *_ce()], "post": events},
        "/api/v1/cloudevents": {"parameters": [version, *_ce()], "post": events},
        "/api/v1/hints/mlflow": {"post": _hint()},
    }


def _hint() -> Json:
    noted = {
        "type": "object", "required": ["state"], "properties": {"state": {"const": "noted"}},
    }  # fmt: skip
    return operation(
        "A registry webhook of MLflow: look sooner; its body is not read",
        {202: said("It is noted.", noted)},
        400, 401, 404, 408, 413, 415, 503,
        requestBody={
            "required": False,
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
    )  # fmt: skip


def _rows(name: str) -> Json:
    one = ref(name.replace("sIn", "In"))
    binary = {"type": "string", "contentMediaType": ARROW[0]}
    return {
        "application/json": {"schema": ref(name)},
        NDJSON[0]: {"schema": {"type": "string", "description": "One object per line."}}
        | {"x-line-schema": one},
        **{media: {"schema": binary | {"contentMediaType": media}} for media in ARROW},
    }


def _events() -> Json:
    data = {
        "type": "object",
        "description": "KServe v1 `instances` or `predictions`, or OIP v2 `inputs` or `outputs`.",
    }
    text = {"type": "string", "minLength": 1}
    event = {
        "type": "object",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text | {"maxLength": 200},
            "source": text | {"maxLength": 2048},
            "type": {"enum": sorted(TYPES)},
            "inferenceservicename": {"type": "string"},
            "data": data,
        },
    }
    return {
        "application/json": {"schema": data},
        STRUCTURED: {"schema": event},
        BATCHED: {"schema": {"type": "array", "items": event}},
    }


def _ce() -> list[Json]:
    names = ("id", "source", "type", "specversion", "time", "inferenceservicename")
    return [
        {
            "name": f"ce-{name}", "in": "header", "required": False,
            "description": "Binary content mode.", "schema": {"type": "string"},
        }
        for name in names
    ]  # fmt: skip


def _control() -> Json:
    one = "/api/v1/models/{model}"
    listed = [_query("model", "Only this model's.", type="string", minLength=1, maxLength=128)]
    action = path_parameter("action", "What to do.", enum=sorted(ACTIONS))
    asked = {
        "type": "object", "required": ["command", "state"],
        "properties": {"command": {"type": "integer"}, "state": {"const": "asked"}},
    }  # fmt: skip
    body = {"required": False, "content": {"application/json": {"schema": ref("ActionIn")}}}
    health = {
        "type": "object",
        "required": ["status", "problems", "at"],
        "properties": {
            "status": {"enum": ["ok", "degraded", "failing"]},
            "problems": {"type": "array", "items": {"type": "string"}},
            "at": {"type": "string", "format": "date-time"},
        },
    }
    full = {
        "allOf": [ref("Summary")], "required": ["log", "check"],
        "properties": {"log": ref("LogCounts"), "check": {"type": ["object", "null"]}},
    }  # fmt: skip
    plain = {"type": "string"}
    return {
        "/api/v1/models": {
            "get": operation("Every model", {200: said("Models.", _list("models", "Summary"))}, 503)
        },
        one: {
            "parameters": [MODEL],
            "get": operation("One model", {200: said("The model.", full)}, 404, 503),
        },
        f"{one}/windows": _windows(),
        f"{one}/actions/{{action}}": {
            "parameters": [MODEL, action],
            "post": operation(
                "Ask for a check, a run, a promotion, a rollback or an acknowledgement",
                {202: said("Written down; the scheduler carries it out.", asked)},
                400, 404, 408, 413, 415, 503,
                requestBody=body,
            ),
        },
        "/api/v1/commands/{id}": {
            "parameters": [path_parameter("id", "Of the command.", pattern="^[0-9]{1,18}$")],
            "get": operation(
                "What became of a request", {200: said("The command.", ref("Command"))}, 404, 503
            ),
        },
        "/api/v1/incidents": _listing("incidents", "Incident", listed),
        "/api/v1/runs": _listing("runs", "Run", listed),
        "/healthz": {
            "get": operation(
                "Whether models are watched and people are told",
                {
                    200: said("They are, or one receiver is not.", health),
                    503: said("The monitor is blind or mute.", health),
                },
            )
        },
        "/metrics": {
            "get": operation(
                "Prometheus metrics", {200: said("Exposition text.", plain, "text/plain")}, 503
            )
        },
        "/openapi.json": {
            "get": operation("This document", {200: said("OpenAPI 3.1.", {"type": "object"})})
        },
    }  # fmt: skip


def _windows() -> Json:
    window = {
        "allOf": [ref("WindowScore")],
        "required": ["coverage", "scored"],
        "properties": {
            "coverage": {"type": "number", "minimum": 0, "maximum": 1},
            "scored": {"type": "string", "format": "date-time"},
        },
    }
    found = {
        "type": "object",
        "required": ["model", "windows"],
        "properties": {
            "model": {"type": "string"},
            "windows": {"type": "array", "items": window},
        },
    }
    parameters = [
        MODEL,
        _query("since", "Windows from this moment on.", type="string", format="date-time"),
        _query("until", "Windows before this moment.", type="string", format="date-time"),
        _query("version", "Only this version's.", type="string", minLength=1, maxLength=64),
    ]
    return {
        "parameters": parameters,
        "get": operation(
            "The realised metric by window", {200: said("Oldest first.", found)}, 400, 404, 503
        ),
    }


def _listing(name: str, component: str, parameters: list[Json]) -> Json:
    states = {
        "incidents": ["noticed", "open", "acknowledged", "resolved"],
        "runs": ["running", "waiting", "promoted", "refused", "failed", "abandoned"],
    }[name]
    state = _query("state", "Only those in this state.", enum=states)
    return {
        "parameters": [*parameters, state],
        "get": operation(
            f"The newest {name}", {200: said("Newest first.", _list(name, component))}, 400, 503
        ),
    }


def _list(name: str, component: str) -> Json:
    return {
        "type": "object",
        "required": [name],
        "properties": {name: {"type": "array", "items": ref(component)}},
    }


def _row(table: sa.Table) -> Json:
    """A ledger row as it is answered."""
    return {
        "type": "object",
        "required": [str(column.name) for column in table.columns],
        "properties": {str(column.name): _cell(column) for column in table.columns},
    }


def _cell(column: sa.Column[Any]) -> Json:
    kind: str = "string"
    more: Json = {}
    if isinstance(column.type, tables.UtcTime):
        more = {"format": "date-time"}
    elif isinstance(column.type, sa.Integer):
        kind = "integer"
    elif isinstance(column.type, sa.Float):
        kind = "number"
    return {"type": [kind, "null"] if column.nullable else kind, **more}


def _summary() -> Json:
    names = ("version", "at", "metric", "value", "low", "high", "tolerated")
    cells = {name: _cell(tables.checks.c[name]) for name in names}
    return {
        "type": "object",
        "required": ["model", "state", "reason"],
        "properties": {
            "model": {"type": "string"},
            "state": {"type": ["string", "null"]},
            "reason": {"type": "string"},
            **cells,
        },
    }


def _labels_out() -> Json:
    counts = {
        field.name: {"type": "integer"}
        for field in msgspec.structs.fields(LabelReceipt)
        if field.type is int
    }
    counts = {"received": {"type": "integer"}, **counts, "refused": {"type": "integer"}}
    return {
        "type": "object",
        "required": list(counts),
        "properties": {**counts, "problems": {"type": "array", "items": ref("Problem")}},
    }


def _release() -> str:
    try:
        return version("shelflife")
    except PackageNotFoundError:
        return "0"
