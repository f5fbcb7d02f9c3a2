"""The model repository extension: what there is, and what operators load and unload.

Which version of a model is served is MLflow's alias to say, not this API's: `load` puts the one
that the pointer names into memory, `unload` takes the model out of it until somebody loads it
again, in every worker of the home folder. What made room under a memory budget is not unloaded: it
is loaded again when it is asked.

Source: Triton's model repository extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from time import monotonic
from typing import Any

from msgspec import Struct

from core.errors import InputError, NotReady
from serving import store
from serving.slot import Slot
from serving.swap import Slots

_log = logging.getLogger("shelflife.serving")
_POLL = 0.01  # seconds


class Entry(Struct, frozen=True, kw_only=True):
    """A model of the index."""

    name: str
    version: str
    state: str  # READY, LOADING or UNAVAILABLE
    reason: str


class Repository:
    """What the extension does, for REST and gRPC.

    Args:
        within: seconds that loading may take before the caller is told to ask again.
    """

    def __init__(self, home: Path, slots: Slots, *, within: float) -> None:
        self._home, self._slots, self._within = home, slots, within

    def index(self, *, ready: bool = False) -> list[Entry]:
        """Every model, in order of name; only those in memory where `ready`."""
        every = [_entry(slot) for slot in sorted(self._slots.all(), key=lambda each: each.model)]
        return [entry for entry in every if entry.state == "READY" or not ready]

    async def load(self, model: str, parameters: dict[str, Any] | None = None) -> None:
        """Put a model into memory, and wait for it.

        Raises:
            NotFound: there is no such model.
            NotReady: it was not loaded in time, or cannot be.
            InputError: parameters that would change what is served.
        """
        if parameters:
            name = next(iter(parameters))
            expected = "no parameters; what is served is registered in MLflow"
            raise InputError(f"parameters.{name}", parameters[name], expected)
        slot = self._slots.get(model)
        await asyncio.to_thread(store.set_unloaded, self._home, model, unloaded=False)
        if slot.evicted:
            self._slots.want(model)
        self._slots.look()
        end = monotonic() + self._within
        while slot.closed:  # until the next look
            await self._pause(end, f"{model} is not open yet")
        await slot.arrival(max(0.0, end - monotonic()))
        if slot.current is None:
            raise NotReady(f"{model} cannot be loaded: {slot.error}")
        _log.info("model_loaded", extra={"model": model})

    async def unload(self, model: str) -> None:
        """Take a model out of memory after its last answer, until it is loaded again.

        Raises:
            NotFound: there is no such model.
        """
        slot = self._slots.get(model)
        await asyncio.to_thread(store.set_unloaded, self._home, model, unloaded=True)
        self._slots.look()
        end = monotonic() + self._within
        while not slot.closed:
            await self._pause(end, f"{model} is not closed yet")
        _log.info("model_unloaded", extra={"model": model})

    async def _pause(self, end: float, text: str) -> None:
        if monotonic() > end:
            raise NotReady(f"{text}; other models are being loaded")
        await asyncio.sleep(_POLL)


def _entry(slot: Slot) -> Entry:
    target = slot.target or slot.wanted
    state, reason = "READY", ""
    if slot.closed:
        state, reason = "UNAVAILABLE", "unloaded"
    elif slot.current is None and slot.target is not None:
        state, reason = "UNAVAILABLE", "made room for other models; loaded when it is asked"
    elif slot.current is None:
        state, reason = ("UNAVAILABLE", slot.error) if slot.error else ("LOADING", "")
    version = target.version if target is not None else ""
    return Entry(name=slot.model, version=version, state=state, reason=reason or slot.error)
