"""Which models stay in memory when they do not all fit: pure arithmetic, no clock and no threads.

The one unused longest goes first, where a weight makes time pass more slowly: a model of weight 2
is kept as if it had been used half as long ago. Versions kept only for a rollback go before any
that answers, those under way last. Pinned models stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Resident(Struct, frozen=True, kw_only=True):
    """A version in memory."""

    model: str
    version: str
    size: int  # bytes
    idle: float  # seconds since it was last asked
    weight: float = 1.0
    pinned: bool = False
    spare: bool = False  # kept only to go back to it at once
    busy: bool = False  # requests are using it


def evicted(residents: Sequence[Resident], *, room: int, budget: int) -> list[Resident]:
    """Whom to take out so that `room` more bytes fit; possibly too few, where they are not to be.

    Args:
        room: bytes of what is to come in.
        budget: bytes of all; 0 means without limit.
    """
    if not budget:
        return []
    held, out = sum(each.size for each in residents), list[Resident]()
    for each in sorted(residents, key=_order):
        if held + room <= budget:
            break
        if each.pinned and not each.spare:
            continue
        out.append(each)
        held -= each.size
    return out


def _order(resident: Resident) -> tuple[bool, bool, float]:
    return not resident.spare, resident.busy, -resident.idle / resident.weight
