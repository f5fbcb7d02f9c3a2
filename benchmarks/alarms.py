"""How many false alarms a promised one becomes, and how late shifts are found.

    python benchmarks/alarms.py [--quick] [--streams FOLDER]

No model and no log: counts go through the code that a check runs (`monitor.measure`). Promised are
`PROMISED` alarms a quarter, so that they can be counted; an alarm that lasts is one episode. Beside
it, Evidently's default rule (its own package, its default test and threshold per column) on the
same rows, where an alarm is a column called drifted in one look. All seeds are `SEED` and the
case's place. NannyML's package is not run.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monitor.measure import alarms, tally
from monitor.measure.calibration import Reference, calibrate
from monitor.measure.profile import Values, profile_column, read_values

SEED, PROMISED = 20261124, 10.0
HOUR, WEEK, QUARTER_HOURS = timedelta(hours=1), timedelta(days=7), 2160
Columns = dict[str, np.ndarray]
ROOT = Path(__file__).resolve().parents[1]


def read(columns: Columns) -> dict[str, Values]:
    return {
        f"input:{name}": read_values(
            "numeric" if v.dtype.kind == "f" else "categorical", pd.Series(v)
        )
        for name, v in columns.items()
    }


def reference_of(columns: Columns, seconds: np.ndarray | None, window: timedelta) -> Reference:
    values = read(columns)
    profiles = [
        profile_column(
            n, "input", "numeric" if v.dtype.kind == "f" else "categorical", values[f"input:{n}"]
        )
        for n, v in columns.items()
    ]
    part = HOUR if window > HOUR else None
    return Reference(
        profiles, calibrate(profiles, values, seconds=seconds, part=part, window=window)
    )


class Watch:
    """Checks of one model over so many parts, with a budget a quarter of `checks`."""

    def __init__(
        self, reference: Reference, n: int, longest: int, checks: int, budget: float
    ) -> None:
        self.reference, self.longest = reference, longest
        self.scales = alarms.scales_for(longest, n)
        tests = alarms.tests_of(reference.layout)
        self.alphas = [
            alarms.alpha(budget, checks, s, len(self.scales), tests) for s in self.scales
        ]
        length = HOUR if longest > 1 else timedelta(days=1)
        self.known = reference.over([(length * s, float(n * s)) for s in self.scales])

    def looks(
        self, counted: tally.Tally, mix: np.ndarray, every: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(part at the end, bool per column): what crossed."""
        for end in range(self.longest, len(counted) + 1, every):
            found = alarms.windows(
                counted.part(slice(end - self.longest, end)),
                mix[end - self.longest : end],
                self.scales,
            )
            base = alarms.standardised(self.reference.sums, found.mix)
            looks = alarms.look(self.reference.layout, found, base, self.known, self.alphas)
            lines = looks.alphas[:, None, None]
            yield (
                end,
                np.concatenate(
                    [(looks.numbers < lines).any((0, 2)), (looks.names < lines).any((0, 2))]
                ),
            )


def episodes(crossed: Iterator[tuple[int, np.ndarray]], gap: int) -> int:
    """Alarms, where a column that crosses again within `gap` parts is still the same one."""
    last: np.ndarray | None = None
    count = 0
    for end, hit in crossed:
        last = np.full(len(hit), -(10**6)) if last is None else last
        count += int((hit & (end - last > gap)).sum())
        last[hit] = end
    return count


# -- traffic ----------------------------------------------------------------------------------


def normal(rng: np.random.Generator, rows: int) -> Columns:
    return {f"x{j}": rng.normal(size=rows) for j in range(20)}


def lognormal(rng: np.random.Generator, rows: int) -> Columns:
    return {f"x{j}": rng.lognormal(0, 1.5, rows) for j in range(20)}


def ties(rng: np.random.Generator, rows: int) -> Columns:
    return {f"x{j}": rng.poisson(0.5 + j / 4, rows).astype(float) for j in range(20)}


def gaps(rng: np.random.Generator, rows: int) -> Columns:
    shares = np.linspace(0.001, 0.6, 20)
    return {
        f"x{j}": np.where(rng.random(rows) < s, np.nan, rng.normal(size=rows))
        for j, s in enumerate(shares)
    }


