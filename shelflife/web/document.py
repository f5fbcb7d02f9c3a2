"""The bricks of the OpenAPI document: references, operations, answers."""

from __future__ import annotations

from typing import Any

from core.spec import NAME

Json = dict[str, Any]
REF = "#/components/schemas/{name}"
STATUS = {
    400: "The request cannot be used; nothing was written.",
    401: "The signature is missing, wrong or too old.",
    404: "There is no such model, version or command.",
    408: "The body did not come in time; nothing was written.",
    409: "The request does not fit the state of things.",
    413: "The body is too large, or decompresses to too much.",
    415: "A media type or content encoding that is not read here.",
    429: "Too many rows wait for the model; nothing was predicted; send it later.",
    500: "The model raised on rows that fit its spec, or answered what is no number.",
    503: "Not ready, too busy, or the store cannot commit; nothing was written; send it again.",
    504: "The time the caller gave passed before there was an answer.",
}


def ref(name: str) -> Json:
    """A reference to a component."""
    return {"$ref": REF.format(name=name)}


def operation(summary: str, answers: dict[int, Json], *refusals: int, **more: Any) -> Json:
    """One operation: its answers by status, and the refusals that have the common body."""
    responses = {str(status): content for status, content in answers.items()}
    for status in refusals:
        if str(status) not in responses:
            responses[str(status)] = said(STATUS[status], ref("Failure"))
        if status in (429, 503):
            responses[str(status)]["headers"] = {
                "Retry-After": {"schema": {"type": "string"}, "description": "seconds"}
            }
    return {"summary": summary, "responses": responses, **more}


def said(description: str, schema: Json, media: str = "application/json") -> Json:
    """An answer's description and content."""
    return {"description": description, "content": {media: {"schema": schema}}}


def path_parameter(name: str, description: str, **schema: Any) -> Json:
    """A parameter of the path."""
    return {
        "name": name, "in": "path", "required": True, "description": description,
        "schema": {"type": "string", **schema},
    }  # fmt: skip


MODEL = path_parameter("model", "A model's name.", pattern=NAME.pattern)
