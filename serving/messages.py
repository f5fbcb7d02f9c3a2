"""gRPC's messages, from the compiled `inference.proto`, in a descriptor pool of their own.

Triton's client compiles messages of the same names from a file of its own, and the default pool of
a process takes each name once: a worker that serves gRPC and asks a Triton would not start. Made at
run time they also fit any protobuf, where generated modules want the one that made them or newer.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"


@cache
def _pool() -> Any:
    found = descriptor_pb2.FileDescriptorSet()
    found.ParseFromString(files("serving").joinpath("inference.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message of the protocol, by its bare name."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


def methods() -> list[tuple[str, Any, Any]]:
    """Every method: its name, and the classes of its request and its response."""
    service = _pool().FindServiceByName(SERVICE)
    return [
        (each.name, message(each.input_type.name), message(each.output_type.name))
        for each in service.methods
    ]
