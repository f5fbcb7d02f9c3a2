"""What depends on a version's reference sample alone, made once as long as that is held."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
_made: dict[int, tuple[weakref.ref[Any], dict[Hashable, Any]]] = {}


def kept(frame: pd.DataFrame, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives, remembered under `key` with the frame and gone with it."""
    held = _made.get(id(frame))
    if held is None or held[0]() is not frame:
        gone = id(frame)
        held = (weakref.ref(frame, lambda _: _made.pop(gone, None)), {})
        _made[gone] = held
    if key not in held[1]:
        held[1][key] = make()
    found: T = held[1][key]
    return found
