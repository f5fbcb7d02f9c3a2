"""The Open Inference Protocol v2 over gRPC, on a port of its own in the worker's event loop.

Same answers, same refusals, same log as over HTTP (`serving.answering`). A call's own deadline is
honoured; `raw_input_contents` are answered with `raw_output_contents`, typed contents with typed
ones. Needs `shelflife[grpc]`.

Source: `serving/inference.proto`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

import grpc
import grpc.aio
from msgspec import UNSET

from core.errors import InputError, NotReady, ShelflifeError
from core.settings import ServingSettings
from serving import binary
from serving.answering import Answered, Answering
from serving.messages import SERVICE, message, methods
from serving.repository import Repository
from serving.request import InferenceRequest, Tensor, WantedOutput
from serving.rest import EXTENSIONS, Rest, release, status_of

_log = logging.getLogger("shelflife.serving")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_GRACE = 5.0  # seconds that calls under way have when the worker ends


class Rpc:
    """The service; `async with` it to answer."""

    def __init__(
        self, rest: Rest, answering: Answering, repository: Repository, settings: ServingSettings
    ) -> None:
        self._rest, self._answering, self._repository = rest, answering, repository
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", int(settings.max_body_mb * 1_000_000)),
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ]
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(getattr(self, f"_{_snake(name)}"), response),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
            for name, request, response in methods()
        }
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        self.port = self._server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")

    async def __aenter__(self) -> Rpc:
        await self._server.start()
        _log.info("grpc_listens", extra={"port": self.port})
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._server.stop(_GRACE)

    def _guarded(self, handler: Callable[..., Any], response: Any) -> Callable[..., Any]:
        """A handler whose errors become gRPC's statuses."""

        async def guard(request: Any, context: Any) -> Any:
            try:
                return await handler(request, context, response)
            except Exception as error:
                known = isinstance(error, ShelflifeError)
                status = status_of(error)[0] if isinstance(error, ShelflifeError) else 500
                if not known:
                    _log.exception("request_failed", exc_info=error)
                text = str(error) if known else f"internal error: {type(error).__name__}"
                await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), text)

        return guard

    # --- the data path ---------------------------------------------------------------------------

    async def _model_infer(self, request: Any, context: Any, response: Any) -> Any:
        begun, model = monotonic(), request.model_name
        try:
            left = context.time_remaining()
            found = await self._answering.answer(
                self._answering.slot(model),
                lambda codec: codec.asked(_read(request)),
                version=request.model_version or None,
                within=left,
                since=begun,
            )
        except Exception as error:
            self._rest.refuse(error, model)  # counted, and logged where it is our fault
            raise
        return _written(found, response, raw=bool(request.raw_input_contents))

    # --- the rest --------------------------------------------------------------------------------

    async def _server_live(self, request: Any, context: Any, response: Any) -> Any:
        return response(live=True)

    async def _server_ready(self, request: Any, context: Any, response: Any) -> Any:
        try:
            self._rest.check_ready()
        except NotReady:
            return response(ready=False)
        return response(ready=True)

    async def _model_ready(self, request: Any, context: Any, response: Any) -> Any:
        try:
            self._rest.check_model_ready(request.name, request.version or None)
        except NotReady:
            return response(ready=False)
        return response(ready=True)

    async def _server_metadata(self, request: Any, context: Any, response: Any) -> Any:
        return response(name="shelflife", version=release(), extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, context: Any, response: Any) -> Any:
        found = self._rest.metadata(request.name, request.version or None)
        tensor = response.TensorMetadata

        def described(tensors: Any) -> list[Any]:
            return [
                tensor(name=each["name"], datatype=each["datatype"], shape=each["shape"])
                for each in tensors
            ]

        return response(
            name=found["name"],
            versions=found["versions"],
            platform=found["platform"],
            inputs=described(found["inputs"]),
            outputs=described(found["outputs"]),
        )

    async def _repository_index(self, request: Any, context: Any, response: Any) -> Any:
        return response(
            models=[
                response.ModelIndex(
                    name=each.name, version=each.version, state=each.state, reason=each.reason
                )
                for each in self._repository.index(ready=request.ready)
            ]
        )

    async def _repository_model_load(self, request: Any, context: Any, response: Any) -> Any:
        await self._repository.load(request.model_name, dict(request.parameters))
        return response()

    async def _repository_model_unload(self, request: Any, context: Any, response: Any) -> Any:
        await self._repository.unload(request.model_name)
        return response()


def _read(request: Any) -> InferenceRequest:
    """A gRPC request in the structure that REST requests have.

    Raises:
        InputError: contents that do not belong to the tensors.
    """
    inputs = [_tensor(each) for each in request.inputs]
    raw = request.raw_input_contents
    if raw:
        if len(raw) != len(inputs):
            raise InputError("raw_input_contents", f"{len(raw)} buffers", f"{len(inputs)}")
        for tensor, data in zip(inputs, raw, strict=True):
            if tensor.data is not UNSET:
                expected = "no contents beside raw_input_contents"
                raise InputError(f"{tensor.name}.contents", "values", expected)
            binary.fill(tensor, data)
    return InferenceRequest(
        inputs=inputs,
        id=request.id or None,
        parameters=_parameters(request.parameters),
        outputs=[
            WantedOutput(name=each.name, parameters=_parameters(each.parameters))
            for each in request.outputs
        ],
    )


def _tensor(given: Any) -> Tensor:
    tensor = Tensor(name=given.name, shape=list(given.shape), datatype=given.datatype)
    field = _CONTENTS.get(given.datatype)
    if not given.HasField("contents") or field is None:
        return tensor
    values = list(getattr(given.contents, field))
    if field == "bytes_contents":
        values = [binary.text(value, given.name) for value in values]
    tensor.data = [None if value != value else value for value in values]  # NaN: missing
    return tensor


def _parameters(given: Any) -> dict[str, Any] | None:
    found = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(value, choice)
    return found or None


def _written(found: Answered, response: Any, *, raw: bool) -> Any:
    asked, outputs = found.asked, found.outputs
    parameter = message("InferParameter")
    answer = response(
        model_name=found.model,
        model_version=found.version,
        id=asked.id,
        parameters={"shelflife_logged": parameter(string_param=found.logged)},
    )
    for name in asked.outputs:
        one = answer.outputs.add(name=name, datatype="FP64", shape=[asked.rows])
        if raw:
            answer.raw_output_contents.append(binary.numbers(outputs[name]))
        else:
            one.contents.fp64_contents.extend(outputs[name].tolist())
    return answer


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
