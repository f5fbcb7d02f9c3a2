"""Settings of what is measured beside single columns; part of `core.settings`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class EvidentlyMetric(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of Evidently, computed in every check."""

    metric: str
    """Its class in `evidently.metrics`, such as `QuantileValue` or `DriftedColumnsCount`."""
    column: str = ""
    """The column it is of, where it is of one; `output NAME` for an output."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments, such as `{quantile: 0.9}`."""
    part: str = ""
    """Which number of a metric that has several, such as `share`; its only one when empty."""
    above: float | None = None
    """Drift above this value. Without either line both follow from `false_alarms_per_quarter`."""
    below: float | None = None
    """Drift below this value."""
