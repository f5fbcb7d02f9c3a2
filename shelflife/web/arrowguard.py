"""How much an Arrow IPC body would become, read from its headers before anything is decoded.

A few bytes may declare a million rows, or a compressed buffer that unfolds to gigabytes. The
message headers say both: each is walked here (flatbuffers, by hand: offsets and vtables) and
refused if what it declares is more than the limits allow. What a header says of the body is
pyarrow's to check; only amounts are looked at.

Source: Arrow columnar format, "Serialization and Interprocess Communication", and
format/Message.fbs, https://arrow.apache.org/docs/format/Columnar.html.
"""

from __future__ import annotations

import struct

from shelflife.web.limits import Refused

MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_MAX_MESSAGES = 10_000
_RECORD = struct.Struct("<qq")  # a FieldNode {length, nulls} or a Buffer {offset, length}


def stream(body: bytes) -> bytes:
    """The body as an IPC stream; a file is a stream between two magic words.

    The footer of a file is not read: it could point anywhere.
    """
    return body[8:] if body.startswith(MAGIC) else body


def check(body: bytes, *, rows: int, size: int) -> None:
    """Refuse a stream that declares more than it may.

    Args:
        rows: most values of any column, dictionaries included, over all batches.
        size: most bytes of all compressed buffers once they are unfolded.

    Raises:
        Refused: it does, or its headers cannot be read.
    """
    try:
        _walk(body, rows, size)
    except (struct.error, IndexError, OverflowError):
        raise Refused("arrow", "body", "broken headers", "an Arrow IPC stream or file") from None


def _walk(body: bytes, rows: int, size: int) -> None:
    position, seen, unfolded = 0, 0, 0
    for _ in range(_MAX_MESSAGES):
        if len(body) - position < 8:  # an end without the mark of the end: pyarrow takes it
            return
        mark, length = struct.unpack_from("<Ii", body, position)
        if mark != _CONTINUES:
            raise Refused("arrow", "body", body[:8], "an Arrow IPC stream or file")
        if length == 0:
            return
        start, data = position + 8, position + 8 + length
        if length < 0 or data > len(body):
            raise Refused("arrow", "body", f"a header of {length} bytes", "as many bytes as said")
        message = _Table(body, start + _u32(body, start), start, data)
        following = message.i64(3)
        if following < 0 or data + following > len(body):
            raise Refused("arrow", "body", f"a body of {following} bytes", "as many as said")
        longest, more = _amounts(body[data : data + following], message)
        seen += longest if message.u8(1) == _BATCH else 0
        unfolded += more
        if max(longest, seen) > rows:
            expected = f"at most {rows}; send several requests"
            raise Refused("rows", "body", f"{max(longest, seen)} rows", expected)
        if unfolded > size:
            expected = f"at most {size} bytes once decompressed"
            raise Refused("too_large", "body", f"{unfolded} bytes", expected)
        position = data + following
    raise Refused("arrow", "body", f"over {_MAX_MESSAGES} batches", "fewer, larger batches")


def _amounts(data: bytes, message: _Table) -> tuple[int, int]:
    """The longest column that a message declares, and the bytes that its compressed buffers become.

    Args:
        data: the body of the message.
    """
    kind, content = message.u8(1), message.table(2)
    if kind == _DICTIONARY and content is not None:
        content = content.table(1)
    if kind not in (_DICTIONARY, _BATCH) or content is None:
        return 0, 0
    lengths = [content.i64(0), *(length for length, _ in content.pairs(1))]
    if min(lengths) < 0:
        raise Refused("arrow", "body", f"{min(lengths)} rows", "no negative lengths")
    compressed = content.table(3) is not None
    return max(lengths), _unfolded(data, content) if compressed else 0


def _unfolded(data: bytes, batch: _Table) -> int:
    total = 0
    for offset, size in batch.pairs(2):
        if size < 8 or not 0 <= offset <= len(data) - 8:
            continue  # nothing in it, or outside: which pyarrow refuses
        (declared,) = struct.unpack_from("<q", data, offset)
        if declared < -1:
            raise Refused("arrow", "body", f"{declared} bytes", "a size of a compressed buffer")
        total += max(declared, 0)
    return total


class _Table:
    """A flatbuffers table within the header [low, high)."""

    def __init__(self, body: bytes, at: int, low: int, high: int) -> None:
        self.body, self.at, self.low, self.high = body, at, low, high
        self._inside(at, 4)
        self.vtable = at - struct.unpack_from("<i", body, at)[0]
        self._inside(self.vtable, 4)
        self.slots = (struct.unpack_from("<H", body, self.vtable)[0] - 4) // 2
        self._inside(self.vtable, 4 + 2 * max(self.slots, 0))

    def _inside(self, at: int, size: int) -> None:
        if at < self.low or at + size > self.high:
            raise struct.error("outside of the header")

    def _field(self, slot: int, size: int) -> int:
        if slot >= self.slots:
            return 0
        offset = int(struct.unpack_from("<H", self.body, self.vtable + 4 + 2 * slot)[0])
        if offset:
            self._inside(self.at + offset, size)
        return self.at + offset if offset else 0

    def u8(self, slot: int) -> int:
        at = self._field(slot, 1)
        return self.body[at] if at else 0

    def i64(self, slot: int) -> int:
        at = self._field(slot, 8)
        return int(struct.unpack_from("<q", self.body, at)[0]) if at else 0

    def table(self, slot: int) -> _Table | None:
        at = self._field(slot, 4)
        return _Table(self.body, at + _u32(self.body, at), self.low, self.high) if at else None

    def pairs(self, slot: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64."""
        at = self._field(slot, 4)
        if not at:
            return []
        start = at + _u32(self.body, at)
        self._inside(start, 4)
        count = _u32(self.body, start)
        start += 4
        self._inside(start, 16 * count)
        return [(a, b) for a, b in _RECORD.iter_unpack(self.body[start : start + 16 * count])]


def _u32(body: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", body, at)[0])
