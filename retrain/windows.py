"""How much of the past to learn from: windows compete on the newest labelled rows. Pure.

Which stretch of history serves best differs from stream to stream, and a wrong one costs more than
a late retraining run. So every window fits on the rows before a judged slice, is scored on that
slice, and the scores are carried from run to run: the logarithm of each window's mean loss over
their average, discounted by `CARRY` per run. `blend`, the average of the models of `recent` and
`all`, is the soft choice: it competes without a fit of its own, and wins where neither is better.
`benchmarks/windows.py` scores the choice.

A competition costs a fit per window, so it is held only while its outcome is open and what it
could change pays for its fits (`settled`, `indifference`). Otherwise the leader is taken unasked.
Each run without a competition wears the lead off and widens what one might find, so the question
comes up again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from msgspec import Struct

from retrain.gate_rule import evidence
from retrain.wording import rounded

Name = Literal["recent", "all", "since_change", "decay", "blend"]

#: What a run's evidence is worth at the next run.
CARRY = 0.8
_DISTINCT = 0.8  # a window with this share of another's rows or more is no alternative to it
_BLOCKS = 60  # of losses, for the change point
_EDGE = 3  # blocks at either end in which no change is looked for
_RISE = 4.0  # standard errors a rise has to be, over the search of every split


class Window(Struct, frozen=True, kw_only=True):
    """A stretch of the training rows, and how they weigh."""

    name: Name
    rows: int  # the newest so many of the training rows
    since: datetime  # event time of the oldest of them
    half_life: int = 0  # a row this many rows older weighs half; 0: all weigh the same
    parts: tuple[str, ...] = ()  # of a blend: the windows whose models are averaged


class Score(Struct, frozen=True, kw_only=True):
    """How a window did."""

    name: Name
    rows: int
    loss: float  # mean on the judged slice, in the metric's row losses
    relative: float  # log of the loss over the average of all windows in this run
    score: float  # the same, with earlier runs' discounted; the lowest wins


class Choice(Struct, frozen=True, kw_only=True):
    """Which window won, and why."""

    window: Window
    reason: str
    scores: tuple[Score, ...] = ()
    judged_rows: int = 0
    runs: int = 0  # earlier runs whose evidence counted
    fits: int = 0  # what the competition cost


def propose(
    times: Sequence[datetime],
    names: Sequence[Name],
    *,
    recent_rows: int,
    change: int | None,
    min_rows: int,
) -> tuple[Window, ...]:
    """The windows of a training set that really differ, at least one.

    Args:
        times: event times of all training rows, in order.
        recent_rows: rows of `recent`, and the half-life of `decay`; 0 takes a third.
        change: index of the first row after the detected change; None: no change was found.
        min_rows: no window has fewer.
    """
    count = len(times)
    recent = max(min(recent_rows or count // 3, count), min(min_rows, count))
    sizes: dict[Name, int] = {"recent": recent, "all": count, "decay": count}
    if change is not None:
        # Fewer rows than `recent` win a lucky slice and lose the season after (docs/gate.md).
        sizes["since_change"] = max(count - change, recent)
    found: list[Window] = []
    for name in names:
        rows = sizes.get(name)
        if rows is None:  # no change was found, or a blend
            continue
        half_life = recent if name == "decay" else 0
        twins = [w for w in found if w.half_life == half_life]
        if any(min(rows, w.rows) >= _DISTINCT * max(rows, w.rows) for w in twins):
            continue
        if half_life >= _DISTINCT * count:  # hardly any row would weigh less
            continue
        since = times[count - rows]
        found.append(Window(name=name, rows=rows, since=since, half_life=half_life))
    if "blend" in names and {"recent", "all"} <= {w.name for w in found}:
        found.append(Window(name="blend", rows=count, since=times[0], parts=("recent", "all")))
    return tuple(found) or (Window(name="all", rows=count, since=times[0]),)


def weights(window: Window, rows: int) -> np.ndarray | None:
    """Sample weights of the window's newest `rows` rows, oldest first; None: all alike."""
    if not window.half_life:
        return None
    age = np.arange(rows - 1, -1, -1)
    found: np.ndarray = 0.5 ** (age / window.half_life)
    return found


