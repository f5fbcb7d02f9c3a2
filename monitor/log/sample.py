"""Which predictions are logged: decided by a hash of their id, so that any two processes, and any
two runs, keep the same ones, and a kept prediction always meets its label."""

from __future__ import annotations

import hashlib


def kept(prediction_id: str, rate: float) -> bool:
    """Whether a prediction belongs to the sample; a higher rate keeps a superset of a lower one.

    Args:
        prediction_id: the id its label will come with.
        rate: share of predictions to keep, 0 to 1.
    """
    if rate >= 1.0:
        return True
    digest = hashlib.blake2b(prediction_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < rate * 2.0**64
