"""The Open Inference Protocol's part of the OpenAPI document, as `serving.app` answers it."""

from __future__ import annotations

from serving.request import InferenceRequest
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
    logged = {"enum": ["committed", "queued", "shed", "unsampled"]}
    return {
        "InferenceAnswer": _object(
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            parameters=_object(shelflife_logged=logged),
            outputs={"type": "array", "items": tensor},
        ),
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
    version = path_parameter("version", "A version that this server holds.", minLength=1)
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
                "Whether every model is warm",
                {200: said("They are.", _object(ready={"const": True}))},
                503,
            )
        },
    }
    for one, parameters in (
        ("/v2/models/{model}", [MODEL]),
        ("/v2/models/{model}/versions/{version}", [MODEL, version]),
    ):
        body = {"application/json": {"schema": ref("InferenceRequest")}}
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
                "get": operation("Whether it answers", {200: said("It does.", ready)}, 404, 503),
            },
            f"{one}/infer": {
                "parameters": parameters,
                "post": operation(
                    "Predict",
                    {200: said("The answer.", ref("InferenceAnswer"))},
                    400,
                    404,
                    408,
                    413,
                    500,
                    503,
                    requestBody={"required": True, "content": body},
                ),
            },
        }
    return found


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}
