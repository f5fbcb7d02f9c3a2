"""Which blocks of time are alike: hour and weekend, as fine as the baseline can tell.

A window is compared with the baseline's rows of the same strata, in the window's own mix (direct
standardisation), so that a Sunday night is held against Sunday nights.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import numpy as np

LEAST = 8  # blocks a stratum needs
_DAY, _HOUR = 86_400, 3_600
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

Scheme = Literal["hour_weekend", "hour", "quarter_weekend", "weekend", "none"]
#: Finest first, with how many strata each makes and the longest block that lies in one stratum.
SCHEMES: dict[Scheme, tuple[int, int]] = {
    "hour_weekend": (48, _HOUR),
    "hour": (24, _HOUR),
    "quarter_weekend": (8, 6 * _HOUR),
    "weekend": (2, _DAY),
    "none": (1, 10**12),
}


def stratum(scheme: Scheme, seconds: np.ndarray) -> np.ndarray:
    """The stratum of moments (seconds since 1970, UTC), intp of the same shape."""
    seconds = np.asarray(seconds, dtype=np.int64)
    weekend = ((seconds // _DAY + _EPOCH_WEEKDAY) % 7 >= 5).astype(np.intp)
    hour = ((seconds % _DAY) // _HOUR).astype(np.intp)
    if scheme == "hour_weekend":
        return hour * 2 + weekend
    if scheme == "hour":
        return hour
    if scheme == "quarter_weekend":
        return hour // 6 * 2 + weekend
    return weekend if scheme == "weekend" else np.zeros(seconds.shape, dtype=np.intp)


def choose(starts: np.ndarray, length: timedelta) -> Scheme:
    """The finest scheme under which every stratum holds eight of the baseline's blocks.

    Args:
        starts: seconds since 1970 at which the non-empty blocks begin.
        length: of a block.
    """
    for scheme, (strata, longest) in SCHEMES.items():
        if length.total_seconds() > longest:
            continue
        counts = np.bincount(stratum(scheme, starts), minlength=strata)
        if len(starts) and counts.min() >= LEAST:
            return scheme
    return "none"