def choose(
    windows: Sequence[Window],
    losses: Mapping[str, np.ndarray],
    past: Sequence[Mapping[str, float]] = (),
) -> Choice:
    """The window with the lowest discounted score.

    Args:
        windows: those that compete, at least one.
        losses: per-row losses of each on the same judged rows, in order of time.
        past: `Score.relative` by name of earlier runs, oldest first; empty where a run held no
            competition.
    """
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    sound = [w for w in windows if math.isfinite(means.get(w.name, math.nan))]
    if not sound:
        return Choice(window=windows[0], reason="no window could be judged: the first is taken")
    relative = _relative({w.name: means[w.name] for w in sound})
    score = {w.name: relative[w.name] + _carried(past, w.name) for w in sound}
    ranked = sorted(sound, key=lambda w: score[w.name])
    scores = tuple(
        Score(
            name=w.name,
            rows=w.rows,
            loss=means[w.name],
            relative=relative[w.name],
            score=score[w.name],
        )
        for w in ranked
    )
    judged, held = len(next(iter(losses.values()))), len([run for run in past if run])
    return Choice(
        window=ranked[0],
        reason=_reason(ranked, losses, scores, held),
        scores=scores,
        judged_rows=judged,
        runs=held,
    )


def settled(
    windows: Sequence[Window],
    past: Sequence[Mapping[str, float]],
    *,
    indifferent: float | None = 0.0,
) -> Choice | None:
    """The window that earlier runs have settled on; None while a competition is worth its fits.

    Args:
        windows: those that would compete.
        past: see `choose`; an empty entry is a run that held no competition.
        indifferent: share of the loss that is not worth a competition (`indifference`); None: the
            loss has just changed, and what earlier runs saw says nothing.
    """
    held = [run for run in past if run]
    if indifferent is None or len(held) < 2 or any(w.name not in held[-1] for w in windows):
        return None
    since = next(index for index, run in enumerate(reversed(past)) if run)
    leads = {w.name: _carried(past, w.name) for w in windows}
    leader = min(windows, key=lambda w: leads[w.name])
    for other in windows:
        if other is leader:
            continue
        both = [run for run in held if other.name in run and leader.name in run]
        swing = max(abs(run[other.name] - run[leader.name]) for run in both) / CARRY**since
        if not leads[other.name] - leads[leader.name] > swing - indifferent:
            return None
    reason = (
        f"{_words(leader)}: ahead by {len(held)} earlier competitions, and another would hardly "
        "change that or not pay for its fits, so none was held"
    )
    return Choice(window=leader, reason=reason, runs=len(held))


def indifference(windows: int, *, cost_of_fit: float, lasts: float) -> float:
    """The share of the loss that a better window would have to save to pay for a competition.

    Args:
        windows: that would compete, each with a fit of its own.
        cost_of_fit: in expected losses of one check window.
        lasts: check windows that a candidate will probably serve.
    """
    return windows * cost_of_fit / max(lasts, 1.0)


def fits_ahead(
    names: Sequence[str],
    past: Sequence[Mapping[str, float]],
    *,
    trials: int = 0,
    indifferent: float | None = 0.0,
) -> float:
    """How many fits the next run will probably take, the competition's included.

    Args:
        names: the windows that the settings offer.
        past: see `choose`.
        trials: of a hyperparameter search; 0: none.
        indifferent: see `settled`.
    """
    single = [name for name in names if name != "blend"]
    if len(single) < 2:
        return 1.0 + trials
    held = [run for run in past if run]
    # Before the first competition: `recent` and `all`, and a candidate that may be their blend.
    known = list(held[-1]) if held else [n for n in names if n in ("recent", "all", "blend")]
    start = datetime(1970, 1, 1, tzinfo=UTC)
    windows = [
        Window(name=name, rows=0, since=start)  # type: ignore[arg-type]
        for name in known
        if name in names
    ]
    choice = settled(windows, past, indifferent=indifferent)
    leader = choice.window.name if choice else min(known, key=lambda n: _carried(past, n))
    own = 2.0 if leader == "blend" else 1.0
    return trials + own + (0.0 if choice else float(len([n for n in known if n != "blend"])))


