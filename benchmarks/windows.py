"""How much is lost by choosing the training window with the product's own choice?

    python benchmarks/windows.py --streams FOLDER [--jobs 2]

Every fifth batch a run happens. The windows `recent` (as many rows as the first model had), `all`,
`since_change`, `decay` and `blend` each fit on the rows until two batches ago and answer those two;
`retrain.windows.choose` picks one, carrying what earlier runs showed, or `settled` takes the window
that they agree on without a competition; the choice is then fitted on everything and scored on the
three batches after the next. Excess: its mean loss over that of the
better of `recent` and `all` at every single run, which nobody can know (below 0 %: better than
both). Starts are shifted by 0 to 4 batches: a stream has about a dozen runs, so one start is luck.
The change point is looked for in the losses of a model that is refitted every fifth batch. Fits:
training jobs a run took, the competition's included.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import streams
from streams import Stream, answer, learn

from core.settings import RetrainSettings
from monitor.measure.performance import row_loss
from retrain.windows import (
    Name,
    Window,
    change_point,
    choose,
    indifference,
    propose,
    settled,
    weights,
)

START = datetime(2000, 1, 1, tzinfo=UTC)
STARTS, EVERY, JUDGED, SCORED = range(2, 7), 5, 2, slice(1, 4)
MOST = 40_000
COST = RetrainSettings().cost_of_run
DEFAULT = RetrainSettings().windows
SETS: dict[str, tuple[Name, ...]] = {
    "always recent": ("recent",),
    "always all": ("all",),
    "recent, all": ("recent", "all"),
    "recent, all, decay": ("recent", "all", "decay"),
    "recent, all, since_change": ("recent", "all", "since_change"),
    "recent, all, blend": ("recent", "all", "blend"),
    "default": DEFAULT,
}


class Minutes(Sequence[datetime]):
    """So many moments, a minute apart, made when asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return START + timedelta(minutes=index)


