"""Whose turn it is to use the processor: models share it by weight, not by how much they are asked.

Start-time fair queueing: each model has a virtual time, which advances by the seconds it used over
its weight; whoever waits and is furthest behind goes next. A model that was idle starts at the
present, so that nobody saves up turns. One that is asked without end takes its share and no more.

Source: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996.
"""

from __future__ import annotations

import threading
from time import monotonic

_STUCK = 10.0  # seconds after which a turn that is not given back is no longer waited for


class Share:
    """One model's part.

    Args:
        weight: relative to the others'; twice the weight is twice the processor under load.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.time = 0.0  # virtual
        self.go = threading.Event()


class Turns:
    """Lets at most so many models predict at once.

    Args:
        places: predictions at once; the processor's cores.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._now = 0.0  # virtual: where the last one that went stood
        self._waiting: list[Share] = []
        self._running: dict[Share, float] = {}  # since when
        self._lock = threading.Lock()

    def try_take(self, share: Share) -> bool:
        """A turn, if there is one and nobody waits for it."""
        with self._lock:
            if self._waiting or self._taken() >= self._places:
                return False
            self._start(share)
            return True

    def take(self, share: Share) -> None:
        """Wait for a turn."""
        if self.try_take(share):
            return
        with self._lock:
            share.time = max(share.time, self._now)
            share.go.clear()
            self._waiting.append(share)
            self._admit()
        while not share.go.wait(1.0):
            with self._lock:
                self._admit()  # a model that hangs keeps nobody else waiting for ever

    def give(self, share: Share, seconds: float) -> None:
        """A turn is over; it used the processor for so long."""
        with self._lock:
            share.time += seconds / share.weight
            self._running.pop(share, None)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._taken() < self._places:
            share = min(self._waiting, key=lambda each: each.time)
            self._waiting.remove(share)
            self._start(share)
            share.go.set()

    def _start(self, share: Share) -> None:
        share.time = max(share.time, self._now)
        self._now = share.time
        self._running[share] = monotonic()

    def _taken(self) -> int:
        if len(self._running) < self._places:
            return len(self._running)
        now = monotonic()
        return sum(now - since < _STUCK for since in self._running.values())
