"""Causes in words: what was seen, and how much of the loss it carries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from monitor.measure import segments
from monitor.measure.cells import Column
from monitor.measure.repairs import Repair
from monitor.results import Cause


def told(
    found: Repair, columns: Mapping[str, Column], target: Column, loss: np.ndarray, *, scale: bool
) -> str:
    """What was seen, before how much it carries.

    Args:
        loss: the window's losses, shape (n,).
        scale: the target is a number, not a class.
    """
    if found.kind == "segment" and found.mask is not None:
        rule = segments.told(found.rule, list(columns.values()))
        inside = found.mask
        here, rows = float(loss[inside].mean()), float(inside.mean())
        return (
            f"where {rule} ({100 * rows:.0f} % of the rows) the loss is {here:.3g}, "
            f"{found.excess:.3g} above what such rows had"
        )
    if found.kind == "prior":
        return f"the label mix moved: {moved(target, scale=scale)}"
    column = columns[found.columns[0]]
    verb = "moved" if found.kind == "shift" else "is broken"
    return f"{column.name} {verb}: {moved(column, scale=True)}"


def moved(column: Column, *, scale: bool) -> str:
    """The plainest difference between a column then and now."""
    base, now = column.base_shares(), column.now_shares()
    if now[-1] - base[-1] > 0.05:
        return f"missing in {100 * now[-1]:.0f} % of the rows, {100 * base[-1]:.0f} % before"
    if not column.numeric:
        cell = int(np.argmax(np.abs(now - base)))
        level = [*column.levels, "missing"][cell]
        return f"{level} in {100 * now[cell]:.0f} % of the rows, {100 * base[cell]:.0f} % before"
    then, here = column.base[~np.isnan(column.base)], column.now[~np.isnan(column.now)]
    if not len(then) or not len(here):
        return "it has no values"
    if len(here) > 1 and here.min() == here.max() and then.min() < then.max():
        return f"constant at {here[0]:.4g}, median {np.median(then):.4g} before"
    if not scale or np.median(then) == np.median(here):
        return f"mean {here.mean():.4g}, {then.mean():.4g} before"
    return f"median {np.median(here):.4g}, {np.median(then):.4g} before"


def cause(found: Repair, rise: float) -> Cause:
    """The value object of a suspect that was accused, its share that of the whole rise."""
    low, high = found.gain - 1.96 * found.se, found.gain + 1.96 * found.se
    share = found.gain / rise
    text = (
        f"{found.text}; it carries {found.gain:.3g} [{low:.3g}, {high:.3g}] of the loss, "
        f"{100 * share:.0f} % of the rise"
    )
    return Cause(
        kind=found.kind,
        columns=found.columns,
        text=text,
        gain=found.gain,
        low=low,
        high=high,
        share=share,
        n=found.n,
    )
