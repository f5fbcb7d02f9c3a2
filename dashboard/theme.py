"""Colours: Okabe-Ito hues for a light and a dark page.

Orange and red belong to the states alone. The champion has the one accent; what it is compared with
(baseline, tolerance, predecessors) is grey. No text is ever told apart by its colour only.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Mode = Literal["light", "dark"]


class Palette(Struct, frozen=True, kw_only=True):
    """What the charts draw with on one background."""

    champion: str
    compared: str  # dashed: the baseline's expectation
    former: str  # versions that no longer serve
    text: str
    faint: str  # rules, grids and marks behind the data
    ramp: tuple[str, str, str, str]  # drift: quiet, near, over 1 x, over 2 x the threshold
    states: dict[str, str]


LIGHT = Palette(
    champion="#0072b2",
    compared="#8a94a0",
    former="#8fa3b5",
    text="#1b2430",
    faint="#dfe4ea",
    ramp=("#eef2f6", "#cfdeea", "#56b4e9", "#00578a"),
    states={
        "healthy": "#009e73",
        "drifting": "#56b4e9",
        "decaying": "#e69f00",
        "broken_feed": "#d55e00",
        "stale": "#aa5e96",
        "insufficient_data": "#c3cad2",
        "unchecked": "#c3cad2",
    },
)
DARK = Palette(
    champion="#56b4e9",
    compared="#8b97a4",
    former="#66798a",
    text="#e6eaef",
    faint="#2c3641",
    ramp=("#19222b", "#22394c", "#2f86ba", "#b5e0fb"),
    states={
        "healthy": "#1fc29a",
        "drifting": "#56b4e9",
        "decaying": "#f0b030",
        "broken_feed": "#ff7a50",
        "stale": "#d08fc0",
        "insufficient_data": "#5a6673",
        "unchecked": "#5a6673",
    },
)


def palette(mode: str | None) -> Palette:
    """The palette of a page; light where the browser has not said."""
    return DARK if mode == "dark" else LIGHT
