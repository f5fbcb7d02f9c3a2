"""One champion's life as the policy sees it, part by part: for replays, which hold it in memory.

The live service keeps the same observations in the ledger and learns its lessons anew from the log
(`retrain.evidence`); both call `retrain.probe` and hand the same series to `retrain.policy`.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
import numpy as np

from monitor.measure.sequential import Line, line
from retrain.probe import KEPT, Lesson, Observation, Part, Probe, learn, observe
from retrain.worth import normal_after_refusal


class Life:
    """What is known of the champion since its promotion.

    Args:
        probe: made from the champion's reference outputs (`retrain.probe.probe`).
        reference: its per-row losses on rows it was not fitted on, shape (n,), finite, n > 0.
        expected: its expected loss; the mean of `reference` when None.
    """

    def __init__(
        self, probe: Probe, reference: np.ndarray, *, expected: float | None = None
    ) -> None:
        self.probe, self.reference = probe, reference
        self.expected = float(reference.mean()) if expected is None else expected
        self.series: list[Observation] = []
        self.lessons: list[Lesson] = []
        self.refusals = 0
        self.refused_at: datetime | None = None
        self._brought: list[tuple[float, float]] = []
        self._line: Line = line(reference, expected=self.expected)

    @property
    def windows(self) -> float:
        """Check windows observed since the promotion."""
        return sum(seen.windows for seen in self.series)

    def see(
        self,
        part: Part,
        *,
        at: datetime,
        windows: float = 1.0,
        predecessor: np.ndarray | None = None,
    ) -> Observation:
        """A new labelled part: judge it by earlier lessons, then learn from it.

        Args:
            predecessor: what the champion's predecessor would have lost, per row, on rows whose
                outcome is new; None: unknown.
        """
        seen = observe(
            self.probe,
            self.lessons,
            self._line,
            part,
            at=at,
            windows=windows,
            expected=self.expected,
        )
        if predecessor is not None and len(predecessor):
            self._brought.append((windows, float(predecessor.mean()) - seen.loss))
        if self._brought:
            total = sum(weight for weight, _ in self._brought)
            brought = sum(weight * gain for weight, gain in self._brought) / total
            seen = msgspec.structs.replace(seen, brought=brought)
        self.series.append(seen)
        self.lessons = [*self.lessons, learn(self.probe, part)][-KEPT:]
        return seen

    def refused(self, *, at: datetime, fresh: float | None = None) -> None:
        """The gate refused a candidate, decided on at `at`, that lost `fresh` on held-out rows."""
        self.refusals += 1
        self.refused_at = at
        self.expected = normal_after_refusal(self.series, self.expected, fresh)
        self._line = line(self.reference, expected=self.expected)
