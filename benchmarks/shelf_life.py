"""How well is the remaining life of a model foretold?

    python benchmarks/shelf_life.py --streams FOLDER [--cache FOLDER] [--jobs 2] [--starts 4]

A model is fitted before every batch of every stream and answers all later batches. Its life is its
loss by age over a yardstick: *rel*, the loss of the model fitted just before the batch, or *abs*,
its own loss on a fifth of its training rows that it did not learn from. A life ends when the mean
of three batches first exceeds 1 + tolerance. Every fourth model is a champion; it is forecast at
the ages 3, 5, 8, 12, 16, 24, 32 and 40 batches while it lives, from its own path and from those of
the earlier champions up to the same batch. `--starts` shifts which models are champions.

coverage   the life ended within the 80 % interval; a life still going counts where that decides it
           (it has outlasted the interval, or the interval is open and has begun), else not
worst      the same on the stream where it is lowest
|log|      median of |log(median forecast / truth)| over lives whose end was seen (81 for beyond)
Brier      of "ends within 8 batches"; skill is 1 - Brier / Brier of Kaplan–Meier
tells      share of forecasts with probability below .2 or above .8; right: how often those are

Rivals: a line through the newest five points (*last slope*), the predecessors' mean life less the
age (*mean life*), and Kaplan–Meier over the predecessors given the age, with one pseudo-life.
Day one: champions without a path, from models fitted on sliding halves of their
newest `init` training rows; skill is against the streams' base rate, known with hindsight.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path as Folder
from typing import NamedTuple

import numpy as np
import streams
from msgspec import Struct
from streams import Stream, answer, learn

from monitor.measure.lives import Lives, Path, backtested_lives
from monitor.measure.performance import row_loss
from monitor.measure.shelf_life import STEPS, forecast

START = datetime(2000, 1, 1, tzinfo=UTC)  # a batch is a day
AGES, EVERY, SMOOTH, MOST = (3, 5, 8, 12, 16, 24, 32, 40), 4, 3, 40_000
BLOCKS = 10  # of the training window of day one
HORIZONS = (4, 8, 16)
OURS, RIVALS = "shelflife", ("last slope", "mean life", "Kaplan–Meier")


class Losses(NamedTuple):
    """Mean losses: (models, batches) with NaN before a model's time; each model's expected loss."""

    mean: np.ndarray
    expected: np.ndarray


class Scored(Struct, frozen=True):
    """One forecast and what became of it."""

    stream: str
    start: int
    kind: str
    tolerance: float
    method: str
    low: float
    median: float
    high: float
    chances: tuple[float, ...]  # of each horizon
    remaining: int  # batches until the end, or until the stream stopped
    ended: bool


def losses(folder: Folder, name: str, cache: Folder | None) -> Losses:
    """The losses of a model fitted before every batch, made once where there is a cache."""
    kept = None if cache is None else cache / f"{name}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as found:
            return Losses(found["mean"], found["expected"])
    stream = streams.read(folder, name)
    mean = np.full((stream.batches, stream.batches), np.nan)
    expected = np.full(stream.batches, np.nan)
    for k in range(stream.batches):
        end = stream.init + k * stream.batch
        first = max(0, end - min(stream.window, MOST))
        held, later = _fit(stream, first, end, stream.batches - k, stream.batch)
        mean[k, k:], expected[k] = later, held
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, mean=mean, expected=expected)
    return Losses(mean, expected)


def _fit(stream: Stream, first: int, end: int, count: int, size: int) -> tuple[float, np.ndarray]:
    """Expected loss of a model fitted on rows first .. end, and its loss on the blocks after."""
    order = np.arange(first, end)
    np.random.RandomState(end % 7919).shuffle(order)
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    model = learn(stream.spec, stream.inputs[kept], stream.y[kept])
    later = np.arange(end, end + count * size)
    both = np.concatenate([held, later])
    found = row_loss(
        stream.spec, stream.outputs(answer(model, stream.inputs[both])), stream.y[both]
    )
    rows = found[len(held) :].reshape(count, size)
    return float(found[: len(held)].mean()), rows.mean(axis=1)


def life(given: Losses, k: int, kind: str) -> np.ndarray:
    """Loss ratios of the model fitted before batch k, by age."""
    bar = np.diagonal(given.mean)[k:] if kind == "rel" else given.expected[k]
    found: np.ndarray = given.mean[k, k:] / bar
    return found


def expiry(ratios: np.ndarray, tolerance: float) -> tuple[int, bool]:
    """Batches until the mean of three first exceeds the line, or seen without; and whether."""
    if len(ratios) < SMOOTH:
        return len(ratios), False
    over = np.flatnonzero(np.convolve(ratios, np.ones(SMOOTH) / SMOOTH, "valid") > 1 + tolerance)
    return (int(over[0]) + SMOOTH, True) if len(over) else (len(ratios), False)


def path(ratios: Iterable[float], began: int, kind: str) -> Path:
    """A life as the product takes it."""
    values = tuple(float(value) for value in ratios)
    return Path(
        began=START + timedelta(days=began),
        ages=tuple(float(age + 1) for age in range(len(values))),
        ratios=values,
        yardstick="relative" if kind == "rel" else "absolute",
    )


def foretold(own: Path, lives: Lives, tolerance: float) -> tuple[float, float, float, list[float]]:
    """The product's forecast: low, median, high in batches (inf: beyond) and the chances."""
    got = forecast(own, lives, tolerance=tolerance, horizons=HORIZONS, ahead=1)
    if got.why is not None:
        raise RuntimeError(got.why)
    dates = (math.inf if each is None else each for each in (got.low, got.median, got.high))
    return (*dates, [each.probability for each in got.within])  # type: ignore[return-value]


