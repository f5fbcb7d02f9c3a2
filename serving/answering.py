"""From a request that was read to an answer that is logged, whatever way it came.

REST, gRPC and the data-frame endpoint differ in how they read and write; what happens in between is
here, once: the version is held, a challenger may answer its share, the model is asked within the
caller's time, rows of the sample go to the log and to a shadow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import compress
from time import monotonic

from msgspec import Struct

from core.errors import NotReady, TooLate
from core.settings import Settings, span
from core.times import plausible
from monitor.log.records import Prediction, Role
from monitor.log.sample import kept
from serving.backend import Outputs
from serving.canary import Canary
from serving.codec import Asked, Codec
from serving.sheet import Sheet
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
    source: str


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
        loaded = slot.at_once(version) or await self._hold(slot, version, within, begun)
        try:
            asked = read(loaded.codec)
            if asked.time is not None:
                field = "parameters.event_time"
                plausible(asked.time, now=self._clock(), ahead=self._ahead, field=field)
            given = self._longest if within is None else min(within, self._longest)
            end = begun + (given if asked.within is None else min(given, asked.within))
            beside = None
            if slot.canary is not None and version is None:
                beside = await self._canary(slot.canary, slot.model, asked, end - monotonic())
            if beside is None:
                left = end - monotonic()
                outputs = await loaded.batcher.infer(asked.columns, asked.rows, within=left)
                version = loaded.target.version
            else:
                version, outputs = beside
        finally:
            loaded.give_back()
        role: Role = "champion" if beside is None else "challenger"
        sheet = self._sampled(slot, version, role, asked, outputs)
        rules = self._rules(slot.model)
        logged: Logged = "unsampled"
        if sheet is not None and rules.strict:
            logged = await self._writer.log(sheet, strict=True)
        elif sheet is not None:
            logged = self._writer.accept(sheet, rules.within)
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

    async def _canary(
        self, canary: Canary, model: str, asked: Asked, left: float
    ) -> tuple[str, Outputs] | None:
        """The challenger and its answer, if this request is one of its share and it has one."""
        if not canary.chosen(asked.id):
            return None
        if canary.resting:
            self._writer.count(model, "canary_skipped")
            return None
        outputs = await canary.infer(asked.columns, asked.rows, left)
        self._writer.count(model, "canary_failed" if outputs is None else "canary_answered")
        return None if outputs is None else (canary.version, outputs)

    def _sampled(
        self, slot: Slot, version: str, role: Role, asked: Asked, outputs: Outputs
    ) -> Sheet | None:
        """The rows of an answer that belong to the sample, counted, and a copy for a shadow."""
        model, rules = slot.model, self._rules(slot.model)
        time = asked.time or self._clock()
        wanted = None
        if rules.rate < 1:
            wanted = [kept(each, rules.rate) for each in asked.ids]
            self._writer.leave_out(model, time, rules.rate, wanted.count(False))
        self._writer.count(model, "answered", asked.rows)
        if wanted is not None and not any(wanted):
            return None
        sheet = _sheet(rules.source, model, version, role, asked, outputs, time, wanted)
        shadow = slot.shadow
        if shadow is not None:
            shadow.offer(sheet.predictions(), self._submit_shadow)
        return sheet

    def _rules(self, model: str) -> _Rules:
        found = self._known.get(model)
        if found is None:
            mine = self._settings.model(model)
            strict = mine.durability == "strict"
            # Callers number requests per model; two models may well be asked under one id.
            source = f"serving/{model}"
            found = _Rules(mine.sample_rate, strict, span(mine.commit_within), source)
            self._known[model] = found
        return found

    def _submit_shadow(self, rows: Sequence[Prediction]) -> None:
        self._writer.submit(rows, within=_COPIES_WITHIN)


def _sheet(
    source: str,
    model: str,
    version: str,
    role: Role,
    asked: Asked,
    outputs: Outputs,
    time: datetime,
    wanted: Sequence[bool] | None,
) -> Sheet:
    """The rows of an answer for the log; only the `wanted` ones where that is given."""
    ids, answers = asked.ids, {name: array.tolist() for name, array in outputs.items()}
    matrix, columns = asked.kept(wanted)
    if wanted is not None:
        ids = list(compress(ids, wanted))
        answers = {name: list(compress(each, wanted)) for name, each in answers.items()}
    names = asked.columns.names
    return Sheet(model, version, role, time, source, ids, names, matrix, columns, answers)
