"""Which rows to label first, when labels are missing: the rows that would tell most. Pure.

A label tells most where the answer was least certain: its expected loss is largest there, so are
what a probe can learn and what decides whether the loss rose. Asking for such rows alone would give
a sample that looks worse than the stream, so a share is drawn at random; a mean over the random
share is an honest estimate of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from msgspec import Struct

MOST = 20  # rows asked for at once
RANDOM_SHARE = 0.25


class LabelWish(Struct, frozen=True, kw_only=True):
    """An unlabelled row whose label would tell most, and why."""

    id: str
    reason: str


def rank(
    ids: Sequence[str],
    outputs: np.ndarray,
    *,
    probabilities: bool,
    drift: np.ndarray | None = None,
    most: int = MOST,
) -> tuple[LabelWish, ...]:
    """The rows to label first, the most telling first, then the random share.

    Args:
        ids: prediction ids, n of them.
        outputs: float64 (n, k): the probability (binary), one per class, or the prediction.
        probabilities: whether outputs are probabilities of classes.
        drift: how much more common such rows are than in the baseline, shape (n,), positive;
            None: all alike.
        most: rows asked for.

    The same arguments give the same rows: the random share is drawn by a hash of the id.
    """
    count = min(most, len(ids))
    if not count:
        return ()
    score = uncertainty(outputs, probabilities=probabilities) * (
        1.0 if drift is None else np.maximum(drift, 0.0)
    )
    score = np.where(np.isfinite(score), score, -1.0)  # no usable answer: nothing to learn from it
    drawn = round(count * RANDOM_SHARE)
    ties = np.array([crc32(identity.encode()) for identity in ids])
    order = np.lexsort((ties, -score))
    telling = [int(place) for place in order[: count - drawn]]
    rest = sorted((crc32(f"label {ids[place]}".encode()), place) for place in set(order.tolist()))
    random = [place for _, place in rest if place not in set(telling)][:drawn]
    why = "the answer is least certain here"
    if drift is not None:
        why += ", among rows that have become more common"
    return (
        *(LabelWish(id=ids[place], reason=why) for place in telling),
        *(
            LabelWish(id=ids[place], reason="drawn at random, for an honest mean")
            for place in random
        ),
    )


def uncertainty(outputs: np.ndarray, *, probabilities: bool) -> np.ndarray:
    """How uncertain each answer is, shape (n,): its expected Brier loss if it is calibrated.

    A regression's single number says nothing of its own certainty: there, how far it lies from the
    middle of all answers, in units of their spread, since errors grow where rows are rare.
    """
    if probabilities and outputs.shape[1] > 1:
        return np.asarray(1.0 - (outputs**2).sum(axis=1))
    values = outputs[:, 0]
    finite = values[np.isfinite(values)]
    if probabilities:
        return np.asarray(values * (1.0 - values))
    middle = float(np.median(finite)) if len(finite) else 0.0
    spread = float(np.median(np.abs(finite - middle))) if len(finite) else 1.0
    return np.asarray(np.abs(values - middle) / max(spread, 1e-12))
