"""Which version answers: pointers watched, new versions loaded and warmed, one reference flipped.

Beside it may run a challenger: `serving.shadow` hears a copy of the requests, `serving.canary`
answers a share of them.

A request takes the current version of its slot and gives it back when it has its answer; a version
that was replaced stays loaded beside its successor, so that a rollback is one flip, and is unloaded
when a third one comes, after its last answer. A version that cannot be loaded, or does not give the
answers the preparing process got, leaves the old one serving and says so (`workers.error`).

Under a memory budget (`serving.residency`) models that are not asked make room for those that are,
and are loaded again when somebody asks. A pointer that moves is loaded all the same, to prove that
its version answers here; only when a worker starts are models beyond the budget left for later.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import monotonic

from core.errors import NotFound, NotReady, ShelflifeError
from core.settings import Settings
from serving import store
from serving.codec import Codec
from serving.loading import Loader
from serving.residency import Resident, evicted
from serving.slot import Loaded as Loaded
from serving.slot import Slot as Slot
from serving.store import Pointer, Target
from serving.turns import Turns

_log = logging.getLogger("shelflife.serving")
_POLL = 0.1  # seconds between looks at the pointers
_RETRY = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a version that failed is tried again
_EVICTION = 5.0  # seconds that requests have to end before others get their memory

Signature = tuple[int, int, int]  # inode, mtime in ns, size of a pointer file


class Slots:
    """Every model this worker serves, following the pointer files.

    Args:
        home: the home folder.
        clock: wall clock.
        changed: called after every change, from the watching thread.
        count: adds to a counter, by model, name and amount.
    """

    def __init__(
        self,
        home: Path,
        settings: Settings,
        *,
        clock: Callable[[], datetime],
        changed: Callable[[], None] = lambda: None,
        count: Callable[[str, str, int], None] = lambda model, name, by: None,
    ) -> None:
        self._home, self._settings, self._changed, self._count = home, settings, changed, count
        self._budget = int(settings.serving.memory_mb * 1_000_000)
        turns = Turns(max(1, os.cpu_count() or 1))
        self._loader = Loader(home, settings, turns, clock=clock, count=count)
        self._slots: dict[str, Slot] = {}
        self._seen: dict[str, Signature] = {}
        self._failed: dict[str, tuple[int, float]] = {}  # attempts, when to try again
        self._asked: set[str] = set()  # models that requests wait for
        self._scanned = False
        self._stop, self._stir = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pointers", daemon=True)

    def start(self) -> None:
        """Begin to watch; `ready` says when what is there has been loaded."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching and unload everything."""
        self._stop.set()
        self._stir.set()
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
        """Whether every model that has a pointer would answer."""
        every = self.all()
        return self._scanned and all(
            slot.current is not None or slot.evicted or slot.closed for slot in every
        )

    def described(self, slot: Slot) -> tuple[Codec, Target]:
        """What a model takes and answers, also while it is not in memory.

        Raises:
            NotReady: no version of it is known yet.
        """
        loaded, target = slot.current, slot.target
        if loaded is not None:
            return loaded.codec, loaded.target
        if target is None or slot.closed:
            raise slot.not_ready()
        return Codec(store.read_spec(store.prepared(self._home, target.folder))), target

    def want(self, model: str) -> None:
        """Load a model that is not in memory, soon; `Slot.arrival` waits for it."""
        self._asked.add(model)
        self._stir.set()

    def look(self) -> None:
        """Look at the pointers now rather than at the next round."""
        self._stir.set()

    def scan(self) -> None:
        """Follow the pointers once: load what is new, drop what is gone."""
        folder = store.pointers(self._home)
        if self._slots and not folder.is_dir():
            raise FileNotFoundError(f"{folder} is gone")  # a lost disk retires nobody
        found, closed = store.pointer_files(folder)
        gone = [model for model in self._slots if model not in found]
        for model in gone:
            self._seen.pop(model, None)
            self._failed.pop(model, None)
            self._slots.pop(model).close()
        for model in found:
            self._slots.setdefault(model, Slot(model))
        changed = bool(gone) | self._open_and_close(closed)
        starting, self._scanned = not self._scanned, True
        for model, signature in found.items():
            if self._due(model, signature):
                self._follow(model, signature, starting=starting)
                changed = True
        if changed:
            self._changed()

    def _open_and_close(self, closed: set[str]) -> bool:
        """Unload what an operator does not want loaded; the rest is loaded again."""
        changed = False
        for slot in self.all():
            if slot.closed == (slot.model in closed):
                continue
            changed, slot.closed = True, slot.model in closed
            if slot.closed:
                slot.close()
            else:
                self._seen.pop(slot.model, None)
        return changed

    def _due(self, model: str, signature: Signature) -> bool:
        if self._slots[model].closed:
            return False
        if self._seen.get(model) != signature:
            return True
        return model in self._failed and monotonic() >= self._failed[model][1]

    def _follow(self, model: str, signature: Signature, *, starting: bool) -> None:
        slot, version = self._slots[model], "?"
        attempts = self._failed.pop(model, (0, 0.0))[0] if self._seen.get(model) == signature else 0
        self._seen[model] = signature
        try:
            pointer = store.read_pointer(store.pointers(self._home) / f"{model}.json")
            target = slot.wanted = pointer.champion
            version = target.version
            if starting and not self._fits(target):
                slot.target = target  # somebody will ask for it
                return
            slot.flip(slot.kept(target) or self._load(model, target))
            _log.info("model_served", extra={"model": model, "version": version})
            self._follow_beside(model, slot, pointer)
        except FileNotFoundError:
            self._seen.pop(model, None)  # removed, or being replaced: the next look tells
        except Exception as error:
            slot.error = f"version {version}: {type(error).__name__}: {error}"
            pause = _RETRY[min(attempts, len(_RETRY) - 1)]
            self._failed[model] = (attempts + 1, monotonic() + pause)
            _log.error("model_not_served", extra={"model": model, "error": slot.error})
        finally:
            slot.arrived()

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
                    slot.shadow_with(self._loader.shadow(model, target))
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

    # --- memory ----------------------------------------------------------------------------------

    def _load(self, model: str, target: Target) -> Loaded:
        self._make_room(self._loader.size(target), f"version {target.version} of {model}")
        loaded = self._loader.load(model, target)
        self._make_room(loaded.size, f"version {target.version} of {model}")  # now it is known
        return loaded

    def _fits(self, target: Target) -> bool:
        held = sum(each.size for slot in self.all() for each in slot.held())
        return not self._budget or held + self._loader.size(target) <= self._budget

    def _make_room(self, room: int, what: str) -> None:
        """Take out whom it takes so that `room` more bytes fit.

        Raises:
            ShelflifeError: they do not fit whoever goes.
        """
        here = [(slot, loaded) for slot in self.all() for loaded in slot.held()]
        residents = [self._resident(slot, loaded) for slot, loaded in here]
        out = evicted(residents, room=room, budget=self._budget)
        gone = {(each.model, each.version) for each in out}
        leaving = [
            slot.evict(loaded)
            for slot, loaded in here
            if (slot.model, loaded.target.version) in gone
        ]
        for thread in leaving:
            if thread is not None:
                thread.join(_EVICTION)
        for each in out:
            self._count(each.model, "evicted", 1)
        held = sum(each.size for each in residents) - sum(each.size for each in out)
        if self._budget and held + room > self._budget:
            raise ShelflifeError(
                f"{what} needs {room / 1e6:.1f} MB; serving.memory_mb is {self._budget / 1e6:g}, "
                f"of which pinned models and challengers hold {held / 1e6:.1f}"
            )

    def _resident(self, slot: Slot, loaded: Loaded) -> Resident:
        mine = self._settings.model(slot.model)
        beside = slot.canary is not None and slot.canary.version == loaded.target.version
        return Resident(
            model=slot.model,
            version=loaded.target.version,
            size=loaded.size,
            idle=monotonic() - loaded.used,
            weight=mine.weight,
            pinned=mine.pinned or beside,
            spare=loaded is not slot.current and not beside,
            busy=loaded.in_flight > 0,
        )

    def _load_asked(self) -> None:
        """Load again what requests wait for."""
        while self._asked:
            model = self._asked.pop()
            slot = self._slots.get(model)
            if slot is None:
                continue
            target = slot.target
            if slot.evicted and target is not None and self._may_try(model):
                try:
                    slot.flip(slot.kept(target) or self._load(model, target))
                    self._failed.pop(model, None)
                    self._count(model, "loaded_on_demand", 1)
                except Exception as error:
                    slot.error = f"version {target.version}: {type(error).__name__}: {error}"
                    self._failed[model] = (1, monotonic() + _RETRY[0])
                    _log.error("model_not_loaded", extra={"model": model, "error": slot.error})
                self._changed()
            slot.arrived()

    def _may_try(self, model: str) -> bool:
        return model not in self._failed or monotonic() >= self._failed[model][1]

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._stir.clear()
            try:
                self.scan()
                self._load_asked()
            except OSError as error:  # the home folder is out of reach: serve what is loaded
                _log.error("pointers_unreadable", extra={"error": str(error)})
            self._stir.wait(_POLL)