def levels(count: int) -> Callable[[np.random.Generator, int], Columns]:
    shares = np.random.default_rng(SEED + count).dirichlet(np.full(count, 0.7), 10)
    names = np.array([f"level {i}" for i in range(count)], dtype=object)
    return lambda rng, rows: {f"c{j}": rng.choice(names, rows, p=shares[j]) for j in range(10)}


KINDS: dict[str, Callable[[np.random.Generator, int], Columns]] = {
    "normal": normal, "lognormal": lognormal, "heavy ties": ties, "missing values": gaps,
    "5 categories": levels(5), "40 categories": levels(40), "200 categories": levels(200),
}  # fmt: skip


@dataclass(frozen=True)
class Rate:
    ours: float  # per promised one
    error: float  # its standard error, from the repetitions
    evidently: float | None  # columns called drifted per 100 looked at


def independent(kind: str, n: int, m: int, looks: int, repeats: int, theirs: int) -> Rate:
    """Separate windows of n rows against baselines of m; one scale, `looks` of them a quarter."""
    found, called, asked = [], 0, 0
    for repeat in range(repeats):
        rng = np.random.default_rng([SEED, n, m, list(KINDS).index(kind), repeat])
        base = KINDS[kind](rng, m)
        reference = reference_of(base, None, HOUR)
        watch = Watch(reference, n, 1, looks, PROMISED)
        rows = KINDS[kind](rng, n * looks)
        block = np.repeat(np.arange(looks), n)
        counted = tally.tally_blocks(reference.layout, read(rows), block, looks)
        mix = np.full((looks, 1), float(n))
        found.append(sum(int(hit.sum()) for _, hit in watch.looks(counted, mix)) / PROMISED)
        if repeat < 1 and theirs:
            for look in range(theirs):
                part = {k: v[look * n : (look + 1) * n] for k, v in rows.items()}
                called += evidently(base, part)
                asked += len(base)
    error = float(np.std(found, ddof=1) / np.sqrt(repeats)) if repeats > 1 else float("nan")
    return Rate(float(np.mean(found)), error, 100 * called / asked if asked else None)


def evidently(base: Columns, window: Columns) -> int:
    """Columns that Evidently's own default test and threshold call drifted."""
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    drifted = 0
    for name in base:
        old, new = pd.Series(base[name]).dropna(), pd.Series(window[name]).dropna()
        kind = ColumnType.Numerical if old.dtype.kind == "f" else ColumnType.Categorical
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            test = get_stattest(old, new, kind, None)
            drifted += bool(test(old, new, kind, test.default_threshold).drifted)
    return drifted


