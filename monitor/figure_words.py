"""Performance in words: the lines that `shelflife check`, incidents and the dashboard share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from core.times import spell
from monitor.figures import Estimated, Figure, Measured, Proof, ShelfLife
from monitor.measure.metrics import NAMES
from monitor.results import LabelFacts, Staleness
from monitor.wording import figure

_SEGMENTS = 3  # worst segments that are named


def figure_line(found: Figure) -> str:
    """`ROC AUC 0.871 [0.861, 0.881], expected 0.880, n 1,312`; or why there is none."""
    name = NAMES.get(found.name, found.name)
    if found.value is None:
        return f"{name}: {found.why or 'unknown'}"
    text = f"{name} {figure(found.value)}"
    if found.low is not None and found.high is not None:
        text += f" [{figure(found.low)}, {figure(found.high)}]"
    if found.expected is not None:
        text += f", expected {figure(found.expected)}"
    if found.worse:
        text += f", worse than tolerated ({figure(found.tolerated)})"
    return f"{text}, n {found.n:,}" + (f" ({found.why})" if found.why else "")


def measured_lines(found: Measured, watched: str) -> list[str]:
    """Every realised metric but the watched one, which has a line of its own; worst segments."""
    lines = [figure_line(each) for each in found.figures if each.name != watched]
    worse = [
        (segment, each) for segment in found.segments for each in segment.figures if each.worse
    ]
    worse.sort(key=lambda pair: -(pair[1].value or 0.0) / (pair[1].expected or 1.0))
    for segment, each in worse[:_SEGMENTS]:
        lines.append(f"where {segment.column} is {segment.level}: {figure_line(each)}")
    return lines


def estimate_lines(found: Estimated) -> list[str]:
    """The estimate of the watched metric and of others, and how right estimates have been."""
    if not found.figures:
        return [f"estimated without labels: none, {found.why}"] if found.why else []
    first, *others = found.figures
    lines = [f"estimated without labels ({found.method}): {figure_line(first)}"]
    if found.why:
        lines[0] += f" ({found.why})"
    lines += [f"estimated {figure_line(each)}" for each in others]
    if found.track is not None:
        lines.append(found.track.text or f"how right that is: {found.track.why}")
    return lines


def proof_line(found: Proof) -> str:
    """`decay proven (e = 740, n = 1,312)`, or how far the evidence is."""
    whole = 10 <= found.evidence < 1e6
    evidence = f"{found.evidence:,.0f}" if whole else f"{found.evidence:.3g}"
    said = f"e = {evidence}, n = {found.n:,}"
    if found.proven:
        return f"decay proven ({said})"
    return f"decay not proven ({said}; proven at {found.line:.0f})"


def shelf_life_lines(found: ShelfLife) -> Sequence[str]:
    """The remaining life by both yardsticks."""
    return found.text


def age_line(ages: Staleness) -> str:
    """How old everything is."""
    told = (
        ("model", ages.model),
        ("newest training row", ages.training_row),
        ("newest prediction", ages.prediction),
        ("newest label", ages.label),
        ("baseline", ages.baseline),
        ("check before", ages.monitor),
    )
    known = [f"{name} {spell(timedelta(seconds=age))}" for name, age in told if age is not None]
    return f"ages: {', '.join(known)}" if known else ""


def label_lines(found: LabelFacts) -> list[str]:
    """How complete the labels are, what is odd about them, and what is left out of every number."""
    lines = []
    if found.matured_coverage is not None:
        share = f"{100 * found.matured_coverage:.0f} % of the {found.matured or 0:,} rows due"
        lines.append(f"labels: {share} have theirs")
    odd = (
        ("said twice", found.repeated),
        ("corrected", found.corrected),
        ("for predictions that are not in the log", found.unknown),
    )
    named = [f"{count:,} {what}" for what, count in odd if count]
    if named:
        lines.append(f"labels: {', '.join(named)}; the last one said counts")
    return lines + [f"labels: {problem.text}; left out" for problem in found.problems]
