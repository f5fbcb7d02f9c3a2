"""Which version answers: pointers watched, new versions loaded and warmed, one reference flipped.

Beside it may run a challenger: `serving.shadow` hears a copy of the requests, `serving.canary`
answers a share of them.

A request takes the current version of its slot and gives it back when it has its answer; a version
that was replaced stays loaded beside its successor, so that a rollback is one flip, and is unloaded
when a third one comes, after its last answer. A version that cannot be loaded, or does not give the
answers the preparing process got, leaves the old one serving and says so (`workers.error`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import monotonic

import numpy as np

from core.errors import NotFound, NotReady, ShelflifeError
from core.spec import Kind, ModelSpec, Scalar
from serving import backends, store
from serving.backend import Model
from serving.columns import columns_of
from serving.shadow import Shadow, Start
from serving.slot import Loaded as Loaded
from serving.slot import Slot as Slot
from serving.store import Pointer, Sample, Target

_log = logging.getLogger("shelflife.serving")
_POLL = 0.1  # seconds between looks at the pointers
_RETRY = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a version that failed is tried again
_TOLERANCE = 1e-6  # between this process's answers and the preparing process's

Signature = tuple[int, int, int]  # inode, mtime in ns, size of a pointer file


class Slots:
    """Every model this worker serves, following the pointer files.

    Args:
        home: the home folder.
        max_batch: most rows predicted together.
        threads: threads a model may use for one prediction.
        trust_pickle: whether an operator allows a model's artifact to be unpickled.
        clock: wall clock.
        changed: called after every change, from the watching thread.
        count: adds to a counter, by model, name and amount.
    """

    def __init__(
        self,
        home: Path,
        *,
        max_batch: int,
        threads: int,
        trust_pickle: Callable[[str], bool],
        clock: Callable[[], datetime],
        changed: Callable[[], None] = lambda: None,
        count: Callable[[str, str, int], None] = lambda model, name, by: None,
    ) -> None:
        self._home, self._max_batch, self._threads = home, max_batch, threads
        self._trust_pickle, self._clock, self._changed = trust_pickle, clock, changed
        self._count = count
        self._slots: dict[str, Slot] = {}
        self._seen: dict[str, Signature] = {}
        self._failed: dict[str, tuple[int, float]] = {}  # attempts, when to try again
        self._scanned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pointers", daemon=True)

    def start(self) -> None:
        """Begin to watch; `ready` says when what is there has been loaded."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching and unload everything."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)
        for slot in self.all():
            slot.close()

    def all(self) -> list[Slot]:
        """The slots there are."""
        return list(self._slots.values())

    def get(self, model: str) -> Slot:
        """A model's slot.

        Raises:
            NotReady: the pointers have not been read yet.
            NotFound: no pointer names this model.
        """
        slot = self._slots.get(model)
        if slot is not None:
            return slot
        if not self._scanned:
            raise NotReady("models are being loaded; ask again")
        raise NotFound("model", model, f"served are {sorted(self._slots)}")

    @property
    def ready(self) -> bool:
        """Whether every model that has a pointer has a warm version."""
        return self._scanned and all(slot.current is not None for slot in self.all())

    def scan(self) -> None:
        """Follow the pointers once: load what is new, drop what is gone."""
        folder = store.pointers(self._home)
        if self._slots and not folder.is_dir():
            raise FileNotFoundError(f"{folder} is gone")  # a lost disk retires nobody
        found = _pointer_files(folder)
        gone = [model for model in self._slots if model not in found]
        for model in gone:
            self._seen.pop(model, None)
            self._failed.pop(model, None)
            self._slots.pop(model).close()
        for model in found:
            self._slots.setdefault(model, Slot(model))
        self._scanned = True
        changed = bool(gone)
        for model, signature in found.items():
            if self._due(model, signature):
                self._follow(model, signature)
                changed = True
        if changed:
            self._changed()

    def _due(self, model: str, signature: Signature) -> bool:
        if self._seen.get(model) != signature:
            return True
        return model in self._failed and monotonic() >= self._failed[model][1]

    def _follow(self, model: str, signature: Signature) -> None:
        slot, version = self._slots[model], "?"
        attempts = self._failed.pop(model, (0, 0.0))[0] if self._seen.get(model) == signature else 0
        self._seen[model] = signature
        try:
            pointer = store.read_pointer(store.pointers(self._home) / f"{model}.json")
            target = pointer.champion
            version = target.version
            slot.flip(slot.kept(target) or self._load(model, target))
            slot.error = ""
            _log.info("model_served", extra={"model": model, "version": version})
            self._follow_beside(model, slot, pointer)
        except FileNotFoundError:
            self._seen.pop(model, None)  # removed, or being replaced: the next look tells
        except Exception as error:
            slot.error = f"version {version}: {type(error).__name__}: {error}"
            pause = _RETRY[min(attempts, len(_RETRY) - 1)]
            self._failed[model] = (attempts + 1, monotonic() + pause)
            _log.error("model_not_served", extra={"model": model, "error": slot.error})

    def _follow_beside(self, model: str, slot: Slot, pointer: Pointer) -> None:
        """Run beside the champion what the pointer names; no trouble with it is the champion's."""
        target, canary = pointer.challenger, slot.canary
        slot.beside = target
        if target is None or target == pointer.champion:
            slot.alone()
            return
        try:
            if pointer.mode == "shadow":
                running = slot.shadow
                if running is None or running.version != target.version:
                    slot.alone()
                    slot.shadow_with(self._shadow(model, target))
            elif (
                canary is None
                or slot.shadow is not None
                or (canary.version, canary.share) != (target.version, pointer.share)
            ):
                loaded = slot.kept(target) or self._load(model, target)
                if slot.shadow is not None:
                    slot.alone()
                slot.run_beside(loaded, pointer.share)
            slot.beside_error = ""
            _log.info(
                "challenger_runs",
                extra={"model": model, "version": target.version, "mode": pointer.mode},
            )
        except Exception as error:
            slot.alone()
            slot.beside_error = f"version {target.version}: {type(error).__name__}: {error}"
            _log.error("challenger_failed", extra={"model": model, "error": slot.beside_error})

    def _shadow(self, model: str, target: Target) -> Shadow:
        return Shadow(
            model,
            target.version,
            Start(
                folder=str(store.prepared(self._home, target.folder).resolve()),
                backend=target.backend,
                threads=1,
                trust_pickle=self._trust_pickle(model),
            ),
            lambda name, by: self._count(model, name, by),
        )

    def _load(self, model: str, target: Target) -> Loaded:
        folder = store.prepared(self._home, target.folder)
        manifest, spec = store.verify(folder)
        if (manifest.model, manifest.sha256) != (model, target.sha256) or spec.name != model:
            raise ShelflifeError(f"{folder} holds {manifest.model} {manifest.sha256}, not {target}")
        loaded = backends.load(
            target.backend,
            folder / store.MODEL,
            spec,
            threads=self._threads,
            trust_pickle=self._trust_pickle(model),
        )
        warm(loaded, spec, manifest.sample)
        return Loaded(target, spec, loaded, at=self._clock(), max_batch=self._max_batch)

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.scan()
            except OSError as error:  # the home folder is out of reach: serve what is loaded
                _log.error("pointers_unreadable", extra={"error": str(error)})
            self._stop.wait(_POLL)


