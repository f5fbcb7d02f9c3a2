"""The study behind docs/policy.md: the default policy on drifting, shuffled and spliced streams.

    python benchmarks/policies.py BENCH [--cache DIR] [--part real,loso,cost,other] [--rivals]

BENCH is a folder with `bench_policies.py`, its `streams/` and, for `--rivals`, the
`candidate_policy.py` to compare with. Nothing is decided here: models, simulation, gate statistics
and the hindsight optimum are the benchmark's, the policy is the product's through
`benchmarks/policy_adapter.py`. All models are fitted once and kept in the cache (about 10 minutes
on two cores); after that everything takes two minutes. Seeds are the benchmark's: null 0 to 3,
benign 0 to 2, splice 0 to 2. Deterministic.

Columns: regret is (loss + cost of fits) above the hindsight optimum, in percent, probes charged as
fits by rows x boosting rounds; X is its mean over streams started 0, 4, 8 and 12 batches later.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from policy_adapter import Shelflife

from retrain import worth

SHIFTS = (0, 4, 8, 12)
COST = 0.2  # of a fit, in reference losses of one batch
OTHERS = {"null": 4, "benign": 3, "splice": 3}  # seeds of each kind
GRID = [(price, half) for price in (0.25, 0.4, 0.7, 1.0) for half in (2.0, 3.0, 4.0, 8.0)]
Make = Callable[[], Any]


class Bench:
    """The benchmark's module, its streams, and all their models."""

    def __init__(self, folder: Path, cache: Path) -> None:
        sys.path.insert(0, str(folder))
        import bench_policies

        self.module, self.folder, self.cache = bench_policies, folder, cache
        self.meta = json.loads((folder / "streams" / "meta.json").read_text())
        self.names = list(self.meta)
        self.banks: dict[tuple[str, str, int], Any] = {}
        self.optima: dict[tuple[str, int], list[float]] = {}
        cache.mkdir(parents=True, exist_ok=True)

    def bank(self, name: str, kind: str = "real", seed: int = 0) -> Any:
        """A stream with every model that can be asked for."""
        key = (name, kind, seed)
        if key not in self.banks:
            made = self._bare(name, kind, seed)
            file = self.cache / f"{name}.{kind}{seed}.pkl"
            if file.is_file():
                made.models, made.preds = pickle.loads(file.read_bytes())
            else:
                for k in range(made.T):
                    made.fill(k)
                kept = {k: (None, rows, p) for k, (_, rows, p) in made.models.items()}
                file.write_bytes(pickle.dumps((kept, made.preds)))
            self.banks[key] = made
        return self.banks[key]

    def _bare(self, name: str, kind: str, seed: int) -> Any:
        module, about = self.module, self.meta[name]
        inputs, y, _ = module.load(str(self.folder / "streams"), name)
        first, batch, batches, tau = about["init"], about["batch"], 40, None
        if kind != "real":
            if kind == "null":
                batches = min(batches, max(12, (len(y) - first) // batch))
            version = f"null{seed}" if kind == "null" else kind
            inputs, y, tau = module.version(inputs, y, first, batch, version, seed, batches)
        window = about.get("window", first)
        made = module.Bank(inputs, y, first, batch, about["task"], window)
        made.tau, made.delay = tau, about.get("delay", 1)
        return made

    def run(self, view: Any, make: Make, cost: float) -> tuple[dict[str, Any], Any]:
        """One pass of the simulator; its result and the policy as it was at the end."""
        made: list[Any] = []

        def start() -> Any:
            made.append(make())
            return made[-1]

        self.module.DELAY = view.delay
        return self.module.run(view, start, cost, view.tau), made[-1]

    def optimum(self, name: str, shift: int, view: Any) -> list[float]:
        """Best mean loss in hindsight by number of fits."""
        if (name, shift) not in self.optima:
            self.module.DELAY = view.delay
            losses = np.zeros((view.T, view.T))
            for k in range(view.T):
                for j in range(k, view.T):
                    losses[k, j] = view.loss(k, j).mean()
            self.optima[name, shift] = self.module.dp(losses, 1.0, view.T)
        return self.optima[name, shift]


class View:
    """A stream started some batches later, with the same models."""

    def __init__(self, bank: Any, shift: int) -> None:
        self.bank, self.shift = bank, shift
        self.X, self.y, self.B, self.task, self.W = bank.X, bank.y, bank.B, bank.task, bank.W
        self.n0, self.T = bank.n0 + shift * bank.B, bank.T - shift
        self.delay, self.tau = bank.delay, bank.tau
        self.lossrow = bank.lossrow

    def rows(self, j: int) -> slice:
        return slice(self.n0 + j * self.B, self.n0 + (j + 1) * self.B)

    def model(self, k: int) -> Any:
        return self.bank.models[k + self.shift]

    def pred(self, k: int, j: int) -> Any:
        return self.bank.preds[k + self.shift, j + self.shift]

    def loss(self, k: int, j: int) -> Any:
        return self.bank.loss(k + self.shift, j + self.shift)

    def ref(self, k: int, cost: float) -> Any:
        return self.bank.ref(k + self.shift, cost)


def real(bench: Bench, name: str, make: Make, shift: int, share: float) -> dict[str, Any]:
    """Regret, gain and fits on one stream."""
    view = View(bench.bank(name), shift)
    cost = share * float(view.ref(0, 0.0)["loss"].mean())
    found, policy = bench.run(view, make, cost)
    often, _ = bench.run(view, lambda: bench.module.Every(1), cost)
    never, _ = bench.run(view, bench.module.Never, cost)
    optima = bench.optimum(name, shift, view)
    best = min(loss * view.T + cost * fits for fits, loss in enumerate(optima))
    probes = float(getattr(policy, "probe_fits", 0.0))
    paid = found["loss"] * view.T + cost * found["fits"]
    return {
        "regret": 100 * (paid - best) / best,
        "charged": 100 * (paid + cost * probes - best) / best,
        "gain": 100 * (never["loss"] - found["loss"]) / (never["loss"] - often["loss"]),
        "share": 100 * found["fits"] / often["fits"],
        "fits": found["fits"],
        "probes": probes,
    }


def table(bench: Bench, make: Make, share: float = COST) -> dict[tuple[str, int], dict[str, Any]]:
    """Every stream at every start."""
    return {
        (name, shift): real(bench, name, make, shift, share)
        for name in bench.names
        for shift in SHIFTS
    }


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def row(name: str, found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """One line: official start, then the shifted starts."""
    official = [one for (_, shift), one in found.items() if shift == 0]
    gains = [min(max(one["gain"], -100.0), 150.0) for one in official]
    return (
        f"{name:16s} gain {mean(gains):5.0f} / {min(gains):3.0f} %   "
        f"fits {mean(one['share'] for one in official):5.1f} %   "
        f"regret {mean(one['regret'] for one in official):5.2f} "
        f"(probes charged {mean(one['charged'] for one in official):5.2f})   "
        f"X {mean(one['charged'] for one in found.values()):5.2f}"
    )


@contextmanager
def constants(price: float, half: float) -> Iterator[None]:
    """The policy with other constants."""
    before = worth.PRICE, worth.HALF_LIFE
    worth.PRICE, worth.HALF_LIFE = price, half
    try:
        yield
    finally:
        worth.PRICE, worth.HALF_LIFE = before


def leave_one_out(bench: Bench) -> None:
    """Constants chosen by X on five streams, scored by X on the sixth."""
    cells = {}
    for price, half in GRID:
        with constants(price, half):
            cells[price, half] = table(bench, Shelflife)
        print(row(f"{price:g} x C, {half:g}", cells[price, half]), flush=True)
    scores = []
    for left in bench.names:
        others = {
            cell: mean(one["charged"] for (name, _), one in found.items() if name != left)
            for cell, found in cells.items()
        }
        chosen = min(others, key=lambda cell: others[cell])
        mine = (one["charged"] for (name, _), one in cells[chosen].items() if name == left)
        scores.append(mean(mine))
        print(f"  without {left:18s} chooses {chosen}, which costs it {scores[-1]:.2f}")
    print(f"leave one stream out: {mean(scores):.2f}", flush=True)


def other(bench: Bench, make: Make) -> None:
    """Streams where nothing drifts, where only inputs shift, and with one known change."""
    for kind, seeds in OTHERS.items():
        for seed in range(seeds):
            print(f"{kind} {seed}: {_line(bench, kind, seed, make)}", flush=True)


def _line(bench: Bench, kind: str, seed: int, make: Make) -> str:
    found, costs, pages = [], [], 0
    for name in bench.names:
        bank = bench.bank(name, kind, seed)
        cost = COST * float(bank.ref(0, 0.0)["loss"].mean())
        one, policy = bench.run(bank, make, cost)
        never, _ = bench.run(bank, bench.module.Never, cost)
        probes = float(getattr(policy, "probe_fits", 0.0))
        costs.append(1 + (one["loss"] - never["loss"]) / never["loss"])
        costs[-1] += cost * (one["fits"] + probes) / (never["loss"] * one["T"])
        pages += sum(d.trigger == "decay" for d in getattr(policy, "decisions", ()))
        found.append((bank, one))
    windows = sum(one["T"] for _, one in found)
    text = f"cost {mean(costs):.4f} x never (worst {max(costs):.3f}), "
    if kind == "null":
        promoted = 100 * sum(one["promotions"] for _, one in found) / windows
        return text + f"claims of harm {100 * pages / windows:.2f}, promotions {promoted:.1f} / 100"
    if kind == "benign":
        after = sum(one["T"] - bank.tau for bank, one in found)
        promoted = 100 * sum(one["post_promos"] for _, one in found) / after
        return text + f"promotions {promoted:.1f} / 100 windows after the shift"
    delays = [one["promo_delay"] for bank, one in found if _recoverable(bank) > 0.05]
    caught = [delay for delay in delays if delay is not None]
    middle = float(np.median([99 if delay is None else delay for delay in delays]))
    return text + f"caught {len(caught)}/{len(delays)}, median delay {middle:g}, each {delays}"


def _recoverable(bank: Any) -> float:
    """Share of the last batches' loss that a fresh model would not have."""
    last = range(bank.T - 4, bank.T)
    fresh = mean(bank.loss(bank.T - 4, j).mean() for j in last)
    return 1 - fresh / mean(bank.loss(0, j).mean() for j in last)


def _fill(job: tuple[Path, Path, str, str, int]) -> str:
    folder, cache, name, kind, seed = job
    Bench(folder, cache).bank(name, kind, seed)
    return f"{name} {kind} {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bench", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".policies"))
    parser.add_argument("--part", default="real,cost,loso,other")
    parser.add_argument("--rivals", action="store_true", help="candidate_policy and calendars too")
    chosen = parser.parse_args()
    bench, parts = Bench(chosen.bench, chosen.cache), chosen.part.split(",")
    kinds = {"real": 1} | (OTHERS if "other" in parts else {})
    jobs = [
        (chosen.bench, chosen.cache, name, kind, seed)
        for kind, seeds in kinds.items()
        for seed in range(seeds)
        for name in bench.names
        if not (chosen.cache / f"{name}.{kind}{seed}.pkl").is_file()
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(_fill, jobs):
            print(f"fitted {done}", file=sys.stderr, flush=True)
    makes: dict[str, Make] = {"shelflife": Shelflife}
    if chosen.rivals:
        import candidate_policy

        module = bench.module
        makes |= {
            "candidate": candidate_policy.Candidate,
            "gain_aware": lambda: module.GainAwareHO(0.0),
            "every 5": lambda: module.Every(5),
            "every 10": lambda: module.Every(10),
        }
    shares = (0.05, COST, 0.5, 1.0) if "cost" in parts else (COST,)
    for share in shares if "real" in parts or "cost" in parts else ():
        print(f"\ncost of a fit {share:g} x reference loss")
        for name, make in makes.items():
            found = table(bench, make, share)
            print(row(name, found), flush=True)
            if share == COST:
                print(_streams(bench, found), flush=True)
    if "loso" in parts:
        print("\nconstants: price, half-life")
        leave_one_out(bench)
    for name, make in makes.items() if "other" in parts else ():
        print(f"\n{name}")
        other(bench, make)


def _streams(bench: Bench, found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Gain and fits at the official start, and X, stream by stream."""
    return "\n".join(
        f"    {name:18s} gain {found[name, 0]['gain']:4.0f} %, {found[name, 0]['fits']:2d} fits, "
        f"{found[name, 0]['probes']:.1f} in probes; "
        f"X {mean(found[name, shift]['charged'] for shift in SHIFTS):.2f}"
        for name in bench.names
    )


if __name__ == "__main__":
    main()
