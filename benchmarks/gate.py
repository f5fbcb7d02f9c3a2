"""Does the gate stop broken candidates, and how many useful ones does it stop with them?

    python benchmarks/gate.py --streams FOLDER [--starts 0,2,4,6] [--jobs 2]
    python benchmarks/gate.py --coverage

At every eighth batch of each stream a champion six batches old meets five candidates trained until
three batches ago: a good one; half of its labels shuffled; its first two columns swapped; 5 % of
its rows; rows no newer than 25 batches ago. `retrain.gate.compare` judges them on the three newest
batches with its default settings, exactly as in a run. What follows decides: a candidate that
loses over 2 % more than the champion on the next three batches is harmful, one that loses over 2 %
less is useful. Prints how many harmful ones each rule lets through and how many useful ones it
stops; the last column takes the newest `max_rows` rows only, as a run does. Everything is seeded.

`--coverage`: how often a one-sided 90 % interval of an AR(1) series' mean misses it, by method.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import streams
from msgspec import Struct
from scipy.special import stdtrit
from streams import Stream, answer, learn

from core.settings import GateSettings
from monitor.measure.performance import row_loss
from retrain.gate import GateResult, compare
from retrain.gate_data import TrainingFacts, swapped_columns
from retrain.gate_rule import evidence

KINDS = ("good", "half the labels shuffled", "two columns swapped", "5 % of the rows", "stale rows")
HELD, AGE, STALE, EVERY, AHEAD = 3, 6, 25, 8, 3  # batches
MOST = 12_000  # training rows
START = datetime(2000, 1, 1, tzinfo=UTC)
RULES: dict[str, GateSettings] = {
    "ahead (default)": GateSettings(),
    "superior at 90 %": GateSettings(rule="superior"),
    "not worse at 90 %": GateSettings(rule="not_worse"),
}


class Case(Struct, kw_only=True):
    """One candidate at one moment, and what came of it."""

    stream: str
    kind: str
    future: float  # gain over the next batches, as a share of the champion's loss
    gain: float  # on all held-out rows, as a share
    newest_z: float  # of the newest batch alone
    found: dict[str, GateResult]


def cases(folder: Path, name: str, start: int) -> list[Case]:
    """Every case of one stream, the first at batch 10 + start."""
    stream = streams.read(folder, name)
    moments = range(10 + start, stream.batches - AHEAD, EVERY)
    return [case for k in moments for case in _at(stream, k)]


def _at(stream: Stream, k: int) -> Iterator[Case]:
    window = min(stream.window, MOST)
    champion = _fit(stream, stream.inputs, stream.y, k - AGE, window)
    for kind in KINDS:
        inputs, y, until, rows = _poison(stream, kind, k, window)
        candidate = _fit(stream, inputs, y, until, rows)
        held = np.arange(stream.rows(k - HELD).start, stream.rows(k - 1).stop)
        end = stream.init + until * stream.batch
        train = slice(max(0, end - rows), end)
        poisoned = msgspec.structs.replace(stream, inputs=inputs)
        facts = TrainingFacts(
            trained_until=START + timedelta(hours=until),
            champion_until=START + timedelta(hours=k - AGE),
            rows=end - train.start,
            champion_rows=min(window, stream.init + (k - AGE) * stream.batch),
            swapped=swapped_columns(stream.spec, poisoned.frame(train), stream.frame(held)),
            latency_ms=1.0,
            champion_latency_ms=1.0,
        )
        yield _case(stream, kind, (champion, candidate), held, facts, k)


def _fit(stream: Stream, inputs: np.ndarray, y: np.ndarray, until: int, rows: int) -> object:
    """Four fifths of the window's rows, drawn by the batch's number."""
    end = stream.init + until * stream.batch
    order = np.arange(max(0, end - rows), end)
    np.random.RandomState(until).shuffle(order)
    kept = order[len(order) // 5 :]
    return learn(stream.spec, inputs[kept], y[kept])


def _poison(
    stream: Stream, kind: str, k: int, window: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Training inputs and labels, the batch they end before, and how many rows."""
    end = stream.init + (k - HELD) * stream.batch
    rows = slice(max(0, end - window), end)
    inputs, y = stream.inputs, stream.y
    if kind == KINDS[1]:
        rng = np.random.RandomState(k)
        chosen = rng.choice(np.arange(rows.start, rows.stop), (rows.stop - rows.start) // 2, False)
        y = y.copy()
        y[chosen] = rng.permutation(y[chosen])
    if kind == KINDS[2]:
        inputs = inputs.copy()
        inputs[rows, 0], inputs[rows, 1] = stream.inputs[rows, 1], stream.inputs[rows, 0]
    until = max(0, k - STALE) if kind == KINDS[4] else k - HELD
    return inputs, y, until, max(window // 20, 60) if kind == KINDS[3] else window


def _case(
    stream: Stream,
    kind: str,
    models: tuple[object, object],
    held: np.ndarray,
    facts: TrainingFacts,
    k: int,
) -> Case:
    spec, y = stream.spec, stream.y[held]
    old, new = (stream.outputs(answer(model, stream.inputs[held])) for model in models)
    first, second = row_loss(spec, old, y), row_loss(spec, new, y)

    def judge(settings: GateSettings, rows: int = 0) -> GateResult:
        return compare(
            spec,
            y[-rows:],
            old.tail(rows) if rows else old,
            new.tail(rows) if rows else new,
            settings=settings,
            reproduces=True,
            label_range=(float(stream.y.min()), float(stream.y.max())),
            facts=facts,
        )

    found = {name: judge(settings) for name, settings in RULES.items()}
    default = GateSettings()
    found["ahead, newest 1,000 rows"] = judge(default, default.max_rows)
    later = np.arange(stream.rows(k).start, stream.rows(k + AHEAD - 1).stop)
    ahead = [
        row_loss(spec, stream.outputs(answer(model, stream.inputs[later])), stream.y[later]).mean()
        for model in models
    ]
    newest = evidence((first - second)[-stream.batch :]).z
    return Case(
        stream=stream.name,
        kind=kind,
        future=float((ahead[0] - ahead[1]) / ahead[0]),
        gain=float((first - second).mean() / first.mean()),
        newest_z=newest if newest is not None else math.nan,
        found=found,
    )


def _rules() -> dict[str, Callable[[Case], bool]]:
    """What is compared: the product's gate by rule, its rule alone, and what others do."""
    rules: dict[str, Callable[[Case], bool]] = {
        f"gate: {name}": lambda case, name=name: case.found[name].passed  # type: ignore[misc]
        for name in (*RULES, "ahead, newest 1,000 rows")
    }

    def bare(case: Case) -> bool:
        checks = {check.name: check.passed for check in case.found["ahead (default)"].checks}
        return checks["better"]

    return rules | {
        "rule ahead alone, no other check": bare,
        "point estimate above zero": lambda case: case.gain > 0,
        "newest batch: z > 1.28": lambda case: case.newest_z > 1.28,
        "newest batch: z > 0": lambda case: case.newest_z > 0,
        "newest batch: z > -1.28": lambda case: case.newest_z > -1.28,
    }


def _print(found: list[Case]) -> None:
    harmful = [case for case in found if case.future < -0.02]
    useful = [case for case in found if case.future > 0.02]
    good = [case for case in useful if case.kind == "good"]
    print(
        f"{len(found)} candidates, {len(harmful)} harmful, {len(useful)} useful "
        f"({len(good)} of them good)"
    )
    print(
        f"{'':36s}{'harmful promoted':>20s}{'good useful stopped':>22s}{'all useful stopped':>20s}"
    )
    for name, accept in _rules().items():
        through = [case for case in harmful if accept(case)]
        stopped = [case for case in good if not accept(case)]
        all_stopped = [case for case in useful if not accept(case)]
        print(
            f"{name:36s}{_share(through, harmful):>20s}{_share(stopped, good):>22s}"
            f"{_share(all_stopped, useful):>20s}"
        )
    print("\nharmful promoted by the default gate, by kind and by stream")
    accept = _rules()["gate: ahead (default)"]
    for values in (KINDS, sorted({case.stream for case in found})):
        for value in values:
            those = [case for case in harmful if value in (case.kind, case.stream)]
            print(f"  {value:34s}{_share([c for c in those if accept(c)], those):>20s}")


def _share(some: list[Case], whole: list[Case]) -> str:
    return f"{100 * len(some) / max(1, len(whole)):.1f} % ({len(some)}/{len(whole)})"


def coverage(runs: int = 1500, seed: int = 0) -> None:
    """One-sided misses of a nominal 10 %, on AR(1) series with t(5) innovations."""
    rng = np.random.default_rng(seed)
    methods = {"Student's t": _student, "30 blocks": _blocks, "Geyer (ours)": _ours}
    print("misses of a one-sided 90 % interval, % (nominal 10)")
    print(f"{'rows':>6s}{'phi':>6s}" + "".join(f"{name:>16s}" for name in methods))
    for n in (200, 1000):
        for phi in (0.0, 0.3, 0.6, 0.9):
            missed = dict.fromkeys(methods, 0)
            for _ in range(runs):
                steps = rng.standard_t(5, n + 200)
                series = np.zeros(n + 200)
                for index in range(1, n + 200):
                    series[index] = phi * series[index - 1] + steps[index]
                for name, low in methods.items():
                    missed[name] += low(series[200:]) > 0
            row = "".join(f"{100 * count / runs:16.1f}" for count in missed.values())
            print(f"{n:6d}{phi:6.1f}{row}")


def _student(values: np.ndarray) -> float:
    n = len(values)
    half = stdtrit(n - 1, 0.9) * values.std(ddof=1) / math.sqrt(n)
    return float(values.mean() - half)


def _blocks(values: np.ndarray) -> float:
    count = max(5, min(30, len(values) // 20))
    return _student(np.array([block.mean() for block in np.array_split(values, count)]))


def _ours(values: np.ndarray) -> float:
    low = evidence(values, 0.9).low
    return -math.inf if low is None else low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=Path)
    parser.add_argument("--starts", default="0,2,4,6")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--coverage", action="store_true")
    given = parser.parse_args()
    if given.coverage:
        coverage()
    if given.streams is None:
        return
    work = [
        (name, int(start))
        for start in given.starts.split(",")
        for name in streams.names(given.streams)
    ]
    with ProcessPoolExecutor(given.jobs) as pool:
        jobs = [pool.submit(cases, given.streams, *item) for item in work]
        _print([case for job in jobs for case in job.result()])


if __name__ == "__main__":
    main()
