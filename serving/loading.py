"""From a prepared folder to a version that answers: verified, loaded, warmed, compared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from time import perf_counter

import numpy as np

from core.errors import ShelflifeError
from core.settings import Settings, span
from core.spec import Kind, ModelSpec, Scalar
from serving import backends, store
from serving.backend import Model
from serving.batching import Batcher, Limits
from serving.columns import columns_of
from serving.cost import Cost
from serving.shadow import Shadow, Start
from serving.slot import Loaded
from serving.store import Sample, Target
from serving.turns import Turns

_log = logging.getLogger("shelflife.serving")
_TOLERANCE = 1e-6  # between this process's answers and the preparing process's


class Loader:
    """Makes versions that answer.

    Args:
        home: the home folder; prepared versions lie below it.
        turns: shared by every model of this worker.
        clock: wall clock.
        count: adds to a counter, by model, name and amount.
    """

    def __init__(
        self,
        home: Path,
        settings: Settings,
        turns: Turns,
        *,
        clock: Callable[[], datetime],
        count: Callable[[str, str, int], None],
    ) -> None:
        self._home, self._settings, self._turns = home, settings, turns
        self._clock, self._count = clock, count
        self._sizes: dict[str, int] = {}  # of prepared folders that were loaded before

    def load(self, model: str, target: Target) -> Loaded:
        """A version in memory, warm, with answers like those the preparing process got.

        Raises:
            UntrustedArtifact: the folder is not, byte for byte, what the pointer names.
            ShelflifeError: it is another model, or answers differently here.
        """
        folder = store.prepared(self._home, target.folder)
        manifest, spec = store.verify(folder)
        if (manifest.model, manifest.sha256) != (model, target.sha256) or spec.name != model:
            raise ShelflifeError(f"{folder} holds {manifest.model} {manifest.sha256}, not {target}")
        mine = self._settings.model(model)
        loaded = backends.load(
            target.backend,
            folder / store.MODEL,
            spec,
            threads=self._settings.serving.threads,
            trust_pickle=mine.trust_pickle,
        )
        cost = warm(loaded, spec, manifest.sample)
        size = self._sizes[target.folder] = _size(loaded, folder)
        batcher = Batcher(
            loaded,
            name=f"model-{spec.name}-{target.version}",
            limits=self._limits(model),
            turns=self._turns,
            cost=cost,
        )
        return Loaded(target, spec, loaded, batcher, at=self._clock(), size=size)

    def size(self, target: Target) -> int:
        """Bytes that a version will hold, as far as that is known before it is loaded."""
        known = self._sizes.get(target.folder)
        if known is not None:
            return known
        return _on_disk(store.prepared(self._home, target.folder))

    def shadow(self, model: str, target: Target) -> Shadow:
        """A version that answers copies of requests in a process of its own."""
        return Shadow(
            model,
            target.version,
            Start(
                folder=str(store.prepared(self._home, target.folder).resolve()),
                backend=target.backend,
                threads=1,
                trust_pickle=self._settings.model(model).trust_pickle,
            ),
            lambda name, by: self._count(model, name, by),
        )

    def _limits(self, model: str) -> Limits:
        serving, mine = self._settings.serving, self._settings.model(model)
        return Limits(
            max_batch=serving.max_batch,
            queue_rows=serving.queue_rows,
            budget=span(mine.latency_budget).total_seconds(),
            inline=span(serving.inline).total_seconds(),
            weight=mine.weight,
        )


def warm(model: Model, spec: ModelSpec, sample: Sample | None) -> Cost:
    """Predict before the first caller does, one row and then all of them; returns what that took.

    Raises:
        ShelflifeError: the answers are not those the preparing process got.
    """
    cost = Cost()
    if sample is None:  # no real rows: the values may mean nothing to the model
        columns = columns_of(spec, {f.name: [_ANY[f.kind]] for f in spec.features})
        try:
            model.infer(columns)
        except Exception as error:
            _log.info("warm_up_row_refused", extra={"error": str(error)})
        return cost
    columns = columns_of(spec, sample.inputs)
    one = {name: array[:1] for name, array in columns.items()}
    model.infer(one)  # the first call of all is not what the others cost
    for asked in (one, columns):
        started = perf_counter()
        outputs = model.infer(asked)
        cost.saw(len(next(iter(asked.values()))), perf_counter() - started)
    for name, array in outputs.items():
        expected = np.array(sample.outputs[name])
        if not np.allclose(array, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            worst = float(np.max(np.abs(array - expected)))
            raise ShelflifeError(
                f"{name}: answers here differ by up to {worst:g} from those at preparation; "
                "expected the same library versions in both processes"
            )
    return cost


_ANY: Mapping[Kind, Scalar] = {"numeric": 0.0, "integer": 0, "boolean": False, "categorical": ""}


def _size(model: Model, folder: Path) -> int:
    """What the model says it holds; the size of its files where it does not say."""
    memory = getattr(model, "memory", None)
    return int(memory()) if memory is not None and memory() else _on_disk(folder)


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
