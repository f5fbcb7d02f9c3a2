"""From a request that was read to an answer that is logged, whatever way it came.

REST, gRPC and the data-frame endpoint differ in how they read and write; what happens in between is
here, once: the version is held, a challenger may answer its share, the model is asked within the
caller's time, rows of the sample go to the log and to a shadow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from msgspec import Struct

from core.errors import NotReady, TooLate
from core.settings import Settings, span
from core.times import plausible
from monitor.log.records import Prediction, Role
from monitor.log.sample import kept
from serving.backend import Outputs
from serving.canary import Canary
from serving.codec import Asked, Codec
from serving.slot import Loaded, Slot
from serving.swap import Slots
from serving.traffic import Logged, LogWriter

_COPIES_WITHIN = timedelta(milliseconds=200)  # nobody waits for a shadow's rows


class Answered(Struct, frozen=True):
    """An answer, not yet written in anybody's format."""

    asked: Asked
    outputs: Outputs
    model: str
    version: str
    logged: Logged


class _Rules(Struct, frozen=True):
    """What a model's settings say, parsed once."""

    rate: float
    strict: bool
    within: timedelta


class Answering:
    """Answers requests for every model of this worker.

    Args:
        clock: wall clock, for event times that the caller does not give.
    """

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        writer: LogWriter,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings, self._slots, self._writer, self._clock = settings, slots, writer, clock
        self._ahead = span(settings.ingest.future)
        self._longest = span(settings.serving.answer_within).total_seconds()
        self._load_within = span(settings.serving.load_within).total_seconds()
        self._known: dict[str, _Rules] = {}
        self.draining = False

    def slot(self, model: str) -> Slot:
        """The model's slot, if a request for it may be read.

        Raises:
            NotReady: this worker is shutting down.
            NotFound: there is no such model.
            QueueFull: so many rows wait for it that reading more would be in vain.
        """
        if self.draining:
            raise NotReady("this worker is shutting down; ask another")
        slot = self._slots.get(model)
        loaded = slot.current
        if loaded is not None:
            loaded.batcher.refuse_if_full()
        return slot

    async def answer(
        self,
        slot: Slot,
        read: Callable[[Codec], Asked],
        *,
        version: str | None = None,
        within: float | None = None,
        since: float | None = None,
    ) -> Answered:
        """Answer one request.

        Args:
            read: decodes it for the model's spec.
            version: the one the caller insists on.
            within: seconds the caller gives; a `timeout` in the request itself counts too.
            since: monotonic moment from which they count; now when None.

        Raises:
            ShelflifeError: whatever `serving.batching` and `serving.codec` refuse.
        """
        begun = monotonic() if since is None else since
        loaded = await self._hold(slot, version, within, begun)
        try:
            asked = read(loaded.codec)
            if asked.time is not None:
                field = "parameters.event_time"
                plausible(asked.time, now=self._clock(), ahead=self._ahead, field=field)
            limits = [t for t in (within, asked.within, self._longest) if t is not None]
            end = begun + min(limits)
            version, role, outputs = await self._ask(slot, loaded, asked, end, version)
        finally:
            loaded.give_back()
        logged = await self._record(slot, version, role, asked, outputs)
        return Answered(asked, outputs, slot.model, version, logged)

    async def _hold(
        self, slot: Slot, version: str | None, within: float | None, begun: float
    ) -> Loaded:
        """The version that answers; one that made room for others is loaded again, and again if
        it had to go before this request could take it."""
        while True:
            try:
                return slot.hold(version)
            except NotReady:
                if not slot.evicted:
                    raise
            slot.check(version)
            await self._arrive(slot, within, begun)

    async def _arrive(self, slot: Slot, within: float | None, begun: float) -> None:
        """Wait for a model that made room for others."""
        given = self._longest if within is None else min(within, self._longest)
        left = given - (monotonic() - begun)
        self._slots.want(slot.model)
        try:
            await slot.arrival(max(0.0, min(self._load_within, left)))
        except NotReady:
            if left < self._load_within:
                raise TooLate(f"{slot.model} was not loaded within {given:g} s") from None
            raise
        if slot.error and slot.evicted:
            raise slot.not_ready()  # it cannot be loaded

    async def _ask(
        self, slot: Slot, loaded: Loaded, asked: Asked, end: float, pinned: str | None
    ) -> tuple[str, Role, Outputs]:
        canary = slot.canary
        if canary is not None and pinned is None:
            outputs = await self._canary(canary, slot.model, asked, end - monotonic())
            if outputs is not None:
                return canary.version, "challenger", outputs
        left = end - monotonic()
        outputs = await loaded.batcher.infer(asked.columns, asked.rows, within=left)
        return loaded.target.version, "champion", outputs

    async def _canary(
        self, canary: Canary, model: str, asked: Asked, left: float
    ) -> Outputs | None:
        """The challenger's answer, if this request is one of its share and it has one."""
        if not canary.chosen(asked.id):
            return None
        if canary.resting:
            self._writer.count(model, "canary_skipped")
            return None
        outputs = await canary.infer(asked.columns, asked.rows, left)
        self._writer.count(model, "canary_failed" if outputs is None else "canary_answered")
        return outputs

    async def _record(
        self, slot: Slot, version: str, role: Role, asked: Asked, outputs: Outputs
    ) -> Logged:
        model, rules = slot.model, self._rules(slot.model)
        time = asked.time or self._clock()
        ids, wanted = asked.ids, None
        if rules.rate < 1:
            wanted = [kept(each, rules.rate) for each in ids]
            self._writer.leave_out(model, time, rules.rate, wanted.count(False))
        sample = _predictions(model, version, role, asked, outputs, time, wanted)
        self._writer.count(model, "answered", asked.rows)
        shadow = slot.shadow
        if shadow is not None and sample:
            shadow.offer(sample, self._submit_shadow)
        return await self._writer.log(sample, strict=rules.strict, within=rules.within)

    def _rules(self, model: str) -> _Rules:
        found = self._known.get(model)
        if found is None:
            mine = self._settings.model(model)
            strict = mine.durability == "strict"
            found = _Rules(mine.sample_rate, strict, span(mine.commit_within))
            self._known[model] = found
        return found

    def _submit_shadow(self, rows: Sequence[Prediction]) -> None:
        self._writer.submit(rows, within=_COPIES_WITHIN)


def _predictions(
    model: str,
    version: str,
    role: Role,
    asked: Asked,
    outputs: Outputs,
    time: datetime,
    wanted: Sequence[bool] | None,
) -> list[Prediction]:
    """The rows of an answer as the log keeps them; only the `wanted` ones where that is given."""
    if wanted is not None and not any(wanted):
        return []
    names, ids = list(outputs), asked.ids
    answers: Any = zip(*(outputs[name].tolist() for name in names), strict=True)
    if wanted is not None:
        ids = [each for each, keep in zip(ids, wanted, strict=True) if keep]
        answers = [each for each, keep in zip(answers, wanted, strict=True) if keep]
    # Callers number requests per model; two models may well be asked under one id.
    source = f"serving/{model}"
    return [
        Prediction(
            model=model,
            id=identity,
            version=version,
            role=role,
            time=time,
            inputs=inputs,
            outputs=dict(zip(names, values, strict=True)),
            source=source,
        )
        for identity, inputs, values in zip(ids, asked.records(wanted), answers, strict=True)
    ]