def _carried(past: Sequence[Mapping[str, float]], name: str) -> float:
    """What earlier runs found of a window, discounted by run."""
    return sum(CARRY ** (len(past) - index) * run.get(name, 0.0) for index, run in enumerate(past))


def _relative(means: Mapping[str, float]) -> dict[str, float]:
    average = sum(means.values()) / len(means)
    if not average > 0:
        return dict.fromkeys(means, 0.0)
    tiny = 1e-9 * average  # a perfect window has a logarithm too
    return {name: math.log(max(value, tiny) / average) for name, value in means.items()}


def _reason(
    ranked: Sequence[Window],
    losses: Mapping[str, np.ndarray],
    scores: Sequence[Score],
    runs: int,
) -> str:
    won = ranked[0]
    text = f"{_words(won)} lost {rounded(scores[0].loss)} a row on the newest rows"
    if len(ranked) == 1:
        return f"{_words(won)}: no other window to compare with"
    other = ranked[1]
    found = evidence(losses[other.name] - losses[won.name])
    text += f", {_words(other)} {rounded(scores[1].loss)}"
    if found.low is not None and found.high is not None:
        text += f" (difference {rounded(found.gain, 2)} [{rounded(found.low, 2)}, "
        text += f"{rounded(found.high, 2)}])"
    if runs and scores[0].loss > scores[1].loss:
        text += f"; it is ahead by what it gained in {runs} earlier run{'s' * (runs > 1)}"
    elif runs:
        text += f"; {runs} earlier run{'s' * (runs > 1)} weighed in"
    return text


def _words(window: Window) -> str:
    named = {
        "recent": f"the newest {window.rows:,} rows",
        "all": f"all {window.rows:,} rows",
        "since_change": f"the {window.rows:,} rows since the change",
        "decay": f"all {window.rows:,} rows with a half-life of {window.half_life:,}",
        "blend": f"the average of the models of {' and '.join(window.parts)}",
    }
    return named[window.name]


def change_point(losses: np.ndarray) -> int | None:
    """Index of the first row after the newest clear rise of a model's loss; None: no clear rise.

    Binary segmentation (Vostrikova 1981) on means of at most 60 blocks of rows: the split with the
    largest standardised rise, taken if it exceeds four standard errors (the scale is that of
    neighbouring blocks' differences, which a step hardly moves, so neither trend nor level inflates
    it); then the rows after it are searched for a later one.

    Args:
        losses: per-row losses as served, in order of time; NaN where there is none.
    """
    finite = np.flatnonzero(np.isfinite(losses))
    count = min(_BLOCKS, len(finite) // 10)
    if count < 4 * _EDGE:
        return None
    pieces = np.array_split(finite, count)
    means = np.array([losses[piece].mean() for piece in pieces])
    start: int | None = None
    while (split := _rise(means[start or 0 :])) is not None:
        start = (start or 0) + split
    return None if start is None else int(pieces[start][0])


def _rise(means: np.ndarray) -> int | None:
    count = len(means)
    if count < 4 * _EDGE:
        return None
    steps = np.abs(np.diff(means))
    # Median absolute difference of neighbours, scaled to a standard deviation of one block.
    scale = float(np.median(steps)) / (0.6745 * math.sqrt(2)) or float(steps.mean())
    if not scale > 0:
        return None
    best, where = 0.0, None
    for split in range(_EDGE, count - _EDGE + 1):
        before, after = means[:split], means[split:]
        error = scale * math.sqrt(1 / len(before) + 1 / len(after))
        rise = float(after.mean() - before.mean()) / error
        if rise > best:
            best, where = rise, split
    return where if best > _RISE else None
