"""A challenger that answers a share of the callers, and never instead of an answer.

Whom it answers is decided by a hash of the prediction id, so that a caller who asks again gets the
same model. If it fails, refuses or dawdles, the champion answers; one that keeps failing is left
alone for a while, so that nobody waits for it again and again.
"""

from __future__ import annotations

from time import monotonic

from core.errors import ShelflifeError
from monitor.log.sample import kept
from serving.backend import Columns, Outputs
from serving.batching import Batcher

_PATIENCE = 1.0  # seconds an answer of the challenger may take before the champion is asked
_FAILURES = 3  # in a row: then it is left alone
_REST = 30.0  # seconds


class Canary:
    """One version's share of the callers.

    Args:
        version: of the challenger.
        batcher: its loaded model.
        share: of the callers, 0 to 1.
    """

    def __init__(self, version: str, batcher: Batcher, share: float) -> None:
        self.version, self.share = version, share
        self._batcher = batcher
        self._failures = 0
        self._rests_until = 0.0

    def chosen(self, identity: str) -> bool:
        """Whether this prediction is the challenger's. Salted: the log's sample is drawn by a hash
        of the same id, and the two choices must not depend on each other."""
        return kept(f"canary:{identity}", self.share)

    @property
    def resting(self) -> bool:
        """Whether it is left alone after failures in a row."""
        return monotonic() < self._rests_until

    async def infer(self, columns: Columns, rows: int, left: float) -> Outputs | None:
        """Its answer; None when it has none, and the champion must give one.

        Args:
            left: seconds the caller still gives; half of them are kept for the champion.
        """
        try:
            outputs = await self._batcher.infer(columns, rows, within=min(_PATIENCE, left / 2))
        except ShelflifeError:
            self._failures += 1
            if self._failures >= _FAILURES:
                self._rests_until = monotonic() + _REST
            return None
        self._failures = 0
        return outputs
