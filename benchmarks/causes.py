"""Does `monitor.measure.causes` name what was planted, and nobody when nothing was?

    python benchmarks/causes.py [--repeats 10] [--seed 7000] [--streams FOLDER] [--only synthetic]

Each world is a gradient boosting model and rows it has not seen. A case draws a baseline and a
window from them, plants one cause (or two, or none) in the window and asks. Every
window but `nothing` also carries a decoy: the numeric column the model needs least drifts by a
standard deviation.

"Planted first" counts, among cases whose loss rose by 10 % or more, those whose first cause names
a planted column and at most one other (a segment: one or both of its columns, at most three named;
a label mix: its kind). "Right kind" also asks for the kind, "alone" for no column but the planted,
"both named" for both of two causes anywhere in the list. For `nothing` and `decoy` nobody may be
accused. "Drift ranking" is the column with the largest PSI on the same cases.

Synthetic: 10,000 + 10,000 rows, 40 columns in correlated blocks (r .3 to .8), four of them
categories, effects that interact, uneven noise; `shift` moves the population along the column that
rows get harder with, `interaction` changes P(y | x) where two columns are high and low. Real:
data/retail.parquet and, with --streams, every Parquet stream there (columns `y` and `t` and the
inputs), rows shuffled first, so that only what is planted is there to be found.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from core.spec import ModelSpec, infer_spec
from monitor.measure import causes, cells

QUIET = ("nothing", "decoy")
SCENARIOS = (
    *QUIET, "shift", "shift_corr", "unit", "offset", "nulls50", "nulls100", "constant", "recoded",
    "segment", "interaction", "prior", "unit+segment", "shift+constant", "prior+segment",
)  # fmt: skip


@dataclass
class World:
    """Rows to draw from, with what a scenario has to know of them."""

    x: pd.DataFrame
    y: np.ndarray
    task: str
    model: object
    spec: ModelSpec
    strong: list[str]  # numeric columns the model leans on, strongest first
    category: str | None
    decoy: str


def synthetic(rng: np.random.Generator, task: str, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """40 columns: 6 blocks of 6 (r .3 to .8), 4 categories; effects cross blocks and interact."""
    parts = []
    for r in (0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        common = rng.normal(size=(n, 1))
        parts.append(np.sqrt(r) * common + np.sqrt(1 - r) * rng.normal(size=(n, 6)))
    x = np.hstack(parts)
    codes = rng.integers(0, 6, (n, 4))
    signal = (
        1.6 * x[:, 0] + 1.3 * np.tanh(x[:, 7]) + 1.2 * x[:, 13] + 0.9 * x[:, 19] * (x[:, 0] > 0)
        + 0.8 * np.abs(x[:, 25]) + np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 1.6])[codes[:, 0]]
    )  # fmt: skip
    noise = np.exp(0.45 * x[:, 7] + 0.25 * x[:, 0])
    if task == "regression":
        y = signal + noise * rng.standard_t(6, n)
    else:
        y = (1.2 * (signal - 0.8) / noise + rng.logistic(size=n) > 0).astype(float)
    x[:, 13] = np.exp(x[:, 13])  # a skewed one
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(36)])
    for i in range(4):
        frame[f"c{i}"] = np.array(list("abcdef"))[codes[:, i]]
    return frame, y


def fitted(x: pd.DataFrame, y: np.ndarray, task: str) -> object:
    texts = [c for c in x if not pd.api.types.is_numeric_dtype(x[c])]
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, max_categories=60
    )
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    mixed = make_column_transformer((encoder, texts), remainder="passthrough")
    return make_pipeline(mixed, kind(max_iter=80, max_leaf_nodes=15)).fit(x, y)


def answers(model: object, spec: ModelSpec, x: pd.DataFrame) -> pd.DataFrame:
    if spec.task == "regression":
        return pd.DataFrame({"prediction": model.predict(x)})  # type: ignore[attr-defined]
    return pd.DataFrame({"probability": model.predict_proba(x)[:, 1]})  # type: ignore[attr-defined]


def importance(world: World, rng: np.random.Generator) -> list[str]:
    """Columns by the loss that shuffling them costs, largest first."""
    at = rng.choice(len(world.x), min(2000, len(world.x)), replace=False)
    x, y = world.x.iloc[at].reset_index(drop=True), world.y[at]
    cost = {}
    for name in x:
        other = x.assign(**{name: rng.permutation(x[name].to_numpy())})
        rows = causes.sample(world.spec, other, answers(world.model, world.spec, other), y)
        cost[name] = rows.loss.mean()
    return sorted(cost, key=cost.__getitem__, reverse=True)


def build(x: pd.DataFrame, y: np.ndarray, task: str, rng: np.random.Generator) -> World:
    """A model on the first half; the second half is what windows and baselines are drawn from."""
    half = len(x) // 2
    model = fitted(x.iloc[:half], y[:half], task)
    classes = () if task == "regression" else (0, 1)
    spec = infer_spec("bench", x, target="y", task=task, classes=classes)  # type: ignore[arg-type]
    rest = x.iloc[half:].reset_index(drop=True)
    world = World(rest, y[half:], task, model, spec, [], None, "")
    ranked = importance(world, rng)
    numeric = [c for c in ranked if pd.api.types.is_numeric_dtype(x[c]) and x[c].nunique() > 10]
    texts = [c for c in ranked if c not in numeric and not pd.api.types.is_numeric_dtype(x[c])]
    world.strong, world.decoy = numeric[:4], numeric[-1]
    world.category = texts[0] if texts else None
    return world


def weighted(rng: np.random.Generator, odds: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(len(odds), count, replace=False, p=odds / odds.sum())


Window = tuple[pd.DataFrame, np.ndarray]


class Planter:
    """Plants causes in a window; `planted` is what a right answer names."""

    def __init__(self, world: World, pool: np.ndarray, size: int, rng: np.random.Generator) -> None:
        self.world, self.pool, self.size, self.rng = world, pool, size, rng
        self.planted: list[tuple[str, tuple[str, ...]]] = []

    def window(self, scenario: str) -> Window:
        parts = scenario.split("+")
        rows = self._rows(parts)
        x, y = self.world.x.iloc[rows].reset_index(drop=True), self.world.y[rows].copy()
        if scenario != "nothing":
            self._decoy(x)
        for part in parts:
            plant: Callable[[pd.DataFrame, np.ndarray], None] | None
            plant = getattr(self, f"_{part}", None) if part != "decoy" else None
            if plant is not None:
                plant(x, y)
        return x, y

    def _rows(self, parts: list[str]) -> np.ndarray:
        world, odds = self.world, np.ones(len(self.pool))
        for part in parts:
            if part in ("shift", "shift_corr"):
                name = self._hard()
                values = world.x[name].iloc[self.pool].rank(pct=True).fillna(0.5).to_numpy()
                odds *= np.exp((3 if part == "shift" else 2.2) * self._way * values)
                self.planted.append(("shift", (name,)))
            if part == "prior":
                y = world.y[self.pool]
                if world.task == "regression":
                    ranks = pd.Series(y).rank(pct=True).to_numpy()
                    odds *= np.exp(2.5 * np.abs(ranks - 0.5) * 2)
                else:
                    rare = float(y.mean() < 0.5)
                    odds *= np.where(y == rare, 6.0, 1.0)
                self.planted.append(("prior", ("y",)))
        return self.pool[weighted(self.rng, odds, self.size)]

    def _hard(self) -> str:
        """The column (and its direction) along which rows get harder most."""
        world = self.world
        rows = causes.sample(
            world.spec, world.x, answers(world.model, world.spec, world.x), world.y
        )
        slopes = {
            c: np.corrcoef(world.x[c].rank(pct=True).fillna(0.5), rows.loss)[0, 1]
            for c in world.strong
        }
        name = max(slopes, key=lambda c: abs(slopes[c]))
        self._way = np.sign(slopes[name])
        return name

    def _decoy(self, x: pd.DataFrame) -> None:
        name = self.world.decoy
        if name not in self.world.strong:
            x[name] = x[name].astype(float) + float(self.world.x[name].std())

    def _strong(self) -> str:
        taken = {c for _, names in self.planted for c in names}
        free = [c for c in self.world.strong[:3] if c not in taken]
        return str(self.rng.choice(free))

    def _unit(self, x: pd.DataFrame, _: np.ndarray) -> None:
        name = self._strong()
        x[name] = x[name] * 100.0
        self.planted.append(("broken", (name,)))

    def _offset(self, x: pd.DataFrame, _: np.ndarray) -> None:
        name = self._strong()
        x[name] = x[name] + 0.8 * float(self.world.x[name].std())
        self.planted.append(("broken", (name,)))

    def _nulls(self, x: pd.DataFrame, share: float) -> None:
        name = self._strong()
        x[name] = x[name].astype(float).mask(self.rng.random(len(x)) < share)
        self.planted.append(("broken", (name,)))

    def _nulls50(self, x: pd.DataFrame, _: np.ndarray) -> None:
        self._nulls(x, 0.5)

    def _nulls100(self, x: pd.DataFrame, _: np.ndarray) -> None:
        self._nulls(x, 1.1)

    def _constant(self, x: pd.DataFrame, _: np.ndarray) -> None:
        name = self._strong()
        x[name] = 0.0
        self.planted.append(("broken", (name,)))

    def _recoded(self, x: pd.DataFrame, _: np.ndarray) -> None:
        name = self.world.category
        if name is not None:
            x[name] = x[name].str.upper() + "_"
            self.planted.append(("broken", (name,)))

    def _segment(self, x: pd.DataFrame, y: np.ndarray) -> None:
        first = self._strong()
        where = (x[first] > x[first].quantile(0.65)).to_numpy()
        self._changed(where, y)
        self.planted.append(("segment", (first,)))

    def _interaction(self, x: pd.DataFrame, y: np.ndarray) -> None:
        one, two = self.rng.choice(self.world.strong[:4], 2, replace=False)
        where = ((x[one] > x[one].quantile(0.5)) & (x[two] < x[two].quantile(0.5))).to_numpy()
        self._changed(where, y)
        self.planted.append(("segment", (str(one), str(two))))

    def _changed(self, where: np.ndarray, y: np.ndarray) -> None:
        if self.world.task == "regression":
            y[where] += 1.0 * float(np.std(self.world.y))
        else:
            flipped = where & (self.rng.random(len(y)) < 0.5)
            y[flipped] = 1 - y[flipped]


def right(found: causes.Causes, planted: list[tuple[str, tuple[str, ...]]]) -> bool:
    first = found.causes[0]
    for kind, names in planted:
        if kind == "prior":
            if first.kind == "prior":
                return True
            continue
        most = 3 if kind == "segment" else 2
        if set(first.columns) & set(names) and len(first.columns) <= most:
            return kind != "segment" or first.kind == "segment"
    return False


def tell(
    world: World, size: int, scenarios: tuple[str, ...], repeats: int, seed: int, into: dict
) -> None:
    predict = lambda x: answers(world.model, world.spec, x)  # noqa: E731
    for number, scenario in enumerate(scenarios):
        if scenario == "recoded" and world.category is None:
            continue
        for repeat in range(repeats):
            rng = np.random.default_rng((seed, number, repeat))
            order = rng.permutation(len(world.x))
            base, pool = order[:size], order[size:]
            inputs = world.x.iloc[base].reset_index(drop=True)
            reference = causes.sample(world.spec, inputs, predict(inputs), world.y[base])
            planter = Planter(world, pool, min(size, int(len(pool) * 0.55)), rng)
            x, y = planter.window(scenario)
            window = causes.sample(world.spec, x, predict(x), y)
            began = time.process_time()
            found = causes.explain(world.spec, reference, window, predict, seed=repeat)
            took = time.process_time() - began
            rise = window.loss.mean() / reference.loss.mean() - 1
            kinds = {f.name: f.kind for f in world.spec.features}
            far = {}
            for c in x:
                coded = cells.code(c, kinds[c], inputs[c], x[c], reference.loss)
                far[c] = cells.psi(coded.base_shares(), coded.now_shares())
            drifted = max(far, key=far.__getitem__)
            into[scenario].append((found, planter.planted, rise, took, drifted, far[drifted] > 0.1))


def table(results: dict, title: str) -> tuple[int, int, int, int]:
    print(f"\n{title}\n")
    print("| planted | cases | median rise | rise ≥ 10 % | planted first | right kind | alone "
          "| both named | accused someone | drift ranking | CPU s (median, worst) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    hits = asked = false = quiet = 0
    for scenario, cases in results.items():
        rises = [case[2] for case in cases]
        took = [case[3] for case in cases]
        accused = sum(bool(case[0].causes) for case in cases)
        times = f"{np.median(took):.2f}, {max(took):.2f}"
        head = f"| {scenario} | {len(cases)} | {100 * np.median(rises):+.0f} % "
        if scenario in QUIET:
            false, quiet = false + accused, quiet + len(cases)
            blamed = sum(case[5] for case in cases)
            print(f"{head}| – | – | – | – | – | {accused} | {blamed} accused | {times} |")
            continue
        due = [case for case in cases if case[2] >= 0.1]
        good = [c for c in due if c[0].causes and right(c[0], c[1])]
        kind = sum(c[0].causes[0].kind in [k for k, _ in c[1]] for c in good)
        alone = sum(
            c[0].causes[0].kind == "prior"
            or any(set(c[0].causes[0].columns) <= set(names) for _, names in c[1])
            for c in good
        )
        both = "–"
        if "+" in scenario:
            named = [{(x.kind == "prior" and "y") or n for x in c[0].causes for n in x.columns}
                     for c in due]  # fmt: skip
            got = sum(
                all(set(names) & told for _, names in c[1])
                for c, told in zip(due, named, strict=True)
            )
            both = str(got)
        drift = sum(any(c[4] in names for _, names in c[1]) for c in due)
        hits, asked = hits + len(good), asked + len(due)
        print(f"{head}| {len(due)} | {len(good)} | {kind} | {alone} | {both} | {accused} "
              f"| {drift} | {times} |")  # fmt: skip
        for case in due:
            if SHOW and case not in good:
                first = case[0].causes[0] if case[0].causes else case[0].why
                print(f"    MISS {case[1]} rise {case[2]:.2f} -> {first}")
    print(f"\nplanted cause first: {hits} of {asked} = {100 * hits / max(asked, 1):.1f} %; "
          f"accused without cause: {false} of {quiet}")  # fmt: skip
    return hits, asked, false, quiet


SHOW = False


def real(folder: Path | None) -> list[tuple[str, pd.DataFrame, np.ndarray, str]]:
    """(name, inputs, target, task) of each stream."""
    retail = pd.read_parquet(Path(__file__).parents[1] / "data" / "retail.parquet")
    drop = ["invoice", "invoice_time", "label_time", "bought_again"]
    found = [
        ("retail", retail.drop(columns=drop), retail["bought_again"].to_numpy(float), "binary")
    ]
    for path in sorted(folder.glob("*.parquet")) if folder else []:
        frame = pd.read_parquet(path)
        if path.stem.startswith("retail"):
            continue
        y = frame["y"].to_numpy(float)
        task = "binary" if len(np.unique(y)) == 2 else "regression"
        x = frame.drop(columns=["y", "t"], errors="ignore")
        x = x[[c for c in x if not pd.api.types.is_datetime64_any_dtype(x[c])]]
        for c in x:
            if not pd.api.types.is_numeric_dtype(x[c]):
                x[c] = x[c].astype(object).where(x[c].notna(), None)
        found.append((path.stem, x, y, task))
    return found


def main() -> None:
    global SHOW
    options = argparse.ArgumentParser()
    options.add_argument("--repeats", type=int, default=10)
    options.add_argument("--seed", type=int, default=7000)
    options.add_argument("--streams", type=Path)
    options.add_argument("--only", choices=["synthetic", "real"])
    options.add_argument("--scenarios", nargs="*", default=list(SCENARIOS))
    options.add_argument("--show", action="store_true", help="print every miss")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    SHOW, scenarios = given.show, tuple(given.scenarios)
    print(f"seed {given.seed}, {given.repeats} repeats")
    if given.only != "real":
        for task in ("regression", "binary"):
            rng = np.random.default_rng((given.seed, task == "binary"))
            x, y = synthetic(rng, task, 80_000)
            world = build(x, y, task, rng)
            results: dict = defaultdict(list)
            tell(world, 10_000, scenarios, given.repeats, given.seed, results)
            table(results, f"Synthetic, {task}, 10,000 × 40")
    if given.only != "synthetic":
        pooled: dict = defaultdict(list)
        for name, x, y, task in real(given.streams):
            rng = np.random.default_rng((given.seed, 2, len(name)))
            order = rng.permutation(len(x))[:40_000]
            world = build(x.iloc[order].reset_index(drop=True), y[order], task, rng)
            size = min(5000, len(world.x) // 3)
            results = defaultdict(list)
            tell(world, size, scenarios, given.repeats, given.seed, results)
            table(results, f"{name}, {task}, {size:,} rows × {x.shape[1]}")
            for scenario, cases in results.items():
                pooled[scenario] += cases
        table(pooled, "All streams")


if __name__ == "__main__":
    main()
