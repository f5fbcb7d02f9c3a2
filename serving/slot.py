"""One model's place in a worker: the version that answers, the one before it, the one beside it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from time import monotonic

from core.errors import NotFound, NotReady
from core.spec import ModelSpec
from serving.backend import Model
from serving.batching import Batcher
from serving.canary import Canary
from serving.codec import Codec
from serving.shadow import Shadow
from serving.store import Target

_log = logging.getLogger("shelflife.serving")
_DRAIN = 30.0  # seconds that requests have to end before a version is unloaded


class Loaded:
    """One version in memory: its codec, its model behind a batcher, and who is using it.

    Attributes:
        size: bytes of memory it holds, as far as that is known.
        used: monotonic seconds when it was last asked.
    """

    def __init__(
        self,
        target: Target,
        spec: ModelSpec,
        model: Model,
        batcher: Batcher,
        *,
        at: datetime,
        size: int = 0,
    ) -> None:
        self.target, self.spec, self.model, self.batcher = target, spec, model, batcher
        self.at, self.size = at, size
        self.codec = Codec(spec)
        self.used = monotonic()
        self._users = 0
        self._lock = threading.Lock()  # entered directly, as a condition's own methods cost more
        self._idle = threading.Condition(self._lock)

    def take(self) -> None:
        """A request begins to use it."""
        with self._lock:
            self._users += 1
            self.used = monotonic()

    def give_back(self) -> None:
        """A request has its answer."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._idle.notify_all()

    @property
    def in_flight(self) -> int:
        """Requests that are using it."""
        return self._users

    def retire(self, timeout: float = _DRAIN) -> None:
        """Wait for the requests that use it, end its thread, give the memory back."""
        with self._idle:
            self._idle.wait_for(lambda: not self._users, timeout)
        if not self.batcher.drain(timeout):
            _log.error("model_stuck", extra={"model": self.spec.name})
        self.model.unload()


_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Slot:
    """A model's place: the version that answers, the one before it, the one beside it, and the
    last error of each kind. At most one of `canary` and `shadow` is there, mostly neither.

    Attributes:
        target: the version that answers, in memory or loaded again when it is asked.
        wanted: the version the pointer names.
        closed: an operator unloaded the model; it answers nobody until it is loaded again.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.error = ""
        self.target: Target | None = None
        self.wanted: Target | None = None
        self.closed = False
        self.canary: Canary | None = None
        self.shadow: Shadow | None = None
        self.beside: Target | None = None  # what the pointer wants beside the champion
        self.beside_error = ""
        self.served_since: datetime | None = None
        self._challenger: Loaded | None = None  # the canary's, in memory
        self._current: Loaded | None = None
        self._previous: Loaded | None = None
        self._waiters: list[_Waiter] = []
        self._lock = threading.Lock()

    @property
    def current(self) -> Loaded | None:
        """The version that answers; None while it is not in memory."""
        return self._current

    @property
    def evicted(self) -> bool:
        """Whether the version that answers is not in memory, but will be when it is asked."""
        return self._current is None and self.target is not None and not self.closed

    @property
    def warm(self) -> bool:
        """Whether the very version that the pointer names would answer at once."""
        loaded = self._current
        return loaded is not None and loaded.target == self.wanted

    @contextmanager
    def use(self, version: str | None = None) -> Iterator[Loaded]:
        """The current version, which stays loaded until the block ends; raises as `hold`."""
        loaded = self.hold(version)
        try:
            yield loaded
        finally:
            loaded.give_back()

    def at_once(self, version: str | None = None) -> Loaded | None:
        """As `hold`; None while no version is in memory."""
        with self._lock:  # a flip cannot come between reading the reference and taking it
            loaded = self._current
            if loaded is not None:
                if version is not None:
                    self.check(version)
                loaded.take()
            return loaded

    def hold(self, version: str | None = None) -> Loaded:
        """The current version, which stays loaded until it is given back.

        Raises:
            NotReady: no version is loaded yet.
            NotFound: another version was asked for.
        """
        loaded = self.at_once(version)
        if loaded is None:
            raise self.not_ready()
        return loaded

    def check(self, version: str | None) -> None:
        """Raise `NotFound` where another version than the one that answers was asked for."""
        served = self.target.version if self.target is not None else None
        if version is not None and served is not None and version != served:
            raise NotFound("version", version, f"{self.model} serves version {served}")

    def not_ready(self) -> NotReady:
        """Why the model does not answer."""
        if self.closed:
            return NotReady(f"{self.model} was unloaded; load it again through the repository API")
        return NotReady(f"{self.model} is being loaded; {self.error or 'ask again'}")

    async def arrival(self, within: float) -> None:
        """Wait until a version is in memory, or loading it has failed.

        Raises:
            NotReady: none came within that time.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._current is not None:
                return
            self._waiters.append((loop, done))
        try:
            await asyncio.wait_for(done, within)
        except TimeoutError:
            raise self.not_ready() from None

    def arrived(self) -> None:
        """Wake those who wait: a version is in memory, or loading it has failed."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for loop, done in waiters:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, done)

    def kept(self, target: Target) -> Loaded | None:
        """That version, if it is still in memory."""
        for loaded in self.held():
            if loaded.target == target:
                return loaded
        return None

    def held(self) -> list[Loaded]:
        """Every version in memory."""
        found = (self._current, self._previous, self._challenger)
        return [loaded for loaded in found if loaded is not None]

    def flip(self, new: Loaded) -> None:
        """Answer with `new` from now on; the version before stays for a rollback."""
        new.batcher.beside = False
        with self._lock:
            old, before = self._current, self._previous
            self.target, self.error, self.served_since = new.target, "", new.at
            if old is new:
                return
            self._current, self._previous = new, old or (None if before is new else before)
            promoted = new is self._challenger
            if promoted:
                self._challenger, self.canary = None, None
        kept = (new, self._previous, self._challenger)
        if before is not None and all(before is not each for each in kept):
            _in_background(before.retire)

    def evict(self, loaded: Loaded) -> threading.Thread | None:
        """Take a version out of memory after its last answer; the thread that does so."""
        with self._lock:
            if loaded is self._previous:
                self._previous = None
            elif loaded is self._current:
                self._current = None
            else:
                return None
        return _in_background(loaded.retire)

    def run_beside(self, loaded: Loaded, share: float) -> None:
        """Let a loaded version answer a share of the callers."""
        with self._lock:
            if loaded is self._current:
                return  # it was promoted while it was being loaded
            loaded.batcher.beside = True
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
        self.arrived()


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="retire", daemon=True)
    thread.start()
    return thread
