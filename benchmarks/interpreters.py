"""Every interpreter beside the others, on the demo's model and on models of all kinds.

    python benchmarks/interpreters.py [--rows 5000] [--only NAME,…]

For each model: what `serving.interpreting` measures when a version is prepared, here in this
process and with more calls. Per candidate: largest difference from the estimator's own answers on
`--rows` real rows, labels that change, median microseconds from column arrays to outputs at 1, 32
and 1,024 rows, one thread. Every batch size is timed in rounds over all candidates, so that a busy
machine slows them alike. Seeds are fixed; figures of docs/backends.md come from here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from core.frames import to_frame
from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec, infer_spec
from registry.loading import predict_array, save_estimator
from serving import backends
from serving.backend import Columns, Model, NotApplicable, Outputs, Subject
from serving.choice import BATCHES, compare
from serving.interpreting import configured

Named = dict[str, Callable[[], tuple[Any, pd.DataFrame, np.ndarray]]]
_ROUNDS = 30
_CALLS = {1: 20, 32: 8, 1024: 1}  # of a candidate in one round


def _numbers() -> tuple[pd.DataFrame, np.ndarray]:
    from sklearn.datasets import make_classification

    x, y = make_classification(20_000, 20, n_informative=12, random_state=0)
    return pd.DataFrame(x, columns=[f"n{i}" for i in range(20)]), y


def _mixed() -> tuple[pd.DataFrame, np.ndarray]:
    frame, y = _numbers()
    rng = np.random.default_rng(0)
    frame["c1"] = rng.choice(list("abcdefgh"), len(frame))
    frame["c2"] = rng.choice([f"k{i}" for i in range(40)], len(frame))
    return frame, y


def _demo() -> tuple[Any, pd.DataFrame, np.ndarray]:
    from shelflife.demo import story

    stream = story.stream()
    known = stream[stream["label_time"] <= story.START]
    inputs, y = known[story.INPUTS], known[story.TARGET].to_numpy()
    return story.first_model().fit(inputs, y), inputs, y


def _fit(make: Callable[[], Any], data: Callable[[], tuple[pd.DataFrame, np.ndarray]]) -> Any:
    frame, y = data()
    return make().fit(frame, y), frame, y


def models() -> Named:
    """The models that are measured, by name; fitted when they are asked for."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def mixed() -> Any:
        numbers = [f"n{i}" for i in range(20)]
        encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        columns = ColumnTransformer(
            [
                ("num", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
                ("cat", encoder, ["c1", "c2"]),
            ]
        )
        return make_pipeline(columns, HistGradientBoostingClassifier(random_state=0))

    def xgb() -> Any:
        import xgboost

        return xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1)

    def lgbm() -> Any:
        import lightgbm

        return lightgbm.LGBMClassifier(n_estimators=100, n_jobs=1, verbose=-1)

    def scaled() -> Any:
        return make_pipeline(StandardScaler(), HistGradientBoostingClassifier(random_state=0))

    plain: dict[str, Callable[[], Any]] = {
        "HGB 100": lambda: HistGradientBoostingClassifier(max_iter=100, random_state=0),
        "scaler+HGB": scaled,
        "RF 200": lambda: RandomForestClassifier(200, max_depth=12, n_jobs=1, random_state=0),
        "scaler+LR": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        "scaler+MLP": lambda: make_pipeline(
            StandardScaler(), MLPClassifier((128, 64), max_iter=15, random_state=0)
        ),
        "XGB 100": xgb,
        "LGBM 100": lgbm,
    }
    named: Named = {"demo": _demo, "CT+OHE+HGB": lambda: _fit(mixed, _mixed)}
    for name, make in plain.items():
        named[name] = lambda make=make: _fit(make, _numbers)  # type: ignore[misc]
    return named