def rivals(
    own: np.ndarray, lives: list[tuple[int, bool]], tolerance: float
) -> dict[str, np.ndarray]:
    """Samples of the remaining life by each simpler method; the first two know only one value."""
    newest = np.log(own[-5:])
    rate = np.polyfit(np.arange(len(newest)), newest, 1)[0]
    gap = math.log1p(tolerance) - newest[-SMOOTH:].mean()
    ended = [age for age, ended in lives if ended] or [age for age, _ in lives]
    return {
        "last slope": np.array([max(1.0, math.ceil(gap / rate)) if rate > 0 else math.inf]),
        "mean life": np.array([max(1.0, round(float(np.mean(ended)) - len(own)))]),
        "Kaplan–Meier": kaplan_meier(lives, len(own)),
    }


def kaplan_meier(lives: list[tuple[int, bool]], age: int) -> np.ndarray:
    """500 quantiles of the remaining life given survival to an age."""
    times, ended = np.array([a for a, _ in lives]), np.array([e for _, e in lives])
    alive, curve = 1.0, []
    for at in range(age + 1, age + STEPS + 1):
        alive *= 1 - ((times == at) & ended).sum() / ((times >= at).sum() + 1.0)
        curve.append(1 - alive)
    at = np.searchsorted(np.array(curve), (np.arange(500) + 0.5) / 500) + 1.0
    return np.where(at > STEPS, math.inf, at)


def replay(
    folder: Folder, name: str, cache: Folder | None, tolerances: tuple[float, ...], starts: int
) -> list[Scored]:
    """Every forecast on one stream by every method."""
    given, found = losses(folder, name, cache), list[Scored]()
    for start in range(starts):
        champions = range(start, len(given.mean) - SMOOTH, EVERY)
        for kind in ("rel", "abs"):
            all_ = {k: life(given, k, kind) for k in champions}
            cases = (
                (k, age, tol)
                for k in champions
                for age in AGES
                for tol in tolerances
                if k > start and age < len(all_[k]) and not expiry(all_[k][:age], tol)[1]
            )
            for k, age, tol in cases:
                before = {q: all_[q][: k + age - q] for q in champions if q < k}
                end, ended = expiry(all_[k], tol)
                truth = (end - age, ended)
                lives = Lives(paths=tuple(path(r, q, kind) for q, r in before.items()))
                ours = foretold(path(all_[k][:age], k, kind), lives, tol)
                head = (name, start, kind, tol)
                found.append(Scored(*head, OURS, *ours[:3], tuple(ours[3]), *truth))
                ends = [expiry(r, tol) for r in before.values()]
                for method, draws in rivals(all_[k][:age], ends, tol).items():
                    dates = np.quantile(draws, [0.1, 0.5, 0.9], method="inverted_cdf")
                    chances = tuple(float((draws <= h).mean()) for h in HORIZONS)
                    found.append(Scored(*head, method, *map(float, dates), chances, *truth))
    return found


