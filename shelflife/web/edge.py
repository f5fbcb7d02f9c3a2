"""Where HTTP ends: bodies read within bounds, values as JSON, errors as statuses."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.errors import (
    Busy,
    InputError,
    NotFound,
    NotReady,
    ShelflifeError,
    TooLarge,
    TooSlow,
    Unsupported,
)
from shelflife.web.limits import Limits, plain

_log = logging.getLogger("shelflife.web")
Handler = Callable[[Request], Awaitable[Response]]
JSON = "application/json"
#: The store is locked, full or out of reach; the same request may do later.
_UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeout, OSError)
_RETRY_AFTER = "1"  # seconds
_SHARE = 4  # bodies of the largest size that may be under way at once
_PIECE = 1 << 16


def edge(handler: Handler) -> Handler:
    """Domain errors as HTTP answers; the one place of this API that maps them."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except ShelflifeError as error:
            return refused(status_of(error), error)
        except _UNAVAILABLE as error:
            _log.warning("store_unavailable", extra={"error": str(error).partition("\n")[0]})
            text = "the store cannot commit at the moment; nothing was written; send it again"
            return refused(503, Busy(text))
        except DataError as error:  # what a database cannot hold, found by it and not by us
            _log.warning("store_refused", extra={"error": str(error).partition("\n")[0]})
            return refused(400, ShelflifeError("a value cannot be stored; nothing was written"))
        except Exception as error:
            _log.exception("request_failed")
            return refused(500, ShelflifeError(f"internal error: {type(error).__name__}"))

    return answer


def status_of(error: ShelflifeError) -> int:
    """The status that tells of an error."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return 409


_STATUS: tuple[tuple[type[ShelflifeError], int], ...] = (
    (TooLarge, 413),
    (TooSlow, 408),
    (Unsupported, 415),
    (InputError, 400),
    (NotFound, 404),
    (NotReady, 503),
)


def answer(value: object, *, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status_code=status, media_type=JSON)


def refused(status: int, error: ShelflifeError) -> Response:
    """An error as JSON; a bad input's field, value and what was expected beside it."""
    body: dict[str, object] = {"error": str(error)}
    if isinstance(error, InputError):
        body |= {"field": error.field, "value": plain(error.value), "expected": error.expected}
    headers = {"Retry-After": _RETRY_AFTER} if status == 503 else {}
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type=JSON)


class Bodies:
    """Reads bodies within bounds: of one, and of all that are under way in this process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._most = _SHARE * limits.body
        self._under_way = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, decompressed; its bytes count as under way until the block ends.

        Raises:
            TooLarge: the body, or what it decompresses to, is over the limit.
            Unsupported: a content encoding other than gzip, zstd and identity.
            Busy: too many bytes are under way.
            TooSlow: it took too long to come.
            InputError: damaged compression.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._under_way + size > self._most:
                raise Busy("too many bytes are under way; send it again in a second")
            self._under_way += size
            held += size

        try:
            raw = await self._raw(request, hold)
            encoding = request.headers.get("content-encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                hold(self.limits.body)  # the most it may become
                raw = await run_in_threadpool(unpacked, raw, encoding, self.limits.body)
            yield raw
        finally:
            self._under_way -= held

    async def _raw(self, request: Request, hold: Callable[[int], None]) -> bytes:
        most = self.limits.body
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced[:20]) > most:
            raise _too_large(f"{announced[:20]} bytes", most)
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.read_within):
                async for piece in request.stream():
                    if len(body) + len(piece) > most:
                        raise _too_large(f"over {most} bytes", most)
                    hold(len(piece))
                    body += piece
        except TimeoutError:
            expected = f"all of it within {self.limits.read_within:g} s; nothing was written"
            raise TooSlow("body", f"{len(body)} bytes", expected) from None
        return bytes(body)


def unpacked(raw: bytes, encoding: str, most: int) -> bytes:
    """The bytes that a content encoding hides, never more than `most` of them in memory.

    Raises:
        Unsupported: not gzip or zstd.
        TooLarge: it unfolds to more than `most`.
        InputError: it is damaged or cut short.
    """
    if encoding in ("gzip", "x-gzip"):
        return _gunzip(raw, most)
    if encoding == "zstd":
        return _unzstd(raw, most)
    raise Unsupported("Content-Encoding", encoding, "gzip, zstd or identity")


def _gunzip(raw: bytes, most: int) -> bytes:
    found, rest = bytearray(), raw
    try:
        while rest:  # gzip files may be put one after another
            unpacker = zlib.decompressobj(wbits=31)
            while rest and not unpacker.eof:
                found += unpacker.decompress(rest, max(1, min(_PIECE, most + 1 - len(found))))
                if len(found) > most:
                    raise _too_large(f"over {most} bytes once decompressed", most)
                rest = unpacker.unconsumed_tail
            found += unpacker.flush()
            if not unpacker.eof:
                raise InputError("body", "gzip that ends too early", "a whole gzip body")
            rest = unpacker.unused_data
    except zlib.error as error:
        raise InputError("body", raw[:20], f"gzip ({error})") from None
    if len(found) > most:
        raise _too_large(f"over {most} bytes once decompressed", most)
    return bytes(found)


def _unzstd(raw: bytes, most: int) -> bytes:
    import pyarrow as pa

    found = bytearray()
    try:
        with pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream:
            while piece := stream.read(_PIECE):
                found += piece
                if len(found) > most:
                    raise _too_large(f"over {most} bytes once decompressed", most)
    except (pa.ArrowException, OSError) as error:
        message = str(error).partition("\n")[0][:200]
        raise InputError("body", raw[:20], f"a whole zstd body ({message})") from None
    return bytes(found)


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case; empty when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def decode(kind: type[Any], raw: bytes) -> Any:
    """A small JSON body as a typed value.

    Raises:
        InputError: not JSON, or not of that shape, naming the field.
    """
    from shelflife.web.jsonrows import complaint, strict

    value = strict(raw)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise complaint(str(error), value, kind) from None


def _too_large(what: str, most: int) -> TooLarge:
    return TooLarge("body", what, f"at most {most} bytes; send several requests")
