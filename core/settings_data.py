"""What the log may keep of a model's inputs, and when their feed counts as broken."""

from __future__ import annotations

from msgspec import Struct

from core.settings_retrain import Share


class QualitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the feed counts as broken."""

    missing_points: Share = 0.2
    """Rise of a column's missing share over the baseline's that breaks the feed."""
    unseen_share: Share = 0.2
    """Share of rows with a category the baseline never saw that breaks the feed."""
    out_of_range_share: Share = 0.5
    """Share of rows outside ten times the baseline's range that breaks the feed (wrong unit)."""


class PrivacySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which input columns the log may keep; others are neither monitored nor learned from."""

    allow: tuple[str, ...] = ()
    """Only these columns (and hashed ones) are logged; all of them when empty."""
    deny: tuple[str, ...] = ()
    """Never logged: missing in every row."""
    hash: tuple[str, ...] = ()
    """Logged as a keyed hash: equal values stay equal, and cannot be looked up without the key."""
    key: str = ""
    """`env:NAME` or `file:/path` of the hashes' secret, 16 characters or more."""
