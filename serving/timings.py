"""How long answers take: counts in cells of a tenth of their width, cheap to add to and to merge.

A cell reaches from `EDGES[i - 1]` to `EDGES[i]` seconds; quantiles read from the cells are right to
within 10 %, whichever workers' counts were added up before.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct

#: 10 µs to 100 s, each edge a tenth above the one before.
EDGES: tuple[float, ...] = tuple(1e-5 * 1.1**i for i in range(170))


class Tally(Struct, kw_only=True):
    """What was answered in some stretch of time."""

    requests: int = 0
    rows: int = 0
    batches: int = 0
    cells: dict[int, int] = {}  # requests by cell; empty ones are left out

    def add(self, other: Tally) -> None:
        """Add another stretch's counts to this one's."""
        self.requests += other.requests
        self.rows += other.rows
        self.batches += other.batches
        for cell, count in other.cells.items():
            self.cells[cell] = self.cells.get(cell, 0) + count

    def quantile(self, share: float) -> float | None:
        """Seconds that this share of the requests did not exceed; None where there were none."""
        wanted, passed = share * sum(self.cells.values()), 0
        for cell in sorted(self.cells):
            passed += self.cells[cell]
            if passed >= wanted:
                return EDGES[min(cell, len(EDGES) - 1)]
        return None


class Timings:
    """Collects for one loaded version; `take` hands over what came since it was last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tally = Tally(cells={})

    def batch(self, seconds: Sequence[float], rows: int) -> None:
        """One batch: how long each of its requests waited for its answer, and its rows."""
        cells = [bisect_left(EDGES, each) for each in seconds]
        with self._lock:
            tally = self._tally
            tally.requests += len(cells)
            tally.rows += rows
            tally.batches += 1
            for cell in cells:
                tally.cells[cell] = tally.cells.get(cell, 0) + 1

    def take(self) -> Tally:
        """The counts since the last call."""
        with self._lock:
            found, self._tally = self._tally, Tally(cells={})
        return found
