"""Reading a request's body, up to a size and within a time, and unpacking it within that size."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from core.errors import InputError, TooLarge, TooSlow, Unsupported

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's `wbits`


async def read_body(request: Request, limit: int, within: float) -> bytes:
    """The body, decompressed, unless it is too big; see `received`."""
    return await received(dict(request.scope["headers"]), request.receive, limit, within)


async def received(
    headers: Mapping[bytes, bytes], receive: Receive, limit: int, within: float
) -> bytes:
    """The body that comes over ASGI, decompressed, unless it is too big.

    Args:
        headers: of the request, names in lower case.
        within: seconds it may take to come.

    Raises:
        TooLarge: more than `limit` bytes are announced, or come, or are packed in it.
        TooSlow: they do not come in time.
        Unsupported: a content encoding other than gzip, deflate and identity.
        InputError: damaged compression.
        ClientDisconnect: the caller went away.
    """
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(f"{announced[:20].decode()} bytes", limit)
    parts, size = list[bytes](), 0
    with _Patience(within) as patience:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(f"over {limit} bytes", limit)
            parts.append(part)
            if not message.get("more_body", False):
                break
    if patience.over:
        raise TooSlow("body", f"{size} bytes", f"all of it within {within:g} s")
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    encoding = headers.get(b"content-encoding")
    if encoding is None:
        return body
    return unpacked(body, encoding.decode("latin-1").strip().lower(), limit)


class _Patience:
    """`asyncio.timeout` for a wait that hardly ever happens: a body is mostly there already, and
    setting that up takes longer than reading it (a fifth as long this way).

    Attributes:
        over: the block was left because the time had passed.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self.over = seconds, False

    def __enter__(self) -> _Patience:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        return self

    def _end(self) -> None:
        self.over = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._timer.cancel()
        if not self.over or self._task is None:
            return False
        # Where somebody else cancelled the task as well, that is what happens.
        return self._task.uncancel() <= 0 and kind is asyncio.CancelledError


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The bytes that a content encoding hides, never many more than `limit` in memory.

    Raises:
        Unsupported, TooLarge, InputError: see `read_body`.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise Unsupported("Content-Encoding", encoding, "gzip, deflate or identity")
    unpacker = zlib.decompressobj(wbits=_WINDOWS[encoding])
    try:
        found = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError("body", body[:20], f"{encoding} ({error})") from None
    if len(found) > limit:
        raise _too_large(f"over {limit} bytes once decompressed", limit)
    if not unpacker.eof or unpacker.unused_data:
        raise InputError("body", f"{len(body)} bytes of {encoding}", "one whole compressed body")
    return found


def _too_large(what: str, limit: int) -> TooLarge:
    return TooLarge("body", what, f"at most {limit} bytes; send fewer rows")