class Bench:
    """One stream with its cached fits."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.answers: dict[tuple[int, str, int], np.ndarray] = {}
        self._served: list[np.ndarray] = []

    def fitted(self, k: int, window: Window) -> np.ndarray:
        """Answers to batches k .. k+3 of a model fitted on the window's rows before batch k."""
        key = (k, window.name, window.rows)
        if window.parts:
            raise KeyError(window.name)
        if key not in self.answers:
            stream = self.stream
            end = stream.init + k * stream.batch
            order = np.arange(max(0, end - min(window.rows, MOST)), end)
            np.random.RandomState(k).shuffle(order)
            kept = np.sort(order[len(order) // 5 :])
            weight = weights(window, end - int(kept[0]))
            given = None if weight is None else weight[kept - int(kept[0])]
            model = learn(stream.spec, stream.inputs[kept], stream.y[kept], given)
            self.answers[key] = answer(model, stream.inputs[self._later(k)])
        return self.answers[key]

    def outputs(self, k: int, window: Window, windows: Sequence[Window]) -> np.ndarray:
        """The same, averaged where the window is a blend."""
        parts = [each for each in windows if each.name in window.parts] or [window]
        return np.mean([self.fitted(k, part) for part in parts], axis=0)

    def losses(self, k: int, values: np.ndarray) -> np.ndarray:
        """Row losses of answers to batches k .. k+3, shape (4, batch)."""
        stream = self.stream
        found = row_loss(stream.spec, stream.outputs(values), stream.y[self._later(k)])
        return found.reshape(4, stream.batch)

    def _later(self, k: int) -> slice:
        return slice(self.stream.rows(k).start, self.stream.rows(k + 3).stop)

    def change(self, k: int, start: int) -> int | None:
        """Index of the first row after the newest rise of the served model's loss, before k."""
        served, whole = [np.full(self.stream.init, np.nan)], self.windows(0, ("all",), None)[0]
        for batch in range(k):
            model = max(0, (batch - start) // EVERY * EVERY + start) if batch >= start else 0
            window = Window(name="all", rows=whole.rows + model * self.stream.batch, since=START)
            at = batch - model
            if at > 3:  # before the second run the first model serves longer than it was cached
                served.append(np.full(self.stream.batch, np.nan))
                continue
            served.append(self.losses(model, self.fitted(model, window))[at])
        return change_point(np.concatenate(served))

    def windows(self, k: int, names: Sequence[Name], change: int | None) -> tuple[Window, ...]:
        """The windows on offer at batch k."""
        count = self.stream.init + k * self.stream.batch
        return propose(
            Minutes(count), names, recent_rows=self.stream.init, change=change, min_rows=200
        )


def excess(
    bench: Bench, names: tuple[Name, ...], start: int, *, always: bool = False
) -> tuple[float, float]:
    """Percent over the better of recent and all at every run, and training jobs per run.

    Args:
        always: compete in every run.
    """
    chosen, best, past, fits = [], [], list[dict[str, float]](), list[int]()
    for k in range(start, bench.stream.batches - 4, EVERY):
        change = bench.change(k - JUDGED, start) if "since_change" in names else None
        before = bench.windows(k - JUDGED, names, change)
        single = [window for window in before if not window.parts]
        new = stream_rows(bench, k - JUDGED)
        moved = change is not None and change > new - bench.stream.init
        unimportant = None if moved else indifference(len(single), cost_of_fit=COST, lasts=EVERY)
        known = settled(before, past, indifferent=unimportant)
        known = None if always or len(single) < 2 else known
        if known is None:
            losses = {
                window.name: bench.losses(k - JUDGED, bench.outputs(k - JUDGED, window, before))[
                    :JUDGED
                ].ravel()
                for window in before
            }
            choice = choose(before, losses, past)
        else:
            choice = known
        if len(single) > 1:
            past.append({str(score.name): score.relative for score in choice.scores})
        competed = len(single) if len(single) > 1 and known is None else 0
        fits.append(competed + max(1, len(choice.window.parts)))
        now = bench.windows(k, names, change)
        named = {window.name: window for window in now}
        won = named.get(choice.window.name, now[-1])
        chosen.append(bench.losses(k, bench.outputs(k, won, now))[SCORED].mean())
        both = bench.windows(k, ("recent", "all"), None)
        best.append(min(bench.losses(k, bench.fitted(k, w))[SCORED].mean() for w in both))
    return 100 * (float(np.mean(chosen)) / float(np.mean(best)) - 1), float(np.mean(fits))


def stream_rows(bench: Bench, k: int) -> int:
    """Rows before batch k."""
    return bench.stream.init + k * bench.stream.batch


def prototype(bench: Bench, start: int) -> tuple[float, float]:
    """The two-window choice by exponential history that this one grew from."""
    chosen, best, history = [], [], 0.0
    for k in range(start, bench.stream.batches - 4, EVERY):
        means = {}
        for window in bench.windows(k - JUDGED, ("recent", "all"), None):
            values = bench.losses(k - JUDGED, bench.fitted(k - JUDGED, window))[:JUDGED]
            means[window.name] = float(values.mean())
        if len(means) == 2:
            history = 0.7 * history + math.log(means["recent"] / means["all"])
        now = bench.windows(k, ("recent", "all"), None)
        losses = {w.name: bench.losses(k, bench.fitted(k, w))[SCORED].mean() for w in now}
        wanted = "recent" if history < 0 else "all"
        chosen.append(losses.get(wanted, next(iter(losses.values()))))
        best.append(min(losses.values()))
    return 100 * (float(np.mean(chosen)) / float(np.mean(best)) - 1), 3.0


def score(folder: Path, name: str, only: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """The excess of every set of windows on one stream, by start."""
    bench = Bench(streams.read(folder, name))
    kinds: dict[str, Callable[[int], tuple[float, float]]] = {
        "prototype: recent or all": lambda start: prototype(bench, start)
    }
    for label, names in SETS.items():
        kinds[label] = lambda start, names=names: excess(bench, names, start)  # type: ignore[misc]
    kinds["default, competing always"] = lambda start: excess(bench, DEFAULT, start, always=True)
    chosen = {label: kind for label, kind in kinds.items() if not only or label in only}
    return {label: [kind(start) for start in STARTS] for label, kind in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="these rows of the table")
    parser.add_argument("--names", nargs="*", default=[], help="these streams")
    given = parser.parse_args()
    names = given.names or streams.names(given.streams)
    count = len(names)
    with ProcessPoolExecutor(given.jobs) as pool:
        found = list(pool.map(score, [given.streams] * count, names, [tuple(given.only)] * count))
    print("excess loss, %: mean and worst stream (starts averaged); per start mean / worst")
    for label in found[0]:
        both = np.array([each[label] for each in found])  # streams x starts x (excess, fits)
        table, fits = both[:, :, 0], both[:, :, 1].mean()
        streams_mean = table.mean(axis=1)
        starts = "  ".join(f"{c.mean():.1f}/{c.max():.1f}" for c in table.T)
        print(
            f"{label:28s}{table.mean():6.2f}{streams_mean.max():7.2f} {fits:5.1f} fits   {starts}"
        )
        each = "  ".join(f"{n} {v:.1f}" for n, v in zip(names, streams_mean, strict=True))
        print(f"{'':28s}{each}")


if __name__ == "__main__":
    main()
