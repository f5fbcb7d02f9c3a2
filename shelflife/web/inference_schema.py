"""The Open Inference Protocol's part of the OpenAPI document, as `serving.app` answers it."""

from __future__ import annotations

from serving.request import InferenceRequest
from serving.rest import TIMEOUTS
from shelflife.web.document import MODEL, Json, operation, path_parameter, ref, said

__all__ = ["InferenceRequest", "components", "paths"]

_TEXT = {"type": "string"}


def components() -> Json:
    """Schemas that no type of ours decodes: the answers."""
    tensor = _object(
        name=_TEXT,
        datatype={"const": "FP64"},
        shape={"type": "array", "items": {"type": "integer"}},
        data={"type": "array", "items": {"type": "number"}},
    )
    described = _object(
        name=_TEXT, datatype=_TEXT, shape={"type": "array", "items": {"type": "integer"}}
    )
    logged = {"enum": ["committed", "accepted", "queued", "shed", "unsampled"]}
    scalar = {"type": ["string", "number", "boolean", "null"]}
    record = {"type": "object", "additionalProperties": scalar}
    split = _object(
        columns={"type": "array", "items": _TEXT},
        data={"type": "array", "items": {"type": "array", "items": scalar}},
    )
    return {
        "InferenceAnswer": _object(
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            parameters=_object(shelflife_logged=logged),
            outputs={"type": "array", "items": tensor},
        ),
        "Frame": {"anyOf": [{"type": "array", "items": record}, split, record]},
        "FrameAnswer": _object(
            model=_TEXT,
            version=_TEXT,
            id=_TEXT,
            logged=logged,
            predictions={"type": "array", "items": _object(id=_TEXT)},
        ),
        "RepositoryIndex": {
            "type": "array",
            "items": _object(
                name=_TEXT,
                version=_TEXT,
                state={"enum": ["READY", "LOADING", "UNAVAILABLE"]},
                reason=_TEXT,
            ),
        },
        "ModelMetadata": _object(
            name=_TEXT,
            versions={"type": "array", "items": _TEXT},
            platform=_TEXT,
            inputs={"type": "array", "items": described},
            outputs={"type": "array", "items": described},
        ),
    }


def paths() -> Json:
    """The endpoints."""
    version = path_parameter("version", "The version that is served.", minLength=1)
    ready = _object(name=_TEXT, ready={"const": True})
    server = _object(name=_TEXT, version=_TEXT, extensions={"type": "array", "items": _TEXT})
    found: Json = {
        "/v2": {"get": operation("What this server is", {200: said("The server.", server)})},
        "/v2/health/live": {
            "get": operation(
                "Whether the process runs", {200: said("It does.", _object(live={"const": True}))}
            )
        },
        "/v2/health/ready": {
            "get": operation(
                "Whether every model would answer",
                {200: said("They would.", _object(ready={"const": True}))},
                503,
            )
        },
    }
    for one, parameters in (
        ("/v2/models/{model}", [MODEL]),
        ("/v2/models/{model}/versions/{version}", [MODEL, version]),
    ):
        found |= {
            one: {
                "parameters": parameters,
                "get": operation(
                    "What to send, what comes back",
                    {200: said("The model.", ref("ModelMetadata"))},
                    404,
                    503,
                ),
            },
            f"{one}/ready": {
                "parameters": parameters,
                "get": operation(
                    "Whether the version that the alias names is warm",
                    {200: said("It is.", ready)},
                    404,
                    503,
                ),
            },
            f"{one}/infer": {"parameters": [*parameters, *_HEADERS], "post": _infer()},
        }
    return found | _repository() | _frames()


_REFUSALS = (400, 404, 408, 413, 415, 429, 500, 503, 504)
_MILLISECONDS = {"type": "string", "pattern": "^[0-9]{1,12}$"}
_TIMEOUT = {
    "name": TIMEOUTS[0], "in": "header", "required": False, "schema": _MILLISECONDS,
    "description": "Milliseconds after which the caller wants no answer any more.",
}  # fmt: skip
_HEADERS: list[Json] = [
    _TIMEOUT,
    {
        "name": "Inference-Header-Content-Length", "in": "header", "required": False,
        "schema": _MILLISECONDS, "description": "Bytes of JSON, where tensors follow as bytes.",
    },
]  # fmt: skip


def _infer() -> Json:
    binary = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    answers = said("The answer.", ref("InferenceAnswer"))
    answers["content"]["application/octet-stream"] = binary
    content = {
        "application/json": {"schema": ref("InferenceRequest")},
        "application/octet-stream": binary,
    }
    return operation(
        "Predict", {200: answers}, *_REFUSALS, requestBody={"required": True, "content": content}
    )


def _repository() -> Json:
    """The model repository extension."""

    def asking(summary: str, done: Json, *more: int, **properties: Json) -> Json:
        schema = {"type": "object", "properties": properties}
        body = {"required": False, "content": {"application/json": {"schema": schema}}}
        return operation(summary, {200: done}, 400, 408, 413, 415, *more, requestBody=body)

    nothing = said("It is done.", {"type": "object"})
    index = said("Every model.", ref("RepositoryIndex"))
    one = "/v2/repository/models/{model}"
    return {
        "/v2/repository/index": {
            "post": asking("What models there are", index, ready={"type": "boolean"})
        },
        f"{one}/load": {
            "parameters": [MODEL],
            "post": asking("Put a model into memory and wait for it", nothing, 404, 503),
        },
        f"{one}/unload": {
            "parameters": [MODEL],
            "post": asking("Take a model out of memory until it is loaded", nothing, 404, 503),
        },
    }


def _frames() -> Json:
    """The data-frame endpoint."""
    text = {"type": "string"}
    media = "application/vnd.apache.arrow.stream"
    arrow = {"schema": text | {"contentMediaType": media}}
    content = {
        "application/json": {"schema": ref("Frame")},
        "text/csv": {"schema": text},
        media: arrow,
        "application/vnd.apache.arrow.file": arrow,
    }
    answers = said("A row for a row.", ref("FrameAnswer"))
    answers["content"] |= {"text/csv": {"schema": text}, media: arrow}
    queries = {
        "id": "The prediction id; row i of several is `<id>:<i>`.",
        "version": "Only if this version answers.",
        "event_time": "When it was asked, ISO 8601, where that is not now.",
    }
    parameters = [
        {"name": name, "in": "query", "description": said_of, "schema": text}
        for name, said_of in queries.items()
    ]
    return {
        "/api/v1/models/{model}/predict": {
            "parameters": [MODEL, _TIMEOUT, *parameters],
            "post": operation(
                "Predict the rows of a data frame",
                {200: answers},
                *_REFUSALS,
                requestBody={"required": True, "content": content},
            ),
        }
    }


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}