def warm(model: Model, spec: ModelSpec, sample: Sample | None) -> None:
    """Predict before the first caller does, one row and then all of them.

    Raises:
        ShelflifeError: the answers are not those the preparing process got.
    """
    if sample is None:  # no real rows: the values may mean nothing to the model
        columns = columns_of(spec, {f.name: [_ANY[f.kind]] for f in spec.features})
        try:
            model.infer(columns)
        except Exception as error:
            _log.info("warm_up_row_refused", extra={"error": str(error)})
        return
    columns = columns_of(spec, sample.inputs)
    model.infer({name: array[:1] for name, array in columns.items()})
    for name, array in model.infer(columns).items():
        expected = np.array(sample.outputs[name])
        if not np.allclose(array, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            worst = float(np.max(np.abs(array - expected)))
            raise ShelflifeError(
                f"{name}: answers here differ by up to {worst:g} from those at preparation; "
                "expected the same library versions in both processes"
            )


_ANY: dict[Kind, Scalar] = {"numeric": 0.0, "integer": 0, "boolean": False, "categorical": ""}


def _pointer_files(folder: Path) -> dict[str, Signature]:
    found = {}
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return {}
    for entry in entries:
        if entry.name.endswith(".json") and not entry.name.startswith("."):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            found[entry.name[:-5]] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found
