"""CloudEvents 1.0 over HTTP: binary, structured and batched content mode, as values.

KServe's inference logger sends binary mode, one event for the request and one for the response,
with the same id and source (which the specification reserves for repeats) and different types; the
extension attributes `inferenceservicename`, `namespace`, `component`, `endpoint` and `annotations`
(a JSON object) say where they come from.

Sources: CloudEvents 1.0.2 spec, JSON event format and HTTP protocol binding,
https://github.com/cloudevents/spec; KServe pkg/logger/worker.go and handler.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from core.errors import InputError
from shelflife.web.jsonrows import strict
from shelflife.web.limits import MAX_SOURCE, Refused, identifier, printable, problem
from shelflife.web.wire import Problem

TYPES = {
    "org.kubeflow.serving.inference.request": "request",
    "org.kubeflow.serving.inference.response": "response",
}
STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
MAX_EVENT_ID = 200  # characters; the log's key holds 256, and `:<row>` is appended
VERSION_ANNOTATION = "shelflife/version"
_ATTRIBUTES = 100  # of one event
_DATA = {"request": ("instances", "inputs"), "response": ("predictions", "outputs")}
Part = Literal["request", "response"]


class Event(Struct, frozen=True, kw_only=True):
    """One half of an inference: what was asked, or what was answered."""

    part: Part
    id: str
    source: str  # at most MAX_SOURCE characters; the component beside it where it is no predictor
    model: str  # the inference service's name, or empty
    endpoint: str
    version: str  # that the event itself names, or empty
    time: str  # as given, or empty
    data: bytes  # the payload, JSON


def read(
    headers: Mapping[str, str], media: str, body: bytes, most: int
) -> tuple[list[tuple[int, Event]], list[Problem]]:
    """The events of a request, and those that are none.

    Args:
        media: the content type without parameters.
        most: events a batch may hold.

    Raises:
        InputError: a body that cannot be read at all, or a batch that is too long.
    """
    if media == BATCHED:
        return _batch(body, most)
    if media == STRUCTURED:
        value = strict(body)
        return [(0, _structured(value))], []
    if media.startswith("application/cloudevents"):
        raise Refused("type", "Content-Type", media, f"{STRUCTURED}, {BATCHED} or binary mode")
    attributes = {
        name[3:].lower(): unquote(value)
        for name, value in headers.items()
        if name.lower().startswith("ce-")
    }
    return [(0, _event(attributes, body))], []


def _batch(body: bytes, most: int) -> tuple[list[tuple[int, Event]], list[Problem]]:
    values = strict(body)
    if not isinstance(values, list):
        raise Refused("type", "body", values, "a list of events")
    if len(values) > most:
        raise Refused("rows", "body", f"{len(values)} events", f"at most {most}")
    found, problems = list[tuple[int, Event]](), list[Problem]()
    for position, value in enumerate(values):
        try:
            found.append((position, _structured(value)))
        except InputError as error:
            problems.append(problem(position, error, at=f"events[{position}]"))
    return found, problems


def _structured(value: Any) -> Event:
    if not isinstance(value, dict):
        raise Refused("type", "event", value, "an object")
    attributes = {key: each for key, each in value.items() if key not in ("data", "data_base64")}
    if "data_base64" in value:
        try:
            data = base64.b64decode(value["data_base64"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise Refused("type", "data_base64", value["data_base64"], "base64") from None
    elif isinstance(value.get("data"), str):
        data = value["data"].encode()  # JSON as text, where datacontenttype is none of JSON
    else:
        data = msgspec.json.encode(value.get("data"))
    return _event(attributes, data)


def _event(attributes: Mapping[str, Any], data: bytes) -> Event:
    if len(attributes) > _ATTRIBUTES:
        raise Refused("type", "event", f"{len(attributes)} attributes", f"at most {_ATTRIBUTES}")
    if not _text(attributes, "specversion").startswith("1."):
        raise Refused("type", "specversion", attributes.get("specversion"), "1.0")
    given = _text(attributes, "type")
    if given not in TYPES:
        raise Refused("type", "type", given, f"one of {sorted(TYPES)}")
    part: Part = "request" if TYPES[given] == "request" else "response"
    component = _text(attributes, "component")
    source = _text(attributes, "source")
    if not source:
        raise Refused("missing_field", "source", None, "a URI reference (required)")
    # A transformer before a predictor logs the same id: its pairs are others.
    where = source if component in ("", "predictor") else f"{source}#{component}"
    _payload(part, data)
    return Event(
        part=part,
        id=identifier(_text(attributes, "id"), "id", MAX_EVENT_ID),
        source=_short(where),
        model=_text(attributes, "inferenceservicename"),
        endpoint=_text(attributes, "endpoint"),
        version=_text(attributes, "modelversion") or _annotated(attributes),
        time=_text(attributes, "time"),
        data=data,
    )


def _payload(part: Part, data: bytes) -> None:
    """Whether the data may be what its part says; its values are looked at when it has its pair."""
    field = "data"
    value = strict(data)
    if not isinstance(value, dict) or not any(name in value for name in _DATA[part]):
        names = " or ".join(f"`{name}`" for name in _DATA[part])
        raise Refused("payload", field, value, f"a JSON object with {names}")


def _annotated(attributes: Mapping[str, Any]) -> str:
    """The version that an annotation of the inference service names."""
    try:
        found = msgspec.json.decode(_text(attributes, "annotations") or "{}")
    except (msgspec.DecodeError, RecursionError, ValueError):
        return ""
    version = found.get(VERSION_ANNOTATION) if isinstance(found, dict) else None
    return version if isinstance(version, str) and len(version) <= 64 else ""


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 2048 or not printable(value):
        raise Refused("type", name, value, "a string of at most 2048 printable characters")
    return value


def _short(source: str) -> str:
    """A source that fits its column: a long one keeps its beginning and gets a hash."""
    if len(source) <= MAX_SOURCE:
        return source
    import hashlib

    return f"{source[:80]}~{hashlib.blake2b(source.encode(), digest_size=16).hexdigest()}"