def wave(
    rng: np.random.Generator, first: int, hours: int, n: int, wandering: bool
) -> tuple[Columns, np.ndarray]:
    """Ten columns with a day's and a weekend's wave; `wandering` adds an hourly AR(1) of .9."""
    when = np.arange(first, first + hours)
    weekend = (when // 24 + 3) % 7 >= 5
    level = np.repeat((0.5 * np.sin(2 * np.pi * when / 24) + 0.3 * weekend)[:, None], 10, axis=1)
    if wandering:
        path = rng.normal(size=10) * 0.1
        for i in range(hours):
            path = 0.9 * path + rng.normal(size=10) * 0.1 * np.sqrt(1 - 0.81)
            level[i] += path
    rows = rng.normal(size=(hours, n, 10)) + level[:, None, :]
    flat = rows.reshape(-1, 10)
    return {f"x{j}": flat[:, j] for j in range(10)}, np.repeat(when, n) * 3600.0


def over_time(wandering: bool | None, days: int, repeats: int, n: int = 50) -> tuple[float, float]:
    """A quarter of hourly checks, all scales up to a week; None: no wave at all."""
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng([SEED, 7, days, repeat, int(wandering or 0)])

        def make(
            first: int, hours: int, rng: np.random.Generator = rng
        ) -> tuple[Columns, np.ndarray]:
            if wandering is None:
                rows = {f"x{j}": rng.normal(size=hours * n) for j in range(10)}
                return rows, np.repeat(np.arange(first, first + hours), n) * 3600.0
            return wave(rng, first, hours, n, wandering)

        base, seconds = make(0, days * 24)
        reference = reference_of(base, seconds, WEEK)
        later, moments = make(days * 24, QUARTER_HOURS)
        block = np.repeat(np.arange(QUARTER_HOURS), n)
        counted = tally.tally_blocks(reference.layout, read(later), block, QUARTER_HOURS)
        mix = np.zeros((QUARTER_HOURS, reference.kinds))
        mix[np.arange(QUARTER_HOURS), reference.stratum(moments[::n])] = n
        watch = Watch(reference, n, 168, QUARTER_HOURS, PROMISED)
        found.append(episodes(watch.looks(counted, mix), gap=24) / PROMISED)
    error = float(np.std(found, ddof=1) / np.sqrt(repeats)) if repeats > 1 else float("nan")
    return float(np.mean(found)), error


def shuffled(path: Path, repeats: int, n: int = 200, m: int = 3000) -> tuple[float, float, float]:
    """A real stream with its rows shuffled: any alarm is false. Third, Evidently's per 100."""
    frame = pd.read_parquet(path)
    kept: Columns = {}
    for name in frame:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            kept[str(name)] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        elif not pd.api.types.is_datetime64_any_dtype(column) and column.nunique() <= 500:
            kept[str(name)] = column.map(lambda v: None if pd.isna(v) else str(v)).to_numpy(
                dtype=object
            )
    m = min(m, len(frame) // 3)
    found, called, asked = [], 0, 0
    for repeat in range(repeats):
        order = np.random.default_rng([SEED, 9, repeat]).permutation(len(frame))
        looks = min((len(frame) - m) // n, 400)
        base = {k: v[order[:m]] for k, v in kept.items()}
        reference = reference_of(base, None, HOUR)
        watch = Watch(reference, n, 1, looks, PROMISED)
        rows = {k: v[order[m : m + looks * n]] for k, v in kept.items()}
        counted = tally.tally_blocks(
            reference.layout, read(rows), np.repeat(np.arange(looks), n), looks
        )
        mix = np.full((looks, 1), float(n))
        found.append(sum(int(hit.sum()) for _, hit in watch.looks(counted, mix)) / PROMISED)
        for look in range(2 if repeat == 0 else 0):
            part = {k: v[look * n : (look + 1) * n] for k, v in rows.items()}
            usable = {k: v for k, v in part.items() if not pd.isna(v).all()}
            called += evidently({k: base[k] for k in usable}, usable)
            asked += len(usable)
    error = float(np.std(found, ddof=1) / np.sqrt(repeats)) if repeats > 1 else float("nan")
    return float(np.mean(found)), error, 100 * called / max(asked, 1)


# -- shifts -----------------------------------------------------------------------------------

SHARES = np.array([0.3, *np.full(19, 0.7 / 19)])
GROWN = np.array([0.35, *np.full(19, 0.65 / 19)])
NAMES = np.array([f"level {i}" for i in range(20)], dtype=object)


def tail(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(x)) < 0.01, 10.0, x)


SHIFTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mean .1 sd": lambda x, rng: x + 0.1,
    "mean .25 sd": lambda x, rng: x + 0.25,
    "mean .5 sd": lambda x, rng: x + 0.5,
    "variance x 1.5": lambda x, rng: x * np.sqrt(1.5),
    "1 % tail at 10 sd": tail,
    "missing 2 to 7 %": lambda x, rng: np.where(rng.random(len(x)) < 0.07, np.nan, x),
    "one level + 5 points": lambda x, rng: rng.choice(NAMES, len(x), p=GROWN),
    "unit x 100": lambda x, rng: x * 100,
}


def delay(name: str, repeats: int, *, n: int, m: int, hourly: bool) -> tuple[float, float]:
    """(median checks until found, share found in the first window), at one false alarm a quarter
    promised for 40 columns. Only the shifted column is drawn; the others cost their share of the
    budget."""
    found = []
    longest, checks = (168, QUARTER_HOURS) if hourly else (1, 90)
    ahead = longest - 1
    horizon = 60 if hourly else 5
    for repeat in range(repeats):
        rng = np.random.default_rng([SEED, 11, list(SHIFTS).index(name), repeat, n])
        categorical = "level" in name

        def draw(
            rows: int, rng: np.random.Generator = rng, categorical: bool = categorical
        ) -> np.ndarray:
            if categorical:
                return rng.choice(NAMES, rows, p=SHARES)
            values = rng.normal(size=rows)
            return (
                np.where(rng.random(rows) < 0.02, np.nan, values) if "missing" in name else values
            )

        reference = reference_of({"x": draw(m)}, None, HOUR)
        watch = Watch(reference, n, longest, checks, 1.0)
        tests = 40 * alarms.tests_of(reference.layout)
        watch.alphas = [
            alarms.alpha(1.0, checks, s, len(watch.scales), tests) for s in watch.scales
        ]
        rows = np.concatenate([draw(ahead * n), SHIFTS[name](rng.normal(size=horizon * n), rng)])
        parts = ahead + horizon
        counted = tally.tally_blocks(
            reference.layout, read({"x": rows}), np.repeat(np.arange(parts), n), parts
        )
        mix = np.full((parts, 1), float(n))
        crossed = (end for end, hit in watch.looks(counted, mix) if hit[0])
        end = next((end for end in crossed if end > ahead), None)
        found.append(float("inf") if end is None else end - ahead)
    return float(np.median(found)), float(np.mean(np.array(found) == 1))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a minute or two")
    options.add_argument("--streams", type=Path, help="a folder of Parquet files, shuffled")
    options.add_argument("--no-evidently", action="store_true")
    given = options.parse_args()
    start, quick = time.perf_counter(), given.quick
    theirs = 0 if given.no_evidently else 2
    print(f"seed {SEED}; promised {PROMISED:g} a quarter; ± is the standard error")
    print(
        f"{'independent rows':18} {'n':>6} {'m':>6}  realised/promised  Evidently, per 100 columns"
    )
    plan = [("normal", 50, 500), ("normal", 200, 5000), ("normal", 10_000, 50_000)]
    plan += [(kind, 200, 5000) for kind in list(KINDS)[1:]]
    if not quick:
        plan = [
            (k, n, m)
            for k in KINDS
            for n, m in ((50, 500), (200, 5000), (1000, 5000), (10_000, 50_000))
        ]
    for kind, n, m in plan:
        looks = (40 if n > 1000 else 200) if quick else (100 if n > 1000 else 1000)
        rate = independent(kind, n, m, looks, 3 if quick else 10, theirs)
        told = "–" if rate.evidently is None else f"{rate.evidently:.0f}"
        print(
            f"{kind:18} {n:>6,} {m:>6,}  {rate.ours:.2f} ± {rate.error:.2f}        {told}",
            flush=True,
        )
    print("\nhourly checks of a quarter, n = 50, all scales to a week")
    for label, wandering in (
        ("iid", None),
        ("hour and weekend", False),
        ("... and AR(1) .9", True),
    ):
        for days in (30,) if quick else (30, 90):
            rate_, error = over_time(wandering, days, 6 if quick else 12)
            print(f"{label:18} baseline {days} days   {rate_:.2f} ± {error:.2f}", flush=True)
    streams = (
        sorted(given.streams.glob("*.parquet"))
        if given.streams
        else [ROOT / "data" / "retail.parquet"]
    )
    print("\nshuffled real streams, n = 200: realised/promised, Evidently per 100 columns")
    for path in streams:
        rate_, error, called = shuffled(path, 3 if quick else 10)
        print(f"{path.stem:18} {rate_:.2f} ± {error:.2f}   {called:.0f}", flush=True)
    print("\nshift of one column among 40, one false alarm a quarter promised")
    print(f"{'':22} hourly n = 200: median delay   daily n = 5,000: found at once")
    for name in SHIFTS:
        hours, _ = delay(name, 9 if quick else 60, n=200, m=10_000, hourly=True)
        _, once = delay(name, 20 if quick else 200, n=5000, m=20_000, hourly=False)
        print(f"{name:22} {hours:>6.0f} h {'':22} {once:>6.0%}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
