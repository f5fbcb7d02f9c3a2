"""Is a run worth its price? What the champion's observations since its promotion add up to. Pure.

Two ways to be worth it, both in losses per row times check windows:

* *stale*: what a probe saves now (`now`), charged for the model's age, exceeds what staleness has
  cost already by the price: `age x now - sum of savings >= price`. That is the renewal-reward
  optimum: run when the loss a run would recover now is above the average cost of the cycle so far.
  `now` is read off a line through the origin, because a model fitted today has nothing to gain
  from a fit: savings are regressed on age, older ones forgotten with a half-life. So noise is
  averaged without looking at the past.
* *harm*: an e-detector says that the loss rose, the probe does not object (it would if the task had
  become harder), the rise has cost the price already, and fits help: what the last run brought, in
  losses its predecessor would have had more on the same rows, pays for another, or the probe says
  that this one will. The doubt that a disappointing run casts on the next one ends once the rise
  has cost `DOUBT` times the price: trying again is cheaper than being wrong for ever.

The price is below the cost of a run for two reasons: a decision takes effect late (labels and
deployment lag), and a probe recovers about half of what a fit would (docs/policy.md). Each run in a
row that came to nothing doubles it, and only later observations count then.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from monitor.measure.sequential import highest
from retrain.probe import Observation

PATIENCE = 500.0  # windows between false alarms of the e-detector
PRICE = 0.4  # of the cost of a run
DOUBT = 50.0  # prices that a proven rise has to cost before a run that did not pay is forgotten
HALF_LIFE = 3.0  # windows after which a saving weighs half
PAUSE = 3.0  # windows after a refusal in which nothing is decided
SEEN = 1.5  # windows that a probe must have judged before it may ask for a run by itself


class Worth(Struct, frozen=True, kw_only=True):
    """What the observations add up to; losses per row, sums in losses per row times windows."""

    why: Literal["", "harm", "stale"] = ""
    now: float | None = None  # what a run would recover of each row's loss; None: no probe yet
    memory: str = ""  # the memory of the probe that said so
    windows: float = 0.0  # that were observed (since the last refusal)
    due: float = 0.0  # age x now - sum of savings, to be compared with the price
    lost: float = 0.0  # what the loss above normal has cost
    price: float = 0.0
    evidence: float = 0.0  # the most the e-detector ever had, alarm at `PATIENCE`
    harmed: bool = False
    brought: float | None = None  # what the last run saves of each row's loss; None: unknown
    doubted: bool = False  # it is too little for an alarm alone to ask for another
    paused: bool = False


def worth(
    series: Sequence[Observation],
    *,
    cost: float,
    age: float,
    refusals: int = 0,
    refused_at: datetime | None = None,
) -> Worth:
    """What the observations of one champion say, oldest first.

    Args:
        series: since its promotion.
        cost: of a run, in losses per row times windows.
        age: windows of labelled rows that are newer than its training data.
        refusals: runs in a row that came to nothing against this champion.
        refused_at: when the newest of them was decided on.
    """
    brought = next((s.brought for s in reversed(series) if s.brought is not None), None)
    series = [seen for seen in series if refused_at is None or seen.at > refused_at]
    price = PRICE * 2.0**refusals * cost
    windows = sum(seen.windows for seen in series)
    lost = sum((seen.loss - seen.expected) * seen.windows for seen in series)
    # What was proven once stays proven: the highest value counts, not the last.
    proof = highest((seen.windows, seen.growth) for seen in series if seen.growth)
    harmed = proof >= PATIENCE
    found = Worth(
        windows=windows,
        lost=lost,
        price=price,
        evidence=proof,
        harmed=harmed,
        brought=brought,
        doubted=brought is not None
        and brought * age < price
        and not (harmed and lost >= DOUBT * price),
        paused=refused_at is not None and windows <= PAUSE,
    )
    if found.paused:
        return found
    probed = [seen for seen in series if seen.gains]
    if not probed:  # an alarm right after the promotion is believed, unless runs do not pay
        return replace(found, why="harm" if found.harmed and not found.doubted else "")
    savings = {name: _now(probed, name, age) for name in probed[-1].gains}
    memory = max(savings, key=lambda name: savings[name])
    now = savings[memory]
    spent = max(0.0, sum(seen.gains[memory] * seen.windows for seen in probed))
    found = replace(found, now=now, memory=memory, due=age * now - spent)
    helps = not found.doubted or age * now >= price
    if found.harmed and now >= 0 and found.lost >= price and helps:
        return replace(found, why="harm")
    judged = sum(seen.windows for seen in probed)
    if judged > SEEN and now > 0 and found.due >= price:
        return replace(found, why="stale")
    return found


def _now(series: Sequence[Observation], name: str, age: float) -> float:
    """What the memory's correction saves at this age: a line through the origin, newer rows first.

    Least squares of saving = slope x age, each observation weighing its windows, halved every
    `HALF_LIFE` windows. Its age is the model's when it was made.
    """
    top = bottom = later = 0.0
    for seen in reversed(series):
        then = max(age - later, seen.windows)
        weight = seen.windows * 0.5 ** (later / HALF_LIFE)
        top += weight * then * seen.gains[name]
        bottom += weight * then**2
        later += seen.windows
    return age * top / bottom if bottom else 0.0


def normal_after_refusal(
    series: Sequence[Observation], expected: float, fresh: float | None
) -> float:
    """The loss that counts as normal once the gate refused a fresh model: the task is that hard.

    Args:
        fresh: the refused candidate's loss on its held-out rows; None where it has none.
    """
    recent = [seen.loss for seen in series[-3:]]
    mean = sum(recent) / len(recent) if recent else expected
    return max(expected, mean, fresh or 0.0)
