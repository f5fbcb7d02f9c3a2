"""Has the loss risen above the tolerance? False alarms and delay when looked at after every batch.

    python benchmarks/sequential.py [--lives 200] [--seed 0] [--streams FOLDER]

A life is a stream of row losses looked at after every batch of 50 rows: 400 looks. The line is the
baseline's mean + 10 %. *False alarms*: the share of lives with any alarm, while the mean lies
exactly at the line (`at the line`, the hardest case there is) or at the baseline (`at the
baseline`). *Delay*: rows from the moment the loss rises (after 100 quiet batches at the baseline's
mean) until the alarm, median of the lives that raised none before; and the share that is found
within the 300 batches that follow. *Slowly*: it rises over 200 batches.

    e-process    `monitor.measure.sequential.follow`, alarm at 1 / .05: at most 5 % of lives
    e-detector   `evidence`, alarm at 400: promises 400 looks on average between false alarms
    two checks   the 95 % interval of the newest 20 batches above the line, in two checks running
    ADWIN, DDM, Page-Hinkley   river's, with its defaults, on the same rows; ADWIN's alarms count
                 where the mean went up; DDM sees errors (loss > .25), the others the loss in [0, 1]

river's know neither a baseline nor a tolerance: they ask whether something changed. Two kinds of
losses: Brier scores of a calibrated model, and (with `--streams`) those of the first model of each
real stream on the rows after its training, drawn anew so that nothing but the planted rise happens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from river.drift import ADWIN, PageHinkley
from river.drift.binary import DDM

from monitor.measure import sequential
from monitor.measure.performance import mean_interval
from monitor.proving import ALPHA, SURE

BATCH, LOOKS, QUIET = 50, 400, 100
TOLERANCE, PATIENCE = 0.1, 400.0
RISES = (1.25, 1.5, 2.0)  # of the baseline's mean
SLOW = -1.5  # to this, step by step over 200 batches
Draw = Callable[[np.random.Generator, int, float], np.ndarray]
Watch = Callable[[np.ndarray, np.ndarray], int | None]


def brier(rng: np.random.Generator, n: int, times: float) -> np.ndarray:
    """Brier losses of a calibrated model; the mean rises as some labels become a coin's."""
    p = rng.choice([0.05, 0.2, 0.5, 0.9], n)
    normal = float(np.mean([q * (1 - q) for q in (0.05, 0.2, 0.5, 0.9)]))
    coin = float(np.mean([(q**2 + (1 - q) ** 2) / 2 for q in (0.05, 0.2, 0.5, 0.9)]))
    flip = rng.random(n) < (times - 1) * normal / (coin - normal)
    y = rng.random(n) < np.where(flip, 0.5, p)
    losses: np.ndarray = (p - y) ** 2
    return losses


def resampled(pool: np.ndarray) -> Draw:
    """Rows of a pool of losses; the mean rises as rows with large losses become more."""

    def draw(rng: np.random.Generator, n: int, times: float) -> np.ndarray:
        weight = np.ones(len(pool))
        if times > 1:  # tilt until the mean is what it should be
            low, high = 0.0, 50.0
            for _ in range(60):
                middle = (low + high) / 2
                weight = np.exp(np.minimum(middle * pool / pool.max(), 500))
                under = float(np.average(pool, weights=weight)) < times * pool.mean()
                low, high = (middle, high) if under else (low, middle)
        return rng.choice(pool, n, p=weight / weight.sum())

    return draw


def e_process(reference: np.ndarray, losses: np.ndarray) -> int | None:
    line = sequential.line(reference, tolerance=TOLERANCE, sure=SURE)
    now = sequential.Following()
    for look, batch in enumerate(batches(losses)):
        now = sequential.follow(now, line, batch)
        if now.evidence >= 1 / ALPHA:
            return look
    return None


def e_detector(reference: np.ndarray, losses: np.ndarray) -> int | None:
    line = sequential.line(reference, tolerance=TOLERANCE)
    value = np.zeros(len(line.bets))
    for look, batch in enumerate(batches(losses)):
        value = (value + 1) * np.exp(np.clip(sequential.growth(line, batch), -700, 50))
        if value.mean() >= PATIENCE:
            return look
    return None


