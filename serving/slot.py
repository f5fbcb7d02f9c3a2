"""One model's place in a worker: the version that answers, the one before it, the one beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from core.errors import NotFound, NotReady
from core.spec import ModelSpec
from serving.backend import Model
from serving.batching import Batcher
from serving.canary import Canary
from serving.codec import Codec
from serving.shadow import Shadow
from serving.store import Target

_log = logging.getLogger("shelflife.serving")


class Loaded:
    """One version in memory: its codec, its model behind a batcher, and who is using it."""

    def __init__(
        self, target: Target, spec: ModelSpec, model: Model, *, at: datetime, max_batch: int
    ) -> None:
        self.target, self.spec, self.model, self.at = target, spec, model, at
        self.codec = Codec(spec)
        self.batcher = Batcher(
            model, max_batch=max_batch, name=f"model-{spec.name}-{target.version}"
        )
        self._users = 0
        self._idle = threading.Condition()

    def take(self) -> None:
        """A request begins to use it."""
        with self._idle:
            self._users += 1

    def give_back(self) -> None:
        """A request has its answer."""
        with self._idle:
            self._users -= 1
            if not self._users:
                self._idle.notify_all()

    @property
    def in_flight(self) -> int:
        """Requests that are using it."""
        return self._users

    def retire(self, timeout: float = 30.0) -> None:
        """Wait for the requests that use it, end its thread, give the memory back."""
        with self._idle:
            self._idle.wait_for(lambda: not self._users, timeout)
        if not self.batcher.drain(timeout):
            _log.error("model_stuck", extra={"model": self.spec.name})
        self.model.unload()


class Slot:
    """A model's place: the version that answers, the one before it, the one beside it, and the
    last error of each kind. At most one of `canary` and `shadow` is there, mostly neither."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.error = ""
        self.canary: Canary | None = None
        self.shadow: Shadow | None = None
        self.beside: Target | None = None  # what the pointer wants beside the champion
        self.beside_error = ""
        self._challenger: Loaded | None = None  # the canary's, in memory
        self._current: Loaded | None = None
        self._previous: Loaded | None = None
        self._lock = threading.Lock()

    @property
    def current(self) -> Loaded | None:
        """The version that answers; None while the first one loads."""
        return self._current

    @contextmanager
    def use(self, version: str | None = None) -> Iterator[Loaded]:
        """The current version, which stays loaded until the block ends.

        Raises:
            NotReady: no version is loaded yet.
            NotFound: another version was asked for.
        """
        with self._lock:  # a flip cannot come between reading the reference and taking it
            loaded = self._current
            if loaded is None:
                raise NotReady(f"{self.model} is being loaded; {self.error or 'ask again'}")
            if version is not None and version != loaded.target.version:
                hint = f"{self.model} serves version {loaded.target.version}"
                raise NotFound("version", version, hint)
            loaded.take()
        try:
            yield loaded
        finally:
            loaded.give_back()

    def kept(self, target: Target) -> Loaded | None:
        """That version, if it is still in memory."""
        for loaded in (self._current, self._previous, self._challenger):
            if loaded is not None and loaded.target == target:
                return loaded
        return None

    def flip(self, new: Loaded) -> None:
        """Answer with `new` from now on; the version before stays for a rollback."""
        with self._lock:
            old, before = self._current, self._previous
            if old is new:
                return
            self._current, self._previous, self.error = new, old, ""
            promoted = new is self._challenger
            if promoted:
                self._challenger, self.canary = None, None
        if before is not None and before is not new and before is not self._challenger:
            _in_background(before.retire)

    def run_beside(self, loaded: Loaded, share: float) -> None:
        """Let a loaded version answer a share of the callers."""
        with self._lock:
            if loaded is self._current:
                return  # it was promoted while it was being loaded
            old, self._challenger = self._challenger, loaded
            self.canary = Canary(loaded.target.version, loaded.batcher, share)
        self._retire(old, unless=loaded)

    def shadow_with(self, shadow: Shadow) -> None:
        """Send copies of the requests to a version."""
        self.shadow = shadow

    def alone(self) -> None:
        """Nothing runs beside the champion any more."""
        with self._lock:
            shadow, self.shadow = self.shadow, None
            challenger, self._challenger, self.canary = self._challenger, None, None
            self.beside_error = ""
        if shadow is not None:
            _in_background(shadow.close)
        self._retire(challenger)

    @property
    def challenger_error(self) -> str:
        """Why the version beside the champion does not answer; empty when it does."""
        shadow = self.shadow
        return self.beside_error or (shadow.error if shadow is not None else "")

    def _retire(self, loaded: Loaded | None, unless: Loaded | None = None) -> None:
        kept = (unless, self._current, self._previous)
        if loaded is not None and all(loaded is not each for each in kept):
            _in_background(loaded.retire)

    def close(self) -> None:
        """Answer nobody any more; every version is unloaded after its last answer."""
        self.alone()
        with self._lock:
            both = (self._current, self._previous)
            self._current = self._previous = None
        for loaded in both:
            if loaded is not None:
                _in_background(loaded.retire)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="retire", daemon=True).start()