def candidates(
    subject: Subject, room: Path
) -> tuple[list[tuple[str, Model, float]], list[tuple[str, str]]]:
    """What could be built, with the seconds it took, and what could not, with the reason."""
    built, missing = [], []
    for name in backends.NAMES:
        backend = backends.backend(name)
        able = backend.capabilities()
        try:
            if able.missing:
                raise NotApplicable(able.missing)
            configured(name, subject.settings)
            variants = backend.assess(subject)
        except NotApplicable as error:
            missing.append((name, str(error)))
            continue
        for variant in variants:
            folder = room / f"{name}-{variant}"
            folder.mkdir()
            started = time.perf_counter()
            try:
                backend.prepare(subject, variant, folder)
                model = backend.load(folder, subject.spec, threads=1, trust_pickle=False)
            except NotApplicable as error:
                missing.append((f"{name}/{variant}", str(error)))
                continue
            built.append((f"{name}/{variant}", model, time.perf_counter() - started))
    return built, missing


def medians(built: list[tuple[str, Model, float]], rows: Columns) -> dict[str, list[float]]:
    """Median microseconds by candidate and batch size, measured in rounds."""
    found: dict[str, list[float]] = {name: [] for name, _, _ in built}
    for size in BATCHES:
        part = {name: array[:size] for name, array in rows.items()}
        taken: dict[str, list[float]] = {name: [] for name, _, _ in built}
        for _ in range(_ROUNDS):
            for name, model, _ in built:
                model.infer(part)
                for _ in range(_CALLS[size]):
                    started = time.perf_counter()
                    model.infer(part)
                    taken[name].append((time.perf_counter() - started) * 1e6)
        for name, values in taken.items():
            found[name].append(float(np.median(values)))
    return found


def measure(name: str, fitted: tuple[Any, pd.DataFrame, np.ndarray], rows: int) -> None:
    """One model's table."""
    estimator, frame, _ = fitted
    inputs = frame.tail(rows).reset_index(drop=True)
    spec = infer_spec("bench", inputs, target="y", task="binary", classes=(0, 1))
    columns = _columns(spec, inputs)
    want = _outputs(spec, predict_array(estimator, spec, to_frame(spec, columns)))
    print(f"\n{name}: {rows} real rows compared")
    print(f"  {'candidate':22} {'difference':>10} {'flips':>5} {'built s':>8} "
          f"{'1 µs':>9} {'32 µs':>9} {'1024 µs':>9} {'rows/s':>10}")  # fmt: skip
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room, "registered")
        save_estimator(estimator, folder / "model.skops")
        subject = Subject(
            spec=spec, folder=folder, estimator=estimator, trust_pickle=False,
            settings=InterpreterSettings(),
        )  # fmt: skip
        built, missing = candidates(subject, Path(room))
        times = medians(built, columns)
        for label, model, seconds in built:
            verdict = compare(spec, want, model.infer(columns), tolerance=1e-4)
            one, few, many = times[label]
            print(f"  {label:22} {verdict.difference:10.1e} {verdict.changed_labels:5d} "
                  f"{seconds:8.2f} {one:9.1f} {few:9.1f} {many:9.1f} {1024e6 / many:10,.0f}"
                  f"{'  refused: ' + verdict.reason if verdict.reason else ''}")  # fmt: skip
            model.unload()
        for label, reason in missing:
            print(f"  {label:22} {reason}")


def _columns(spec: ModelSpec, inputs: pd.DataFrame) -> dict[str, np.ndarray]:
    kept = {}
    for feature in spec.features:
        values = inputs[feature.name]
        if feature.kind == "categorical":
            kept[feature.name] = values.astype(object).where(values.notna(), None).to_numpy()
        else:
            whole = feature.kind == "integer" and not feature.nullable
            kept[feature.name] = values.to_numpy(np.int64 if whole else np.float64)
    return kept


def _outputs(spec: ModelSpec, matrix: np.ndarray) -> Outputs:
    return {name: matrix[:, i] for i, name in enumerate(spec.outputs)}


def main() -> None:
    """Parse the arguments and print the tables."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--only", default="", help="names of models, with commas between them")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.only.split(",") if name]
    for name, make in models().items():
        if not wanted or name in wanted:
            measure(name, make(), arguments.rows)


if __name__ == "__main__":
    main()