def two_checks(reference: np.ndarray, losses: np.ndarray) -> int | None:
    limit, before = float(reference.mean()) * (1 + TOLERANCE), False
    for look in range(len(losses) // BATCH):
        window = losses[max(0, look - 19) * BATCH : (look + 1) * BATCH]
        now = mean_interval(window)[0] > limit
        if now and before:
            return look
        before = now
    return None


def river(make: Callable[[], object], see: Callable[[float], float], up: bool = False) -> Watch:
    def watch(reference: np.ndarray, losses: np.ndarray) -> int | None:
        detector, scale = make(), float(np.quantile(reference, 0.995))
        for at, loss in enumerate(losses):
            before = float(detector.estimation) if up else 0.0
            detector.update(see(min(loss / scale, 1.0)))
            if detector.drift_detected and (not up or detector.estimation > before):
                return at // BATCH
        return None

    return watch


METHODS: dict[str, Watch] = {
    "e-process": e_process,
    "e-detector": e_detector,
    "two checks": two_checks,
    "ADWIN": river(ADWIN, float, up=True),
    "Page-Hinkley": river(PageHinkley, float),
    "DDM": river(DDM, lambda loss: loss > 0.25),
}


def batches(losses: np.ndarray) -> Iterable[np.ndarray]:
    return np.array_split(losses, len(losses) // BATCH)


def study(draw: Draw, lives: int, seed: int) -> dict[str, list[str]]:
    """The columns of one table row for each method."""
    found: dict[str, list[str]] = {name: [] for name in METHODS}
    false_alarms(draw, lives, seed, found)
    delays(draw, lives // 4, seed, found)
    return found


def false_alarms(draw: Draw, lives: int, seed: int, found: dict[str, list[str]]) -> None:
    for times in (1 + TOLERANCE, 1.0):
        alarms = dict.fromkeys(METHODS, 0)
        for life in range(lives):
            rng = np.random.default_rng([seed, life])
            reference, losses = draw(rng, 3000, 1.0), draw(rng, LOOKS * BATCH, times)
            for name, watch in METHODS.items():
                alarms[name] += watch(reference, losses) is not None
        for name, count in alarms.items():
            found[name].append(f"{100 * count / lives:.0f} %")


def delays(draw: Draw, lives: int, seed: int, found: dict[str, list[str]]) -> None:
    for times in (*RISES, SLOW):
        waits: dict[str, list[float]] = {name: [] for name in METHODS}
        early = dict.fromkeys(METHODS, 0)
        for life in range(lives):
            rng = np.random.default_rng([seed, life, int(100 * abs(times)), times < 0])
            reference = draw(rng, 3000, 1.0)
            quiet = draw(rng, QUIET * BATCH, 1.0)
            losses = np.concatenate([quiet, risen(draw, rng, times)])
            for name, watch in METHODS.items():
                at = watch(reference, losses)
                early[name] += at is not None and at < QUIET
                if at is None or at >= QUIET:
                    waits[name].append(np.inf if at is None else (at - QUIET + 1) * BATCH)
        for name, rows in waits.items():
            if not rows:
                found[name].append("–")
                continue
            within, median = np.isfinite(rows).mean(), float(np.median(rows))
            shown = f"{median:,.0f}" if np.isfinite(median) else "never"
            found[name].append(f"{shown} ({100 * within:.0f} %)")


def risen(draw: Draw, rng: np.random.Generator, times: float) -> np.ndarray:
    """The rows after the quiet ones: at once, or rising (a negative number) over 200 batches."""
    if times > 0:
        return draw(rng, (LOOKS - QUIET) * BATCH, times)
    levels = np.minimum(1 + (abs(times) - 1) * np.arange(LOOKS - QUIET) / 200, abs(times))
    steps = np.repeat(levels[::10], 10)[: LOOKS - QUIET]
    return np.concatenate([draw(rng, BATCH, float(level)) for level in steps])


def pools(folder: Path) -> dict[str, np.ndarray]:
    """Losses of each real stream's first model on the 6,000 rows after its training."""
    import streams

    found = {}
    for name in streams.names(folder):
        stream = streams.read(folder, name)
        model = streams.learn(stream.spec, stream.inputs[: stream.init], stream.y[: stream.init])
        rows = slice(stream.init, stream.init + 6000)
        error = streams.answer(model, stream.inputs[rows]) - stream.y[rows]
        found[name] = error**2 if stream.spec.task == "binary" else np.abs(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lives", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", type=Path)
    given = parser.parse_args()
    worlds: dict[str, Draw] = {"Brier, simulated": brier}
    if given.streams:
        worlds |= {name: resampled(pool) for name, pool in pools(given.streams).items()}
    for world, draw in worlds.items():
        head = [
            "at the line",
            "at the baseline",
            *(f"× {times}" for times in RISES),
            "slowly × 1.5",
        ]
        print(f"\n{world}\n| method | {' | '.join(head)} |\n|---|{'---|' * len(head)}")
        for name, columns in study(draw, given.lives, given.seed).items():
            print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