def day_one(
    folder: Folder, name: str, cache: Folder | None, tolerances: tuple[float, ...]
) -> list[Scored]:
    """Champions at age 0 from lives back-tested on the newest `init` rows of their training."""
    given, stream, found = losses(folder, name, cache), streams.read(folder, name), list[Scored]()
    size, half = stream.init // BLOCKS, BLOCKS // 2  # one size: more rows are not taken for decay
    days = size / stream.batch
    for k in range(0, len(given.mean) - SMOOTH, 2 * EVERY):
        first = stream.init + k * stream.batch - BLOCKS * size
        ends = [START + timedelta(days=k - (BLOCKS - 1 - at) * days) for at in range(BLOCKS)]
        table, expected = np.full((BLOCKS - half, BLOCKS), np.nan), []
        for at, part in enumerate(range(half, BLOCKS)):
            to = first + part * size
            held, later = _fit(stream, to - half * size, to, BLOCKS - part, size)
            table[at, part:] = later
            expected.append(held)
        for kind, yardstick in (("rel", "relative"), ("abs", "absolute")):
            lives = backtested_lives(table, ends=ends, expected=expected, yardstick=yardstick)  # type: ignore[arg-type]
            for tol in tolerances:
                end_at, ended = expiry(life(given, k, kind), tol)
                ours = foretold(path([], k, kind), lives, tol)
                head = (name, 0, kind, tol, "day one")
                found.append(Scored(*head, *ours[:3], tuple(ours[3]), end_at, ended))
    return found


def coverage(cases: list[Scored]) -> tuple[float, float]:
    """On all forecasts and on the worst stream."""
    by: dict[str, list[bool]] = {}
    for case in cases:
        if case.ended:
            inside = case.low <= case.remaining <= case.high
        elif case.remaining >= case.high:
            inside = False
        elif case.remaining >= case.low and math.isinf(case.high):
            inside = True
        else:
            continue
        by.setdefault(case.stream, []).append(inside)
    hits = [hit for each in by.values() for hit in each]
    return float(np.mean(hits)), min(float(np.mean(each)) for each in by.values())


def decided(cases: list[Scored], at: int) -> tuple[np.ndarray, np.ndarray]:
    """Chances and truths of one horizon, where the truth is known."""
    horizon = HORIZONS[at]
    known = [case for case in cases if case.ended or case.remaining >= horizon]
    truth = np.array([case.ended and case.remaining <= horizon for case in known])
    return np.array([case.chances[at] for case in known]), truth


def line(label: str, cases: list[Scored], against: float | None) -> str:
    """A row of the table."""
    whole, worst = coverage(cases)
    ended = [case for case in cases if case.ended]
    errors = [abs(math.log(min(case.median, STEPS + 1) / case.remaining)) for case in ended]
    chances, truth = decided(cases, 1)
    brier = float(((chances - truth) ** 2).mean())
    skill = "" if against is None else f"{100 * (1 - brier / against):+.0f} %"
    told = []
    for at in range(len(HORIZONS)):
        chances, truth = decided(cases, at)
        tells = (chances < 0.2) | (chances > 0.8)
        right = ((chances > 0.8) == truth)[tells]
        told.append(f"{tells.mean():.2f}/{right.mean() if len(right) else math.nan:.2f}")
    size = f"{len(cases)}/{len(ended)}"
    return (
        f"{label:24s}{size:>10s}  {whole:.2f} {worst:.2f}   {np.median(errors):.2f}"
        f"   {brier:.3f} {skill:>6s}   {'   '.join(told)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=Folder, required=True)
    parser.add_argument("--cache", type=Folder, help="keeps the losses for the next run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--starts", type=int, default=EVERY)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.1, 0.2, 0.5])
    given = parser.parse_args()
    names, tolerances = streams.names(given.streams), tuple(given.tolerances)
    with ProcessPoolExecutor(given.jobs) as pool:
        head = (repeat(given.streams), names, repeat(given.cache), repeat(tolerances))
        found = [each for many in pool.map(replay, *head, repeat(given.starts)) for each in many]
        early = [each for many in pool.map(day_one, *head) for each in many]
    print(f"forecasts/ended, coverage (all, worst), |log|, Brier(8), skill, tells/right {HORIZONS}")
    for kind in ("rel", "abs"):
        for tol in tolerances:
            mine = [case for case in found if (case.kind, case.tolerance) == (kind, tol)]
            by = {m: [case for case in mine if case.method == m] for m in (OURS, *RIVALS)}
            chances, truth = decided(by["Kaplan–Meier"], 1)
            against = float(((chances - truth) ** 2).mean())
            print(f"\n{kind} {100 * tol:.0f} %")
            for method, cases in by.items():
                print(line(method, cases, against))
            for start in range(given.starts):
                cases = [case for case in by[OURS] if case.start == start]
                chances, truth = decided(
                    [case for case in by["Kaplan–Meier"] if case.start == start], 1
                )
                print(line(f"  start {start}", cases, float(((chances - truth) ** 2).mean())))
            cases = [c for c in early if (c.kind, c.tolerance) == (kind, tol)]
            _, truth = decided(cases, 1)
            print(line("  day one (base rate)", cases, float(truth.mean() * (1 - truth.mean()))))


if __name__ == "__main__":
    main()
