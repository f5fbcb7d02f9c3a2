"""Reading a request's body, up to a size and within a time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from core.errors import InputError, TooLarge, TooSlow


async def read_body(request: Request, limit: int, within: float) -> bytes:
    """The body, unless it is too big.

    Args:
        within: seconds it may take to come.

    Raises:
        TooLarge: more than `limit` bytes are announced, or come.
        TooSlow: they do not come in time.
    """
    if "inference-header-content-length" in request.headers:
        raise InputError(
            "Inference-Header-Content-Length",
            request.headers["inference-header-content-length"],
            "JSON tensors; the binary tensor extension is not served",
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge("body", f"{announced} bytes", f"at most {limit} bytes; send fewer rows")
    parts, size = [], 0
    try:
        async with asyncio.timeout(within):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    expected = f"at most {limit} bytes; send fewer rows"
                    raise TooLarge("body", f"over {limit} bytes", expected)
                parts.append(part)
    except TimeoutError:
        raise TooSlow("body", f"{size} bytes", f"all of it within {within:g} s") from None
    return b"".join(parts)
